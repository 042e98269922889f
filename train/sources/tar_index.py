"""Where each file of a tar shard stands. Only headers are read, once; the index is kept in a file and mapped."""

import hashlib
import json
import logging
import os
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import ConfigError

from .shards import Stamp, opened_system, stamp_of

_KIND = "vlm-kit tar index 1"
_BLOCK = tarfile.BLOCKSIZE
_PADDING = 2 * tarfile.RECORDSIZE
"""Bytes of zeros that programs fill an archive up with, at most."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A file in a shard."""

    name: str
    start: int
    """Of its first byte in the shard."""
    size: int
    """In bytes."""


@dataclass
class Head:
    """What stands in an index file's first line."""

    kind: str
    stamp: Stamp
    samples: int
    members: int
    longest: int
    """Bytes of the longest name."""
    faults: dict[int, str] = field(default_factory=dict)
    """Sample -> what is wrong with its files."""

    def row(self) -> np.dtype[Any]:
        """Of the table behind the line: a row for each member, those of a sample together."""
        return np.dtype([("sample", "<i4"), ("start", "<i8"), ("size", "<i8"), ("name", f"S{max(1, self.longest)}")])


class ShardIndex:
    """The samples of a shard by number, in the order of their first files.

    Args:
        url: the shard.
        head: its counts and faults.
        source: the index file, or the table itself where no file could be written.
    """

    def __init__(self, url: str, head: Head, source: "Path | np.ndarray[Any, Any]") -> None:
        self.url, self.head, self._source = url, head, source

    def __len__(self) -> int:
        return self.head.samples

    def members(self, sample: int) -> list[Member]:
        """The files of a sample, in the order of the shard."""
        table = _mapped(self._source) if isinstance(self._source, Path) else self._source
        numbers = table["sample"]  # a view: numpy's own search would copy the whole column
        first = bisect_left(numbers, sample)
        rows = table[first : bisect_left(numbers, sample + 1, lo=first)]
        return [Member(row["name"].decode(), int(row["start"]), int(row["size"])) for row in rows]


def open_index(url: str, folder: Path | None = None) -> ShardIndex:
    """The index of a shard: from its file where that is of the shard's present size and time, else made anew.

    Args:
        url: the shard.
        folder: where index files are kept. If None, beside the shard, or in the user's cache where that is no
            folder of this machine or cannot be written to.

    Raises:
        ConfigError: the shard is not there, is compressed, or is no tar file.
    """
    stamp = stamp_of(url)
    places = [folder / _cache_name(url)] if folder is not None else _places(url)
    for path in places:
        head = _head(path)
        if head is not None and head.stamp == stamp:
            return ShardIndex(url, head, path)
    head, table = _scanned(url, stamp)
    for path in places:
        if _write(path, head, table):
            return ShardIndex(url, head, path)
    return ShardIndex(url, head, table)


def split_name(name: str) -> tuple[str, str]:
    """(stem, suffix) of a file: what stands before and behind the first dot of its name; no stem for hidden files."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, suffix = base.partition(".")
    return (folder + slash + stem if stem and suffix else ""), suffix.lower()


def _places(url: str) -> list[Path]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm-kit" / "tar" / _cache_name(url)
    return [cache] if "://" in url else [Path(url + ".index"), cache]


def _cache_name(url: str) -> str:
    place = url if "://" in url else os.path.abspath(url)
    return f"{os.path.basename(url)}-{hashlib.sha256(place.encode()).hexdigest()[:16]}.index"


def _head(path: Path) -> Head | None:
    """The first line of an index file; None if there is none, or it is of another kind or not complete."""
    try:
        with path.open("rb") as file:
            line = file.readline(1 << 24)
            told = json.loads(line)
            stamp, faults = Stamp(**told.pop("stamp")), {int(key): text for key, text in told.pop("faults").items()}
            head = Head(**told, stamp=stamp, faults=faults)
            complete = path.stat().st_size == len(line) + head.members * head.row().itemsize
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return head if head.kind == _KIND and complete else None


def _write(path: Path, head: Head, table: "np.ndarray[Any, Any]") -> bool:
    """Whether it could be written; other processes see the old file or the whole new one."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            file.write(json.dumps(asdict(head)).encode() + b"\n")
            file.write(table.tobytes())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True) if fresh.parent.is_dir() else None
        return False
    return True


