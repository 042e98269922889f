"""Draws charts: what lies where is measured first, so that no two texts touch."""

import colorsys
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from vlm.views import Size

from .canvas import Canvas, Colour, contrast, slanted
from .faces import width

Form = Literal["bars", "sideways", "lines", "pie"]
LEAST_EM = 9
TURN = 35.0
"""Degrees by which labels rise where they do not fit side by side."""
_FINE = 3
"""Curves are drawn so many times larger, then reduced."""


@dataclass(frozen=True)
class Facts:
    """What a chart says."""

    form: Form
    title: str
    labels: tuple[str, ...]
    series: tuple[str, ...]
    """Names; of a single one, empty."""
    values: tuple[tuple[int, ...], ...]
    """By series, then by label; of a pie, percents."""
    step: int
    """Between two ticks."""
    top: int
    """End of the axis, which starts at 0."""
    printed: bool
    """Whether values stand beside what shows them."""


@dataclass(frozen=True)
class Look:
    """Colours and text."""

    ink: Colour
    ground: Colour
    grid: Colour
    fills: tuple[Colour, ...]
    face: str
    em: int
    level: int


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float


def colours(rng: np.random.Generator, count: int, ground: Colour) -> tuple[Colour, ...]:
    """`count` fills that differ in hue, and from the ground in luminance."""
    first, found = rng.random(), []
    for number in range(count):
        hue = (first + number / count + rng.uniform(-0.06, 0.06) / count) % 1
        bright = (0.9, 0.55)[number % 2] if number < count - count % 2 else 0.72  # a pie's last slice meets its first
        red, green, blue = colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.9), bright)
        fill = (round(255 * red), round(255 * green), round(255 * blue))
        while contrast(fill, ground) < 1.6:  # away from the ground
            up = sum(ground) < 384
            fill = tuple(min(255, value + 12) if up else max(0, value - 12) for value in fill)  # type: ignore[assignment]
        found.append(fill)
    return tuple(found)


def draw(said: Facts, look: Look, size: Size) -> Canvas | None:
    """The chart on a canvas of `size`; None where it would be too crowded at this em."""
    page = Canvas(size, look.ground)
    margin = round(0.8 * look.em)
    top = _head(page, said, look, margin)
    if top is None:
        return None
    inner = _Box(margin, top, size[1] - margin, size[0] - margin)
    plot = {"bars": _upright, "lines": _upright, "sideways": _sideways, "pie": _pie}[said.form]
    return page if plot(page, said, look, inner) else None


def _head(page: Canvas, said: Facts, look: Look, margin: int) -> float | None:
    """Title, and a legend where there are several series; where the rest may begin."""
    em = round(1.25 * look.em)
    if width(said.title, look.face, em) > page.size[1] - 2 * margin:
        return None
    page.text((page.size[1] / 2, margin + em), said.title, look.face, em, look.ink, anchor="ms")
    top = margin + 1.7 * em
    if len(said.series) == 1:
        return top
    keys = [1.3 * look.em + width(name, look.face, look.em) for name in said.series]
    total = sum(keys) + 1.5 * look.em * (len(keys) - 1)
    if total > page.size[1] - 2 * margin:
        return None
    left = (page.size[1] - total) / 2
    for name, fill, key in zip(said.series, look.fills, keys, strict=True):
        _key(page, (left, top + look.em), name, fill, look)
        left += key + 1.5 * look.em
    return top + 1.9 * look.em


def _key(page: Canvas, at: tuple[float, float], name: str, fill: Colour, look: Look) -> None:
    """One entry of a legend, on the baseline `at`."""
    side = round(0.75 * look.em)
    left, top = round(at[0]), round(at[1]) - side
    page.pen.rectangle((left, top, left + side - 1, top + side - 1), fill=fill)
    page.text((at[0] + 1.3 * look.em, at[1]), name, look.face, look.em, look.ink)


