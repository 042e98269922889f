"""The table of a comparison as text, the same in the terminal, in the report and in docs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlm.planning.tables import flops, number, size

from ..metrics.scoring import Figure
from .comparison import Comparison, Entry, Group, Run, TaskComparison
from .paired import Estimate

NONE, FAILED = "–", "FAILED"
MINUS = "−"


@dataclass(frozen=True)
class Column:
    """One column."""

    heading: str
    help: str
    """What it says."""
    brief: bool = True
    """Whether a narrow table has it too."""


COLUMNS = (
    Column("cell", "the choice on each axis; runs that differ in their seeds only are one cell"),
    Column("seeds", "runs; those with a score of all"),
    Column("score", "the mean over seeds"),
    Column("95 %", "interval of the score, for other seeds and other images of the same kind"),
    Column("difference", "from the baseline: the mean over the seeds and questions that both have"),
    Column("95 % of it", "interval of the difference"),
    Column("p", "of no difference, two-sided, corrected for the number of tests (Holm)"),
    Column("tokens", "visual tokens of an image"),
    Column("positions", "of a sample in the LLM's sequence, visual and text", brief=False),
    Column("steps", "optimiser steps of each stage", brief=False),
    Column("compute", "planned FLOPs of the whole training, forward and backward"),
    Column("positions trained", "over all steps of all stages", brief=False),
    Column("parameters", "of the model", brief=False),
    Column("trained", "parameters that some stage trains", brief=False),
    Column("train s", "seconds of training, the mean over seeds"),
    Column("eval s", "seconds of evaluation, loading included, the mean over seeds", brief=False),
    Column("questions/s", "of the evaluation", brief=False),
    Column("memory", "that a process held at most"),
    Column("GPU memory", "that tensors held on the GPU at most"),
)


@dataclass(frozen=True)
class Table:
    """Rows of text under headings."""

    columns: list[Column]
    rows: list[list[str]]

    def brief(self) -> "Table":
        """Only what a terminal has room for."""
        kept = [number for number, column in enumerate(self.columns) if column.brief]
        return Table([self.columns[k] for k in kept], [[row[k] for k in kept] for row in self.rows])


def table(comparison: Comparison, task: TaskComparison | None) -> Table:
    """One task's table, without columns that have nothing to say.

    Args:
        comparison: the grid.
        task: one of its tasks; None where no run has a score.
    """
    entries = [Entry(group.name, {}, None) for group in comparison.groups] if task is None else task.entries
    figure = Figure("score") if task is None else task.figure
    baselines = {group.baseline for group in comparison.groups}
    rows = [
        [*_scores(group, entry, figure, group.name in baselines), *_costs(group)]
        for group, entry in zip(comparison.groups, entries, strict=True)
    ]
    kept = [k for k, column in enumerate(COLUMNS) if k < 3 or any(row[k] != NONE for row in rows)]
    return Table([COLUMNS[k] for k in kept], [[row[k] for k in kept] for row in rows])


def _scores(group: Group, entry: Entry, figure: Figure, is_baseline: bool) -> list[str]:
    count = f"{len(entry.scores)} of {len(group.runs)}" if len(entry.scores) < len(group.runs) else str(len(group.runs))
    p = NONE if entry.p is None else "< 0.001" if entry.p < 0.001 else f"{entry.p:.3f}"
    missing = FAILED if group.failed else NONE
    return [
        f"{group.name} (baseline)" if is_baseline else group.name,
        count,
        missing if entry.score is None else _plain(entry.score.value, figure),
        _ends(entry.score, figure, signed=False),
        NONE if entry.difference is None else _plain(entry.difference.value, figure, signed=True),
        _ends(entry.difference, figure, signed=True),
        p,
    ]


def _costs(group: Group) -> list[str]:
    done = [run for run in group.runs if run.tallies]
    speeds = [speed for run in done if (speed := run.questions_per_second) is not None]
    return [
        f"{group.tokens:,.0f}",
        f"{group.positions:,.0f}",
        " + ".join(f"{count:,}" for count in group.steps) or NONE,
        NONE if group.flops is None else flops(round(group.flops)),
        number(round(group.trained_tokens)),
        number(group.parameters),
        number(group.trained),
        f"{fmean(run.training for run in done):,.0f}{_resumed(done)}" if done else NONE,
        f"{fmean(run.evaluation for run in done):,.0f}" if done else NONE,
        f"{fmean(speeds):,.0f}" if speeds else NONE,
        _most(run.memory for run in done),
        _most(run.gpu_memory for run in done),
    ]


def _resumed(runs: Sequence[Run]) -> str:
    """A star where seconds are those of several times."""
    return "*" if any(run.attempts > 1 for run in runs) else ""


def _most(values: Iterable[int]) -> str:
    found = max(values, default=0)
    return size(found) if found else NONE


def _plain(value: float, figure: Figure, *, signed: bool = False) -> str:
    digits = 1 if figure.scale <= 100 else 0
    shown = f"{figure.scale * value:{'+' if signed else ''}.{digits}f}"
    return shown.replace("-", MINUS)


def _ends(found: Estimate | None, figure: Figure, *, signed: bool) -> str:
    if found is None or found.interval is None:
        return NONE
    low, high = (_plain(end, figure, signed=signed) for end in found.interval)
    return f"{low} to {high}" if signed else f"{low} – {high}"


def is_number(label: str) -> bool:
    """Whether a label is a number rather than a word."""
    try:
        float(label)
    except ValueError:
        return False
    return True


def remarks(comparison: Comparison, task: TaskComparison | None) -> list[str]:
    """What must be said beneath a table: how sure it is, and what is missing."""
    found = [comparison.budget] if comparison.budget else []
    if task is not None:
        found.append(_on(comparison, task))
    if any(run.attempts > 1 for group in comparison.groups for run in group.runs):
        found.append(
            "* a run was taken up more than once; its seconds are those of all times, steps done twice included"
        )
    if task is not None and any(entry.errors for entry in task.entries):
        found.append(
            f"{sum(entry.errors for entry in task.entries):,} questions could not be answered and count as wrong"
        )
    return [*found, *comparison.notes, *(f"{FAILED}: {run.name}: {run.error}" for run in comparison.failed)]


def _on(comparison: Comparison, task: TaskComparison) -> str:
    unit = f" ({task.figure.unit})" if task.figure.unit else ""
    better = ", lower is better" if task.figure.better == "lower" else ""
    images = max((entry.score.images for entry in task.entries if entry.score), default=0)
    seeds = max((len(entry.scores) for entry in task.entries), default=0)
    said = f"{task.task}: {task.metric}{unit}{better} on {task.questions:,} questions about {images:,} images"
    drawn = "images only, as there is one seed" if seeds == 1 else "seeds and images"
    tests = f"; {task.tests} paired tests, corrected together" if task.tests else ""
    return f"{said}; intervals are over {drawn}{tests}"
