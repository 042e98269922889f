"""Pictures of tables, and questions about them.

What each level has; where no range is given, it also has all that the ones before it have:

1. 2-3 rows of 1-2 values from 1 to 99, named by one word. A grid on white.
2. 3-4 rows of 2-3 values from 10 to 999. Filled headings, colours.
3. 4-6 rows of 3-4 values, some with a decimal, some names of two words. A title; a grid, lines, stripes or rules.
4. 5-8 rows of 3-5 values, one column perhaps of codes, all names of two words; units in headings. Photographed at an
   angle in uneven light.
5. 7-11 rows of 4-6 values close to each other; names that begin alike; thin lines or none.

| level | tilt | shade | blur | noise | JPEG |
|---|---|---|---|---|---|
| 3 | | | | 4 | |
| 4 | 0.02 | 0.15 | 0.02 | 8 | 50-85 |
| 5 | 0.035 | 0.3 | 0.035 | 12 | 35-70 |

The highest value of a column stands there once. Wear: `vlm.eval.rendered.canvas.Wear`; contrast:
`vlm.eval.rendered.canvas.CONTRAST`; faces: `vlm.eval.rendered.faces`; words: `vlm.eval.rendered.lexicon`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from vlm.views import Size

from . import lexicon
from .canvas import NO_WEAR, Asked, Canvas, Colour, Sheet, Wear, ink_and_ground, mixed, quiet
from .faces import choose, width
from .lexicon import Split

LEAST_EM = 9
LEAST_SIZE: dict[int, Size] = {1: (96, 160), 2: (112, 208), 3: (160, 272), 4: (208, 368), 5: (272, 448)}
"""(height, width) in pixels, by level."""
ROWS: dict[int, tuple[int, int]] = {1: (2, 3), 2: (3, 4), 3: (4, 6), 4: (5, 8), 5: (7, 11)}
COLUMNS: dict[int, tuple[int, int]] = {1: (1, 2), 2: (2, 3), 3: (3, 4), 4: (3, 5), 5: (4, 6)}
WEAR: dict[int, Wear] = {
    1: NO_WEAR,
    2: NO_WEAR,
    3: Wear(noise=4),
    4: Wear(tilt=0.02, shade=0.15, blur=0.02, noise=8, quality=(50, 85)),
    5: Wear(tilt=0.035, shade=0.3, blur=0.035, noise=12, quality=(35, 70)),
}


@dataclass(frozen=True)
class Facts:
    """What a table says; all cells are texts as they are printed."""

    title: str
    """Empty where there is none."""
    headings: tuple[str, ...]
    """The first is that of the rows' names."""
    cells: tuple[tuple[str, ...], ...]
    """Rows, each with its name first."""
    numeric: tuple[int, ...]
    """Columns of numbers."""


def facts(rng: np.random.Generator, split: Split, level: int) -> Facts:
    """What a table of this level says."""
    rows = int(rng.integers(ROWS[level][0], ROWS[level][1] + 1))
    columns = int(rng.integers(COLUMNS[level][0], COLUMNS[level][1] + 1))
    names = _names(rng, split, level, rows)
    headings: dict[str, None] = {}
    longest = 11 if level <= 3 else 8
    while len(headings) < columns:
        headings[lexicon.pick(rng, lexicon.of_split(lexicon.COLUMNS, split, (3, longest)))] = None
    coded = int(rng.integers(columns)) if level >= 4 and rng.random() < 0.6 else -1
    filled = [
        [lexicon.code(rng, split, (3, 5)) for _ in names] if place == coded else _values(rng, level, rows)
        for place in range(columns)
    ]
    subject = lexicon.pick(rng, lexicon.of_split(lexicon.SUBJECTS, split)).capitalize()
    title = ""
    if level >= 3:
        measure = lexicon.pick(rng, lexicon.of_split(lexicon.MEASURES, split)).capitalize()
        title = f"{measure} of {lexicon.name(rng, split)} {int(rng.integers(1960, 2030))}"
    cells = tuple((name, *(column[row] for column in filled)) for row, name in enumerate(names))
    heads = (_heading_of(word, level) for word in headings)
    return Facts(title, (subject, *heads), cells, tuple(place + 1 for place in range(columns) if place != coded))


def _heading_of(word: str, level: int) -> str:
    unit = lexicon.UNITS.get(word) if level >= 4 else None
    return f"{word.capitalize()} ({unit})" if unit else word.capitalize()