def _ticks(said: Facts) -> list[int]:
    return list(range(0, said.top + 1, said.step))


def _upright(page: Canvas, said: Facts, look: Look, inner: _Box) -> bool:
    """Bars or lines over labels."""
    em, face = look.em, look.face
    left = inner.left + max(width(str(tick), face, em) for tick in _ticks(said)) + 0.8 * em
    slot = (inner.right - left) / len(said.labels)
    wide = max(width(label, face, em) for label in said.labels)
    turned = wide + 0.6 * em > slot
    drop = 1.7 * em
    if turned:
        masks = [slanted(label, face, em, TURN) for label in said.labels]
        for _ in range(3):  # the first labels may reach further left than the axis
            reach = (mask.width - slot * (place + 0.5) for place, mask in enumerate(masks))
            left = max(left, inner.left + max(reach) - 0.2 * em)
            slot = (inner.right - left) / len(said.labels)
        drop = max(mask.height for mask in masks) + 0.7 * em
        if slot * math.sin(math.radians(TURN)) < 1.25 * em:
            return False
    box = _Box(left, inner.top + 1.4 * em, inner.right, inner.bottom - drop)
    if box.bottom - box.top < 7 * em or (said.printed and slot < 3 * em):
        return False
    for tick in _ticks(said):
        y = _height(tick, said, box)
        _rule(page, look, (box.left, y, box.right, y), strong=tick == 0)
        page.text((box.left - 0.5 * em, y), str(tick), face, em, look.ink, anchor="rm")
    for place, label in enumerate(said.labels):
        x = box.left + slot * (place + 0.5)
        if turned:
            page.slanting((x + 0.3 * em, box.bottom + 0.5 * em), label, face, em, look.ink, turn=TURN)
        else:
            page.text((x, box.bottom + 1.4 * em), label, face, em, look.ink, anchor="ms")
    (_bars if said.form == "bars" else _lines)(page, said, look, box, slot)
    return True


def _height(value: float, said: Facts, box: _Box) -> int:
    return round(box.bottom - (box.bottom - box.top) * value / said.top)


def _across(value: float, said: Facts, box: _Box) -> int:
    return round(box.left + (box.right - box.left) * value / said.top)


def _rule(page: Canvas, look: Look, ends: tuple[float, float, float, float], *, strong: bool) -> None:
    """A line of the grid, or an axis; level 1 has axes alone."""
    if strong or look.level > 1:
        left, top, right, bottom = (round(end) for end in ends)
        page.pen.rectangle((left, top, right, bottom), fill=look.ink if strong else look.grid)


def _bars(page: Canvas, said: Facts, look: Look, box: _Box, slot: float) -> None:
    group = 0.68 * slot
    thick = group / len(said.series)
    for number, values in enumerate(said.values):
        for place, value in enumerate(values):
            x = box.left + slot * (place + 0.5) - group / 2 + thick * number
            y = _height(value, said, box)
            page.pen.rectangle((round(x), y, round(x + thick) - 1, round(box.bottom) - 1), fill=look.fills[number])
            if said.printed:
                _value(page, look, (x + thick / 2, y - 0.35 * look.em), value, "ms")


