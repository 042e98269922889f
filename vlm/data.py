"""Where samples come from: a source is a sequence of samples, read one at a time."""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import ConfigError, Problem
from vlm.rows import json_rows
from vlm.sample import IMAGE_MARK, Role, Sample, Turn

_SPEAKERS: dict[Any, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class Source(ABC):
    """Samples by index. `__getitem__` depends on the index alone, so that a run can continue anywhere."""

    ordered: bool = False
    """Whether the samples' order means something; a mixture shuffles them if not."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, 0 <= index < len(self).

        Raises:
            DataError: that row is no sample.
        """

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def error(self, index: int, message: object, id: str = "") -> "DataError":
        """What is wrong with sample `index`, with its place; a source of files names file and row."""
        return DataError(f"sample {index + 1}: {message}", id)

    def missing_images(self) -> list[str]:
        """Paths of the image files that the samples name and that are not there, each once, without opening any.

        None for a source that makes its pictures or holds them itself.
        """
        return []


class DataError(ValueError):
    """A row that is no sample; the message names file and row.

    Args:
        message: says so.
        id: the row's own, where it has one all the same.
    """

    def __init__(self, message: str, id: str = "") -> None:
        super().__init__(message)
        self.id = id


def data_error(
    path: str | Path, message: object, *, row: int, line: int | None = None, key: str = "", id: str = ""
) -> DataError:
    """A `DataError` with its place: `FILE, row 12 (line 345): message`.

    Args:
        path: the file.
        message: what is wrong with the row.
        row: its number, counted from 1.
        line: of the file, where the row begins; counted from 1.
        key: of the row in a mapping of rows.
        id: of the sample that it would be.
    """
    place = f"row {row}" + (f" `{key}`" if key else "") + (f" (line {line})" if line else "")
    return DataError(f"{path}, {place}: {message}", id)


def absent(paths: Iterable[str]) -> list[str]:
    """Those of the files that are not there, each once; a folder is looked into once, however many files it has."""
    found: dict[str, set[str]] = {}
    missing = []
    for path in dict.fromkeys(paths):
        folder, name = os.path.split(path)
        if folder not in found:
            found[folder] = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        if name not in found[folder]:
            missing.append(path)
    return missing


class JsonSource(Source):
    """A `.json` list or a `.jsonl` file, a row a sample, in one of three forms:

    `{"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}` (LLaVA; `messages` with `role`
    and `content` too), `{"image", "question", "answer" or "answers"}`, or `{"image", "caption"}`. `image` may be absent
    or a list `images`; `id`, `category`, `targets` and `choices` (whose letters are then the answers) are kept.

    A `.jsonl` file is indexed by offset and read row by row, so that its size costs no memory.

    Args:
        path: the file.
        images: the folder that image paths start from; the file's own folder if absent.
    """

    def __init__(self, *, path: str, images: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(Problem("path", f"`{path}` is not a file; allowed: a .json or .jsonl file"))
        if self.path.suffix not in (".json", ".jsonl"):
            raise ConfigError(Problem("path", f"`{path}` is of another kind; allowed: a .json or .jsonl file"))
        self.images = Path(images) if images else self.path.parent
        self._rows: list[Any] | None = None
        self._lines: Sequence[int] | None = None
        if self.path.suffix == ".json":
            self._rows = self._read_list()
        else:
            self._offsets, self._lines = _line_offsets(self.path)
        if not len(self):
            raise ConfigError(Problem("path", f"`{path}` holds no sample"))

    def __len__(self) -> int:
        return len(self._offsets) if self._rows is None else len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        """
        Raises:
            DataError: the row is no sample; names the file, the row and what is wrong.
        """
        try:
            return _sample(self._row(index), self.images, f"{self.path.name}:{index + 1}")
        except (KeyError, TypeError, ValueError) as error:
            raise self.error(index, _reason(error), self._id(index)) from error

    def error(self, index: int, message: object, id: str = "") -> DataError:
        return data_error(self.path, message, row=index + 1, line=self._line(index), id=id)

    def missing_images(self) -> list[str]:
        paths = []
        for index in range(len(self)):
            try:
                paths += [str(self.images / image) for image in _images(self._row(index))]
            except (AttributeError, TypeError, ValueError):
                continue  # no sample, which whoever reads it is told
        return absent(paths)

    def _id(self, index: int) -> str:
        """The id of a row that is no sample; empty where it has none."""
        with suppress(ValueError):
            return _id(self._row(index))
        return ""

    def _line(self, index: int) -> int:
        """Where the row begins; found when it is first asked for."""
        if self._lines is None:
            self._lines = [found.span.line for found in json_rows(self.path)]
        return int(self._lines[index])

    def _row(self, index: int) -> Any:
        if self._rows is not None:
            return self._rows[index]
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            return json.loads(file.readline().decode("utf-8-sig"))

    def _read_list(self) -> list[Any]:
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8-sig"))
        except ValueError as error:
            raise ConfigError(Problem("path", f"`{self.path}` is not JSON: {error}")) from error
        if not isinstance(rows, list):
            raise ConfigError(Problem("path", f"`{self.path}` holds {type(rows).__name__}, not a list of rows"))
        return rows


def _line_offsets(path: Path) -> "tuple[np.ndarray[Any, np.dtype[np.int64]], Any]":
    """Where each line that is not blank begins, in bytes, and its number."""
    offsets, lines, position = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                offsets.append(position)
                lines.append(number)
            position += len(line)
    return np.asarray(offsets, dtype=np.int64), np.asarray(lines, dtype=np.int32)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


_KEYS = {"id", "question_id", "category", "targets", "image", "images", "answers", "answer", "choices"}
_IDS = ("id", "question_id")
_FORMS = ("conversations", "messages", "question", "caption")


def _sample(row: Any, folder: Path, place: str) -> Sample:
    """
    Raises:
        KeyError, TypeError, ValueError: what is wrong with the row. Nothing in it is passed over or made up.
    """
    if not isinstance(row, dict):
        raise TypeError(f"a row is an object, not {type(row).__name__}")
    forms = [key for key in _FORMS if key in row]
    if len(forms) != 1:
        raise ValueError(f"a row has one of {', '.join(_FORMS)}; this one has {', '.join(forms) or 'none'}")
    near = {key: get_close_matches(key, _KEYS - set(row), n=1, cutoff=0.8) for key in set(row) - _KEYS - {*_FORMS}}
    if misspelt := {key: found[0] for key, found in near.items() if found}:
        raise ValueError("; ".join(f"`{key}`: did you mean `{word}`?" for key, word in sorted(misspelt.items())))
    turns = _turns(row, forms[0])
    return Sample(
        turns=turns,
        images=[str(folder / image) for image in _images(row)],
        id=next((_text(row[key], "the id") for key in _IDS if key in row), place),
        answers=_answers(row) or [turn.text for turn in turns[-1:] if turn.role == "assistant"],
        category=str(row.get("category", "")),
        targets=_targets(row.get("targets", {})),
        choices=_choices(row.get("choices", [])),
    )


def _id(row: Any) -> str:
    """What a row has for an id; empty if it has none."""
    return next((str(row[key]) for key in _IDS if key in row), "") if isinstance(row, dict) else ""


def _images(row: dict[str, Any]) -> list[str]:
    if "image" in row and "images" in row:
        raise ValueError("`image` and `images` are both there; give one")
    found = row.get("images", row.get("image"))
    images = [] if found is None else found if isinstance(found, list) else [found]
    if not all(isinstance(image, str) and image for image in images):
        raise TypeError(f"an image is a path, not {found!r}")
    return images


def _answers(row: dict[str, Any]) -> list[str]:
    if "answer" in row and "answers" in row:
        raise ValueError("`answer` and `answers` are both there; give one")
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    if not isinstance(answers, list):
        raise TypeError(f"`answers` is a list, not {answers!r}")
    return [_text(answer, "answer") for answer in answers]


def _choices(choices: Any) -> list[str]:
    if not isinstance(choices, list) or len(choices) == 1:
        raise TypeError(f"`choices` is a list of two texts or more, not {choices!r}")
    return [_text(choice, "a choice") for choice in choices]


def _targets(targets: Any) -> dict[str, list[int]]:
    fine = isinstance(targets, dict) and all(
        isinstance(classes, list) and all(isinstance(number, int) for number in classes) for classes in targets.values()
    )
    if not fine:
        raise TypeError(f"`targets` is lists of class numbers by field, not {targets!r}")
    return targets  # type: ignore[no-any-return]


def _turns(row: dict[str, Any], form: str) -> list[Turn]:
    if form in ("conversations", "messages"):
        if not isinstance(row[form], list) or not row[form]:
            raise TypeError(f"`{form}` is a list of turns, not {row[form]!r}")
        return [_turn(item) for item in row[form]]
    if form == "caption":
        return [Turn("user", IMAGE_MARK), Turn("assistant", _text(row["caption"], "caption"))]
    answers = _answers(row)
    turns = [Turn("user", _text(row["question"], "question"))]
    return [*turns, Turn("assistant", answers[0])] if answers else turns


def _turn(item: Any) -> Turn:
    if not isinstance(item, dict):
        raise TypeError(f"a turn is an object, not {item!r}")
    speaker = item.get("from", item.get("role"))
    if speaker not in _SPEAKERS:
        raise ValueError(f"speaker `{speaker}`; allowed: {', '.join(_SPEAKERS)}")
    return Turn(_SPEAKERS[speaker], _text(item["value"] if "value" in item else item["content"], "a turn's text"))


def _text(value: Any, what: str) -> str:
    """Text as it is, and a number as it is written; anything else would be learned as Python prints it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{what} is {value}, which is no text")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} is text, not {value!r}")
    return value
