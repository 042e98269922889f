"""Results in words and figures, the same in the terminal and on the page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..metrics.intervals import Interval
from ..metrics.scoring import Figure
from ..results import CategoryScore, Conditions, Counts, TaskResult

COUNTS = {
    "missing": "no answer yet; counts as nothing right",
    "errors": "could not be read or answered; counts as nothing right",
    "faulty": "annotation cannot be used: not asked, not scored",
    "empty": "answers without any text",
    "unparsed": "answers in which the metric found no letter, no yes or no, no box; wrong",
    "truncated": "answers cut at the longest length",
}
"""The counts beside every score, the gravest first, and what they mean."""
_SINGULAR = {"errors": "error"}


def label(result: TaskResult) -> str:
    """A task with its version."""
    return f"{result.task} v{result.conditions.task_version}"


def numeral(value: float, figure: Figure) -> str:
    """A value without its unit: `81.4`, `297`."""
    return f"{figure.scale * value:.1f}" if figure.scale <= 100 else f"{figure.scale * value:.0f}"


def ends(interval: Interval | None, figure: Figure) -> str:
    """`80.1 – 82.6`, or nothing."""
    return "" if interval is None else " – ".join(numeral(end, figure) for end in interval)


def name_of(figure: Figure, result: TaskResult) -> str:
    """A figure as people know it; the only figure of a metric is the metric's name."""
    return result.conditions.metric if figure.name == "score" else figure.name


def arrow(figure: Figure) -> str:
    """Where the good end is, said only where it is not the usual one."""
    return " ↓" if figure.better == "lower" else ""


def part(figure: Figure) -> Figure:
    """How a category's value is shown: what is told per thousand of the whole is a percentage of a part."""
    return figure if figure.scale <= 100 else replace(figure, scale=100.0, unit="%")


def counted(number: int, what: str) -> str:
    """`1 error`, `2,100 samples`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def count_of(counts: Counts, name: str) -> str:
    """One of `COUNTS` with its number: `1 error`, `3 truncated`."""
    number = getattr(counts, name)
    return f"{number:,} {_SINGULAR.get(name, name) if number == 1 else name}"


def aside(one: CategoryScore, figure: Figure) -> str:
    """Says of a category that adds to another figure than the metric's own which it is."""
    return "" if one.figure == figure.name else f" ({one.figure})"


def ranked(categories: Mapping[str, CategoryScore], figure: Figure) -> list[tuple[str, CategoryScore]]:
    """Categories, the best first; of equal ones by name, `level 2` before `level 10`."""
    sign = 1 if figure.better == "lower" else -1
    return sorted(categories.items(), key=lambda item: (sign * item[1].score, natural(item[0])))


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by their value."""
    pieces = re.split(r"(\d+)", text.casefold())
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in pieces]


def facts(conditions: Conditions) -> dict[str, str]:
    """What stands beside a score, in the order of what people ask first; the prompt's text is apart."""
    decoding = ", ".join(f"{key} {value}" for key, value in conditions.decoding.items())
    found = {
        "split": conditions.split,
        "of": conditions.subset,
        "prompt": conditions.variant,
        "decoding": decoding,
        "model": conditions.model,
        "kit": conditions.kit_version,
        "source": str(conditions.source.get("name", "")),
        "questions": conditions.questions,
    }
    return {name: value for name, value in found.items() if value}


def phrase(name: str, value: str) -> str:
    """One of `facts` where it stands in a line with others."""
    return value if name in ("of", "decoding") else f"{name} {value}"


def shared(results: Sequence[TaskResult]) -> dict[str, str]:
    """The facts that are the same for all tasks."""
    each = [facts(result.conditions).items() for result in results]
    return dict(item for item in each[0] if all(item in other for other in each)) if len(each) > 1 else {}
