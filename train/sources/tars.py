"""WebDataset shards: tar files in which the files of a sample share a stem."""

import json
import re
from array import array
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

from vlm.data import FORMS, DataError, Source, id_of, images_of, sample_of
from vlm.errors import ConfigError, Problem
from vlm.images import IMAGE_SUFFIXES
from vlm.sample import Sample

from .shards import find_shards, read_range
from .tar_index import Member, ShardIndex, open_index, split_name

_TEXTS = ("json", "txt")
_DIGITS = re.compile(r"(\d+)")
_GAP = 1 << 16
"""Bytes between two files of a sample that are rather read over than asked for by themselves."""


class Tars(Source):
    """Tar shards, of which a sample is the files of one stem (what stands before the first dot): `a.jpg` with `a.json`,
    a row in one of the forms of `JsonSource`, or with `a.txt`, a caption. Several pictures are `a.0.jpg`, `a.1.jpg`.

    Samples are read by their places, in any order; nothing is unpacked to disk, and nothing is unpickled. An index of
    the places is made when a shard is first opened, and kept. Files of other kinds are passed over.

    Args:
        path: shards, as `shards/{000..127}.tar`, `shards/*.tar`, or an address that fsspec knows (`s3://...`); or a
            list of them.
        index: the folder for index files. If empty they stand beside the shards, or in the user's cache.

    Raises:
        ConfigError: a shard is not there, or is no tar file.
    """

    def __init__(self, *, path: str | list[str], index: str = "") -> None:
        folder = Path(index) if index else None
        try:
            found = find_shards([path] if isinstance(path, str) else path)
        except ConfigError as error:
            raise error.under("path") from error
        self._shards, problems = [], []
        for url in found:
            try:
                self._shards.append(open_index(url, folder))
            except ConfigError as error:
                problems += error.under("path").problems
        if problems:
            raise ConfigError(problems)
        self._ends = array("q", accumulate(map(len, self._shards)))
        if not len(self):
            raise ConfigError(Problem("path", f"`{found[0]}`{' and the others' * (len(found) > 1)} hold no sample"))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        shard, number = self._place(index)
        members = shard.members(number)
        stem = split_name(members[0].name)[0]
        if number in shard.head.faults:
            raise self.error(index, shard.head.faults[number])
        try:
            files = _Files(shard.url, members)
            row = files.row()
        except (OSError, ValueError) as error:
            raise self.error(index, error) from error
        try:
            return sample_of(row, files.picture, f"{shard.url}:{stem}")
        except (TypeError, ValueError) as error:
            raise self.error(index, error, id_of(row)) from error

    def error(self, index: int, message: object, id: str = "") -> DataError:
        shard, number = self._place(index)
        return DataError(f"{shard.url}, `{split_name(shard.members(number)[0].name)[0]}`: {message}", id)

    def _place(self, index: int) -> tuple[ShardIndex, int]:
        shard = bisect_right(self._ends, index)
        return self._shards[shard], index - (self._ends[shard - 1] if shard else 0)


class _Files:
    """The files of one sample."""

    def __init__(self, url: str, members: list[Member]) -> None:
        kinds = {member.name: split_name(member.name)[1].rpartition(".")[2] for member in members}
        known = {*_TEXTS, *(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)}
        used = [member for member in members if kinds[member.name] in known]
        self._names = [member.name for member in members]
        self._content = _read(url, used)
        self._texts = {kinds[name]: content for name, content in self._content.items() if kinds[name] in _TEXTS}
        self._images = sorted((name for name in self._content if kinds[name] not in _TEXTS), key=_natural)

    def row(self) -> dict[str, Any]:
        """What is said, as a row of a JSON file whose images are names of files.

        Raises:
            ValueError: there is no text or no image, or a text cannot be read.
        """
        row = self._said()
        named = images_of(row)
        rest = {key: value for key, value in row.items() if key not in ("image", "images")}
        if (named or "caption" in row) and not self._images:
            raise ValueError(f"no image; its files: {', '.join(self._names)}")
        if named and len(named) != len(self._images):
            raise ValueError(f"it names {len(named)} images, but its files are {', '.join(self._names)}")
        return {**rest, "images": self._ordered(named)}

    def picture(self, name: str) -> bytes:
        """An image's bytes."""
        return self._content[name]

    def _said(self) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if "json" in self._texts:
            found = json.loads(self._texts["json"].decode("utf-8-sig"))
            if not isinstance(found, dict):
                raise ValueError(f"its .json holds {type(found).__name__}, not an object")
            row = found
        if not any(form in row for form in FORMS) and "txt" in self._texts:
            row = {key: row[key] for key in ("id", "category") if key in row}
            row["caption"] = self._texts["txt"].decode("utf-8-sig").strip()
        if not any(form in row for form in FORMS):
            raise ValueError(f"no text; its files: {', '.join(self._names)}")
        if row.get("caption") == "":
            raise ValueError("its caption is empty")
        return row

    def _ordered(self, named: list[Any]) -> list[str]:
        """As the row names them, where it names these files; else by the numbers in their names."""
        ends = {name.rpartition("/")[2]: name for name in self._images}
        wanted = [ends.get(str(name).rpartition("/")[2]) for name in named]
        return [name for name in wanted if name] if named and None not in wanted else self._images


def _natural(name: str) -> list[Any]:
    """`a.10.jpg` comes behind `a.2.jpg`."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in _DIGITS.split(name)]


def _read(url: str, members: list[Member]) -> dict[str, bytes]:
    """The files by name, neighbours in one reading.

    Raises:
        OSError, ValueError: they cannot be read, or the shard ends before.
    """
    found: dict[str, bytes] = {}
    for run in _runs(sorted(members, key=lambda member: member.start)):
        start = run[0].start
        content = read_range(url, start, run[-1].start + run[-1].size)
        for member in run:
            piece = content[member.start - start : member.start - start + member.size]
            if len(piece) < member.size:
                raise ValueError(f"the shard is cut off inside `{member.name}`: it is shorter than its index")
            found[member.name] = piece
    return found


def _runs(members: list[Member]) -> list[list[Member]]:
    runs: list[list[Member]] = []
    for member in members:
        if runs and member.start - (runs[-1][-1].start + runs[-1][-1].size) <= _GAP:
            runs[-1].append(member)
        else:
            runs.append([member])
    return runs
