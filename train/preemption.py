"""SIGTERM and SIGUSR1: a machine that is taken away says so first."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import lightning.pytorch as pl

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if name in dir(signal))
STATUS = 143
"""Exit status of a run that was asked to stop and can be continued: 128 + SIGTERM, never that of a finished one."""
SAME_REQUEST = 1.0
"""Seconds within which further signals are the same request: SLURM and torchrun each send theirs to every process."""


class Preemption(pl.Callback):
    """Notes that a signal asks the run to stop; the next one ends the process at once.

    Takes the place of Lightning's own handlers while a stage trains, which would send tensors to other processes from
    within the handler, and of its SLURM requeueing; Lightning puts back what was there before.
    """

    def __init__(self) -> None:
        self.asked = ""
        """The signal's name, once there was one."""
        self._when = 0.0
        self._launcher: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._launcher = trainer.strategy.launcher
        if threading.current_thread() is threading.main_thread():  # Python takes handlers from no other
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._when > SAME_REQUEST:
            if self._launcher is not None:
                self._launcher.kill(signal.SIGKILL)
            os._exit(STATUS)
        if not self.asked:
            self.asked, self._when = signal.Signals(number).name, time.monotonic()


class Deaf:
    """For processes that prepare data: they end with their parent, and not before its checkpoint is written.

    Args:
        then: what such a process begins with besides.
    """

    def __init__(self, then: Callable[[int], None] | None = None) -> None:
        self._then = then

    def __call__(self, worker: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self._then is not None:
            self._then(worker)
