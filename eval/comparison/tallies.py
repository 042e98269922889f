"""What every question added to a task's figure, kept beside a run, so that runs can be paired."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlm.files import replacing

from ..metrics import metric_named
from ..metrics.intervals import Array
from ..metrics.scoring import Figure, Over
from ..results import TaskResult


@dataclass(frozen=True)
class Line:
    """One question of one run."""

    question: str
    """Its name, the same in every run."""
    image: str
    category: str
    points: float
    weight: float


@dataclass(frozen=True)
class Tallies:
    """One task of one run: its metric's own figure, question by question."""

    task: str
    metric: str
    figure: Figure
    over: Over
    value: float
    errors: int
    """Questions that could not be answered; nothing right."""
    lines: tuple[Line, ...]


def tallies_of(result: TaskResult) -> Tallies:
    """What a result's rows added to its own figure; no line for questions that it is not taken over.

    Raises:
        ValueError: the task's answers are hidden: there is no score.
    """
    figure = result.scale
    scored = [(row.question, row.score.tallies.get(figure.name)) for row in result.rows if row.score is not None]
    lines = tuple(
        Line(
            f"{asked.id} {asked.image}", asked.image or f"row {asked.index}", asked.category, tally.points, tally.weight
        )
        for asked, tally in scored
        if tally is not None
    )
    metric = result.conditions.metric
    return Tallies(result.task, metric, figure, metric_named(metric).over, result.score, result.counts.errors, lines)


def save_tallies(path: Path, results: Sequence[TaskResult]) -> None:
    """One JSON file for all tasks with a score; it is there when it is complete."""
    content = [asdict(tallies_of(result)) for result in results if result.figures]
    for task in content:
        task["lines"] = [list(line.values()) for line in task["lines"]]
    with replacing(path) as file:
        json.dump(content, file)


def read_tallies(path: Path) -> dict[str, Tallies]:
    """By task, what `save_tallies` wrote."""
    return {task["task"]: _tallies(task) for task in json.loads(path.read_text(encoding="utf8"))}


def _tallies(task: dict[str, Any]) -> Tallies:
    lines = tuple(Line(*line) for line in task["lines"])
    return Tallies(**{**task, "figure": Figure(**task["figure"]), "lines": lines})


def common(*groups: Sequence[Tallies]) -> list[Array]:
    """Each group's runs as [S, I, K, 3] of points, weights and numbers of answers, over S runs, I images and K
    categories: of the questions that all runs of all groups have, in one order."""
    runs = [{line.question: line for line in run.lines} for group in groups for run in group]
    asked = [name for name in runs[0] if all(name in run for run in runs)]
    images = {image: number for number, image in enumerate(dict.fromkeys(runs[0][name].image for name in asked))}
    by_category = groups[0][0].over != "samples"
    names = dict.fromkeys(runs[0][name].category if by_category else "" for name in asked)
    categories = {name: number for number, name in enumerate(names)}
    sums = np.zeros((len(runs), len(images), len(categories), 3))
    for run, lines in zip(sums, runs, strict=True):
        for name in asked:
            line = lines[name]
            run[images[line.image], categories[line.category if by_category else ""]] += line.points, line.weight, 1
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(sums, ends)