def _names(rng: np.random.Generator, split: Split, level: int, count: int) -> list[str]:
    """Different names; at level 5 two or three rows share their first word."""
    names: dict[str, None] = {}
    while len(names) < count:
        first = lexicon.common(rng, split, (3, 7)) if rng.random() < 0.6 else lexicon.name(rng, split, (4, 7))
        two = level >= 4 or (level == 3 and rng.random() < 0.5)
        for _ in range(int(rng.integers(2, 4)) if level == 5 else 1):
            name = f"{first} {lexicon.common(rng, split, (3, 6))}" if two else first
            names[name.capitalize()] = None
    return list(names)[:count]


def _values(rng: np.random.Generator, level: int, rows: int) -> list[str]:
    """One column; its highest value stands there once."""
    least, most = {1: (1, 99), 2: (10, 999)}.get(level, [(1, 99), (10, 999), (100, 9999)][int(rng.integers(3))])
    if level == 5:  # all within a tenth of each other
        least = int(rng.integers(200, 9000))
        most = least + max(3 * rows, least // 10)
    decimals = level >= 3 and rng.random() < 0.4
    while True:
        values = rng.integers(least, most + 1, rows)
        if decimals:
            values = values - values % 10 + rng.integers(1, 10, rows)
        if (values == values.max()).sum() == 1:
            return [f"{value / 10:.1f}" if decimals else str(value) for value in values.tolist()]


@dataclass(frozen=True)
class _Look:
    """Colours, lines and alignment."""

    ink: Colour
    ground: Colour
    head: Colour
    stripe: Colour
    line: Colour
    across: bool  # a line under each row
    down: bool  # a line after each column
    centred: bool


def _look(rng: np.random.Generator, level: int) -> _Look:
    ink, ground = ink_and_ground(rng, level)
    tint, form, centred = rng.integers(40, 220, 3).tolist(), int(rng.integers(4)), bool(rng.random() < 0.4)
    if level <= 2:
        form = 0
    head = quiet(ground, (tint[0], tint[1], tint[2]), ink, level, 0.35) if level >= 2 and form != 3 else ground
    stripe = quiet(ground, (tint[0], tint[1], tint[2]), ink, level, 0.14) if form == 2 else ground
    line = mixed(ground, ink, {1: 1.0, 5: 0.25}.get(level, 0.5))
    plain = level == 5 and rng.random() < 0.4
    return _Look(ink, ground, head, stripe, line, form in (0, 1) and not plain, form == 0 and not plain, centred)


_PAD, _HIGH, _TITLE = 0.7, 1.75, 1.2
"""Ems: at each side of a cell, a row's height, and the title's size."""


def _widths(said: Facts, face: str, em: int) -> list[float]:
    columns = zip(said.headings, *said.cells, strict=True)
    return [max(width(text, face, em) for text in column) + 2 * _PAD * em for column in columns]


def compose(rng: np.random.Generator, split: Split, level: int, size: Size) -> Sheet[Facts]:
    """A table in a picture of `size`, (height, width) in pixels."""
    look = _look(rng, level)
    margin = max(4, round(min(size) * 0.03))
    em = 0
    while em < LEAST_EM:  # a table too large for the picture is drawn anew
        said = facts(rng, split, level)
        text = said.title + "".join(said.headings) + "".join("".join(row) for row in said.cells)
        face = choose(rng, level, split, text)
        em = _largest(said, face, size, margin)
    em = max(LEAST_EM, int(em * rng.uniform(*((0.9, 1.0) if level == 1 else (0.75, 1.0)))))
    widths = _widths(said, face, em)
    spare = max(0.0, size[1] - 2 * margin - sum(widths)) * rng.uniform(0, 0.8) / len(widths)
    edges = [0.0, *np.cumsum([each + spare for each in widths]).tolist()]
    high = _HIGH * em
    top = 1.9 * _TITLE * em if said.title else 0.0
    room = (size[1] - 2 * margin - edges[-1], size[0] - 2 * margin - top - high * (len(said.cells) + 1))
    left, up = (margin + float(rng.random()) * max(0.0, free - 1) for free in room)
    page = Canvas(size, look.ground)
    if said.title:
        at = (left + edges[-1] / 2, up + 1.1 * _TITLE * em)
        page.text(at, said.title, face, round(_TITLE * em), look.ink, anchor="ms")
    _draw(page, said, look, [round(left + edge) for edge in edges], (up + top, high), face, em)
    desk = mixed(look.ground, (90, 80, 70), 0.6)
    return Sheet(page, said, em, desk, WEAR[level])


def _largest(said: Facts, face: str, size: Size, margin: int, tried: int = 24) -> int:
    """The largest em with which the table and its title fit."""
    title_rows = 1.9 * _TITLE if said.title else 0.0
    high = size[0] - 2 * margin - 2
    em = int(min(high / (_HIGH * (len(said.cells) + 1) + title_rows), max(LEAST_EM, size[0] / 12)))
    wide = size[1] - 2 * margin - 2
    em = min(em, int(tried * wide / sum(_widths(said, face, tried))) + 2)
    while em > 1:
        title = width(said.title, face, round(_TITLE * em))
        if max(sum(_widths(said, face, em)), title + em) <= wide:
            break
        em -= 1
    return em


def _draw(
    page: Canvas, said: Facts, look: _Look, edges: list[int], rows: tuple[float, float], face: str, em: int
) -> None:
    """Fills, lines and texts; `edges` are the columns' borders, `rows` the top and the height of a row."""
    top, high = rows
    lines = [round(top + high * number) for number in range(len(said.cells) + 2)]
    for number, cells in enumerate([said.headings, *said.cells]):
        fill = look.head if number == 0 else look.stripe if number % 2 == 0 else look.ground
        page.pen.rectangle((edges[0], lines[number], edges[-1] - 1, lines[number + 1] - 1), fill=fill)
        for column, text in enumerate(cells):
            box = (edges[column], edges[column + 1])
            base = lines[number] + 0.66 * high
            if column == 0:
                page.text((box[0] + _PAD * em, base), text, face, em, look.ink, over=fill)
            elif look.centred:
                page.text(((box[0] + box[1]) / 2, base), text, face, em, look.ink, anchor="ms", over=fill)
            else:
                page.text((box[1] - _PAD * em, base), text, face, em, look.ink, anchor="rs", over=fill)
    _rules(page, look, edges, lines, em)


def _rules(page: Canvas, look: _Look, edges: list[int], lines: list[int], em: int) -> None:
    thick = max(1, em // 14)
    shown = lines if look.across else [lines[0], lines[1], lines[-1]]
    for y in shown:
        page.pen.rectangle((edges[0], y, edges[-1], y + thick - 1), fill=look.line)
    if look.down:
        for x in edges:
            page.pen.rectangle((x, lines[0], x + thick - 1, lines[-1] + thick - 1), fill=look.line)


def _number(text: str) -> int:
    """In the column's smallest unit: tenths where it has decimals."""
    return int(text.replace(".", ""))


def _text(value: int, decimals: bool) -> str:
    return f"{value // 10}.{value % 10}" if decimals else str(value)


def _cell(said: Facts, rng: np.random.Generator) -> Asked:
    row, column = said.cells[int(rng.integers(len(said.cells)))], int(rng.integers(1, len(said.headings)))
    return f'What is the "{said.headings[column]}" of "{row[0]}"?', [row[column]]


def _heading(said: Facts, rng: np.random.Generator) -> Asked:
    column = int(rng.integers(len(said.headings)))
    return f"What is the heading of column {column + 1}?", [said.headings[column]]


def _row(said: Facts, rng: np.random.Generator) -> Asked:
    row = said.cells[int(rng.integers(len(said.cells)))]
    question = f'What stands in the row "{row[0]}", from left to right and separated by commas, without its name?'
    return question, [", ".join(row[1:])]


def _numbers(said: Facts, rng: np.random.Generator) -> tuple[str, list[int], bool]:
    """A column of numbers: its heading, its values in their smallest unit, and whether that is a tenth."""
    column = said.numeric[int(rng.integers(len(said.numeric)))]
    texts = [row[column] for row in said.cells]
    return said.headings[column], [_number(text) for text in texts], "." in texts[0]


def _sum(said: Facts, rng: np.random.Generator) -> Asked:
    heading, values, decimals = _numbers(said, rng)
    return f'What is the sum of the column "{heading}"?', [_text(sum(values), decimals)]


def _difference(said: Facts, rng: np.random.Generator) -> Asked:
    heading, values, decimals = _numbers(said, rng)
    first, second = (int(number) for number in rng.permutation(len(values))[:2])
    names = f'"{said.cells[first][0]}" and "{said.cells[second][0]}"'
    question = f'What is the difference between {names} in "{heading}"?'
    return question, [_text(abs(values[first] - values[second]), decimals)]


def _highest(said: Facts, rng: np.random.Generator) -> Asked:
    heading, values, _ = _numbers(said, rng)
    return f'Which row has the highest "{heading}"?', [said.cells[int(np.argmax(values))][0]]


def _count(said: Facts, rng: np.random.Generator) -> Asked:
    return "How many rows are there below the headings?", [str(len(said.cells))]


QUESTIONS: Mapping[str, Callable[[Facts, np.random.Generator], Asked]] = MappingProxyType(
    {
        "cell": _cell,
        "heading": _heading,
        "row": _row,
        "count": _count,
        "highest": _highest,
        "difference": _difference,
        "sum": _sum,
    }
)
"""What asks each kind of question and answers it."""
