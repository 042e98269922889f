"""What an evaluation yields: a row per sample, a result per task, and the table that shows the results."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table
from rich.text import Text

from vlm import __version__

from .metrics import Tally, total
from .task import Task

Verdict = Literal["right", "partly", "wrong", "error"]

RESAMPLES = 1000
"""Sets drawn for an interval; its ends then vary by a few hundredths of its width."""


@dataclass(frozen=True)
class Row:
    """One sample, the model's answer and what it is worth."""

    task: str
    index: int
    """Number of the sample in its source."""
    id: str
    category: str
    question: str
    """The prompt as the model got it."""
    answer: str
    references: tuple[str, ...]
    tally: Tally
    verdict: Verdict
    image: str
    """The image's path or digest: samples of one image are not independent."""
    error: str | None = None
    """Why there is no answer; the row then counts as nothing right, and is counted among the errors."""
    truncated: bool = False

    @property
    def score(self) -> float:
        return self.tally.value

    def to_dict(self) -> dict[str, Any]:
        """One line of `answers.jsonl`."""
        keys = ("index", "id", "category", "question", "answer", "references", "score", "verdict", "image")
        return {key: getattr(self, key) for key in (*keys, "error", "truncated")}


@dataclass(frozen=True)
class CategoryScore:
    """The score of the samples of one category."""

    score: float
    n: int
    errors: int


@dataclass(frozen=True)
class TaskResult:
    """The score of one task, and all that is needed to know what the score means."""

    task: str
    version: int
    metric: str
    score: float
    """Over all samples, those with errors included, as nothing right."""
    interval: tuple[float, float] | None
    """95 % bootstrap interval over images; None where a bootstrap cannot tell (see `interval`)."""
    n: int
    errors: int
    """Samples that could not be read or answered."""
    empty: int
    """Answers without any text, errors not counted."""
    truncated: int
    """Answers that were cut at `max_new_tokens`."""
    categories: dict[str, CategoryScore] = field(default_factory=dict)
    prompt: str = ""
    max_new_tokens: int = 0
    source: dict[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True
    kit_version: str = __version__
    rows: Sequence[Row] = field(default=(), repr=False, compare=False)
    """One per sample, in the source's order; on disk they are in `answers.jsonl`."""

    def to_dict(self) -> dict[str, Any]:
        """The result without its rows, as `results.json` has it."""
        content = asdict(replace(self, rows=()))
        del content["rows"]
        return content


def summarise(task: Task, rows: Sequence[Row]) -> TaskResult:
    """The result of a task from all its rows."""
    by_category: dict[str, list[Row]] = {}
    for row in rows:
        by_category.setdefault(row.category, []).append(row)
    named = by_category if set(by_category) != {""} else {}
    return TaskResult(
        task=task.name,
        version=task.version,
        metric=task.metric,
        score=total(row.tally for row in rows).value,
        interval=interval(rows),
        n=len(rows),
        errors=_errors(rows),
        empty=sum(row.error is None and not row.answer.strip() for row in rows),
        truncated=sum(row.truncated for row in rows),
        categories={name: _part(group) for name, group in sorted(named.items())},
        prompt=task.prompt,
        max_new_tokens=task.max_new_tokens,
        source=task.source.to_dict(),
        higher_is_better=task.scoring.higher_is_better,
        rows=rows,
    )


def _part(rows: Sequence[Row]) -> CategoryScore:
    return CategoryScore(total(row.tally for row in rows).value, len(rows), _errors(rows))


def _errors(rows: Sequence[Row]) -> int:
    return sum(row.error is not None for row in rows)


def interval(rows: Sequence[Row], *, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the score, drawing whole images: their questions rise and fall together.

    The idea of arXiv 2411.00640, section 2.2; a bootstrap serves ratios (character error rate) as well as means. None
    for a single image, and where all images score the same: drawing from them again would claim certainty.
    """
    clusters: dict[str, list[Tally]] = {}
    for row in rows:
        clusters.setdefault(row.image or f"row {row.index}", []).append(row.tally)
    if len({total(tallies).value for tallies in clusters.values()}) < 2:
        return None
    sums = np.array([(tally.points, tally.weight) for tally in map(total, clusters.values())])  # [clusters, 2]
    rng = np.random.default_rng(seed)
    drawn = (sums[rng.integers(0, len(sums), len(sums))].sum(axis=0) for _ in range(RESAMPLES))
    scores = [Tally(float(points), float(weight)).value for points, weight in drawn]
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


def save_results(path: Path, results: Sequence[TaskResult], *, model: str) -> None:
    """`results.json`: what was evaluated, with which kit, and every task's result."""
    content = {"model": model, "kit_version": __version__, "results": [result.to_dict() for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf8", errors="backslashreplace"
    )


def percent(value: float) -> str:
    """A score for people: `81.4 %`."""
    return f"{100 * value:.1f} %"


def table(results: Sequence[TaskResult]) -> Table:
    """The results as a rich table, in percent, categories below their task; errors stand beside every score."""
    shown = Table(title="Evaluation")
    shown.add_column("task", overflow="fold")
    shown.add_column("metric", overflow="fold")
    for heading in ("%", "95 %", "n", "errors", "empty", "cut"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        metric = Text(result.metric + ("" if result.higher_is_better else " ↓"))
        spread = " – ".join(f"{100 * end:.1f}" for end in result.interval or ())
        counts = (_count(result.errors, "red"), _count(result.empty, "yellow"), _count(result.truncated, "yellow"))
        name, score = Text(f"{result.task} v{result.version}", "bold"), Text(f"{100 * result.score:.1f}", "bold")
        shown.add_row(name, metric, score, spread, str(result.n), *counts)
        for category, part in result.categories.items():
            label, errors = Text(f"  {category or '(none)'}"), _count(part.errors, "red")
            shown.add_row(label, "", f"{100 * part.score:.1f}", "", str(part.n), errors)
        shown.add_section()
    if not all(result.higher_is_better for result in results):
        shown.caption = "↓ lower is better"
    return shown


def _count(number: int, style: str) -> Text:
    return Text(str(number), style=f"bold {style}" if number else "dim")
