"""Plots of a comparison: score over visual tokens, score over training compute, differences from the baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log10
from pathlib import Path
from typing import Any

from vlm.planning.tables import flops

from .comparison import Comparison, Group, TaskComparison
from .labels import Box, place
from .paired import Estimate
from .words import is_number

INK, SOFT, GRID, FRAME = "#1c2128", "#5d6673", "#e6e9ed", "#c9cfd6"
COLOURS = ("#2f6fde", "#d1652b", "#1a8f5a", "#8a4fd0", "#c23b6d", "#0f8a9d", "#8a6d1a", "#5b6470")
ALIKE = 0.02
"""Values that differ by no more than this share get no axis."""
LABEL = 9
"""Size of names beside dots."""
APART = 13.0
"""Pixels between dots that stand at the same place of the axis."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": FRAME,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
}


@dataclass(frozen=True)
class Dot:
    """A group as a plot shows it."""

    name: str
    series: str
    """Its labels that are words; dots of one series differ in numbers only, and are joined."""
    numbers: str
    """Its labels that are numbers."""
    value: float
    ends: tuple[float, float]
    """Of the interval; twice the value where there is none."""
    colour: str
    is_baseline: bool = False
    seeds: tuple[float, ...] = ()
    x: float = 0.0
    aside: float = 0.0
    """Pixels that it is moved to the right, where others would cover it."""


def plot_all(comparison: Comparison, folder: Path) -> dict[str, dict[str, Path]]:
    """The pictures of each task, written to `folder`: `tokens`, `compute`, and `differences` where there are any.

    What is the same for all cells is no axis: a line each then, and where tokens and compute both are, `compute` alone.
    """
    from matplotlib import rc_context

    with rc_context(_STYLE):
        return {task.task: _plot_task(comparison, task, folder) for task in comparison.tasks}


def _plot_task(comparison: Comparison, task: TaskComparison, folder: Path) -> dict[str, Path]:
    file = task.task.replace(":", "-")
    found: dict[str, Path] = {}
    for what, heading in (("compute", "training compute"), ("tokens", "visual tokens")):
        dots = _scores(comparison, task, what)
        again = what == "tokens" and "compute" in found and _alike(_scores(comparison, task, "compute"))
        if dots and not (again and _alike(dots)):
            sheet = _over(dots, task, what, heading)
            found[what] = folder / f"{file}-over-{what}.png"
            sheet.savefig(found[what])
    found = dict(sorted(found.items(), reverse=True))  # tokens first
    dots = _differences(comparison, task)
    if dots:
        unit = "percentage points" if task.figure.unit == "%" else task.figure.unit or task.metric
        others = {entry.baseline for entry in task.entries if entry.baseline}
        title = f"difference from {next(iter(others))}" if len(others) == 1 else "difference from each one's baseline"
        found["differences"] = folder / f"{file}-differences.png"
        _rows(dots, f"{task.task}: {title}", unit, zero=True).savefig(found["differences"])
    return found


def _scores(comparison: Comparison, task: TaskComparison, what: str) -> list[Dot]:
    """Nothing where no group has a score, or what belongs on the axis is not known."""
    baselines = {group.baseline for group in comparison.groups}
    colours, factor = _colours(comparison.groups), task.figure.scale
    dots = []
    for group, entry in zip(comparison.groups, task.entries, strict=True):
        x = group.tokens if what == "tokens" else group.flops
        if entry.score is None:
            continue
        if x is None:
            return []
        seeds = tuple(factor * value for value in entry.scores.values())
        dot = _dot(group, entry.score, factor, colours)
        dots.append(replace(dot, x=x, seeds=seeds, is_baseline=group.name in baselines))
    return dots


def _differences(comparison: Comparison, task: TaskComparison) -> list[Dot]:
    colours, factor = _colours(comparison.groups), task.figure.scale
    pairs = zip(comparison.groups, task.entries, strict=True)
    return [_dot(group, entry.difference, factor, colours) for group, entry in pairs if entry.difference is not None]


def _dot(group: Group, found: Estimate, factor: float, colours: Mapping[str, str]) -> Dot:
    low, high = found.interval or (found.value, found.value)
    numbers = ", ".join(label for label in group.labels.values() if is_number(label))
    series = _words(group)
    return Dot(group.name, series, numbers, factor * found.value, (factor * low, factor * high), colours[series])


def _words(group: Group) -> str:
    return ", ".join(label for label in group.labels.values() if not is_number(label)) or group.name


def _colours(groups: Sequence[Group]) -> dict[str, str]:
    series = dict.fromkeys(map(_words, groups))
    return {word: COLOURS[number % len(COLOURS)] for number, word in enumerate(series)}


