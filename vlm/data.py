"""Where samples come from: a source is a sequence of samples, read one at a time."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from vlm.errors import ConfigError, Problem
from vlm.sample import IMAGE_MARK, Sample, Turn

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class Source(ABC):
    """Samples by index. `__getitem__` depends on the index alone, so that a run can continue anywhere."""

    ordered: bool = False
    """Whether the samples' order means something; a mixture shuffles them if not."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`, 0 <= index < len(self)."""


class DataError(ValueError):
    """A row that is no sample; the message names file and row."""


class JsonSource(Source):
    """A `.json` list or a `.jsonl` file, a row a sample, in one of three forms:

    `{"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}` (LLaVA; `messages` with `role`
    and `content` too), `{"image", "question", "answer" or "answers"}`, or `{"image", "caption"}`. `image` may be absent
    or a list `images`; `id`, `category` and `targets` are kept.

    A `.jsonl` file is indexed by offset and read row by row, so that its size costs no memory.

    Args:
        path: the file.
        images: the folder that image paths start from; the file's own folder if absent.
    """

    def __init__(self, *, path: str, images: str | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ConfigError(Problem("path", f"`{path}` is not a file; allowed: a .json or .jsonl file"))
        self.images = Path(images) if images else self.path.parent
        self._rows: list[Any] | None = None
        if self.path.suffix == ".json":
            self._rows = self._read_list()
        else:
            self._offsets = _line_offsets(self.path)
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
            raise DataError(f"{self.path}, row {index + 1}: {_reason(error)}") from error

    def _row(self, index: int) -> Any:
        if self._rows is not None:
            return self._rows[index]
        with self.path.open("rb") as file:
            file.seek(int(self._offsets[index]))
            return json.loads(file.readline())

    def _read_list(self) -> list[Any]:
        try:
            rows = json.loads(self.path.read_text(encoding="utf8"))
        except ValueError as error:
            raise ConfigError(Problem("path", f"`{self.path}` is not JSON: {error}")) from error
        if not isinstance(rows, list):
            raise ConfigError(Problem("path", f"`{self.path}` holds {type(rows).__name__}, not a list of rows"))
        return rows


def _line_offsets(path: Path) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Where each line that is not blank begins, in bytes."""
    offsets, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return np.asarray(offsets, dtype=np.int64)


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _sample(row: Any, folder: Path, place: str) -> Sample:
    if not isinstance(row, dict):
        raise TypeError(f"a row is an object, not {type(row).__name__}")
    listed = row.get("images", row.get("image"))
    images: list[Any] = [listed] if isinstance(listed, str) else listed or []
    turns = _turns(row)
    answers = row.get("answers") or [turn.text for turn in turns[-1:] if turn.role == "assistant"]
    return Sample(
        turns=turns,
        images=[str(folder / image) for image in images],
        id=str(row.get("id", row.get("question_id", place))),
        answers=[str(answer) for answer in answers],
        category=str(row.get("category", "")),
        targets=row.get("targets", {}),
    )


def _turns(row: dict[str, Any]) -> list[Turn]:
    talk = row.get("conversations", row.get("messages"))
    if talk is not None:
        return [_turn(item) for item in talk]
    if "caption" in row:
        return [Turn("user", IMAGE_MARK), Turn("assistant", str(row["caption"]))]
    answers = row.get("answers", [row["answer"]] if "answer" in row else [])
    turns = [Turn("user", str(row["question"]))]
    return [*turns, Turn("assistant", str(answers[0]))] if answers else turns


def _turn(item: dict[str, Any]) -> Turn:
    speaker = item.get("from", item.get("role"))
    if speaker not in _SPEAKERS:
        raise ValueError(f"speaker `{speaker}`; allowed: {', '.join(_SPEAKERS)}")
    return Turn(_SPEAKERS[speaker], str(item["value"] if "value" in item else item["content"]))  # type: ignore[arg-type]
