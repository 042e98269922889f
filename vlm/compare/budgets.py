"""What training a recipe amounts to on its own data, and how many steps it gets for a budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from statistics import fmean
from typing import Any

import torch

from vlm.adapters import plain
from vlm.assembly import blueprint
from vlm.collate import Example, Look
from vlm.compare.grid import Kind
from vlm.data import DataError
from vlm.errors import ConfigError, Problem
from vlm.images import ImageError
from vlm.model import VLM
from vlm.planning.plan import look
from vlm.planning.sample import PlanSample
from vlm.planning.shadow import META
from vlm.planning.stage import StagePlanner
from vlm.processor import SampleError
from vlm.rates import settings
from vlm.recipe import DataSpec, StageSpec
from vlm.sample import Batch, Sample
from vlm.stages import enter, own_sight, sight

LOOKED_AT = 24
"""Samples of each source that a plan is made from, evenly spread over it."""


@dataclass(frozen=True)
class StageUse:
    """What one optimiser step of a stage takes."""

    name: str
    steps: int
    flops: float | None
    """Forward and backward of the step's samples; None where a model's code cannot be run without values."""
    tokens: float
    """Positions of the step's samples in the LLM's sequence, visual and text."""

    def use(self, kind: Kind) -> float | None:
        """Of one step, in a budget's units."""
        return {"steps": 1.0, "flops": self.flops, "tokens": self.tokens}[kind]


