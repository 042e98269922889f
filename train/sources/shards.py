"""Where the shards of a data set are: brace expansion and patterns, on this machine or at any fsspec URL."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import has_magic
from typing import Any

from vlm.errors import ConfigError

_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Stamp:
    """What tells one version of a file from another."""

    size: int
    """In bytes."""
    version: str
    """Its time of change, or what a server has for it."""


def expanded(pattern: str) -> Iterator[str]:
    """`a-{00..12}` -> a-00, a-01, ..., `{a,b}` -> a, b, as a shell does it; braces may stand in braces."""
    start = pattern.find("{")
    end = _closing(pattern, start)
    if start < 0 or end < 0:
        yield pattern
        return
    for item in _items(pattern[start + 1 : end]):
        for inner in expanded(item):
            yield from (pattern[:start] + inner + rest for rest in expanded(pattern[end + 1 :]))


def _closing(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed; -1 if nowhere."""
    depth = 0
    for place in range(max(start, 0), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0 and text[place] == "}":
            return place
    return -1


def _items(inside: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return _parts(inside)
    first, last = int(numbers[1]), int(numbers[2])
    width = len(numbers[1]) if numbers[1].startswith("0") or numbers[2].startswith("0") else 0
    step = 1 if first <= last else -1
    return [str(number).zfill(width) for number in range(first, last + step, step)]


def _parts(inside: str) -> list[str]:
    """What stands between commas that are in no further braces."""
    parts, depth = [""], 0
    for character in inside:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def find_shards(patterns: Sequence[str]) -> list[str]:
    """The shards that the patterns name, in their order; those of one pattern with `*` in the order of their names.

    Raises:
        ConfigError: a pattern matches nothing, a shard stands twice, or an address is of a kind that nothing reads.
    """
    found = [shard for pattern in patterns for one in expanded(pattern) for shard in _matches(one)]
    if not found:
        raise ConfigError("names no shard")
    twice = [shard for shard, times in Counter(found).items() if times > 1]
    if twice:
        raise ConfigError(f"`{twice[0]}` stands twice")
    return found


def _matches(pattern: str) -> list[str]:
    if not has_magic(pattern):
        return [pattern]
    system, path = opened_system(pattern)
    matches = sorted(system.glob(path))
    if not matches:
        raise ConfigError(f"no file matches `{pattern}`")
    return [str(system.unstrip_protocol(match)) if "://" in pattern else str(match) for match in matches]


def opened_system(url: str) -> tuple[Any, str]:
    """The file system of an address and the path in it. fsspec keeps one for each process, so none is sent on.

    Raises:
        ConfigError: the kind of address is unknown, or needs a library that is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"`{url}` cannot be reached: {error}") from error
    return system, path


def stamp_of(url: str) -> Stamp:
    """The version of a shard.

    Raises:
        ConfigError: it is not there.
    """
    system, path = opened_system(url)
    try:
        facts = system.info(path)
    except OSError as error:
        raise ConfigError(f"there is no shard `{url}`: {error.strerror or error}") from error
    if facts.get("type") == "directory":
        raise ConfigError(f"`{url}` is a folder, not a shard")
    version = next((facts[key] for key in ("mtime", "ETag", "etag", "LastModified", "created") if facts.get(key)), "")
    return Stamp(int(facts["size"]), str(version))


def read_range(url: str, start: int, end: int) -> bytes:
    """The bytes from `start` to `end` of a shard; fewer where it ends before.

    Raises:
        OSError: it cannot be read.
    """
    if "://" not in url:
        with open(url, "rb") as file:
            file.seek(start)
            return file.read(end - start)
    system, path = opened_system(url)
    return bytes(system.cat_file(path, start=start, end=end))
