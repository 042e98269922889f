"""Runs one task: asks the model what has no answer yet, keeps every answer as it comes, and scores the whole."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlm.data import Source
from vlm.errors import ConfigError, Problem
from vlm.identity import identity as identity_of_vlm
from vlm.model import VLM
from vlm.sample import Sample

from .answer_log import AnswerLog, Reply, write
from .questions import Question, read_questions, refuse_all_faulty
from .results import Counts, TaskResult, save_rows, score_rows, summarise
from .submissions import check_ids, save_submission
from .task import Task
from .world import World


class AnswerLike(Protocol):
    """What a model says to one sample."""

    @property
    def text(self) -> str: ...
    @property
    def error(self) -> str | None:
        """Why the sample could not be answered; `text` is then empty."""

    @property
    def truncated(self) -> bool: ...
    @property
    def tokens(self) -> int: ...


class Answerer(Protocol):
    """What can be evaluated: a `VLM`, or anything else that answers samples."""

    def replies(
        self, samples: Iterable[Sample], *, max_new_tokens: int = 64, batch_size: int = 16
    ) -> Iterator[tuple[int, AnswerLike]]:
        """(number of the sample, its answer), one for each, as they are done."""


def evaluate(
    model: Answerer,
    task: Task,
    *,
    out: Path,
    identity: str | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    progress: bool = True,
    world: World | None = None,
) -> TaskResult:
    """Ask `model` everything in `task` that `out/<task>/answers.jsonl` has no answer to, and score all answers.

    An answer is written as soon as it is there and kept by task, question, prompt, image, model and generation
    settings; run again after an interruption, only the batch that was in flight is asked again, and samples that
    failed. A sample that cannot be answered becomes an error: it counts as nothing right, and is counted. One whose
    annotation cannot be used is not asked, not scored, and counted.

    Args:
        model: what answers.
        task: what is asked.
        out: folder for the answers of all tasks.
        identity: of the model: another one's answers are not taken for its own. Found by `identity_of` if absent.
        batch_size: samples per forward pass.
        limit: ask only so many, drawn by a fixed seed: a smaller number's are among a larger one's.
        progress: show a bar on the terminal's error stream, if there is a terminal.
        world: the processes that share the work; this one alone if absent.

    Raises:
        ConfigError: the data cannot be opened, no sample of it can be used (by this metric), the log of answers is
            damaged, or `limit` is below 1.
        RuntimeError: the model did not give one answer to each sample.
    """
    world, source = world or World(), task.open()
    identity = identity_of(model) if identity is None else identity
    settings = {"max_new_tokens": task.max_new_tokens, "decoding": "greedy"}
    indices = _subset(len(source), limit)
    log = AnswerLog(out / task.folder, world.rank)
    with _bar(progress and world.is_first) as bar:
        reading = bar.add_task(f"{task.label}: reading", total=len(indices))
        questions = read_questions(
            task,
            source,
            model=identity,
            settings=settings,
            indices=indices,
            seen=lambda: bar.advance(reading),
        )
        bar.update(reading, visible=False)
        refuse_all_faulty(task, questions)
        submits = _submits(task, questions)
        known = log.read()
        todo = [one for one in questions if one.fault is None and _unanswered(known.get(one.key))]
        world.wait()  # every process has read what there was before any writes
        mine = world.share(todo, together=lambda one: one.image or one.key)
        answering = bar.add_task(task.label, total=len(mine))
        with log.open() as file:
            for reply in _replies(model, task, source, mine, identity=identity, settings=settings, size=batch_size):
                write(file, reply)
                bar.advance(answering)
    world.wait()
    rows = score_rows(task, questions, log.read())
    whole, submitted = len(indices) == len(source), log.folder / "submission.json"
    if world.is_first:
        save_rows(log.folder / "samples.jsonl", rows)
        if submits and whole:
            save_submission(submitted, task.submission, rows)
    subset = task.part(len(indices), len(source))
    result = summarise(task, rows, model=identity, settings=settings, subset=subset)
    return replace(result, submission=_submission(submitted, result.counts, whole)) if submits else result


def identity_of(model: Answerer) -> str:
    """A digest of what a `VLM` is (see `vlm.identity`); of anything else, which the kit cannot look into, only the
    name of its class: give an identity of your own where there are several."""
    return identity_of_vlm(model) if isinstance(model, VLM) else type(model).__name__


def _submits(task: Task, questions: Sequence[Question]) -> bool:
    """Whether a submission file can be written; found out before anything is asked.

    Raises:
        ConfigError: the answers are hidden, and the ids are not such as the server has.
    """
    if not task.submission:
        return False
    try:
        check_ids(task.submission, [one.id for one in questions if one.fault is None])
    except ConfigError:
        if task.hidden:
            raise
        return False  # somebody's own data in the benchmark's format
    return True


def _submission(file: Path, counts: Counts, whole: bool) -> str:
    """What there is to say about a submission file."""
    if not whole:
        return "none, for a server refuses a part of the questions"
    lacks = f", without {counts.faulty} questions whose annotation cannot be used" if counts.faulty else ""
    empty = counts.errors + counts.missing
    return f"{file}{lacks}" + (f", {empty} answers empty that could not be had" if empty else "")


def _subset(count: int, limit: int | None) -> Sequence[int]:
    if limit is not None and limit < 1:
        raise ConfigError(Problem("limit", f"`{limit}`; allowed: 1 or more"))
    if limit is None or limit >= count:
        return range(count)
    order = list(range(count))
    random.Random(0).shuffle(order)
    return sorted(order[:limit])


def _unanswered(reply: Reply | None) -> bool:
    """A sample that failed is tried again: its cause may have been mended."""
    return reply is None or reply.error is not None


def _bar(progress: bool) -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))


def _replies(
    model: Answerer,
    task: Task,
    source: Source,
    questions: Sequence[Question],
    *,
    identity: str,
    settings: dict[str, Any],
    size: int,
) -> Iterator[Reply]:
    waiting = dict(enumerate(questions))
    samples = (task.ask(source[question.index]) for question in questions)
    for number, answer in model.replies(samples, max_new_tokens=task.max_new_tokens, batch_size=size):
        if number not in waiting:
            raise RuntimeError(f"{task.name}: the model answered sample {number} of {len(questions)} twice or unasked")
        question = waiting.pop(number)
        yield Reply(
            key=question.key,
            id=question.id,
            prompt=question.prompt,
            image=question.image,
            model=identity,
            settings=settings,
            answer=answer.text,
            error=None if answer.error is None else str(source.error(question.index, answer.error)),
            truncated=answer.truncated,
            tokens=answer.tokens,
        )
    if waiting:
        first = next(iter(waiting.values())).id
        raise RuntimeError(f"{task.name}: the model gave no answer to {len(waiting)} samples, the first is {first}")
