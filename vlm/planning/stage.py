"""What one stage of a recipe costs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

import torch

from vlm import registry
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.parts import matches
from vlm.planning.costs import Flops, stage_costs
from vlm.planning.memory import STRATEGIES, Memory
from vlm.planning.precision import WHOLE
from vlm.planning.sample import PlanSample
from vlm.rates import Setting, settings
from vlm.recipe import PartSpec, StageSpec
from vlm.sample import Batch
from vlm.schema import construct
from vlm.weights import planning

ON_GPU = "bf16-mixed"
"""What `precision: auto` comes to on a GPU."""


@dataclass(frozen=True)
class StageCost:
    """Of one stage on so many devices."""

    precision: str
    dtypes: list[str]
    """Of the weights, the most numerous first."""
    micro_batch: int
    """Samples of one forward pass on one device."""
    batch: int
    """Samples of one optimiser step."""
    steps: int
    flops: Flops
    """Of one sample, the middle one."""
    memory: Memory
    """Of one device that holds everything itself, with the largest sample."""
    devices: int
    notes: list[str] = field(default_factory=list)

    @property
    def sample_flops(self) -> int:
        """Forward and backward."""
        return self.flops.forward + self.flops.backward

    @property
    def stage_flops(self) -> int:
        """All samples of the stage."""
        return self.sample_flops * self.batch * self.steps

    def per_device(self) -> dict[str, dict[str, int]]:
        """By strategy the most bytes that one device holds, without and with checkpointing."""
        spread = {name: share(self.memory, self.devices) for name, share in STRATEGIES.items()}
        return {
            name: {"plain": memory.total(), "checkpointed": memory.total(checkpointing=True)}
            for name, memory in spread.items()
        }


class StagePlanner:
    """Costs of stages of one model.

    Args:
        model: on the meta device.
        middle: the sample whose FLOPs are counted.
        largest: the sample whose memory is counted.
        devices: over which a batch is spread.
    """

    def __init__(self, model: VLM, middle: PlanSample, largest: PlanSample, devices: int) -> None:
        self.model = model
        self.middle = middle
        self.largest = largest
        self.devices = devices

    def cost(self, stage: StageSpec) -> StageCost:
        """
        Raises:
            ConfigError: the batch cannot be spread over so many devices.
        """
        micro = import_module("vlm.train.batches").micro_batch(stage, self.devices)
        notes: list[str] = []
        flops, memory = self._run(stage, self.largest, micro, notes)
        if self.middle != self.largest:
            flops, _ = self._run(stage, self.middle, 1, notes)
        return StageCost(
            precision=_precision(stage),
            dtypes=_dtypes(self.model, _precision(stage)),
            micro_batch=micro,
            batch=stage.batch_size,
            steps=stage.steps,
            flops=flops,
            memory=memory,
            devices=self.devices,
            notes=list(dict.fromkeys(notes)),
        )

    def _run(self, stage: StageSpec, sample: PlanSample, size: int, notes: list[str]) -> tuple[Flops, Memory]:
        batch = sample.batch(self.model, size)
        problem: ConfigError | None = None
        for targets in (dict[str, torch.Tensor], lambda: _targets(stage, size)):
            try:
                batch.targets = targets()
                return self._costs(stage, stage.objective, batch, notes)
            except ConfigError as error:  # it wants classes to learn, and only the data has them
                problem = error
        notes.append(f"stage {stage.name} is counted as language_modelling, since {problem}")
        return self._costs(stage, PartSpec(name="language_modelling"), batch, notes)

    def _costs(self, stage: StageSpec, objective: PartSpec, batch: Batch, notes: list[str]) -> tuple[Flops, Memory]:
        facts = import_module("vlm.train.objectives").facts(self.model)
        with planning():
            built = construct(registry.objectives, objective, facts)
        own = [f"objective.{name}" for name, _ in built.named_parameters()]
        names = [*(name for name, _ in self.model.named_parameters()), *own]
        train = {key: rate for key, rate in stage.train.items() if _means_something(key, names)}
        found = settings(self.model, stage.model_copy(update={"train": train}), own)
        rates = {name: setting.lr for name, setting in found.items()}
        if built.compares:
            batch = replace(batch, rejected=replace(batch, groups=[]))
        footprint = partial(self._footprint, stage, built, found, notes)
        return stage_costs(self.model, built, batch, rates=rates, precision=_precision(stage), footprint=footprint)

    def _footprint(
        self, stage: StageSpec, objective: Any, found: Mapping[str, Setting], notes: list[str]
    ) -> tuple[int, int] | None:
        """What the stage's optimiser keeps, and takes for a step; None for one that asks for values: there are none."""
        groups = import_module("vlm.train.groups")
        optimiser = construct(registry.optimisers, stage.optimiser, {"betas": stage.betas})
        named = dict(self.model.named_parameters())
        named |= {f"objective.{name}": parameter for name, parameter in objective.named_parameters()}
        kinds = groups.kinds(self.model, objective)
        try:
            size: tuple[int, int] = optimiser.footprint(groups.parameter_groups(named, found, kinds))
        except ConfigError:
            raise
        except Exception as error:  # of any library
            name, why = stage.optimiser.name, " ".join(f"{type(error).__name__}: {error}".split())[:200]
            notes.append(f"the state of `{name}` is counted as AdamW's, since it does not step without values ({why})")
            return None
        return size


def _means_something(key: str, names: list[str]) -> bool:
    """An objective that another stands in for takes its parameters away."""
    return any(matches(key, name) for name in names)


def _precision(stage: StageSpec) -> str:
    return ON_GPU if stage.precision == "auto" else stage.precision


def _dtypes(model: VLM, precision: str) -> list[str]:
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        counts[str(WHOLE.get(precision, parameter.dtype)).removeprefix("torch.")] += parameter.numel()
    return [dtype for dtype, _ in counts.most_common()]


def _targets(stage: StageSpec, size: int) -> dict[str, torch.Tensor]:
    """Those of the data's first sample."""
    first: Any = import_module("vlm.train.mixture").open_sources(stage.data)[0][0]
    return {name: torch.tensor([classes] * size) for name, classes in first.targets.items()}