def _lines(page: Canvas, said: Facts, look: Look, box: _Box, slot: float) -> None:
    """Curves with a mark at each point; marks differ by series."""
    thick, radius = max(1, look.em // 6), max(2.0, 0.26 * look.em)
    for number, values in enumerate(said.values):
        points = [(box.left + slot * (place + 0.5), _height(value, said, box)) for place, value in enumerate(values)]
        if said.printed:
            for (at, anchor), value in zip(_beside(points, look.em), values, strict=True):
                _value(page, look, at, value, anchor)
        mask = Image.new("L", (page.size[1] * _FINE, page.size[0] * _FINE))
        pen = ImageDraw.Draw(mask)
        pen.line([(x * _FINE, y * _FINE) for x, y in points], 255, thick * _FINE, joint="curve")
        for x, y in points:
            _mark(pen, (x, y), radius, number)
        page.image.paste(look.fills[number], (0, 0), mask.reduce(_FINE))


def _value(page: Canvas, look: Look, at: tuple[float, float], value: int, anchor: str) -> None:
    """A printed value; the grid stops around it."""
    page.text(at, str(value), look.face, look.em, look.ink, anchor=anchor, clear=2)


def _mark(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: float, number: int) -> None:
    (x, y), far = (at[0] * _FINE, at[1] * _FINE), radius * _FINE
    if number == 0:
        pen.ellipse((x - far, y - far, x + far, y + far), 255)
    elif number == 1:
        pen.rectangle((x - far, y - far, x + far, y + far), 255)
    else:
        pen.polygon([(x, y - 1.3 * far), (x + 1.2 * far, y + far), (x - 1.2 * far, y + far)], 255)


def _beside(points: list[tuple[float, int]], em: int) -> list[tuple[tuple[float, float], str]]:
    """Where the values of a line's points stand, by Pillow's anchor: on that side of each where the line is not."""
    found = []
    for place, (x, y) in enumerate(points):
        before, after = points[max(place - 1, 0)][1], points[min(place + 1, len(points) - 1)][1]
        if before < y and after < y:  # a valley
            found.append(((x, y + 1.35 * em), "ms"))
        elif before >= y and after >= y:  # a peak, or level
            found.append(((x, y - 0.6 * em), "ms"))
        else:  # rising: above and to the left; falling: to the right
            side = -0.35 * em if before > y or after < y else 0.35 * em
            found.append(((x + side, y - 0.45 * em), "rs" if side < 0 else "ls"))
    return found


def _sideways(page: Canvas, said: Facts, look: Look, inner: _Box) -> bool:
    """Bars beside labels."""
    em, face = look.em, look.face
    left = inner.left + max(width(label, face, em) for label in said.labels) + 0.8 * em
    right = inner.right - (2.6 * em if said.printed else 0.5 * width(str(said.top), face, em))
    box = _Box(left, inner.top + 0.2 * em, right, inner.bottom - 1.8 * em)
    slot = (box.bottom - box.top) / len(said.labels)
    ticks = _ticks(said)
    if box.right - box.left < max(8 * em, len(ticks) * (width(str(said.top), face, em) + 0.8 * em)):
        return False
    if slot < max(1.5, 0.7 * len(said.series)) * em:
        return False
    for tick in ticks:
        x = _across(tick, said, box)
        _rule(page, look, (x, box.top, x, box.bottom), strong=tick == 0)
        page.text((x, box.bottom + 1.4 * em), str(tick), face, em, look.ink, anchor="ms")
    group = 0.7 * slot
    thick = group / len(said.series)
    for place, label in enumerate(said.labels):
        middle = box.top + slot * (place + 0.5)
        page.text((box.left - 0.5 * em, middle), label, face, em, look.ink, anchor="rm")
        for number, values in enumerate(said.values):
            y, x = middle - group / 2 + thick * number, _across(values[place], said, box)
            page.pen.rectangle((round(box.left) + 1, round(y), x, round(y + thick) - 1), fill=look.fills[number])
            if said.printed:
                _value(page, look, (x + 0.4 * em, y + thick / 2), values[place], "lm")
    return True


def _pie(page: Canvas, said: Facts, look: Look, inner: _Box) -> bool:
    """A pie with its shares around it; names beside the shares, from level 4 on in a legend at the right."""
    em, face, listed = look.em, look.face, look.level >= 4
    texts = [
        f"{share}%" if listed else f"{name} {share}%" for name, share in zip(said.labels, said.values[0], strict=True)
    ]
    side = max(width(text, face, em) for text in texts) + 1.8 * em
    legend = max(width(name, face, em) for name in said.labels) + 2.5 * em if listed else 0.0
    right = inner.right - legend
    radius = min((right - inner.left) / 2 - side, (inner.bottom - inner.top) / 2 - 1.6 * em)
    if radius < 4.5 * em or (listed and len(texts) * 1.6 * em > inner.bottom - inner.top):
        return False
    centre = ((inner.left + right) / 2, (inner.top + inner.bottom) / 2)
    middles = _slices(page, said.values[0], look, centre, radius)
    if not _around(page, texts, look, middles, (centre, radius), (inner.top, inner.bottom)):
        return False
    if listed:
        top = centre[1] - 0.8 * em * len(texts) + em
        for place, name in enumerate(said.labels):
            _key(page, (inner.right - legend + 0.8 * em, top + 1.6 * em * place), name, look.fills[place], look)
    return True


def _slices(
    page: Canvas, shares: tuple[int, ...], look: Look, centre: tuple[float, float], radius: float
) -> list[float]:
    """Draws the slices clockwise from the top; the angles of their middles, in radians from the top."""
    side, start, middles = round(2 * radius), 0.0, []
    large = Image.new("RGB", (side * _FINE, side * _FINE), look.ground)
    pen, cover = ImageDraw.Draw(large), Image.new("L", large.size)
    ends = (0, 0, side * _FINE - 1, side * _FINE - 1)
    for share, fill in zip(shares, look.fills, strict=True):
        stop = start + 3.6 * share
        pen.pieslice(ends, start - 90, stop - 90, fill=fill, outline=look.ground, width=_FINE)
        middles.append(math.radians((start + stop) / 2))
        start = stop
    ImageDraw.Draw(cover).ellipse(ends, 255)
    at = (round(centre[0] - side / 2), round(centre[1] - side / 2))
    page.image.paste(large.reduce(_FINE), at, cover.reduce(_FINE))
    return middles


def _around(
    page: Canvas,
    texts: list[str],
    look: Look,
    middles: list[float],
    circle: tuple[tuple[float, float], float],
    rows: tuple[float, float],
) -> bool:
    """Texts at both sides of the pie, each with a line to its slice; those of one side are moved apart."""
    (x, y), radius = circle
    em, least = look.em, 1.35 * look.em
    for sign in (1, -1):
        side = [place for place, middle in enumerate(middles) if (math.sin(middle) >= 0) == (sign > 0)]
        side.sort(key=lambda place: -math.cos(middles[place]))
        heights = [y - (radius + em) * math.cos(middles[place]) for place in side]
        heights = _apart(heights, least, (rows[0] + 0.7 * em, rows[1] - 0.7 * em))
        if not heights and side:
            return False
        for place, height in zip(side, heights, strict=True):
            sin, cos = math.sin(middles[place]), math.cos(middles[place])
            # As far out as the circle is at that height, so that a text moved up or down stays clear of it.
            far = math.sqrt(max(0.0, (radius + 0.7 * em) ** 2 - (height - y) ** 2))
            out = x + sign * max(far, abs(sin) * (radius + 0.7 * em)) + sign * 0.5 * em
            page.pen.line([(x + radius * sin, y - radius * cos), (out - sign * 0.2 * em, height)], look.ink, 1)
            page.text((out, height), texts[place], look.face, em, look.ink, anchor="lm" if sign > 0 else "rm")
    return True


def _apart(heights: list[float], least: float, rows: tuple[float, float]) -> list[float]:
    """Rising heights moved as little as puts `least` between them, within `rows`; none if there is no room."""
    if least * (len(heights) - 1) > rows[1] - rows[0]:
        return []
    found = list(heights)
    for place in range(len(found)):
        found[place] = max(found[place], rows[0] if place == 0 else found[place - 1] + least)
    for place in reversed(range(len(found))):
        found[place] = min(found[place], rows[1] if place == len(found) - 1 else found[place + 1] - least)
    return found
