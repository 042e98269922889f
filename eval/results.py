"""What an evaluation yields: a row per sample, and a result per task with all that its score depends on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm import __version__
from vlm.files import replacing, write_json

from .answer_log import Reply
from .metrics.intervals import Interval, intervals
from .metrics.scoring import Answered, Figure, Metric, Score, Verdict
from .questions import Question
from .task import Published, Task


@dataclass(frozen=True)
class Row:
    """One sample, the model's answer and what it is worth."""

    task: str
    question: Question
    reply: Reply | None = None
    """None where the question was not asked: its annotation is faulty, or the answer is missing."""
    score: Score | None = None
    """None where there is nothing to score."""

    @property
    def verdict(self) -> Verdict:
        """The row in a word."""
        if self.question.fault is not None:
            return "faulty"
        if self.reply is None:
            return "missing"
        if self.reply.error is not None:
            return "error"
        return "unscored" if self.score is None else self.score.verdict

    @property
    def answer(self) -> str:
        return "" if self.reply is None else self.reply.answer

    @property
    def error(self) -> str | None:
        """Why there is no answer, or why the annotation cannot be used."""
        return self.question.fault or (None if self.reply is None else self.reply.error)

    @property
    def empty(self) -> bool:
        return self.reply is not None and self.reply.error is None and not self.reply.answer.strip()

    @property
    def unparsed(self) -> bool:
        """Whether the metric could not make anything of an answer that is there."""
        answered = self.reply is not None and self.reply.error is None
        return answered and self.score is not None and self.score.read_as is None

    def to_dict(self) -> dict[str, Any]:
        """One line of `samples.jsonl`."""
        keys = ("index", "id", "category", "prompt", "choices", "references", "image", "file")
        asked = {key: getattr(self.question, key) for key in keys}
        scored = {} if self.score is None else {"score": self.score.goodness, "read_as": self.score.read_as}
        cut = self.reply is not None and self.reply.truncated
        return {
            **asked,
            "answer": self.answer,
            **scored,
            "verdict": self.verdict,
            "error": self.error,
            "truncated": cut,
        }


@dataclass(frozen=True)
class Value:
    """One figure of a result."""

    value: float
    interval: Interval | None
    """95 % bootstrap interval over images; None where a bootstrap cannot tell (see `vlm.eval.metrics.intervals`)."""


@dataclass(frozen=True)
class CategoryScore:
    """One category by the metric's own figure, or the first that it adds to (MME's cognition)."""

    figure: str
    score: float
    interval: Interval | None
    n: int
    errors: int


@dataclass(frozen=True)
class Counts:
    """What stands beside every score."""

    n: int
    """Samples that the score is taken over: all but the faulty ones, those with errors included as nothing right."""
    missing: int
    """Of these, samples that have no answer yet."""
    errors: int
    """Of these, samples that could not be read or answered."""
    empty: int
    """Answers without any text."""
    unparsed: int
    """Answers in which the metric found no letter, no yes or no, no box; wrong."""
    truncated: int
    """Answers that were cut at the longest length."""
    faulty: int
    """Samples whose annotation cannot be used: not asked, not part of the score."""


@dataclass(frozen=True)
class Conditions:
    """What a score was measured under: two scores are comparable only if these are the same but for the model."""

    task_version: int
    metric: str
    split: str
    variant: str
    """Which of the task's prompts."""
    prompt: str
    decoding: Mapping[str, Any]
    source: Mapping[str, Any]
    questions: str
    """Digest of all questions, images and references."""
    subset: str = ""
    """Which part of the questions was asked; all if empty."""
    model: str = ""
    """The model's identity: a digest of its weights and make-up."""
    kit_version: str = __version__


@dataclass(frozen=True)
class TaskResult:
    """The score of one task, and all that is needed to know what the score means."""

    task: str
    figures: dict[str, Value]
    """The metric's figures, its own first; empty where the answers are hidden."""
    counts: Counts
    conditions: Conditions
    scales: tuple[Figure, ...] = ()
    """How each figure is shown."""
    categories: dict[str, CategoryScore] = field(default_factory=dict)
    published: tuple[Published, ...] = ()
    """Other models' scores; which of them may stand beside this one says `vlm.eval.report.published`."""
    submission: str = ""
    """Where the file for the official server is, and what it lacks; empty where the task has no such file."""
    rows: Sequence[Row] = field(default=(), repr=False, compare=False)
    """One per sample, in the source's order; on disk they are in `samples.jsonl`."""

    @property
    def own(self) -> Value:
        """The metric's own figure.

        Raises:
            ValueError: the task's answers are hidden: there is no score.
        """
        if not self.figures:
            raise ValueError(f"{self.task}: the answers of this split are hidden, so there is no score")
        return next(iter(self.figures.values()))

    @property
    def score(self) -> float:
        return self.own.value

    @property
    def interval(self) -> Interval | None:
        return self.own.interval

    @property
    def scale(self) -> Figure:
        """How the metric's own figure is shown."""
        return self.scales[0]

    def to_dict(self) -> dict[str, Any]:
        """The result without its rows, as `results.json` has it."""
        content = {
            name: getattr(self, name)
            for name in ("task", "figures", "counts", "conditions", "categories", "submission")
        }
        plain: dict[str, Any] = json.loads(json.dumps(content, default=asdict))
        plain["scales"] = {figure.name: {**asdict(figure)} for figure in self.scales}
        return plain


