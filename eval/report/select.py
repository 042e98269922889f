"""Which answers a report shows: the worst, the odd ones, and a random selection. Pure functions of the rows."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..results import Row

WORST, ODD, DRAWN, FAULTY = 24, 12, 48, 20
"""Samples of each kind that a report shows of a task."""

_ORDER = {"error": 0, "missing": 1, "wrong": 2, "partly": 3, "right": 4, "faulty": 5, "unscored": 6}
FLAGS = ("truncated", "unparsed", "empty")
"""What is odd about an answer, whatever it is worth."""


@dataclass(frozen=True)
class Selection:
    """What is shown of a task."""

    worst: Sequence[Row]
    """The worst first; all rows if they are few."""
    odd: Sequence[Row]
    """Truncated, unparsed and empty answers that are not among the worst."""
    drawn: Sequence[Row]
    """A random selection of all that was asked; nothing if `worst` has all."""
    faulty: Sequence[Row]
    """The first samples whose annotation cannot be used."""
    missed: int
    """Rows that are not right."""
    asked: int
    """Rows that are not faulty."""

    @property
    def all_shown(self) -> bool:
        return len(self.worst) == self.asked

    @property
    def cards(self) -> int:
        return len(self.worst) + len(self.odd) + len(self.drawn)


def select(rows: Sequence[Row], seed: int = 0) -> Selection:
    """The rows to show; the same for the same seed."""
    asked = [row for row in rows if row.verdict != "faulty"]
    faulty = [row for row in rows if row.verdict == "faulty"][:FAULTY]
    mixed = random.Random(seed).sample(asked, len(asked))  # equally bad answers come in no particular order
    missed = [row for row in mixed if _ORDER[row.verdict] < _ORDER["right"]]
    if len(asked) <= WORST + DRAWN:
        return Selection(sorted(mixed, key=_badness), (), (), faulty, len(missed), len(asked))
    worst = _worst(missed)
    shown = {row.question.index for row in worst}
    odd = _odd(row for row in mixed if flags(row) and row.question.index not in shown)
    return Selection(worst, odd, mixed[:DRAWN], faulty, len(missed), len(asked))


def flags(row: Row) -> tuple[str, ...]:
    """Which of `FLAGS` are true of a row."""
    cut = row.reply is not None and row.reply.truncated
    true = {"truncated": cut, "unparsed": row.unparsed, "empty": row.empty}
    return tuple(flag for flag in FLAGS if true[flag])


def _badness(row: Row) -> tuple[int, float]:
    return _ORDER[row.verdict], row.score.goodness if row.score else 0.0


def _worst(missed: Sequence[Row]) -> list[Row]:
    """The worst first. Failures take a third of the places at most where there are wrong answers to look at."""
    first, crowded, seen = list[Row](), list[Row](), Counter[str]()
    for row in sorted(missed, key=_badness):
        seen[row.verdict] += 1
        full = row.verdict in ("error", "missing") and seen[row.verdict] > WORST // 3
        (crowded if full else first).append(row)
    return sorted([*first, *crowded][:WORST], key=_badness)


def _odd(rows: Iterable[Row]) -> list[Row]:
    """Some of each kind: rows that share their first flag take turns."""
    by_flag: dict[str, list[Row]] = {flag: [] for flag in FLAGS}
    for row in rows:
        by_flag[flags(row)[0]].append(row)
    turns = sorted((number, flag) for flag, group in by_flag.items() for number in range(len(group)))
    return [by_flag[flag][number] for number, flag in turns[:ODD]]
