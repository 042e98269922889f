"""Starts the processes that train and evaluate the cells of a grid, and says how each ended."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.compare.cells import Cell, Prepared
from vlm.compare.process import FAILED, LOG, TALLIES, TASK, read_usage
from vlm.files import write_json

LOOK = 0.1
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Job:
    """A run folder and what is to be done in it."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    asked: Mapping[str, Any]
    """Keywords of `vlm.running.evaluate`."""
    needs: tuple[str, ...] = ()
    """Names of the jobs that must be done before."""

    @property
    def done(self) -> bool:
        """Whether it came to its end, with just these tasks."""
        usage = read_usage(self.folder)
        scored = not self.asked["tasks"] or (self.folder / TALLIES).is_file()
        return usage.finished == dict(self.asked) and scored

    @property
    def error(self) -> str | None:
        """Why it could not go on when it was tried last."""
        file = self.folder / FAILED
        return str(json.loads(file.read_text(encoding="utf8"))["error"]) if file.is_file() else None


def job(one: Cell | Prepared, recipe: Mapping[str, Any], **options: Any) -> Job:
    """What a cell comes to; its tasks stand apart from the recipe, so that other tasks do not make it another run.

    Args:
        one: the cell.
        recipe: with the steps that its budget gives it.
        options: further keywords of `vlm.running.evaluate`.
    """
    asked = {"tasks": list(recipe.get("eval", [])), **options}
    return Job(one.name, one.folder, {**recipe, "eval": []}, asked, one.needs)


def run_jobs(
    jobs: Sequence[Job], *, at_once: int, ended: Callable[[Job], None], tick: Callable[[Sequence[Job]], None]
) -> None:
    """Run what is not done yet, each after what it needs; a job that fails stops only those that need it.

    Args:
        jobs: in the order in which they begin.
        at_once: processes at a time; each gets its share of the cores.
        ended: called with each job that has ended, well or not.
        tick: called again and again with the jobs that run.
    """
    by_name = {one.name: one for one in jobs}
    waiting = [one for one in jobs if not one.done]
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            for one in list(waiting):
                lost = [
                    name
                    for name in one.needs
                    if by_name[name] not in waiting and name not in running and not by_name[name].done
                ]
                if lost:
                    waiting.remove(one)
                    _fail(one, f"`{lost[0]}`, which it starts from, could not be trained")
                    ended(one)
                elif len(running) < at_once and all(by_name[name].done for name in one.needs):
                    waiting.remove(one)
                    running[one.name] = _start(one, at_once)
            tick([by_name[name] for name in running])
            time.sleep(LOOK)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                _end(by_name[name], running.pop(name).returncode)
                ended(by_name[name])
    finally:
        for process in running.values():
            _kill(process)


def _start(one: Job, at_once: int) -> subprocess.Popen[bytes]:
    one.folder.mkdir(parents=True, exist_ok=True)
    (one.folder / FAILED).unlink(missing_ok=True)
    write_json(one.folder / TASK, {"recipe": one.recipe, "asked": one.asked})
    here = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    if at_once > 1:
        here |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    with (one.folder / LOG).open("ab") as log:
        command = [sys.executable, "-m", "vlm.compare.process", str(one.folder), str(os.getpid())]
        return subprocess.Popen(
            command, env=here, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _end(one: Job, status: int) -> None:
    """Note a failure that the process could not note itself."""
    if status == 0 and one.done:
        return
    if status < 0:
        held = read_usage(one.folder).memory
        memory = f" when it held {held / 2**30:.2f} GiB; perhaps there was no more" if -status == signal.SIGKILL else ""
        _fail(one, f"killed by {signal.Signals(-status).name}{memory}")
    elif one.error is None:
        _fail(one, f"ended with status {status} and said nothing; see {one.folder / LOG}")


def _fail(one: Job, error: str) -> None:
    one.folder.mkdir(parents=True, exist_ok=True)
    write_json(one.folder / FAILED, {"error": error, "traceback": ""})


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With the processes that prepare its data."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if os.name == "posix" else process.kill()
    process.wait()
