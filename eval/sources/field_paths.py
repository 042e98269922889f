"""How a field of a sample is taken from a row: by a path to a value, or by a text with such paths in braces.

A path is keys with dots between them. `[]` goes over the items of a list: `answers[].answer` is every item's `answer`.
A step into a text reads that text as JSON or as a Python literal, which is how some data sets store lists. A `|` and a
word behind a path change its value: `image | base64` decodes it, `index | mod 1000000` is the rest of a division,
`id | between _` what stands between the first and the last `_`, `question | without TEXT` the value without the text.
`.` is the whole row.
"""

import ast
import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping
from string import Formatter
from typing import Any

_NOTHING = (None, "")


class Missing(ValueError):
    """A row has no such key: the file may be of another format than the path is made for."""

    def __init__(self, key: str, row: Any) -> None:
        keys = [name for name in row if not name.startswith("$")] if isinstance(row, Mapping) else []
        has = f"its keys: {', '.join(keys)}" if keys else f"there is {_brief(row)}"
        super().__init__(f"`{key}` is missing; {has}")


class Empty(ValueError):
    """There is nothing where a value is needed: null, NaN, or no text."""


def is_template(expression: str) -> bool:
    """Whether it is a text with paths in braces, and not a path."""
    return "{" in expression


def find(row: Any, expression: str) -> Any:
    """The value that a path leads to; None for null and NaN.

    Raises:
        Missing: the row has no such key.
        ValueError: a step or a change cannot be taken.
    """
    path, *changes = (piece.strip() for piece in expression.split("|"))
    found = _walk(row, path.split(".")) if path != "." else _own(row)
    for change in changes:
        name, _, argument = change.partition(" ")
        found = None if is_nothing(found) else CHANGES[name](found, argument)
    return None if _is_nan(found) else found


def check(expression: str) -> None:
    """
    Raises:
        ValueError: it is no path or template, or names a change that there is none of.
    """
    if is_template(expression):
        paths = [path for _, path, _, _ in Formatter().parse(expression) if path is not None]
    else:
        paths = [expression]
    for path in paths:
        key, *changes = (piece.strip() for piece in path.split("|"))
        for name in (change.partition(" ")[0] for change in changes):
            if name not in CHANGES:
                raise ValueError(f"`{expression}`: unknown change `{name}`; allowed: {', '.join(CHANGES)}")
        if not key:
            raise ValueError(f"`{expression}` has a path without a key")


def first_keys(expression: str) -> set[str]:
    """The keys of a row that a path or a template starts from."""
    paths = [name for _, name, _, _ in Formatter().parse(expression) if name]
    paths = paths if is_template(expression) else [expression]
    return {path.split("|")[0].strip().split(".")[0].removesuffix("[]") for path in paths} - {"", "."}


def render(row: Any, expression: str) -> str:
    """The text that a template makes, or the value of a path as text.

    Raises:
        Missing: the row has no such key.
        Empty: one of the values is null, NaN or an empty text.
    """
    if not is_template(expression):
        return _needed(row, expression, "")
    pieces = []
    for literal, path, form, _ in Formatter().parse(expression):
        pieces.append(literal)
        if path is not None:
            pieces.append(_needed(row, path, form or ""))
    return "".join(pieces)


def _needed(row: Any, path: str, form: str) -> str:
    value = find(row, path)
    if is_nothing(value):
        raise Empty(f"`{path}` is empty")
    if not form:
        return as_text(value)
    try:
        return format(int(value) if form.endswith("d") else value, form)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{path}` is {_brief(value)}, which is not of the form `{form}`") from error


def _own(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.startswith("$")}


def is_nothing(value: Any) -> bool:
    """Null, NaN, an empty text or an empty list."""
    return value in _NOTHING or value == [] or _is_nan(value)


def as_text(value: Any) -> str:
    """Text as it is, a number as it is written, a list with commas between its items, an object as JSON.

    Raises:
        ValueError: a part of it is null or NaN.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return ", ".join(map(as_text, value))
    if value is None or isinstance(value, bytes):
        raise ValueError(f"{_brief(value)} is no text")
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError("NaN is no text") from error


def _walk(value: Any, keys: list[str]) -> Any:
    if not keys:
        return value
    key = keys[0].removesuffix("[]")
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, Mapping) or key not in value:
        raise Missing(key, value)
    found = value[key]
    if not keys[0].endswith("[]"):
        return _walk(found, keys[1:])
    if isinstance(found, Mapping):  # a list of objects that is stored column by column
        return _walk(found, [f"{keys[1]}[]", *keys[2:]]) if keys[1:] else list(found.values())
    return None if found is None else [_walk(item, keys[1:]) for item in _listed(found, key)]


def _listed(found: Any, key: str) -> list[Any]:
    """The items of a list, or of a list written as text; a single text is a list of one."""
    if isinstance(found, str):
        text = found.strip()
        found = _parsed(text) if text.startswith("[") and text.endswith("]") else found
    if isinstance(found, str):
        return [found]
    if not isinstance(found, list):
        raise ValueError(f"`{key}` is {_brief(found)}, not a list")
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _brief(value: Any) -> str:
    shown = "null" if value is None else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _base64(value: Any, _: str) -> bytes:
    if re.fullmatch(r"\d{1,16}", str(value)):
        raise ValueError(f"`{value}` is the number of another row, not a picture in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{_brief(value)} is no base64: {error}") from error


def _mod(value: Any, argument: str) -> int:
    try:
        return int(value) % int(argument)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_brief(value)} is no whole number") from error


def _between(value: Any, mark: str) -> str:
    return mark.join(as_text(value).split(mark)[1:-1])


def _without(value: Any, text: str) -> str:
    return as_text(value).replace(text, "").strip()


CHANGES: dict[str, Callable[[Any, str], Any]] = {
    "base64": _base64,
    "mod": _mod,
    "between": _between,
    "without": _without,
}
"""Word behind a `|` -> what it does to the value."""
