"""The questions of a task as they will be asked, each under the key that its answer is kept by."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.data import DataError, Source
from vlm.errors import ConfigError
from vlm.images import ImageLike
from vlm.sample import Sample

from .answer_log import key_of
from .task import Task, references


@dataclass(frozen=True)
class Question:
    """One question without its pixels: what scoring, resuming and sharing out need."""

    index: int
    """Number of the sample in its source."""
    id: str
    """The sample's; `#` and its number where it has none. That of a faulty one may be another's too."""
    key: str
    prompt: str
    image: str
    """Digests of its images: questions about one image are not independent, and share its encoding."""
    file: str = ""
    """The first image's path as the source gives it."""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    group: str = ""
    category: str = ""
    fault: str | None = None
    """Why the annotation cannot be used: the question is not asked, not scored, and counted."""


def read_questions(
    task: Task,
    source: Source,
    *,
    model: str,
    settings: Mapping[str, Any],
    indices: Sequence[int] | None = None,
    seen: Callable[[], None] = lambda: None,
) -> list[Question]:
    """All questions of a task, in the source's order.

    Args:
        task: what is asked.
        source: its samples.
        model: the model's identity.
        settings: how answers are generated.
        indices: which samples; all if absent.
        seen: called after each.
    """
    digests, ids = _Digests(), dict[str, int]()
    found = []
    for index in indices if indices is not None else range(len(source)):
        question = _question(task, source, index, digests=digests, model=model, settings=settings)
        if question.fault is None and ids.setdefault(question.id, index) != index:
            fault = f"id `{question.id}` stands twice, first as sample {ids[question.id] + 1}"
            question = _faulty(index, question.id, str(source.error(index, fault)))
        found.append(question)
        seen()
    return found


def _question(
    task: Task, source: Source, index: int, *, digests: "_Digests", model: str, settings: Mapping[str, Any]
) -> Question:
    try:
        sample = source[index]
    except DataError as error:  # anything else is a fault of the source, not of one sample
        return _faulty(index, error.id, str(error))
    try:
        _check(task, sample)
        asked = task.ask(sample)
    except DataError as error:
        return _faulty(index, sample.id, str(source.error(index, error)))
    id = asked.id or f"#{index}"
    image = "+".join(map(digests.of, asked.images))
    turns = [(turn.role, turn.text) for turn in asked.turns]
    return Question(
        index=index,
        id=id,
        key=key_of(task.name, id, turns=turns, image=image, model=model, settings=settings),
        prompt=asked.turns[-1].text,
        image=image,
        file=_file(asked),
        references=tuple(asked.answers),
        choices=tuple(asked.choices),
        group=asked.group,
        category=asked.category,
    )


def _check(task: Task, sample: Sample) -> None:
    """
    Raises:
        DataError: no answer could be right, whatever the model says.
    """
    if task.hidden:
        return
    truths = references(sample)
    if not any(map(str.strip, truths)):
        raise DataError("there is no answer to compare with")
    if (fault := task.scoring.fault(truths, sample.choices)) is not None:
        raise DataError(fault)


def _faulty(index: int, id: str, fault: str) -> Question:
    return Question(index, id or f"#{index}", key="", prompt="", image="", fault=fault)


def refuse_all_faulty(task: Task, questions: Sequence[Question]) -> None:
    """
    Raises:
        ConfigError: no question can be used: the files are not what the task reads, or the metric is of another kind.
    """
    faults = [one.fault for one in questions if one.fault is not None]
    if len(faults) == len(questions):
        what = f"task `{task.label}`, metric `{task.metric}`"
        raise ConfigError(f"{what}: none of {len(faults)} samples can be used; the first: {faults[0]}")


def _file(sample: Sample) -> str:
    first = sample.images[0] if sample.images else ""
    return os.fspath(first) if isinstance(first, str | os.PathLike) else ""


class _Digests:
    """Digests of images by content; a file that several questions name is read once."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}

    def of(self, image: ImageLike) -> str:
        if not isinstance(image, str | os.PathLike):
            content = image if isinstance(image, bytes) else image.tobytes() + repr((image.mode, image.size)).encode()
            return _digest(content)
        path = os.fspath(image)
        if path not in self._files:
            try:
                self._files[path] = _digest(Path(path).read_bytes())
            except (OSError, ValueError):  # the model will say what is wrong with it
                self._files[path] = f"unreadable:{path}"
        return self._files[path]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
