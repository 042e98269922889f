"""Runs of a grid side by side: what each scored over its seeds, and how it differs from its baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..metrics.scoring import Figure
from .paired import Estimate, estimate, holm, pseudovalues
from .tallies import Tallies, common


@dataclass(frozen=True)
class Run:
    """One cell."""

    name: str
    seed: str
    """Its label on the seed axis; runs of two groups with the same one are compared with each other."""
    tallies: Mapping[str, Tallies] = field(default_factory=dict, repr=False)
    """By task; empty where the run failed or is not done."""
    error: str | None = None
    """Why it failed."""
    training: float = 0.0
    """Seconds."""
    evaluation: float = 0.0
    """Seconds."""
    memory: int = 0
    """Bytes at most."""
    gpu_memory: int = 0
    """Bytes at most."""
    attempts: int = 1
    """Times that it was taken up; its seconds are those of all of them."""

    @property
    def questions_per_second(self) -> float | None:
        """Of the evaluation, loading included; None where it was taken up several times."""
        asked = sum(len(one.lines) for one in self.tallies.values())
        return asked / self.evaluation if self.attempts == 1 and asked and self.evaluation else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds only."""

    name: str
    labels: Mapping[str, str]
    """Axis -> label, without the seed's."""
    runs: Sequence[Run]
    baseline: str | None = None
    """Name of the group that it is tested against."""
    parameters: int = 0
    trained: int = 0
    """Of these, parameters that some stage trains."""
    tokens: float = 0.0
    """Visual tokens of an image."""
    positions: float = 0.0
    """Of a sample in the LLM's sequence, visual and text."""
    steps: Sequence[int] = ()
    """By stage."""
    flops: float | None = None
    """Planned, of the whole training."""
    trained_tokens: float = 0.0
    """Positions over the whole training."""

    @property
    def failed(self) -> list[Run]:
        return [run for run in self.runs if run.error is not None]

    def scored(self, task: str) -> list[Run]:
        """The runs that have a score."""
        return [run for run in self.runs if task in run.tallies]


@dataclass(frozen=True)
class Entry:
    """What one group has on one task."""

    group: str
    scores: dict[str, float]
    """By seed."""
    score: Estimate | None
    """Over seeds and images; None where no run has a score."""
    errors: int = 0
    """Questions that could not be answered, over all runs."""
    baseline: str | None = None
    difference: Estimate | None = None
    """From the baseline, on the questions and seeds that both have; None where one of them has no score."""
    p: float | None = None
    """Of no difference, corrected for the number of groups that are tested (Holm)."""


@dataclass(frozen=True)
class TaskComparison:
    """One task over all groups."""

    task: str
    metric: str
    figure: Figure
    questions: int
    entries: list[Entry]
    tests: int
    """How many p-values were corrected together."""


@dataclass(frozen=True)
class Comparison:
    """A whole grid."""

    title: str
    description: str
    groups: list[Group]
    tasks: list[TaskComparison]
    budget: str = ""
    """In words."""
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Run]:
        return [run for group in self.groups for run in group.failed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data without single questions, as `compare.json` has it."""
        content = asdict(self)
        for group in content["groups"]:
            for run in group["runs"]:
                run.pop("tallies")
        return content


def compare(groups: Sequence[Group], **words: Any) -> Comparison:
    """Scores with intervals, and each group's difference from its baseline with a test.

    Args:
        groups: in the order in which they are shown.
        words: the other fields of a `Comparison`.
    """
    tasks = dict.fromkeys(task for group in groups for run in group.runs for task in run.tallies)
    return Comparison(groups=list(groups), tasks=[_task(task, groups) for task in tasks], **words)


def _task(task: str, groups: Sequence[Group]) -> TaskComparison:
    by_name = {group.name: group for group in groups}
    first = next(run.tallies[task] for group in groups for run in group.scored(task))
    found = [_entry(task, group, by_name.get(group.baseline or "")) for group in groups]
    raw = [None if entry.difference is None else entry.difference.p for entry in found]
    entries = [replace(entry, p=p) for entry, p in zip(found, holm(raw), strict=True)]
    tests = sum(p is not None for p in raw)
    return TaskComparison(task, first.metric, first.figure, len(first.lines), entries, tests)


def _entry(task: str, group: Group, baseline: Group | None) -> Entry:
    runs = {run.seed: run.tallies[task] for run in group.scored(task)}
    if not runs:
        return Entry(group.name, {}, None)
    others = {} if baseline is None else {run.seed: run.tallies[task] for run in baseline.scored(task)}
    return Entry(
        group.name,
        {seed: run.value for seed, run in runs.items()},
        _within(score_of(list(runs.values())), list(runs.values())),
        errors=sum(run.errors for run in runs.values()),
        baseline=None if baseline is None else baseline.name,
        difference=difference_of(runs, others),
    )


def score_of(runs: Sequence[Tallies]) -> Estimate:
    """The mean of a task's figure over runs of several seeds."""
    (sums,) = common(runs)
    return estimate(pseudovalues(sums, runs[0].over))


def difference_of(runs: Mapping[str, Tallies], others: Mapping[str, Tallies]) -> Estimate | None:
    """How far runs lie above others on the questions that all have, seed by seed and image by image.

    Args:
        runs: by seed.
        others: by seed; seeds that only one side has are left out. None where no seed is left.
    """
    seeds = [seed for seed in runs if seed in others]
    if not seeds:
        return None
    mine, theirs = common([runs[seed] for seed in seeds], [others[seed] for seed in seeds])
    if not mine.shape[1]:
        return None
    over = runs[seeds[0]].over
    return estimate(pseudovalues(mine, over) - pseudovalues(theirs, over))


def _within(found: Estimate, runs: Sequence[Tallies]) -> Estimate:
    """A score is not tested, and an interval of shares cannot reach below 0 or above 1."""
    shares = runs[0].over != "sum of categories" and all(
        0 <= line.points <= line.weight for run in runs for line in run.lines
    )
    ends = found.interval
    if ends is not None and shares:
        ends = max(0.0, ends[0]), min(1.0, ends[1])
    return replace(found, p=None, interval=ends)
