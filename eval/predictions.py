"""Answers that were made elsewhere, scored as the kit's own are: `vlm score`."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vlm.errors import ConfigError, Problem

from .answer_log import Reply
from .questions import Question, read_questions, refuse_all_faulty
from .results import TaskResult, score_rows, summarise
from .task import Task

IDS = ("question_id", "questionId", "image_id", "id", "image")
"""What the question's id is called in official result files, the first that a row has."""
SHOWN = 20
"""Mistakes that a message lists."""
ANSWERS = ("answer", "prediction", "caption", "pred", "text")


def score_predictions(task: Task, path: Path) -> TaskResult:
    """The result of a task from a JSON list or JSONL of `{"question_id", "answer"}`, the form of official servers.

    A question without an answer is missing: nothing right, and counted. A row with an `error`, as `vlm ask` and
    `vlm eval` write them, is an error. An answer to a question whose annotation is faulty is passed over, as the
    question is.

    Raises:
        ConfigError: the file is empty or of another form, answers a question twice, or one that the task does not ask
            (the first twenty places are named); no sample of the task can be used.
    """
    source = task.open()
    questions = read_questions(task, source, model=str(path), settings={})
    refuse_all_faulty(task, questions)
    answers = _read(path)
    known = {one.id: one for one in questions if one.fault is None}
    faulty = {one.id for one in questions} - known.keys()
    strangers = [
        Problem(said.place, f"the task does not ask `{id}`")
        for id, said in answers.items()
        if id not in known and id not in faulty
    ]
    if strangers:
        headline = (
            f"{len(strangers)} answers to no question of `{task.label}`, whose ids are {', '.join([*known][:3])}, ..."
        )
        raise ConfigError(strangers[:SHOWN], source=str(path), headline=headline)
    if not answers:
        raise ConfigError(f"`{path}` holds no answer")
    replies = {known[id].key: _reply(known[id], said, path) for id, said in answers.items() if id in known}
    part, rows = task.part(len(source), len(source)), score_rows(task, questions, replies)
    result = summarise(task, rows, model=f"answers of {path}", subset=part)
    # How they were asked for is not known: the task's own prompt must not stand beside the score.
    return replace(result, conditions=replace(result.conditions, variant="not known", prompt=""))


def _reply(question: Question, said: "_Said", path: Path) -> Reply:
    return Reply(question.key, question.id, question.prompt, question.image, str(path), {}, said.text, said.error)


class _Said(NamedTuple):
    """What a file has for one question."""

    place: str
    text: str
    error: str | None = None
    """Why there is no answer: the kit's own files say so, and a failure is no empty answer."""


def _read(path: Path) -> dict[str, _Said]:
    """By the questions' ids."""
    found: dict[str, _Said] = {}
    problems: list[Problem] = []
    for place, row in _rows(path):
        try:
            id, error = _field(row, IDS), _error(row)
            text = "" if error else _field(row, ANSWERS)
        except ValueError as wrong:
            problems.append(Problem(place, str(wrong)))
            continue
        if id in found:
            problems.append(Problem(place, f"`{id}` is answered twice, first in {found[id].place}"))
        found.setdefault(id, _Said(place, text, error))
    if problems:
        headline = f"{len(problems)} of the answers cannot be used"
        raise ConfigError(problems[:SHOWN], source=str(path), headline=headline)
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place, row) of a JSON list or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}") from error
    if path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _parsed(line, f"{path}, line {number}")
        return
    rows = _parsed(text, str(path))
    if not isinstance(rows, list):
        raise ConfigError(f"`{path}` holds {type(rows).__name__}; allowed: a list of rows, or JSON lines as .jsonl")
    yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{place} is not JSON: {error}") from error


def _error(row: Any) -> str | None:
    error = row.get("error") if isinstance(row, dict) else None
    return error if isinstance(error, str) and error else None


def _field(row: Any, names: Sequence[str]) -> str:
    """
    Raises:
        ValueError: the row has none of the names, or no text under the first that it has.
    """
    name = next((name for name in names if isinstance(row, dict) and name in row), None)
    if name is None:
        has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"has none of {', '.join(names)}; there is {has}")
    value = row[name]
    if not isinstance(value, (str, int, float)) or isinstance(value, bool) or value != value:
        raise ValueError(f"`{name}` is text or a number, not {json.dumps(value)}")
    return str(value)
