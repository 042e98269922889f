"""Where samples come from: a source is a sequence of samples, read one at a time."""

import math
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem
from vlm.images import ImageLike
from vlm.rows import Span, json_rows, read_span
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

    A row with `chosen` and `rejected`, the better and the worse answer to its question or to the last turn of its
    talk, is a preference (RLAIF-V's columns; `image_path` is read where there is no `image`).

    Either kind of file is indexed by offset and read row by row: a row costs 20 bytes of memory, however long it is.

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
        self._starts, self._lengths, self._lines = array("q"), array("q"), array("i")
        for span in _list_spans(self.path) if self.path.suffix == ".json" else _line_spans(self.path):
            self._starts.append(span.start)
            self._lengths.append(span.length)
            self._lines.append(span.line)
        if not len(self):
            raise ConfigError(Problem("path", f"`{path}` holds no sample"))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:
        """
        Raises:
            DataError: the row is no sample; names the file, the row and what is wrong.
        """
        try:
            return sample_of(self._row(index), self._picture, f"{self.path.name}:{index + 1}")
        except (TypeError, ValueError) as error:
            raise self.error(index, error, self._id(index)) from error

    def error(self, index: int, message: object, id: str = "") -> DataError:
        return data_error(self.path, message, row=index + 1, line=self._lines[index], id=id)

    def missing_images(self) -> list[str]:
        paths = []
        for index in range(len(self)):
            try:
                paths += [self._picture(image) for image in images_of(self._row(index))]
            except (AttributeError, TypeError, ValueError):
                continue  # no sample, which whoever reads it is told
        return absent(paths)

    def _id(self, index: int) -> str:
        """The id of a row that is no sample; empty where it has none."""
        with suppress(ValueError):
            return id_of(self._row(index))
        return ""

    def _picture(self, image: Any) -> str:
        if not isinstance(image, str) or not image:
            raise TypeError(f"an image is a path, not {image!r}")
        return str(self.images / image)

    def _row(self, index: int) -> Any:
        return read_span(self.path, Span(self._starts[index], self._lengths[index], self._lines[index]))


def _line_spans(path: Path) -> Iterator[Span]:
    """Where each line that is not blank stands; none is decoded."""
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield Span(start, len(line), number)
            start += len(line)


def _list_spans(path: Path) -> Iterator[Span]:
    """Where each item of a JSON list stands."""
    with path.open("rb") as file:
        begins = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if begins == b"{":
        message = f"`{path}` holds an object, not a list of rows; a file with an object on each line is a .jsonl file"
        raise ConfigError(Problem("path", message))
    try:
        for found in json_rows(path):
            yield found.span
    except ConfigError as error:
        raise error.under("path") from error


_KEYS = {
    *("id", "question_id", "idx", "category", "targets", "image", "images", "image_path", "answers", "answer"),
    *("choices", "chosen", "rejected"),
}
_IDS = ("id", "question_id", "idx")
_PAIR = ("chosen", "rejected")
FORMS = ("conversations", "messages", "question", "caption")
"""What a row says, each in its own way; it has one of them."""


def sample_of(row: Any, picture: Callable[[Any], ImageLike], place: str) -> Sample:
    """The sample that a row in one of the forms of `JsonSource` is.

    Args:
        row: of a JSON file, or made to look like one.
        picture: what the row has for an image -> the image.
        place: the id where the row has none.

    Raises:
        TypeError, ValueError: what is wrong with the row. Nothing in it is passed over or made up.
    """
    if not isinstance(row, dict):
        raise TypeError(f"a row is an object, not {type(row).__name__}")
    forms = [key for key in FORMS if key in row]
    if len(forms) != 1:
        raise ValueError(f"a row has one of {', '.join(FORMS)}; this one has {', '.join(forms) or 'none'}")
    near = {key: get_close_matches(key, _KEYS - set(row), n=1, cutoff=0.8) for key in set(row) - _KEYS - {*FORMS}}
    if misspelt := {key: found[0] for key, found in near.items() if found}:
        raise ValueError("; ".join(f"`{key}`: did you mean `{word}`?" for key, word in sorted(misspelt.items())))
    turns = _turns(row, forms[0])
    chosen, rejected = _pair(row, turns)
    turns += [] if chosen is None else [Turn("assistant", chosen)]
    return Sample(
        turns=turns,
        images=[picture(image) for image in images_of(row)],
        id=next((_text(row[key], "the id") for key in _IDS if key in row), place),
        rejected=rejected,
        answers=_answers(row) or [turn.text for turn in turns[-1:] if turn.role == "assistant"],
        category=str(row.get("category", "")),
        targets=_targets(row.get("targets", {})),
        choices=_choices(row.get("choices", [])),
    )


def id_of(row: Any) -> str:
    """What a row has for an id; empty if it has none."""
    return next((str(row[key]) for key in _IDS if key in row), "") if isinstance(row, dict) else ""


def images_of(row: dict[str, Any]) -> list[Any]:
    """What a row has for its images.

    Raises:
        ValueError: it has them under two names.
    """
    if "image" in row and "images" in row:
        raise ValueError("`image` and `images` are both there; give one")
    found = row.get("images", row.get("image", row.get("image_path")))
    return [] if found is None else found if isinstance(found, list) else [found]


def _answers(row: dict[str, Any]) -> list[str]:
    if "answer" in row and "answers" in row:
        raise ValueError("`answer` and `answers` are both there; give one")
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    if not isinstance(answers, list):
        raise TypeError(f"`answers` is a list, not {answers!r}")
    return [_text(answer, "answer") for answer in answers]


def _pair(row: dict[str, Any], turns: list[Turn]) -> tuple[str | None, str | None]:
    """The better and the worse answer to the last of `turns`; None where the row compares none."""
    if not any(key in row for key in _PAIR):
        return None, None
    if turns[-1].role == "assistant":
        raise ValueError("`chosen` and `rejected` answer the last turn, but here it is the assistant's already")
    if missing := [key for key in _PAIR if key not in row]:
        raise ValueError(f"`{missing[0]}` is missing: a preference has both")
    chosen, rejected = (_text(row[key], f"`{key}`") for key in _PAIR)
    if chosen == rejected:
        raise ValueError("`chosen` and `rejected` are the same text")
    return chosen, rejected


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
        marks = IMAGE_MARK * max(1, len(images_of(row)))  # of a caption without an image the processor says so
        return [Turn("user", marks), Turn("assistant", _text(row["caption"], "caption"))]
    answers = _answers(row)
    turns = [Turn("user", _text(row["question"], "question"))]
    return [*turns, Turn("assistant", answers[0])] if answers else turns


def _turn(item: Any) -> Turn:
    if not isinstance(item, dict):
        raise TypeError(f"a turn is an object, not {item!r}")
    speaker = item.get("from", item.get("role"))
    if speaker not in _SPEAKERS:
        raise ValueError(f"speaker `{speaker}`; allowed: {', '.join(_SPEAKERS)}")
    key = next((key for key in ("value", "content") if key in item), None)
    if key is None:
        raise ValueError(f"a turn has `value` or `content`; this one has {', '.join(item)}")
    return Turn(_SPEAKERS[speaker], _said(item[key]))


def _said(content: Any) -> str:
    """A turn's text; or a list of texts and images in order, as chat programs write it."""
    if not isinstance(content, list):
        return _text(content, "a turn's text")
    pieces = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        more = {key for key, value in part.items() if value is not None} - {"type", "index", "text"} if kind else set()
        if kind not in ("text", "image") or more:
            named = "the image itself stands under the row's `images`"
            raise TypeError(f"a part of a turn is {{type: text, text}} or {{type: image}}, not {part!r}; {named}")
        pieces.append(IMAGE_MARK if kind == "image" else _text(part.get("text"), "a turn's text"))
    return "".join(pieces)


def _text(value: Any, what: str) -> str:
    """Text as it is, and a number as it is written; anything else would be learned as Python prints it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"{what} is {value}, which is no text")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise TypeError(f"{what} is text, not {value!r}")
    return value
