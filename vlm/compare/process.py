"""One cell of `vlm compare`, in a process of its own: `python -m vlm.compare.process FOLDER PARENT`.

A process of its own has its own peak of memory, and when the system kills it the others go on. `FOLDER/cell.json` says
what to do; `usage.json` tells, while it runs, what it has taken; `failed.json` why it could not go on.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from vlm.files import lock, write_json

TASK, USAGE, FAILED, TALLIES, LOG = "cell.json", "usage.json", "failed.json", "tallies.json", "log.txt"
BEAT = 1.0
"""Seconds between two looks at the clock, the memory and the parent."""
PATIENCE = 20
"""How many of them a process waits for another one that is at work in its folder."""


@dataclass
class Usage:
    """What a run has taken so far, over all times that it was taken up."""

    attempts: int = 0
    training: float = 0.0
    """Seconds."""
    evaluation: float = 0.0
    """Seconds."""
    memory: int = 0
    """Bytes that the process held at most; 0 where the system does not say."""
    gpu_memory: int = 0
    """Bytes that tensors held on the GPU at most."""
    finished: dict[str, Any] = field(default_factory=dict)
    """What was asked for when it came to its end; empty before."""


class Meter:
    """Keeps `usage.json` up to date from a thread, and ends the process when its parent has gone.

    Args:
        folder: of the run.
        parent: number of the process that started this one.
        writes: whether this is the process that writes, of several that train together.
    """

    def __init__(self, folder: Path, *, parent: int, writes: bool) -> None:
        self.folder = folder
        self.usage = read_usage(folder)
        self.usage.attempts += 1
        self._writes = writes
        self._phase: str | None = None
        self._since = time.perf_counter()
        self._parent = parent
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time in here counts as `training` or `evaluation`."""
        self._count()
        self._phase = name
        try:
            yield
        finally:
            self._count()
            self._phase = None
            self.write()

    def finish(self, asked: dict[str, Any]) -> None:
        """The run came to its end; empty if not to its good end."""
        self._over.set()
        self._thread.join()
        self.usage.finished = asked
        self.write()

    def write(self) -> None:
        """Put the figures on disk."""
        self._count()
        with self._lock:
            self.usage.memory = max(self.usage.memory, _memory())
            self.usage.gpu_memory = max(self.usage.gpu_memory, _gpu_memory())
            if self._writes:
                write_json(self.folder / USAGE, asdict(self.usage))

    def _count(self) -> None:
        with self._lock:
            now = time.perf_counter()
            if self._phase is not None:
                setattr(self.usage, self._phase, getattr(self.usage, self._phase) + now - self._since)
            self._since = now

    def _watch(self) -> None:
        while os.getppid() == self._parent:
            self.write()
            if self._over.wait(BEAT):
                return
        os._exit(3)  # whoever started this was killed; the same command again would meet it in the same folder


def read_usage(folder: Path) -> Usage:
    """What a run has taken so far; nothing if it was never taken up."""
    file = folder / USAGE
    return Usage(**json.loads(file.read_text(encoding="utf8"))) if file.is_file() else Usage()


def main(folder: Path, parent: int) -> int:
    """Train and evaluate what `cell.json` asks for; the exit status."""
    first = os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("NODE_RANK", "0") == "0"
    try:
        alone = _alone(folder) if first else None
    except RuntimeError as error:
        write_json(folder / FAILED, {"error": str(error), "traceback": ""})
        return 1
    meter = Meter(folder, parent=parent if first else os.getppid(), writes=first)
    task = json.loads((folder / TASK).read_text(encoding="utf8"))
    try:
        _work(folder, task, meter)
    except Exception as error:
        traceback.print_exc()
        if first:
            said = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
            write_json(folder / FAILED, said)
        meter.finish({})
        return 1
    meter.finish(task["asked"])
    del alone
    return 0


def _work(folder: Path, task: dict[str, Any], meter: Meter) -> None:
    from rich.console import Console

    from vlm import running

    import_module("vlm.eval.run")  # what takes seconds to import counts as neither
    recipe = running.check(task["recipe"])
    with meter.phase("training"):
        running.train(recipe, out=folder, console=Console(width=120))
    with meter.phase("evaluation"):
        results = running.evaluate(folder, **task["asked"])
    if results:
        import_module("vlm.eval.comparison.tallies").save_tallies(folder / TALLIES, results)


def _alone(folder: Path) -> Any:
    """A lock that holds as long as this process lives, so that no two ever train in one folder.

    Raises:
        RuntimeError: another process keeps it; one whose parent has gone ends within a second.
    """
    file = (folder / "lock").open("w")
    for _ in range(PATIENCE):
        if lock(file):
            return file
        time.sleep(BEAT)
    raise RuntimeError(f"another process is at work in {folder}")


def _memory() -> int:
    """Bytes that this process held at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _gpu_memory() -> int:
    if "torch" not in sys.modules:  # whoever trains imports it
        return 0
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
