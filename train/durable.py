"""Files that outlive a kill, a power cut and a full disk: whole under their name, or not there at all."""

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

WRITING = ".writing"
"""Behind the name of a file that is not complete; nothing reads one."""


class DurableIO(TorchCheckpointIO):
    """Writes checkpoints with `write`. What fails is kept in `failed` and not raised: only the first process writes,
    and the others would wait for it for ever."""

    def __init__(self) -> None:
        self.failed: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.failed = None
        try:
            write(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk takes no more
            self.failed = error


def write(content: Any, path: Path) -> None:
    """`content` as `torch.save` writes it, in the place of `path`: beside it first, renamed when it is on the disk.

    Raises:
        OSError, RuntimeError: it could not be written; what was at `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + WRITING)
    try:
        with fresh.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        _sync(path.parent)
    except BaseException:
        fresh.unlink(missing_ok=True)  # half a checkpoint would keep the disk full
        raise


def settle(path: Path) -> None:
    """Have a file, or all files of a folder, on the disk before this returns, names included."""
    for one in path.rglob("*") if path.is_dir() else ():
        _sync(one)
    _sync(path)
    _sync(path.parent)


def damage(path: Path) -> str:
    """What is wrong with a file that `write` wrote; empty if nothing is. Reads the whole file: torch itself does not
    compare checksums when it loads."""
    try:
        with zipfile.ZipFile(path) as file:
            broken = file.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return f"the checksum of `{broken}` in it is wrong" if broken else ""


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
