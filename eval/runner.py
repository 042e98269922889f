"""Runs one task: asks the model, scores every answer, and writes each to disk as it comes."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm.data import DataError, Source
from vlm.images import ImageError, ImageLike
from vlm.sample import Sample

from .results import Row, TaskResult, summarise
from .task import Task, references

BATCHES_AT_ONCE = 8
"""The model gets samples of so many batches in one call: few enough to hold in memory."""


class AnswerLike(Protocol):
    """What a model says to one sample."""

    @property
    def text(self) -> str: ...
    @property
    def error(self) -> str | None:
        """Why the sample could not be used; `text` is then empty."""

    @property
    def truncated(self) -> bool: ...


class Answerer(Protocol):
    """What can be evaluated: a `VLM`, or anything else that answers samples in order, one answer each."""

    def answer(
        self, samples: Sequence[Sample], *, max_new_tokens: int = 64, batch_size: int = 16
    ) -> Iterator[AnswerLike]: ...


def evaluate(model: Answerer, task: Task, *, out: Path, batch_size: int = 16, progress: bool = True) -> TaskResult:
    """Ask `model` everything in `task`.

    `out/<task>/answers.jsonl` gets a line as soon as an answer is there (a file of an earlier run is replaced). A
    sample that cannot be read or answered becomes a row with its error: it counts as nothing right, and is counted.

    Args:
        model: what answers.
        task: what is asked.
        out: folder for the answers of all tasks.
        batch_size: samples per forward pass.
        progress: show a bar on the terminal's error stream, if there is a terminal.

    Raises:
        ConfigError: the task's data cannot be opened.
    """
    source = task.open()
    path = out / task.name / "answers.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    # Half a surrogate pair, which JSON can name and UTF-8 cannot, is written the way JSON names it.
    with path.open("w", encoding="utf8", errors="backslashreplace") as file, _bar(progress) as bar:
        shown = bar.add_task(task.name, total=len(source))
        for row in _rows(model, task, source, batch_size):
            rows.append(row)
            file.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")
            file.flush()  # whatever happens next, this answer is kept
            bar.advance(shown)
    return summarise(task, rows)


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))


def _rows(model: Answerer, task: Task, source: Source, batch_size: int) -> Iterator[Row]:
    step = batch_size * BATCHES_AT_ONCE
    for start in range(0, len(source), step):
        indices = range(start, min(start + step, len(source)))
        read = [_read(task, source, index) for index in indices]
        asked = [item for item in read if isinstance(item, Sample)]
        answers = iter(model.answer(asked, max_new_tokens=task.max_new_tokens, batch_size=batch_size))
        for index, item in zip(indices, read, strict=True):
            if isinstance(item, Row):
                yield item
            else:
                yield _scored(task, index, item, _next(answers, task, index))
        if next(answers, None) is not None:
            raise RuntimeError(f"{task.name}: the model gave more answers than the {len(asked)} samples it got")


def _next(answers: Iterator[AnswerLike], task: Task, index: int) -> AnswerLike:
    answer = next(answers, None)
    if answer is None:
        raise RuntimeError(f"{task.name}: the model gave no answer to sample {index}; one each is due")
    return answer


def _read(task: Task, source: Source, index: int) -> Sample | Row:
    """The sample as it is asked; or the row of one that cannot be read, asked or scored."""
    sample = None
    try:
        sample = source[index]
        if not references(sample):
            raise DataError("the sample has no answer to compare with")
        return task.ask(sample)
    except (DataError, ImageError) as error:  # anything else is a fault of the source, not of one sample
        return _lost(task, index, sample, str(error))


def _lost(task: Task, index: int, sample: Sample | None, error: str) -> Row:
    sample = sample or Sample([], id=f"#{index}")
    return _row(task, index, sample, answer="", error=error)


def _scored(task: Task, index: int, asked: Sample, answer: AnswerLike) -> Row:
    return _row(task, index, asked, answer=answer.text, error=answer.error, truncated=answer.truncated)


def _row(task: Task, index: int, sample: Sample, *, answer: str, error: str | None, truncated: bool = False) -> Row:
    accepted = references(sample)
    tally = task.scoring.tally(answer, accepted) if error is None else task.scoring.lost(accepted)
    return Row(
        task=task.name,
        index=index,
        id=sample.id or f"#{index}",
        category=sample.category,
        question=sample.turns[-1].text if sample.turns else "",
        answer=answer,
        references=accepted,
        tally=tally,
        verdict="error" if error is not None else task.scoring.verdict(tally),
        image="+".join(map(_identity, sample.images)),
        error=error,
        truncated=truncated,
    )


def _identity(image: ImageLike) -> str:
    """A path as it is; pixels or bytes by their digest."""
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    content = image if isinstance(image, bytes) else image.tobytes() + repr((image.mode, image.size)).encode()
    return f"sha1:{hashlib.sha1(content, usedforsecurity=False).hexdigest()[:16]}"
