"""The results in a terminal: scores with all that must stand beside them."""

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .metrics.scoring import Figure
from .report.words import (
    COUNTS,
    arrow,
    aside,
    count_of,
    counted,
    ends,
    facts,
    label,
    name_of,
    numeral,
    part,
    phrase,
    ranked,
    shared,
)
from .results import CategoryScore, Counts, TaskResult

MOST_CATEGORIES, FIRST_AND_LAST = 30, 10
"""Up to so many categories are all shown; of more, so many of the best and of the worst, and how many are not."""
_STYLES = dict.fromkeys(COUNTS, "yellow") | dict.fromkeys(("missing", "errors", "faulty"), "bold red")


def table(results: Sequence[TaskResult]) -> RenderableType:
    """The results: below each task the metric's other figures and the categories, counts beside every score, the
    conditions underneath."""
    scores = Table(title="Evaluation", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    scores.add_column("task, figure", overflow="fold", min_width=12)
    for heading in ("score", "95 % interval", "n"):
        scores.add_column(heading, justify="right", no_wrap=True)
    scores.add_column("problems", overflow="fold", min_width=12)
    for result in results:
        _add(scores, result)
    return Group(scores, *_footnotes(results))


def _add(scores: Table, result: TaskResult) -> None:
    beside = (f"{result.counts.n:,}", _problems(result.counts))
    name = Text(f"{plain(label(result))}, ", "bold")
    if not result.figures:
        scores.add_row(name + Text(plain(result.conditions.metric)), "hidden", "", *beside)
    for number, figure in enumerate(result.scales if result.figures else ()):
        value, own = result.figures[figure.name], number == 0
        title = Text(plain(name_of(figure, result)) + arrow(figure))
        scored = Text(_told(value.value, figure), "bold" if own else "")
        cells = (scored, ends(value.interval, figure), *(beside if own else ()))
        scores.add_row(name + title if own else _indented(title), *cells)
    if result.categories:
        _add_categories(scores, result)
    scores.add_section()


def _add_categories(scores: Table, result: TaskResult) -> None:
    figure = part(result.scale)
    ordered = ranked(result.categories, figure)
    if len(result.scales) > 1:
        scores.add_row(_indented(Text(f"{plain(name_of(result.scale, result))} by category", "dim")))
    if len(ordered) <= MOST_CATEGORIES:
        _add_each(scores, ordered, figure)
        return
    _add_each(scores, ordered[:FIRST_AND_LAST], figure)
    between = len(ordered) - 2 * FIRST_AND_LAST
    scores.add_row(_indented(Text(f"… {between} between, in results.json and the report", "dim")))
    _add_each(scores, ordered[-FIRST_AND_LAST:], figure)


def _add_each(scores: Table, ordered: Iterable[tuple[str, CategoryScore]], figure: Figure) -> None:
    for name, one in ordered:
        failed = Text(counted(one.errors, "error") if one.errors else "", "red")
        title = _indented(Text((plain(name) or "(none)") + aside(one, figure)))
        scores.add_row(title, _told(one.score, figure), ends(one.interval, figure), f"{one.n:,}", failed)


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 2))


def _told(value: float, figure: Figure) -> str:
    return numeral(value, figure) + (" %" if figure.unit == "%" else "")


def _problems(counts: Counts) -> Text:
    """What is not as it should be."""
    found = [Text(count_of(counts, name), _STYLES[name]) for name in COUNTS if getattr(counts, name)]
    return Text("\n").join(found) if found else Text("none", "dim")


def _footnotes(results: Sequence[TaskResult]) -> list[Text]:
    """The conditions: once what all tasks share, then each task's own."""
    alike = shared(results)
    lines = [Text(""), *([_line("all tasks", alike)] if alike else [])]
    for result in results:
        own = {name: value for name, value in facts(result.conditions).items() if name not in alike}
        unit = result.scale.unit if result.figures else ""
        told = {} if unit in ("", "%") else {"unit": unit}
        submitted = {"submission file": result.submission} if result.submission else {}
        lines.append(_line(result.task, {**own, **told, **submitted}))
    if any(figure.better == "lower" for result in results for figure in result.scales):
        lines.append(Text("↓ lower is better", "dim"))
    return [*lines, Text(f"problems not named are 0; looked for: {', '.join(COUNTS)}", "dim")]


def _line(name: str, found: Mapping[str, str]) -> Text:
    phrases = " · ".join(phrase(key, value) for key, value in found.items())
    return Text(f"{plain(name)}: {plain(phrases)}", "dim")


def plain(text: str) -> str:
    """Text without line ends and without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