def score_rows(task: Task, questions: Sequence[Question], replies: Mapping[str, Reply]) -> list[Row]:
    """A row per question, scored; what is missing or went wrong counts as nothing right, what is faulty not at all."""
    sound = [question for question in questions if question.fault is None]
    answered = [_answered(question, replies.get(question.key)) for question in sound]
    scores: Sequence[Score | None] = [None] * len(sound) if task.hidden else task.scoring.score(answered)
    scored = {question.index: score for question, score in zip(sound, scores, strict=True)}
    return [Row(task.label, one, replies.get(one.key), scored.get(one.index)) for one in questions]


def _answered(question: Question, reply: Reply | None) -> Answered:
    answer = None if reply is None or reply.error is not None else reply.answer
    return Answered(answer, question.references, question.choices, question.group, question.category)


def summarise(
    task: Task, rows: Sequence[Row], *, model: str = "", settings: Mapping[str, Any] | None = None, subset: str = ""
) -> TaskResult:
    """The result of a task from all its rows."""
    metric = task.scoring
    sound = [row for row in rows if row.score is not None]
    by_category: dict[str, list[Row]] = {}
    for row in sound:
        by_category.setdefault(row.question.category, []).append(row)
    named = by_category if set(by_category) != {""} else {}
    return TaskResult(
        task=task.label,
        figures=_values(metric, sound),
        counts=count(rows),
        conditions=_conditions(task, rows, model=model, settings=settings or {}, subset=subset),
        scales=() if task.hidden else metric.figures,
        categories={name: _category(metric, group) for name, group in sorted(named.items())},
        published=task.published,
        rows=rows,
    )


def count(rows: Sequence[Row]) -> Counts:
    """What there is to know beside the score."""
    faulty = sum(row.question.fault is not None for row in rows)
    return Counts(
        n=len(rows) - faulty,
        missing=sum(row.verdict == "missing" for row in rows),
        errors=_errors(rows),
        empty=sum(row.empty for row in rows),
        unparsed=sum(row.unparsed for row in rows),
        truncated=sum(row.reply is not None and row.reply.truncated for row in rows),
        faulty=faulty,
    )


def _conditions(task: Task, rows: Sequence[Row], *, model: str, settings: Mapping[str, Any], subset: str) -> Conditions:
    asked = [(row.question.id, row.question.prompt, row.question.image, row.question.references) for row in rows]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
    return Conditions(
        task_version=task.version,
        metric=task.metric,
        split=task.split,
        variant=task.variant,
        prompt=task.template,
        decoding=settings,
        source=task.source.to_dict(),
        questions=digest,
        subset=subset,
        model=model,
    )


def _values(metric: Metric, rows: Sequence[Row]) -> dict[str, Value]:
    scores = [row.score for row in rows if row.score is not None]
    if not scores:
        return {}
    categories = [row.question.category for row in rows]
    ends = intervals(metric, scores, clusters=_clusters(rows), categories=categories)
    values = metric.values(scores, categories)
    return {name: Value(value, ends[name]) for name, value in values.items()}


def _clusters(rows: Sequence[Row]) -> list[str]:
    return [row.question.image or f"row {row.question.index}" for row in rows]


def _category(metric: Metric, rows: Sequence[Row]) -> CategoryScore:
    added = {name for row in rows if row.score is not None for name in row.score.tallies}
    figure = next((figure.name for figure in metric.figures if figure.name in added), metric.figures[0].name)
    own = _values(metric, rows)[figure]
    return CategoryScore(figure, own.value, own.interval, len(rows), _errors(rows))


def _errors(rows: Sequence[Row]) -> int:
    return sum(row.verdict == "error" for row in rows)


def save_results(path: Path, results: Sequence[TaskResult], *, model: str) -> None:
    """`results.json`: what was evaluated, with which kit, and every task's result.

    Tasks that the file has of the same model already, and that are not among `results`, stay.
    """
    fresh = [result.to_dict() for result in results]
    named, identities = {one["task"] for one in fresh}, {one["conditions"]["model"] for one in fresh}
    earlier = [one for one in _earlier(path) if one["task"] not in named and {one["conditions"]["model"]} == identities]
    write_json(path, {"model": model, "kit_version": __version__, "results": earlier + fresh})


def _earlier(path: Path) -> list[dict[str, Any]]:
    """The results that the file has; none where it is no such file."""
    try:
        return list(json.loads(path.read_text(encoding="utf8"))["results"])
    except (OSError, ValueError, KeyError, TypeError):
        return []


def save_rows(path: Path, rows: Sequence[Row]) -> None:
    """`samples.jsonl`: every sample with its answer and what it is worth, in the source's order."""
    with replacing(path) as file:
        for row in rows:
            file.write(json.dumps(row.to_dict(), ensure_ascii=False) + "\n")


def percent(value: float) -> str:
    """A share for people: `81.4 %`."""
    return f"{100 * value:.1f} %"


def shown(value: float, figure: Figure) -> str:
    """A figure's value for people: `81.4 %`, `297 / 1000`."""
    number = f"{figure.scale * value:.1f}" if figure.scale <= 100 else f"{figure.scale * value:.0f}"
    return f"{number} {figure.unit}".strip()