def _over(dots: Sequence[Dot], task: TaskComparison, what: str, heading: str) -> Any:
    """The score over something; over nothing where that is the same for all."""
    xs = [dot.x for dot in dots]
    better = ", lower is better" if task.figure.better == "lower" else ""
    label = f"{task.metric}{f' ({task.figure.unit})' if task.figure.unit else ''}{better}"
    if _alike(dots):
        each = f"{xs[0]:,.0f} visual tokens an image" if what == "tokens" else f"{flops(round(xs[0]))} of training each"
        return _rows(dots, f"{task.task}: score at {each}", label, zero=False)
    sheet, axes = _sheet(7.6, 4.7)
    _axis(axes, xs, what)
    axes.set(title=f"{task.task}: score over {heading}", ylabel=label, ylim=_limits(dots))
    names = _names(dots, numbered=what != "tokens")
    _settle(sheet, axes, xs, names)
    dots = _apart(axes, dots)
    for line in _series(dots):
        places = [_place(axes, dot) for dot in line]
        axes.plot(places, [dot.value for dot in line], color=line[0].colour, alpha=0.4, linewidth=1.4)
    for dot in dots:
        x = _place(axes, dot)
        axes.plot([x, x], dot.ends, color=dot.colour, linewidth=1.6, alpha=0.75, zorder=3)
        axes.plot([x] * len(dot.seeds), dot.seeds, "o", color=dot.colour, markersize=2.8, alpha=0.45, zorder=4)
        _mark(axes, x, dot.value, dot)
    _label(sheet, axes, dots, names)
    return sheet


def _settle(sheet: Any, axes: Any, xs: Sequence[float], names: Sequence[str]) -> None:
    """Give the axis its limits, with room for names at the right; from here on a pixel stays where it is."""
    sheet.canvas.draw()
    frame = axes.get_window_extent()
    texts = [axes.annotate(name, (0, 0), xycoords="figure pixels", fontsize=LABEL) for name in names]
    room = max(text.get_window_extent(sheet.canvas.get_renderer()).width for text in texts) + 2 * APART
    for text in texts:
        text.remove()
    forth, back = axes.transScale.transform, axes.transScale.inverted().transform
    first, last = (float(forth((x, 1))[0]) for x in (min(xs), max(xs)))
    pad = 4 * APART
    pixel = (last - first) / (frame.width - pad - min(room, frame.width / 3))
    left, right = first - pad * pixel, first + (frame.width - pad) * pixel
    axes.set_xlim(*(float(back((end, 0))[0]) for end in (left, right)))
    sheet.canvas.draw()
    sheet.set_layout_engine("none")


def _alike(dots: Sequence[Dot]) -> bool:
    """Whether all stand at one place of the axis."""
    xs = [dot.x for dot in dots]
    return max(xs) - min(xs) <= ALIKE * max(xs)


def _limits(dots: Sequence[Dot]) -> tuple[float, float]:
    """Of the scores with their intervals, but for intervals so long that the scores could not be told apart."""
    low, high = min(dot.value for dot in dots), max(dot.value for dot in dots)
    span = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-9)
    low = max(low - 0.5 * span, min(min(dot.ends) for dot in dots))
    high = min(high + 0.5 * span, max(max(dot.ends) for dot in dots))
    return low - 0.12 * span, high + 0.16 * span


def _apart(axes: Any, dots: Sequence[Dot]) -> list[Dot]:
    """Dots at one place are moved aside, so that their intervals can be told apart."""
    found: list[Dot] = []
    for dot in dots:
        at = axes.transData.transform((dot.x, 0))[0]
        near = [other for other in dots if abs(axes.transData.transform((other.x, 0))[0] - at) < APART]
        found.append(replace(dot, aside=APART * (near.index(dot) - (len(near) - 1) / 2)))
    return found


def _place(axes: Any, dot: Dot) -> float:
    """Where on the axis a dot is drawn."""
    at = axes.transData.transform((dot.x, 0))[0] + dot.aside
    return float(axes.transData.inverted().transform((at, 0))[0])


def _names(dots: Sequence[Dot], *, numbered: bool) -> list[str]:
    """What is written beside each dot: a series' name at its last dot, and the numbers where the axis does not tell."""
    last = {line[-1] for line in _series(dots)}
    found = []
    for dot in dots:
        words = [dot.series] if dot in last else []
        words += [dot.numbers] if numbered and dot.numbers else []
        found.append(", ".join(words) + (" (baseline)" if dot.is_baseline and dot in last else ""))
    return found