@dataclass(frozen=True)
class CellPlan:
    """What a recipe amounts to."""

    parameters: int
    """All; tied weights count once."""
    trained: int
    """Those that some stage trains."""
    tokens: float
    """Visual tokens of one image of the last stage's data."""
    positions: float
    """Of one sample of the last stage's data in the LLM's sequence, visual and text."""
    stages: tuple[StageUse, ...]
    notes: tuple[str, ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(stage.steps for stage in self.stages)

    def total(self, kind: Kind, steps: Sequence[int] | None = None) -> float | None:
        """Of the whole training, with other steps by stage if given."""
        uses = [stage.use(kind) for stage in self.stages]
        counts = self.steps if steps is None else steps
        return sum(use * count for use, count in zip(uses, counts, strict=True) if use) if None not in uses else None


def plan_cell(source: Mapping[str, Any]) -> CellPlan:
    """What training a sound recipe takes, on samples of its own data; no weight is read.

    Raises:
        ConfigError: the recipe has mistakes, or its data cannot be used.
    """
    recipe, model = blueprint({**source, "start": {}})
    own = own_sight(recipe.model, model)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    stages: list[StageUse] = []
    notes: list[str] = []
    trained: set[str] = set()
    seen: list[_Seen] = []
    for number, stage in enumerate(recipe.stages):
        enter(model, recipe, number)
        look(model, recipe, sight(stage, own))
        seen = _samples(stage, model)
        stages.append(_use(stage, model, seen, notes))
        sizes |= {plain(name): parameter.numel() for name, parameter in model.named_parameters()}
        trained |= set(map(plain, settings(model, stage)))
    images = _mean(seen, lambda one: len(one.example.looks))
    return CellPlan(
        parameters=sum(sizes.values()),
        trained=sum(size for name, size in sizes.items() if name in trained),
        tokens=_mean(seen, lambda one: one.tokens) / (images or 1),
        positions=_mean(seen, _length),
        stages=tuple(stages),
        notes=tuple(dict.fromkeys(notes)),
    )


def scaled(plan: CellPlan, kind: Kind, amount: float) -> list[int]:
    """Steps by stage that use up a budget: all stages by one factor, the rest of it in the longest stage.

    What they come to differs from `amount` by half a step of that stage at most, unless a budget is so small that a
    stage has no step left: each gets one.

    Raises:
        ConfigError: what a step takes is not known.
    """
    uses = [stage.use(kind) for stage in plan.stages]
    if any(use is None for use in uses):
        raise ConfigError(f"what a step takes in {kind} is not known: {'; '.join(plan.notes)}")
    known = [use or 0.0 for use in uses]
    total = plan.total(kind) or 0.0
    factor = amount / total if total else 1.0
    steps = [max(1, round(factor * stage.steps)) for stage in plan.stages]
    longest = max(range(len(steps)), key=lambda number: steps[number] * known[number])
    others = sum(use * count for number, (use, count) in enumerate(zip(known, steps, strict=True)) if number != longest)
    steps[longest] = max(1, round((amount - others) / known[longest])) if known[longest] else steps[longest]
    return steps


@dataclass(frozen=True)
class _Seen:
    """One sample of a stage's data as its model sees it."""

    example: Example
    share: float
    """Of the stage's samples."""
    tokens: int
    """Visual tokens of all its images."""


def _samples(stage: StageSpec, model: VLM) -> list[_Seen]:
    """Samples from all over the stage's data; those that the model cannot take are passed over."""
    found: list[_Seen] = []
    for sample, share in _drawn(json.dumps([source.model_dump(mode="json") for source in stage.data])):
        try:
            example = model.processor.encode(sample)
        except (ImageError, SampleError):
            continue
        plans = [one.plan for one in example.looks]
        tokens = sum(model.processor.tokens(*plan.size, images=len(plans)) for plan in plans)
        found.append(_Seen(example, share, tokens))
    if not found:
        raise ConfigError(Problem(f"stages.{stage.name}.data", "none of the samples looked at can be used"))
    return found


@lru_cache(maxsize=16)
def _drawn(data: str) -> list[tuple[Sample, float]]:
    """A few samples of each source of a mixture, evenly spread over it, each with its share of the mixture."""
    specs = [DataSpec.model_validate(spec) for spec in json.loads(data)]
    weights = sum(spec.weight for spec in specs)
    found: list[tuple[Sample, float]] = []
    for spec, source in zip(specs, import_module("vlm.train.mixture").open_sources(specs), strict=True):
        count = min(LOOKED_AT, len(source))
        for number in range(count):
            with suppress(DataError):  # training will say what is wrong with it
                found.append((source[number * len(source) // count], spec.weight / weights / count))
    return found


def _use(stage: StageSpec, model: VLM, seen: list[_Seen], notes: list[str]) -> StageUse:
    tokens = _mean(seen, _length) * stage.batch_size
    flops: float | None = 0.0
    for group in _alike(seen):
        middle = sorted(group, key=_length)[(len(group) - 1) // 2]
        sample = _DataSample.of(middle, model)
        try:
            cost = StagePlanner(model, sample, sample, 1).cost(stage.model_copy(update={"micro_batch_size": 1}))
            notes += cost.notes
            share = sum(one.share for one in group) / sum(one.share for one in seen)
            flops = None if flops is None else flops + cost.sample_flops * share
        except ConfigError:
            raise
        except Exception as error:  # a model's code may ask for values, and there are none
            notes.append(f"stage {stage.name} does not run without values ({type(error).__name__}: {error})"[:300])
            flops = None
    return StageUse(stage.name, stage.steps, None if flops is None else flops * stage.batch_size, tokens)


def _length(one: _Seen) -> int:
    """Positions in the LLM's sequence."""
    return len(one.example.input_ids)


def _mean(seen: list[_Seen], value: Callable[[_Seen], float]) -> float:
    return fmean(map(value, seen), [one.share for one in seen])


def _alike(seen: list[_Seen]) -> list[list[_Seen]]:
    """Samples by their numbers of images: text alone does not pass through the encoder."""
    groups: dict[int, list[_Seen]] = {}
    for one in seen:
        groups.setdefault(len(one.example.looks), []).append(one)
    return list(groups.values())


@dataclass(frozen=True)
class _DataSample(PlanSample):
    """A real sample without its pixels, in place of one made up."""

    example: Example | None = field(default=None, compare=False)

    @classmethod
    def of(cls, seen: _Seen, model: VLM) -> "_DataSample":
        example = seen.example
        looks = [
            Look(one.plan, [[torch.empty_like(pixels, device=META) for pixels in views] for views in one.pixels])
            for one in example.looks
        ]
        size = looks[0].plan.size if looks else (0, 0)
        text = int((example.owner < 0).sum())
        shown = replace(example, looks=looks)
        return cls("data", len(looks), size, seen.tokens, text, len(example.input_ids), shown)

    def batch(self, model: VLM, size: int = 1) -> Batch:
        return model.processor.collate([self.example] * size if self.example else [])
