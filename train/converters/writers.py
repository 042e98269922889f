"""Rows to JSON lines, or to tar shards with their images."""

import io
import json
import os
import tarfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from vlm.errors import ConfigError, Problem


class Writer(ABC):
    """Takes rows; what it writes has its name once the block ends without an error, and is gone if it ends with one."""

    def __enter__(self) -> "Writer":
        return self

    @abstractmethod
    def write(self, row: dict[str, Any], image: str) -> None:
        """One row more, whose image is that file."""

    @abstractmethod
    def close(self) -> None:
        """Give the last file its name."""

    @abstractmethod
    def abandon(self) -> None:
        """Remove the last file, which is not complete."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()


class Lines(Writer):
    """A JSON lines file. Images below its folder are named from there, others by their whole path.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fresh = path.with_name(path.name + ".writing")
        self._file: IO[str] = self._fresh.open("w", encoding="utf8", newline="\n")

    def write(self, row: dict[str, Any], image: str) -> None:
        place, folder = os.path.abspath(image), os.path.abspath(self._path.parent)
        inside = place.startswith(folder + os.sep)
        named = {**row, "image": os.path.relpath(place, folder) if inside else place}
        self._file.write(json.dumps(named, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()
        self._fresh.replace(self._path)

    def abandon(self) -> None:
        self._file.close()
        self._fresh.unlink()


class Shards(Writer):
    """Tar shards `NAME-000000.tar`, ... in which image and row of a sample share a stem; images keep their bytes.

    Args:
        path: `folder/NAME.tar`, from which the shards have their names.
        size: samples of a shard.

    Raises:
        ConfigError: shards of that name are there already, some of which would stay.
    """

    def __init__(self, path: Path, size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._size, self._count = path, size, 0
        self._shard: tarfile.TarFile | None = None
        old = sorted(path.parent.glob(f"{path.stem}-[0-9]*.tar"))
        if old:
            raise ConfigError(
                Problem("out", f"`{old[0]}` is there already; remove the old shards or take another name")
            )

    def write(self, row: dict[str, Any], image: str) -> None:
        if self._shard is None or self._count % self._size == 0:
            self.close()
            self._shard = tarfile.open(self._fresh(), "w")  # noqa: SIM115
        stem = f"{self._count:09d}"
        _add(self._shard, stem + Path(image).suffix.lower(), Path(image).read_bytes())
        _add(self._shard, f"{stem}.json", json.dumps(row, ensure_ascii=False).encode("utf8", "backslashreplace"))
        self._count += 1

    def close(self) -> None:
        if self._shard is not None:
            fresh = Path(str(self._shard.name))
            self._shard.close()
            fresh.replace(fresh.with_suffix(""))
            self._shard = None

    def abandon(self) -> None:
        if self._shard is not None:
            self._shard.close()
            Path(str(self._shard.name)).unlink()

    def _fresh(self) -> Path:
        number = self._count // self._size
        return self._path.with_name(f"{self._path.stem}-{number:06d}.tar.writing")


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # of no owner and no time: the same data makes the same shard
    info.size = len(content)
    shard.addfile(info, io.BytesIO(content))