def _sheet(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    sheet = Figure(figsize=(width, height), dpi=160, layout=layout)
    FigureCanvasAgg(sheet)
    return sheet, sheet.subplots()


def _series(dots: Sequence[Dot]) -> list[list[Dot]]:
    """Dots that are joined by a line, from left to right."""
    found: dict[str, list[Dot]] = {}
    for dot in sorted(dots, key=lambda dot: dot.x):
        found.setdefault(dot.series, []).append(dot)
    return list(found.values())


def _mark(axes: Any, x: float, y: float, dot: Dot) -> None:
    """The baseline's is hollow."""
    face = "white" if dot.is_baseline else dot.colour
    axes.plot([x], [y], "o", color=dot.colour, markerfacecolor=face, markersize=7.5, markeredgewidth=2, zorder=5)


def _axis(axes: Any, xs: Sequence[float], what: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    log = min(xs) > 0 and max(xs) > 4 * min(xs)
    if log:
        axes.set_xscale("log")
    unit = 10 ** (3 * (int(log10(max(xs))) // 3)) if what == "compute" else 1
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.4g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    named = flops(unit).partition(" ")[2]
    axes.set_xlabel("visual tokens of an image" if what == "tokens" else f"planned compute of the training ({named})")
    if what == "tokens" or log:
        axes.xaxis.set_major_locator(FixedLocator(_ticks(xs, log=log)))
        axes.xaxis.set_minor_locator(NullLocator())


def _ticks(xs: Sequence[float], *, log: bool) -> list[float]:
    """At the values themselves, but for those that would stand on each other."""
    values = sorted(set(xs))
    at = [log10(value) if log else value for value in values]
    kept = [0]
    for number in range(1, len(at)):
        if at[number] - at[kept[-1]] >= 0.09 * (at[-1] - at[0]):
            kept.append(number)
    return [values[number] for number in kept]


def _label(sheet: Any, axes: Any, dots: Sequence[Dot], names: Sequence[str]) -> None:
    """Names beside their dots, with a thin line to those for which there was no room near by."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.6, foreground="white")]
    renderer = sheet.canvas.get_renderer()
    named = [(dot, name) for dot, name in zip(dots, names, strict=True) if name]
    texts = [
        axes.annotate(
            name, (0, 0), xycoords="figure pixels", color=dot.colour, fontsize=LABEL, zorder=6, path_effects=halo
        )
        for dot, name in named
    ]
    extents = [text.get_window_extent(renderer) for text in texts]
    points = [_pixel(axes, dot, dot.value) for dot, _ in named]
    frame = axes.get_window_extent(renderer)
    inside = (frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)
    sizes = [(extent.width, extent.height) for extent in extents]
    found = place(points, sizes, taken=_taken(axes, dots), inside=inside)
    for (dot, _), point, text, placed in zip(named, points, texts, found, strict=True):
        text.set_position(placed.box[:2])
        text.set_verticalalignment("bottom")
        if placed.distance > 30:
            _lead(sheet, point, placed.box, dot.colour)


def _pixel(axes: Any, dot: Dot, value: float) -> tuple[float, float]:
    x, y = axes.transData.transform((dot.x, value))
    return float(x) + dot.aside, float(y)


def _lead(sheet: Any, point: tuple[float, ...], box: Box, colour: str) -> None:
    from matplotlib.lines import Line2D

    x = min(max(point[0], box[0]), box[2])
    y = min(max(point[1], box[1]), box[3])
    width, height = sheet.bbox.width, sheet.bbox.height
    ends = ([point[0] / width, x / width], [point[1] / height, y / height])
    sheet.add_artist(Line2D(*ends, color=colour, linewidth=0.7, alpha=0.6, zorder=1))


def _taken(axes: Any, dots: Sequence[Dot]) -> list[Box]:
    """Marks, intervals and joining lines, in pixels."""
    found: list[Box] = []
    for dot in dots:
        x, y = _pixel(axes, dot, dot.value)
        found.append((x - 11, y - 11, x + 11, y + 11))
        found.append((x - 3, _pixel(axes, dot, dot.ends[0])[1], x + 3, _pixel(axes, dot, dot.ends[1])[1]))
    for line in _series(dots):
        for one, other in pairwise(line):
            (a, b), (c, d) = _pixel(axes, one, one.value), _pixel(axes, other, other.value)
            shares = [number / 24 for number in range(25)]
            places = [(a + (c - a) * share, b + (d - b) * share) for share in shares]
            found += [(x - 2, y - 2, x + 2, y + 2) for x, y in places]
    return found


def _rows(dots: Sequence[Dot], title: str, label: str, *, zero: bool) -> Any:
    """A line each, with its interval from left to right."""
    sheet, axes = _sheet(7.6, 1.25 + 0.34 * len(dots))
    for number, dot in enumerate(dots):
        axes.plot(dot.ends, [number, number], color=dot.colour, linewidth=1.8, alpha=0.75, zorder=3)
        axes.plot(dot.seeds, [number] * len(dot.seeds), "o", color=dot.colour, markersize=2.8, alpha=0.45, zorder=4)
        _mark(axes, dot.value, number, dot)
    if zero:
        axes.axvline(0, color=SOFT, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    axes.set(title=title, xlabel=label, ylim=(len(dots) - 0.4, -0.6))
    axes.set_yticks(range(len(dots)), [f"{dot.name} (baseline)" if dot.is_baseline else dot.name for dot in dots])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    return sheet
