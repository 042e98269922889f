"""Rows of data sets that other people named the columns of -> rows in the forms of JSON files."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm.data import FORMS
from vlm.errors import ConfigError, Problem, choices
from vlm.images import ImageLike

PAIRS = "texts"
"""Turns as The Cauldron has them: a list of {user, assistant}."""
MEANINGS = ("id", "image", "images", PAIRS, *FORMS, "answer", "answers", "choices", "category")
"""What a column can be; one of the same name is that, unless it is said otherwise."""
_SAID = (PAIRS, *FORMS)


class Columns:
    """Which column is what.

    Args:
        names: of the columns there are.
        told: meaning -> column, for columns of other names; an empty text for one that is there and not used.

    Raises:
        ConfigError: a meaning or a column does not exist, or the columns say nothing, or say it twice.
    """

    def __init__(self, names: list[str], told: Mapping[str, str]) -> None:
        problems = [
            *(Problem(key, f"unknown meaning;{choices(key, MEANINGS)}") for key in told if key not in MEANINGS),
            *(Problem(k, f"`{v}` is no column;{choices(v, names)}") for k, v in told.items() if v and v not in names),
        ]
        self.columns = {name: name for name in MEANINGS if name in names and name not in told}
        self.columns |= {meaning: column for meaning, column in told.items() if column}
        said = [meaning for meaning in _SAID if meaning in self.columns]
        if len(said) != 1 and not problems:
            found = ", ".join(said) if said else f"none (its columns: {', '.join(names)})"
            wanted = f"one column has what is said, as {', '.join(_SAID)}"
            problems.append(Problem("", f"{wanted}; found: {found}. Say which it is, e.g. {{question: query}}"))
        if problems:
            raise ConfigError(problems).under("columns")

    def row(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A row in one of the forms of `vlm.data.JsonSource`; empty values are as good as none.

        Raises:
            ValueError: the turns are of another form.
        """
        row = {meaning: values[column] for meaning, column in self.columns.items() if values[column] is not None}
        if PAIRS in row:
            row["messages"] = _messages(row.pop(PAIRS))
        for form in ("conversations", "messages"):
            if form in row:
                row[form] = [_without_nothing(turn) for turn in row[form]]
        return row


def _messages(pairs: Any) -> list[dict[str, Any]]:
    if not isinstance(pairs, list) or not all(isinstance(pair, Mapping) for pair in pairs):
        raise ValueError(f"`{PAIRS}` is a list of {{user, assistant}}, not {str(pairs)[:60]!r}")
    roles = ("system", "user", "assistant")
    return [{"role": role, "content": pair[role]} for pair in pairs for role in roles if pair.get(role) is not None]


def _without_nothing(turn: Any) -> Any:
    """A table has a value in each column of a turn, be it none."""
    return {key: value for key, value in turn.items() if value is not None} if isinstance(turn, Mapping) else turn


def picture(value: Any, folder: Path | None) -> ImageLike:
    """What a data set has for an image: bytes, a path, or both by name.

    Args:
        value: from the row.
        folder: what relative paths start from; they are as they stand if None.

    Raises:
        TypeError: neither bytes nor a path.
    """
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value:
        raise TypeError(f"an image is bytes or a path, not {str(value)[:60]!r}")
    return os.path.join(folder, value) if folder is not None else value
