"""Checkpoints of a running stage, from which it continues after an interruption."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only

from vlm.errors import Interrupted, TrainingError
from vlm.recipe import StageSpec

from .durable import WRITING, DurableIO, damage
from .preemption import STATUS, Preemption


class CheckpointError(RuntimeError):
    """There are checkpoints and none of them can be read."""


class Checkpoints(pl.Callback):
    """The last few checkpoints, a new one every few optimiser steps or minutes, and one when a signal asks the run to
    stop.

    A new one is complete on the disk before an old one goes. Where it cannot be written (a full disk) the run goes on
    and says so: to stop would throw away for certain what has been trained since the last one. Written only between two
    optimiser steps: in the middle of accumulated micro-batches the data position would not be one to start from.

    Args:
        folder: where they lie.
        every: optimiser steps between two.
        minutes: or so many minutes, whichever comes first.
        keep: how many.
        preemption: says when the run is to stop.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        *,
        minutes: float | None = None,
        keep: int = 2,
        preemption: Preemption | None = None,
    ) -> None:
        self.folder = folder
        self.every = every
        self.stopped = False
        """Whether the run was asked to stop, and did."""
        self._seconds = float("inf") if minutes is None else 60 * minutes
        self._keep = keep
        self._preemption = preemption or Preemption()
        self._seen = 0
        self._last = 0.0
        self._good: Path | None = None

    @classmethod
    def of(cls, stage: StageSpec, folder: Path, preemption: Preemption) -> "Checkpoints":
        """As a stage says."""
        kept: dict[str, Any] = {"minutes": stage.checkpoint_minutes, "keep": stage.checkpoint_keep}
        return cls(folder, stage.checkpoint_every, **kept, preemption=preemption)

    def latest(self) -> Path | None:
        """The undamaged checkpoint of the highest step; damaged ones are named in a warning.

        Raises:
            CheckpointError: all are damaged.
        """
        found = sorted(self.folder.glob("step=*.ckpt"), key=_step, reverse=True)
        for path in found:
            reason = damage(path)
            if not reason:
                self._good = path
                return path
            warnings.warn(f"checkpoint {path} is damaged ({reason}); the one before is taken", stacklevel=2)
        if found:
            raise CheckpointError(
                f"every checkpoint in {self.folder} is damaged: {', '.join(path.name for path in reversed(found))}; "
                "nothing is begun anew in silence: delete the folder to begin the stage again"
            )
        return None

    def describe(self) -> str:
        """Where a run would go on from."""
        if self._good is None:
            return "there is no checkpoint of this stage yet"
        return f"the last good checkpoint is {self._good}, after step {_step(self._good)}"

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """A stage that was asked to stop, or cannot go on, says where it would go on from; of several processes the
        first one speaks.

        Raises:
            Interrupted: it was asked to stop.
        """
        try:
            yield
            if self.stopped:
                raise Interrupted(f"stopped as asked; {self.describe()}; the same command again goes on", STATUS)
        except (Interrupted, TrainingError) as error:
            if getattr(rank_zero_only, "rank", 0) != 0:
                raise SystemExit(STATUS if isinstance(error, Interrupted) else 2) from error
            if isinstance(error, Interrupted):
                raise
            raise TrainingError(f"{error}; {self.describe()}") from error

    def clear(self) -> None:
        """Remove all: the stage is complete."""
        for path in self.folder.glob("*.ckpt*"):
            path.unlink()
        if self.folder.exists():
            self.folder.rmdir()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seen, self._last = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            for half in self.folder.glob(f"*{WRITING}"):  # of a process that was killed while it wrote
                half.unlink()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self._seen:
            return
        self._seen = step
        due, stop = self._agreed(trainer, step)
        if due or stop:
            self._save(trainer, self.folder / f"step={step}.ckpt")
        if stop:
            self.stopped = trainer.should_stop = True

    def _agreed(self, trainer: pl.Trainer, step: int) -> tuple[bool, bool]:
        """Whether to save and whether to stop: the same for all processes, whose clocks and signals differ."""
        late = trainer.is_global_zero and time.monotonic() - self._last >= self._seconds
        wishes = [step % self.every == 0 or late, bool(self._preemption.asked)]
        if trainer.world_size > 1:
            flags = torch.tensor([float(wish) for wish in wishes], device=trainer.strategy.root_device)
            wishes = [flag > 0 for flag in trainer.strategy.reduce(flags, reduce_op="sum").tolist()]
        return wishes[0], wishes[1]

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        self._last = time.monotonic()
        trainer.save_checkpoint(path)
        if not trainer.is_global_zero:
            return
        writer: Any = trainer.strategy.checkpoint_io
        if isinstance(writer, DurableIO) and writer.failed is not None:
            lost = f"checkpoint {path} could not be written ({writer.failed}); the run goes on and tries again"
            warnings.warn(f"{lost}; {self.describe()}", stacklevel=2)
            return
        self._good = path
        for old in sorted(self.folder.glob("step=*.ckpt"), key=lambda one: one.stat().st_mtime_ns)[: -self._keep]:
            old.unlink()


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step="))
