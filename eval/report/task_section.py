"""A task on the page: its score with all that must stand beside it, and its categories."""

from collections.abc import Sequence

from ..metrics.scoring import Figure
from ..results import CategoryScore, TaskResult, Value, shown
from .html import Axis, axis_of, gauge, safe, soft, terms
from .words import COUNTS, arrow, aside, count_of, counted, ends, facts, numeral, part, phrase, ranked

MOST_CATEGORIES, FIRST_AND_LAST = 30, 15
"""Up to so many categories are all in sight; of more, so many of the best and of the worst."""


def overview(results: Sequence[TaskResult]) -> str:
    """All tasks, a line each, on bars of equal length."""
    lines = "".join(_line(result) for result in results)
    return f'<nav class="panel lines" aria-label="Tasks">{lines}</nav>'


def _line(result: TaskResult) -> str:
    n = f'<span class="n soft">{counted(result.counts.n, "sample")}</span>'
    name = f'<a class="name" href="#{anchor(result)}">{safe(result.task)}</a>'
    alarms = "".join(_chip(result, count) for count in COUNTS if getattr(result.counts, count))
    if not result.figures:
        value = '<span class="nothing"></span><span class="value soft">hidden</span>'  # a cell for each of the others'
        return f'<div class="line">{name}{value}{n}<span class="chips">{alarms}</span></div>'
    value = f"<strong>{shown(result.score, result.scale)}</strong>"
    metric = soft(safe(result.conditions.metric) + arrow(result.scale))
    bar = gauge(result.score, result.interval, axis_of(_reach(result.own)))
    rest = f'{n}<span class="chips">{metric}{alarms}</span>'
    return f'<div class="line">{name}{bar}<span class="value">{value}</span>{rest}</div>'


def anchor(result: TaskResult) -> str:
    """The section's name in links."""
    return safe("-".join(f"task-{result.task}".split()))


def _reach(value: Value) -> list[float]:
    return [value.value, *(value.interval or ())]


def panel(result: TaskResult) -> str:
    """The score, its interval, the other figures, the counts, and what it was measured under."""
    return f"""<div class="panel score"><div class="own">{_own(result)}</div>
<div class="beside">{_other_figures(result)}<div class="chips">{_chips(result)}</div></div>
<div class="conditions">{_conditions(result)}</div></div>"""


def _own(result: TaskResult) -> str:
    if not result.figures:
        return '<div class="big">hidden</div><p class="soft">The answers of this split are kept by a server.</p>'
    axis, figure = axis_of(_reach(result.own)), result.scale
    over = f" · bar to {figure.scale * axis.high:g}" if axis.high != 1 else ""
    return f"""<div class="soft">{safe(_titled(result, figure))}</div>
<div class="big">{numeral(result.score, figure)}<small> {safe(figure.unit)}</small></div>
{gauge(result.score, result.interval, axis)}
<div class="soft">{_interval(result.own, figure)}{over}</div>"""


def _titled(result: TaskResult, figure: Figure) -> str:
    metric = result.conditions.metric
    name = metric if figure.name == "score" else f"{metric}: {figure.name}"
    return name + (" (lower is better)" if figure.better == "lower" else "")


def _interval(value: Value, figure: Figure) -> str:
    if value.interval is None:
        return "no interval: one image, or all worth the same"
    return f"95 % interval {ends(value.interval, figure)}"


def _other_figures(result: TaskResult) -> str:
    cells = "".join(_figure(figure, result.figures[figure.name]) for figure in result.scales[1:])
    return f'<div class="figures">{cells}</div>' if cells else ""


def _figure(figure: Figure, value: Value) -> str:
    name, low_high = safe(figure.name) + arrow(figure), ends(value.interval, figure) or "no interval"
    number = f"{numeral(value.value, figure)}<small> {safe(figure.unit)}</small>"
    return f'<div>{soft(name)}<strong>{number}</strong><span class="soft">{low_high}</span></div>'


def _chips(result: TaskResult) -> str:
    n = f'<span class="chip">{counted(result.counts.n, "sample")}</span>'
    return n + "".join(_chip(result, name) for name in COUNTS)


def _chip(result: TaskResult, name: str) -> str:
    grave = name in ("missing", "errors", "faulty")
    style = ("alarm" if grave else "warn") if getattr(result.counts, name) else "zero"
    return f'<span class="chip {style}" title="{COUNTS[name]}">{count_of(result.counts, name)}</span>'


def _conditions(result: TaskResult) -> str:
    """A quiet line in sight, everything on a click."""
    asked = f' <q class="prompt">{safe(_one_line(result.conditions.prompt))}</q>'
    found = facts(result.conditions)
    phrases = [safe(phrase(name, value)) + (asked if name == "prompt" else "") for name, value in found.items()]
    line = " · ".join(f"<span>{one}</span>" for one in phrases)
    return f"<details><summary>{line}</summary><dl>{terms(_everything(result).items())}</dl></details>"


def _one_line(text: str) -> str:
    return " ↵ ".join(text.splitlines())


def _everything(result: TaskResult) -> dict[str, str]:
    conditions = result.conditions
    return {
        "task": f"{result.task}, version {conditions.task_version}",
        "metric": conditions.metric,
        "split": conditions.split or "not stated",
        "questions": conditions.subset or "all",
        "prompt": conditions.variant,
        "its text": conditions.prompt,
        "decoding": ", ".join(f"{key}: {value}" for key, value in conditions.decoding.items()),
        "source": ", ".join(f"{key}: {value}" for key, value in conditions.source.items()),
        "digest of the questions": conditions.questions,
        "model": conditions.model,
        "kit version": conditions.kit_version,
        **({"submission file": result.submission} if result.submission else {}),
    }


def categories(result: TaskResult) -> str:
    """A bar for each category, the best first; of very many the middle is folded."""
    if not result.categories:
        return ""
    figure = part(result.scale)
    ordered = ranked(result.categories, figure)
    axis = axis_of(end for _, one in ordered for end in _reach(Value(one.score, one.interval)))
    bars = [_category(name, one, figure, axis) for name, one in ordered]
    note = f"<small>{safe(_titled(result, result.scale))}, {len(bars)} categories, the best first</small>"
    return f'<h3>By category {note}</h3><div class="panel">{_folded(bars)}</div>'


def _folded(bars: Sequence[str]) -> str:
    if len(bars) <= MOST_CATEGORIES:
        return f'<div class="bars">{"".join(bars)}</div>'
    best, between, worst = bars[:FIRST_AND_LAST], bars[FIRST_AND_LAST:-FIRST_AND_LAST], bars[-FIRST_AND_LAST:]
    summary = f"<summary>{len(between)} between the best {len(best)} and the worst {len(worst)}</summary>"
    folded = f'<details>{summary}<div class="bars">{"".join(between)}</div></details>'
    return f'<div class="bars">{"".join(best)}{folded}{"".join(worst)}</div>'


def _category(name: str, one: CategoryScore, figure: Figure, axis: Axis) -> str:
    errors = f' · <span class="alarm">{counted(one.errors, "error")}</span>' if one.errors else ""
    low_high = soft(ends(one.interval, figure))
    value = f"<strong>{shown(one.score, figure)}</strong>{low_high}{soft(f'n {one.n:,}{errors}')}"
    bar = gauge(one.score, one.interval, axis)
    return f'<span class="name">{safe(name) or "(none)"}{soft(safe(aside(one, figure)))}</span>{bar}{value}'
