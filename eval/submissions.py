"""Files that official servers take: a data set's answers, for a split whose truth they keep."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import ConfigError

from .metrics.vqa import evalai_normalise
from .results import Row


class Given(NamedTuple):
    """A question and what the model said to it."""

    id: str
    """The sample's id, which is the question's in the official file."""
    image: str
    """The name of the image file; empty where it is no file."""
    answer: str
    """Empty where the model could not answer: a server refuses a file that lacks a question."""


def vqa(given: Iterable[Given]) -> list[dict[str, Any]]:
    """VQAv2 and TextVQA (EvalAI): `[{"question_id": 1, "answer": "..."}]`.

    Answers are normalised as LLaVA's `scripts/convert_vqav2_for_submission.py` does: the server compares an answer as
    it is where all ten people agree.
    """
    return [{"question_id": _number(item.id), "answer": evalai_normalise(item.answer)} for item in _once(given)]


def stvqa(given: Iterable[Given]) -> list[dict[str, Any]]:
    """ST-VQA (RRC): `[{"question_id": 1, "answer": "..."}]`, the answers as they are."""
    return [{"question_id": _number(item.id), "answer": item.answer.strip()} for item in _once(given)]


def vizwiz(given: Iterable[Given]) -> list[dict[str, Any]]:
    """VizWiz-VQA (EvalAI): `[{"image": "VizWiz_test_00000000.jpg", "answer": "..."}]`, normalised as for VQAv2.

    Each image has one question; where the images are no files, the id is the image's name.
    """
    return [{"image": item.image or item.id, "answer": evalai_normalise(item.answer)} for item in _once(given)]


def docvqa(given: Iterable[Given]) -> list[dict[str, Any]]:
    """DocVQA and InfographicVQA (RRC): `[{"questionId": 1, "answer": "..."}]`, the answers as they are."""
    return [{"questionId": _number(item.id), "answer": item.answer.strip()} for item in _once(given)]


def _once(given: Iterable[Given]) -> Iterable[Given]:
    """
    Raises:
        ConfigError: a question has two answers, which servers refuse.
    """
    seen = set()
    for item in given:
        if item.id in seen:
            raise ConfigError(f"question {item.id} has two answers; a server takes one each")
        seen.add(item.id)
        yield item


def _number(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"`{text}` is no number, as this server's question ids are")
    return int(text)


FORMATS: Mapping[str, Callable[[Iterable[Given]], list[dict[str, Any]]]] = {
    "vqa": vqa,
    "stvqa": stvqa,
    "vizwiz": vizwiz,
    "docvqa": docvqa,
}
"""A task's `submission` -> what makes the file's content, to be written as JSON."""


def check_ids(form: str, ids: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: questions of such ids cannot be submitted in this form.
    """
    FORMATS[form](Given(id, "", "") for id in ids)


def save_submission(path: Path, form: str, rows: Sequence[Row]) -> None:
    """Write the official file of a task's rows; a question without an answer has an empty one there.

    Args:
        path: where to.
        form: a name in `FORMATS`.
        rows: all of the task's.
    """
    given = [
        Given(row.question.id, Path(row.question.file).name, row.answer) for row in rows if row.question.fault is None
    ]
    path.write_text(json.dumps(FORMATS[form](given), ensure_ascii=False), encoding="utf8", errors="backslashreplace")
