"""The results in a terminal: scores with all that must stand beside them."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .results import Counts, TaskResult, Value
from .scoring import Figure

_ALARMS = {"missing": "red", "errors": "red", "faulty": "red", "empty": "yellow", "unparsed": "yellow"}
_HEADINGS = {**{name: name for name in _ALARMS}, "truncated": "cut"}


def table(results: Sequence[TaskResult]) -> RenderableType:
    """The results, categories below their task, counts beside every score and the conditions underneath."""
    scores = Table(title="Evaluation")
    scores.add_column("task", overflow="fold")
    scores.add_column("figure", overflow="fold")
    for heading in ("score", "95 %", "n"):
        scores.add_column(heading, justify="right", no_wrap=True)
    always = ("errors", "empty", "truncated")
    kinds = [name for name in _HEADINGS if name in always or any(getattr(one.counts, name) for one in results)]
    for name in kinds:
        scores.add_column(_HEADINGS[name], justify="right", no_wrap=True)
    for result in results:
        _add(scores, result, kinds)
    if any(figure.better == "lower" for result in results for figure in result.scales):
        scores.caption = "↓ lower is better"
    return Group(scores, *map(_conditions, results))


def _add(scores: Table, result: TaskResult, kinds: Sequence[str]) -> None:
    counts = [_count(result.counts, name) for name in kinds]
    name = Text(label(result), "bold")
    if not result.figures:
        scores.add_row(name, "hidden", "–", "", str(result.counts.n), *counts)
    cells: list[RenderableType]
    for number, figure in enumerate(result.scales):
        value = result.figures[figure.name]
        own = number == 0
        cells = [str(result.counts.n), *counts] if own else []
        title = result.conditions.metric if own and figure.name == "score" else figure.name
        arrow = " ↓" if figure.better == "lower" else ""
        scored = Text(_number(value.value, figure), "bold" if own else "")
        scores.add_row(name if own else "", Text(title + arrow), scored, _ends(value, figure), *cells)
    for category, part in result.categories.items():
        failed = [Text(str(part.errors), "red") if part.errors and name == "errors" else Text("") for name in kinds]
        cells = [_number(part.score, result.scale), _ends(Value(part.score, part.interval), result.scale)]
        scores.add_row(Text(f"  {category or '(none)'}"), "", *cells, str(part.n), *failed)
    scores.add_section()


def label(result: TaskResult) -> str:
    """A task with its version."""
    return f"{result.task} v{result.conditions.task_version}"


def _conditions(result: TaskResult) -> Text:
    facts = result.conditions
    decoding = ", ".join(f"{key} {value}" for key, value in facts.decoding.items())
    split = f"split {facts.split}" if facts.split else ""
    parts = [
        split,
        facts.subset,
        f"prompt {facts.variant}",
        decoding,
        f"model {facts.model}",
        f"kit {facts.kit_version}",
    ]
    return Text(f"{result.task}: {' · '.join(filter(None, parts))}", "dim")


def _number(value: float, figure: Figure) -> str:
    return f"{figure.scale * value:.1f}" if figure.scale <= 100 else f"{figure.scale * value:.0f}"


def _ends(value: Value, figure: Figure) -> str:
    return "" if value.interval is None else " – ".join(_number(end, figure) for end in value.interval)


def _count(counts: Counts, name: str) -> Text:
    number = getattr(counts, name)
    return Text(str(number), style=f"bold {_ALARMS.get(name, 'yellow')}" if number else "dim")
