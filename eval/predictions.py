"""Answers that were made elsewhere, scored as the kit's own are: `vlm score`."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem

from .answers import Reply
from .questions import Question, read_questions
from .results import TaskResult, score_rows, summarise
from .task import Task

IDS = ("question_id", "questionId", "image_id", "id", "image")
"""What the question's id is called in official result files, the first that a row has."""
SHOWN = 20
"""Mistakes that a message lists."""
ANSWERS = ("answer", "prediction", "caption", "pred", "text")


def score_predictions(task: Task, path: Path) -> TaskResult:
    """The result of a task from a JSON list or JSONL of `{"question_id", "answer"}`, the form of official servers.

    A question without an answer is missing: nothing right, and counted. An answer to a question whose annotation is
    faulty is passed over, as the question is.

    Raises:
        ConfigError: the file is of another form, answers a question twice, or one that the task does not ask; the
            first twenty places are named.
    """
    questions = read_questions(task, task.open(), model=str(path), settings={})
    answers = _read(path)
    known = {one.id: one for one in questions if one.fault is None}
    faulty = {one.id for one in questions} - known.keys()
    strangers = [
        Problem(place, f"the task does not ask `{id}`")
        for id, (place, _) in answers.items()
        if id not in known and id not in faulty
    ]
    if strangers:
        headline = (
            f"{len(strangers)} answers to no question of `{task.label}`, whose ids are {', '.join([*known][:3])}, ..."
        )
        raise ConfigError(strangers[:SHOWN], source=str(path), headline=headline)
    replies = {known[id].key: _reply(known[id], text, path) for id, (_, text) in answers.items() if id in known}
    return summarise(task, score_rows(task, questions, replies), model=f"answers of {path}")


def _reply(question: Question, text: str, path: Path) -> Reply:
    return Reply(question.key, question.id, question.prompt, question.image, str(path), {}, text)


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """Id -> (place in the file, answer)."""
    found: dict[str, tuple[str, str]] = {}
    problems: list[Problem] = []
    for place, row in _rows(path):
        try:
            id, text = _field(row, IDS), _field(row, ANSWERS)
        except ValueError as error:
            problems.append(Problem(place, str(error)))
            continue
        if id in found:
            problems.append(Problem(place, f"`{id}` is answered twice, first in {found[id][0]}"))
        found.setdefault(id, (place, text))
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
