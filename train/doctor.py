"""`vlm doctor`: proves on one's own model and data that what should change nothing changes nothing."""

import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vlm.collate import Example, Look
from vlm.data import Source
from vlm.errors import ConfigError, Problem
from vlm.llm import isolates_packed
from vlm.loading import load
from vlm.model import VLM
from vlm.parts import evaluating
from vlm.sample import Skipped

from .caching import fill
from .features import FeatureStore, key_of
from .mixture import Mixture
from .reader import Reader

ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
"""How far logits may lie apart, as a share of the largest, by the precision of the LLM."""
LOOKED_AT = 1000
"""Samples among which usable ones are looked for."""


@dataclass(frozen=True)
class Finding:
    """What one check came to."""

    name: str
    difference: float | None
    """The largest between two logits, as a share of the largest logit; None where the check does not apply."""
    allowed: float
    told: str

    @property
    def fine(self) -> bool:
        return self.difference is None or self.difference <= self.allowed


@torch.no_grad()
def examine(model: VLM, source: Source, *, samples: int = 6) -> Iterator[Finding]:
    """Every check, one after the other.

    Args:
        model: in eval mode from the first check to the last; its weights stay as they are.
        source: samples with answers, those that it is used or trained on.
        samples: how many of them.

    Raises:
        ConfigError: not so many of the samples can be used.
    """
    reader = Reader(Mixture([source], [1.0], seed=0), model.processor)
    numbers = usable(reader, samples)
    examples = [one for number in numbers if isinstance(one := reader.read(number), Example)]
    with evaluating(model):
        alone = [logits(model, [one])[0] for one in examples]
        yield _batched(model, examples, alone)
        yield _packed(model, examples, alone)
        yield _cached(model, reader, numbers, alone)
        yield _reloaded(model, examples, alone)
        yield _merged(model, examples, alone)


def table(findings: Sequence[Finding]) -> Table:
    """What the checks came to, for a terminal."""
    shown = Table()
    for heading in ("check", "", "difference", "allowed", "how"):
        shown.add_column(heading, overflow="fold")
    for one in findings:
        verdict = "[dim]–[/]" if one.difference is None else "[green]equal[/]" if one.fine else "[bold red]DIFFERS[/]"
        figures = ("", "") if one.difference is None else (f"{one.difference:.1e}", f"{one.allowed:.0e}")
        shown.add_row(one.name, verdict, *figures, one.told)
    return shown


def usable(reader: Reader, count: int) -> list[int]:
    """The first samples that can be used.

    Raises:
        ConfigError: there are not so many.
    """
    found: list[int] = []
    why = ""
    for number in range(LOOKED_AT):
        one = reader.measure(number)
        if isinstance(one, Skipped):
            why = why or one.why
        else:
            found.append(number)
        if len(found) == count:
            return found
    raise ConfigError(Problem("data", f"only {len(found)} of {LOOKED_AT} samples can be used; the first fault: {why}"))


def logits(model: VLM, examples: Sequence[Example], packs: Sequence[int] | None = None) -> list[Tensor]:
    """Logits [T, V] of each sample, computed in one batch."""
    batch = model.processor.collate(examples, packs=packs).to(model.device)
    found = model(batch, use_cache=False).logits.float().cpu()
    if batch.segments is None:
        return [row[mask.bool()] for row, mask in zip(found, batch.attention_mask.cpu(), strict=True)]
    segments = batch.segments.cpu()
    counts = packs or []
    return [found[row][segments[row] == number] for row, count in enumerate(counts) for number in range(count)]


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference, as a share of the largest logit."""
    largest = max(float(one.abs().max()) for one in wanted)
    return max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True)) / max(largest, 1e-12)


def _allowed(model: VLM) -> float:
    return ALLOWED[next(model.llm.parameters()).dtype]


def _finding(name: str, model: VLM, found: Sequence[Tensor], wanted: Sequence[Tensor], told: str) -> Finding:
    return Finding(name, apart(found, wanted), _allowed(model), told)


def _batched(model: VLM, examples: Sequence[Example], alone: Sequence[Tensor]) -> Finding:
    told = f"{len(examples)} samples in one batch, each beside itself alone"
    return _finding("batch = single", model, logits(model, examples), alone, told)


def _packed(model: VLM, examples: Sequence[Example], alone: Sequence[Tensor]) -> Finding:
    name = "packed = unpacked"
    if not isolates_packed(model.llm):
        told = f"{type(model.llm).__name__} lets samples of one row see each other: `pack` is refused for it"
        return Finding(name, None, 0.0, told)
    told = f"{len(examples)} samples in one row"
    return _finding(name, model, logits(model, examples, [len(examples)]), alone, told)


def _cached(model: VLM, reader: Reader, numbers: Sequence[int], alone: Sequence[Tensor]) -> Finding:
    name = "cached = uncached"
    if not any(reader.mixture[number].images for number in numbers):
        return Finding(name, None, 0.0, "none of the samples shows an image")
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder), next(model.llm.parameters()).dtype)
        fill(model, store, _images(reader, numbers), total=len(numbers), console=Console(quiet=True))
        reader.store = store
        examples = [one for number in numbers if isinstance(one := reader.read(number), Example)]
        reader.store = None
        told = "features of the images from disk"
        return _finding(name, model, logits(model, examples), alone, told)


def _images(reader: Reader, numbers: Sequence[int]) -> Iterator[list[tuple[str, Look]]]:
    for number in numbers:
        images = reader.mixture[number].images
        keys = [(key_of(image, len(images)), image) for image in images]
        yield [(key, reader.processor.look(image, len(images))) for key, image in keys if key is not None]


def _reloaded(model: VLM, examples: Sequence[Example], alone: Sequence[Tensor]) -> Finding:
    with tempfile.TemporaryDirectory() as folder:
        other: Any = load(model.save(Path(folder) / "model"), str(model.device))
        found = [logits(other, [one])[0] for one in examples]
    return Finding("reload = original", apart(found, alone), 1e-5, "saved and loaded again")


def _merged(model: VLM, examples: Sequence[Example], alone: Sequence[Tensor]) -> Finding:
    name = "merged = adapter"
    if not model.adapters:
        return Finding(name, None, 0.0, "the model has no adapters")
    other = deepcopy(model)
    other.merge()
    told = f"adapters of {', '.join(model.adapters)} made part of the weights"
    return _finding(name, model, [logits(other, [one])[0] for one in examples], alone, told)
