"""What one sees while a stage trains: one line, and warnings only."""

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageBar(pl.Callback):
    """A progress bar over optimiser steps with loss and speed."""

    def __init__(self, name: str, steps: int, *, batch_size: int, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description:<12}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:.0f} samples/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(name, total=steps, loss=float("nan"), speed=0.0)
        self._batch_size = batch_size
        self._began = (0, 0.0)
        self._last = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = (trainer.global_step, time.perf_counter())
        if trainer.is_global_zero:
            self._progress.start()
            self._progress.update(self._task, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._last:
            return
        self._last = trainer.global_step
        steps = trainer.global_step - self._began[0]
        speed = steps * self._batch_size / (time.perf_counter() - self._began[1])
        loss = float(trainer.callback_metrics.get("loss", float("nan")))
        self._progress.update(self._task, completed=trainer.global_step, loss=loss, speed=speed)

    def on_train_end(self, *_: Any) -> None:
        self._progress.stop()

    def on_exception(self, *_: Any) -> None:
        self._progress.stop()


_EXPECTED = (
    ".*does not have many workers.*",
    ".*treespec.*",
    ".*dataloader is not resumable.*",  # ours starts at the right step by itself
    ".*[Cc]heckpoint directory.*exists and is not empty.*",
    ".*find_unused_parameters=True.*",  # a batch of text alone may come later
    ".*module\\(s\\) in eval mode.*",  # the frozen ones
)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning without its hints on hardware and workers; its warnings about a run's own faults stay."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for text in _EXPECTED:
            warnings.filterwarnings("ignore", message=text)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
