"""Published scores on the page: a chart of those that may stand beside the user's, a list of those that may not."""

from collections.abc import Sequence

from ..metrics.scoring import Figure
from ..results import TaskResult
from ..task import Published
from .html import Axis, safe, soft, ticks
from .published import comparisons, others
from .words import arrow, ends, name_of, numeral


def published(result: TaskResult) -> str:
    """Everything that was published of the task; nothing if nothing was."""
    charts = "".join(_chart(result, figure, alike) for figure, alike in comparisons(result))
    rest = others(result)
    if not charts and not rest:
        return ""
    note = _same(result) if charts else "none was measured under the conditions of this one"
    listed = _others(rest, shut=bool(charts)) if rest else ""
    return f'<h3>Published scores <small>{note}</small></h3><div class="panel">{charts}{listed}</div>'


def _same(result: TaskResult) -> str:
    conditions = result.conditions
    split = f"split {safe(conditions.split)}, " if conditions.split else ""
    return f"{split}prompt {safe(conditions.variant)}, metric {safe(conditions.metric)}, as here"


def _chart(result: TaskResult, figure: Figure, alike: Sequence[Published]) -> str:
    """Dots on a line, the user's with its interval, which goes down through all of them."""
    value = result.figures[figure.name]
    reach = [figure.scale * one for one in (value.value, *(value.interval or ()))]
    marks = ticks([*reach, *(one.score for one in alike)])
    axis = Axis(marks[0], marks[-1])
    band = f'<i class="band" style="{axis.span(*reach[1:])}"></i>' if value.interval else ""
    told = numeral(value.value, figure)
    low_high = f"95 % interval {ends(value.interval, figure)}" if value.interval else ""
    own = _dot("this model", low_high, told, place=axis.at(reach[0]), band=band, kind="mine")
    rows = [(reach[0], own), *((one.score, _published(one, axis, band)) for one in alike)]
    sign = 1 if figure.better == "lower" else -1
    ordered = [html for _, html in sorted(rows, key=lambda row: sign * row[0])]
    name = f'<span class="name soft">{safe(name_of(figure, result))}{arrow(figure)} {safe(figure.unit)}</span>'
    scale = "".join(f'<i style="left:{axis.at(mark):.2f}%">{mark:g}</i>' for mark in marks)
    return f'<div class="chart">{"".join(ordered)}{name}<span class="scale">{scale}</span><span></span></div>'


def _published(one: Published, axis: Axis, band: str) -> str:
    source = f"{one.source}; {one.note}" if one.note else one.source
    return _dot(one.model, source, f"{one.score:g}", place=axis.at(one.score), band=band)


def _dot(name: str, source: str, value: str, *, place: float, band: str, kind: str = "") -> str:
    said = f'<small class="soft">{safe(source)}</small>' if source else ""
    dot = f'<i class="dot" style="left:{place:.2f}%"></i>'
    track = f'<span class="track {kind}">{band}{dot}</span>'
    return f'<span class="name {kind}">{safe(name)}{said}</span>{track}<span class="value {kind}">{safe(value)}</span>'


def _others(rest: Sequence[tuple[Published, list[str]]], *, shut: bool) -> str:
    rows = "".join(_other(one, why) for one, why in rest)
    head = "<tr><th>model</th><th>score</th><th>what differs</th><th>source</th></tr>"
    summary = f"<summary>{len(rest)} under other conditions: not comparable</summary>"
    return f'<details{"" if shut else " open"}>{summary}<div class="wide"><table>{head}{rows}</table></div></details>'


def _other(one: Published, why: Sequence[str]) -> str:
    figure = f" {soft(safe(one.figure))}" if one.figure else ""
    source = f"{one.source}; {one.note}" if one.note else one.source
    cells = (safe(one.model), f"{one.score:g}{figure}", safe("; ".join(why)), safe(source))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