@lru_cache(maxsize=1024)
def _mapped(path: Path) -> "np.ndarray[Any, Any]":
    head = _head(path)
    if head is None:
        raise ConfigError(f"`{path}` was changed while it was used")
    with path.open("rb") as file:
        start = len(file.readline())
    return np.memmap(path, dtype=head.row(), mode="r", offset=start, shape=(head.members,)).view(np.ndarray)


def _scanned(url: str, stamp: Stamp) -> tuple[Head, "np.ndarray[Any, Any]"]:
    """The table of a shard, from its headers."""
    samples: dict[str, int] = {}
    found: list[tuple[int, int, int, bytes]] = []
    seen: set[bytes] = set()
    faults: dict[int, str] = {}
    for member, fault in _members(url, stamp.size):
        stem, _ = split_name(member.name)
        if not stem:
            continue
        number = samples.setdefault(stem, len(samples))
        name = member.name.encode("utf8", "surrogateescape")
        if name in seen:
            fault = fault or f"`{member.name}` stands twice"
        seen.add(name)
        if fault:
            faults.setdefault(number, fault)
        found.append((number, member.start, member.size, name))
    if cut := [text for text in faults.values() if "cut off" in text]:
        _log.warning("%s: %s; samples behind it are lost", url, cut[0])
    head = Head(_KIND, stamp, len(samples), len(found), max((len(row[3]) for row in found), default=1), faults)
    table = np.array(found, dtype=head.row())
    return head, table[np.argsort(table["sample"], kind="stable")]


def _members(url: str, size: int) -> Iterator[tuple[Member, str]]:
    """Every file of a shard, and what is wrong with it. The last one of a shard that has no end bears the blame."""
    system, path = opened_system(url)
    with system.open(path, "rb") as stream, _archive(url, stream) as archive:
        last: Member | None = None
        while (item := _next(archive)) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
            if item.isdir():
                continue
            if last is not None:
                yield last, ""
            last = Member(item.name, item.offset_data, item.size)
            if not item.isreg() or item.issparse():
                yield last, f"`{item.name}` is a link or a special file, not a file"
                last = None
            elif item.offset_data + item.size > size:
                held = max(0, size - item.offset_data)
                yield last, f"the shard is cut off inside `{item.name}`, at {held} of {item.size} bytes"
                return
        if last is not None:
            fault = _end(stream, archive.offset, size)
            yield last, fault and f"the shard {fault} behind `{last.name}`, whose stem may have lost files"


def _archive(url: str, stream: Any) -> tarfile.TarFile:
    if stream.read(6)[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise ConfigError(f"`{url}` is compressed, and files in it cannot be read by their places: decompress it")
    stream.seek(0)
    try:
        return tarfile.open(fileobj=stream, mode="r:")
    except tarfile.TarError as error:
        raise ConfigError(f"`{url}` is no tar file: {error}") from error


def _next(archive: tarfile.TarFile) -> tarfile.TarInfo | None:
    """The next header; None at the end, and where there is none that can be read."""
    try:
        return archive.next()
    except (tarfile.TarError, ValueError, EOFError):
        return None


def _end(stream: Any, offset: int, size: int) -> str:
    """What is wrong with the end of an archive; nothing if a block of zeros closes it."""
    stream.seek(offset)
    block = stream.read(_BLOCK)
    if block == bytes(_BLOCK):
        return f"goes on for {size - offset} bytes behind its end mark," if size - offset > _PADDING else ""
    return f"is cut off or damaged at byte {offset},"
