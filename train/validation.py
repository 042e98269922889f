"""A look at held-out data while a stage trains, which changes nothing of the training."""

import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from vlm.collate import Example
from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem
from vlm.files import replacing
from vlm.images import ImageError
from vlm.model import VLM
from vlm.parts import evaluating
from vlm.recipe import StageSpec, ValidationSpec
from vlm.sample import Batch

from . import rng
from .mixture import open_sources
from .strategies import gathered, is_sharded

Ask = Callable[[VLM, Sequence[str], Path, int, int], dict[str, float]]
"""Model, tasks, folder for the answers, questions of each task, questions at a time -> score by task. Given by who
knows the eval wing; this one does not."""
LOSS = "val_loss"


@dataclass(frozen=True)
class Shares:
    """Which part of the work is this process's."""

    rank: int
    world: int
    together: bool
    """No process has the whole model: all do all of the work, side by side."""


class Validation(pl.Callback):
    """Every few optimiser steps, and after the last: the mean loss on the user's own samples, and scores of tasks.

    Random states and modes are afterwards what they were. Figures go to `validation.jsonl`, from where `metrics.csv`
    has them, and to the loggers but for the one that writes `metrics.csv`'s rows; answers to `validation/step=N`.

    Args:
        spec: what is looked at.
        stage: whose training it accompanies.
        folder: of the stage.
        size: samples of one forward pass.
        ask: asks the tasks.

    Raises:
        ConfigError: there are tasks and nothing to ask them with.
    """

    def __init__(self, spec: ValidationSpec, stage: StageSpec, folder: Path, *, size: int, ask: Ask | None) -> None:
        if spec.tasks and ask is None:
            raise ConfigError(Problem("validation.tasks", "nothing was handed in to ask them with; use `vlm train`"))
        self.spec = spec
        self.stage = stage
        self.folder = folder
        self.size = size
        self._ask = ask
        self._seen = 0
        self._faults: dict[int, str] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        if step % self.spec.every == 0 or step == self.stage.steps:
            figures = self._look(trainer, pl_module, step)
            if trainer.is_global_zero:
                self._note(trainer, step - 1, figures)

    def _look(self, trainer: pl.Trainer, module: Any, step: int) -> dict[str, float]:
        share = Shares(trainer.global_rank, trainer.world_size, is_sharded(trainer))
        figures: dict[str, float] = {}
        autocast = trainer.strategy.precision_plugin.val_step_context()
        with rng.kept(), torch.no_grad(), evaluating(module), autocast, gathered(trainer):
            if self.spec.data:
                figures[LOSS] = self._loss(trainer, module, share)
            if self.spec.tasks and (share.together or share.rank == 0):
                figures |= self._scores(module.vlm, share, self.folder / "validation" / f"step={step}")
        trainer.strategy.barrier("validated")
        return figures

    def _loss(self, trainer: pl.Trainer, module: Any, share: Shares) -> float:
        """The mean over all terms, as in training."""
        total, count = torch.zeros((), device=module.device), 0
        for number, batch in enumerate(self._batches(module.vlm)):
            if share.together or number % share.world == share.rank:
                loss = module.objective(module.vlm, batch.to(module.device))
                total, count = total + loss.total.float(), count + loss.count
        sums = torch.stack([total, torch.tensor(float(count), device=total.device)])
        if share.world > 1 and not share.together:
            sums = trainer.strategy.reduce(sums, reduce_op="sum")
        total, terms = sums.tolist()
        return total / terms if terms else float("nan")

    def _batches(self, model: VLM) -> Iterator[Batch]:
        sources = open_sources(self.spec.data)
        places = [(source, index) for source in sources for index in range(min(len(source), self.spec.limit))]
        if self._faults is None:
            self._faults = {}
        for first in range(0, len(places), self.size):
            numbers = range(first, min(first + self.size, len(places)))
            found = [one for number in numbers if (one := self._example(model, number, *places[number])) is not None]
            if found:
                yield model.processor.collate(found)

    def _example(self, model: VLM, number: int, source: Source, index: int) -> Example | None:
        """None for a sample that cannot be used, which is named once."""
        try:
            return model.processor.encode(source[index])
        except (DataError, ImageError, ValueError) as error:
            if self._faults is not None and number not in self._faults:
                self._faults[number] = str(error)
                warnings.warn(f"validation leaves a sample out each time: {error}", stacklevel=2)
            return None

    def _scores(self, model: VLM, share: Shares, folder: Path) -> dict[str, float]:
        """What was answered before an interruption is asked again, so that all processes ask the same."""
        assert self._ask is not None
        if share.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
            return self._ask(model, self.spec.tasks, folder, self.spec.limit, self.size)
        with tempfile.TemporaryDirectory() as own:
            return self._ask(model, self.spec.tasks, Path(own), self.spec.limit, self.size)

    def _note(self, trainer: pl.Trainer, step: int, figures: dict[str, float]) -> None:
        file = self.folder / "validation.jsonl"
        rows = {**read(file), step: figures}
        with replacing(file) as fresh:
            fresh.writelines(json.dumps({"step": at, **rows[at]}) + "\n" for at in sorted(rows))
        for logger in trainer.loggers:
            if not isinstance(logger, pl.loggers.CSVLogger):
                logger.log_metrics(figures, step=step)


def read(file: Path) -> dict[int, dict[str, float]]:
    """What `validation.jsonl` has: step -> figures."""
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text(encoding="utf8").splitlines()]
    return {row.pop("step"): row for row in rows}
