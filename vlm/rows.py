"""Rows of JSON and JSON lines files, read one at a time: a file of any size costs no more memory than its longest row.

Each row comes with the place where it stands, so that it can be read again by itself and named in an error.
"""

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError

CHUNK = 1 << 20
"""Bytes read at a time."""
_SPACE = re.compile(r"[ \t\n\r]*")
_AFTER = frozenset(" \t\n\r,:]}")
"""What may stand behind a value."""
_BOM = codecs.BOM_UTF8


@dataclass(frozen=True)
class Span:
    """Where a row stands in its file."""

    start: int
    """Of its first byte."""
    length: int
    """In bytes."""
    line: int
    """Of its first byte, counted from 1."""


@dataclass(frozen=True)
class Found:
    """A row of a file."""

    span: Span
    value: Any
    key: str | None = None
    """In a mapping of rows, the row's key."""
    fault: str = ""
    """Why it cannot be read; `value` is then None."""


def json_rows(path: Path, under: str = "") -> Iterator[Found]:
    """The items of the list, or the values of the mapping, that the file holds.

    Args:
        path: a JSON file.
        under: the dotted keys that lead to the list or mapping; the file itself if empty.

    Raises:
        ConfigError: the file cannot be read, is no JSON, or has no list or mapping there; says what it has.
    """
    with _Reader(path) as reader:
        for name in under.split(".") if under else ():
            reader.enter(name)
        yield from reader.rows(under)


def line_rows(path: Path) -> Iterator[Found]:
    """One row a line, blank lines left out; a line that is no JSON is a row with a fault.

    Raises:
        ConfigError: the file cannot be read.
    """
    start = 0
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _line(line, Span(start, len(line), number))
            start += len(line)


def read_span(path: Path, span: Span) -> Any:
    """The row that stands there.

    Raises:
        ValueError: it is no JSON.
    """
    with path.open("rb") as file:
        file.seek(span.start)
        return json.loads(file.read(span.length).decode("utf-8-sig"))


def _line(line: bytes, span: Span) -> Found:
    try:
        return Found(span, json.loads(line.decode("utf-8-sig")))
    except (ValueError, RecursionError) as error:
        return Found(span, None, fault=f"is no JSON: {error}")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"`{path}` cannot be read: {error.strerror or error}") from error


class _Reader:
    """JSON text of which a window is in memory; values are decoded as the window reaches them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _opened(path)
        self._json = json.JSONDecoder()
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._ended = "", 0, False
        self._byte, self._line = 0, 1  # of `_text[_at]`

    def __enter__(self) -> "_Reader":
        if self._file.read(len(_BOM)) == _BOM:
            self._byte = len(_BOM)
        else:
            self._file.seek(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def enter(self, name: str) -> None:
        """Go to the value of `name` in the object that stands here."""
        if (found := self._next()) != "{":
            holds = {"[": "a list", "": "nothing"}.get(found, "a single value")
            raise ConfigError(f"`{self._path}` holds {holds} where an object with `{name}` is expected")
        keys: list[str] = []
        for key in self._keys():
            if key == name:
                return
            keys.append(key)
            self._value()
        raise ConfigError(f"`{self._path}` has nothing under `{name}`; its keys: {', '.join(keys) or 'none'}")

    def rows(self, under: str) -> Iterator[Found]:
        """What the list or object that stands here holds."""
        kind = self._next()
        if kind not in ("[", "{"):
            where = f" under `{under}`" if under else ""
            raise ConfigError(f"`{self._path}` has no list or mapping of rows{where}")
        for key in self._keys() if kind == "{" else self._items():
            self._next()
            start, line = self._byte, self._line
            value = self._value()
            yield Found(Span(start, self._byte - start, line), value, key)

    def _keys(self) -> Iterator[str]:
        for _ in self._items("{", "}"):
            key = self._value() if self._next() == '"' else self._fail("a key in quotes")
            self._take(":")
            yield key

    def _items(self, opening: str = "[", closing: str = "]") -> Iterator[None]:
        self._take(opening)
        if self._next() == closing:
            return self._take(closing)
        while True:
            yield None
            if self._next() != ",":
                return self._take(closing)
            self._take(",")

    def _next(self) -> str:
        """The next character that is no space; empty at the end."""
        character = self._text[self._at : self._at + 1]
        if character and character not in " \t\n\r":
            return character
        while True:
            space = _SPACE.match(self._text, self._at)
            self._advance(space.end() if space else self._at)
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> None:
        if self._next() != character:
            self._fail(f"`{character}`")
        self._at, self._byte = self._at + 1, self._byte + 1

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if self._more():
                    continue
                raise ConfigError(f"`{self._path}` is no JSON, line {self._line}: {error}") from error
            if self._text[end : end + 1] in _AFTER or not self._more():  # a number may go on beyond the window
                self._advance(end)
                return value

    def _advance(self, end: int) -> None:
        passed = self._text[self._at : end]
        self._byte += len(passed) if passed.isascii() else len(passed.encode())
        self._line += passed.count("\n")
        self._at = end

    def _more(self) -> bool:
        """Read on; each time as much as is waiting, so that a long value is not decoded again too often."""
        if self._ended:
            return False
        content = self._file.read(max(CHUNK, len(self._text) - self._at))
        self._ended = not content
        try:
            new = self._utf8.decode(content, final=self._ended)
        except UnicodeDecodeError as error:
            raise ConfigError(f"`{self._path}` is no UTF-8, after line {self._line}: {error.reason}") from error
        self._text, self._at = self._text[self._at :] + new, 0
        return bool(new) or not self._ended

    def _fail(self, wanted: str) -> Any:
        found = self._next()
        seen = f"`{found}`" if found else "the end of the file"
        raise ConfigError(f"`{self._path}` is no JSON, line {self._line}: {wanted} is missing before {seen}")
