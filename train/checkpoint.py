"""Checkpoints of a running stage, from which it continues after an interruption."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl


class Checkpoints(pl.Callback):
    """One checkpoint, renewed every few optimiser steps.

    Written beside the last one and put in its place when complete, and only between two optimiser steps: in the middle
    of accumulated micro-batches the data position would not be one that a run can start from.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder = folder
        self.every = every
        self._saved = 0

    def latest(self) -> Path | None:
        """The checkpoint of the highest step."""
        found = sorted(self.folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
        return found[-1] if found else None

    def clear(self) -> None:
        """Remove all: the stage is complete."""
        for path in self.folder.glob("*.ckpt*"):
            path.unlink()
        if self.folder.exists():
            self.folder.rmdir()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step = trainer.global_step
        if step == self._saved or step % self.every:
            return
        self._saved = step
        old, new = self.latest(), self.folder / f"step={step}.ckpt"
        trainer.save_checkpoint(new.with_suffix(".ckpt.writing"))
        if trainer.is_global_zero:
            new.with_suffix(".ckpt.writing").rename(new)
            if old is not None:
                old.unlink()
