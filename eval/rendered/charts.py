"""Simple charts (bars, lines, pies), and questions about them.

What each level has; where no range is given, it also has all that the ones before it have:

1. 3-4 upright bars, values printed above them. Large, black on white.
2. 4-5 labels. Sideways bars, lines and pies too; colours, a grid.
3. 5-6 labels. Values are not printed: they are at a tick or half way between two. Longer labels and titles; quarters.
4. 5-8 labels, 2 series with a legend; values at fifths of a tick. Long labels, slanting where they must.
5. 6-9 labels, 2-3 series; any value, most of them close to each other. Small. Photographed at an angle.

| level | tilt | shade | blur | noise | JPEG |
|---|---|---|---|---|---|
| 3 | | | | 4 | |
| 4 | | | 0.02 | 8 | 50-85 |
| 5 | 0.02 | 0.2 | 0.035 | 12 | 35-70 |

A pie has one series at every level and its shares are printed; from level 4 on its slices are named in a legend. Where
values are not printed they are at least a fifth of the axis, and questions for a difference are about values at least a
quarter of it apart, so that 5 % can be read off. The highest and the lowest value of a series stand there once, by
`GAPS` of the axis. Wear: `vlm.eval.rendered.canvas.Wear`; contrast: `vlm.eval.rendered.canvas.CONTRAST`; faces:
`vlm.eval.rendered.faces`; words: `vlm.eval.rendered.lexicon`.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from vlm.views import Size

from . import lexicon
from .canvas import NO_WEAR, Asked, Sheet, Wear, ink_and_ground, mixed
from .faces import choose
from .lexicon import Split
from .plots import LEAST_EM, Facts, Form, Look, colours, draw

LEAST_SIZE: dict[int, Size] = {1: (160, 200), 2: (200, 280), 3: (240, 320), 4: (288, 400), 5: (320, 480)}
"""(height, width) in pixels, by level."""
LABELS: dict[int, tuple[int, int]] = {1: (3, 4), 2: (4, 5), 3: (5, 6), 4: (5, 8), 5: (6, 9)}
SERIES: dict[int, tuple[int, int]] = {1: (1, 1), 2: (1, 1), 3: (1, 1), 4: (2, 2), 5: (2, 3)}
GAPS: dict[int, float] = {1: 0.1, 2: 0.06, 3: 0.06, 4: 0.03, 5: 0.02}
"""How far the highest and the lowest value are from the next, as a share of the axis."""
APART = 0.25
"""Least difference that is asked for where values are not printed, as a share of the axis."""
TEXT: dict[int, float] = {1: 0.055, 2: 0.045, 3: 0.04, 4: 0.034, 5: 0.03}
"""The em at most, as a share of the picture's height."""
FORMS: tuple[Form, ...] = ("bars", "sideways", "lines", "pie")
WEAR: dict[int, Wear] = {
    1: NO_WEAR,
    2: NO_WEAR,
    3: Wear(noise=4),
    4: Wear(blur=0.02, noise=8, quality=(50, 85)),
    5: Wear(tilt=0.02, shade=0.2, blur=0.035, noise=12, quality=(35, 70)),
}


def facts(rng: np.random.Generator, split: Split, level: int) -> Facts:
    """What a chart of this level says."""
    form = FORMS[int(rng.integers(len(FORMS)))] if level > 1 else "bars"
    count = int(rng.integers(LABELS[level][0], LABELS[level][1] + 1))
    several = 1 if form == "pie" else int(rng.integers(SERIES[level][0], SERIES[level][1] + 1))
    labels = _moments(rng, level, count) if form == "lines" else _words(rng, split, level, count)
    series = tuple(_words(rng, split, 1, several, set(labels))) if several > 1 else ("",)
    title = _title(rng, split, level, form)
    if form == "pie":
        return Facts(form, title, labels, series, (_shares(rng, count, GAPS[level]),), 0, 0, True)
    step = _step(rng, level)
    top = step * (int(rng.integers(4, 7)))
    values = tuple(_values(rng, level, count, step, top) for _ in range(several))
    while form == "lines" and _covered(values, GAPS[4] * top):
        values = tuple(_values(rng, level, count, step, top) for _ in range(several))
    return Facts(form, title, labels, series, values, step, top, level <= 2)


def _title(rng: np.random.Generator, split: Split, level: int, form: Form) -> str:
    measure = lexicon.pick(rng, lexicon.of_split(lexicon.MEASURES, split)).capitalize()
    subject = lexicon.pick(rng, lexicon.of_split(lexicon.SUBJECTS, split))
    name, year = lexicon.name(rng, split), int(rng.integers(1950, 2030))
    if level >= 3 and form == "lines":  # its labels say when
        return f"{measure} of the {name} {subject}"
    return f"{measure} of {name}" + (f" by {subject}" if level >= 3 else "") + (f" in {year}" if level >= 2 else "")


def _words(
    rng: np.random.Generator, split: Split, level: int, count: int, taken: set[str] | None = None
) -> tuple[str, ...]:
    """Different words, none of them in `taken`."""
    lengths = {1: (3, 6), 2: (3, 7), 3: (4, 9)}.get(level, (5, 11))
    found: dict[str, None] = {}
    while len(found) < count:
        made = lexicon.common if rng.random() < 0.6 else lexicon.pseudo
        word = made(rng, split, lengths).capitalize()
        if level >= 4 and len(word) < 7 and rng.random() < 0.5:
            word = f"{word} {lexicon.common(rng, split, (3, 5))}"
        if word not in (taken or ()):
            found[word] = None
    return tuple(found)


def _moments(rng: np.random.Generator, level: int, count: int) -> tuple[str, ...]:
    """Days, months, or from level 3 on quarters, one after the other.

    Never plain years: to ChartQA's metric, which lets numbers be off by 5 %, 1953 and 1954 are the same.
    """
    form = int(rng.integers(2 if level == 2 else 3))
    if form < 2 and (form == 1 or count <= len(lexicon.DAYS)):
        names = (lexicon.DAYS, lexicon.MONTHS)[form]
        first = int(rng.integers(len(names)))
        return tuple(names[(first + number) % len(names)] for number in range(count))
    first = int(rng.integers(4 * 1950, 4 * 2020))
    return tuple(f"Q{number % 4 + 1}/{number // 4 % 100:02d}" for number in range(first, first + count))


def _step(rng: np.random.Generator, level: int) -> int:
    """Between two ticks; half and a fifth of it are whole numbers where values stand there."""
    steps = {1: (2, 5, 10), 2: (5, 10, 20), 3: (2, 10, 20, 50, 100), 4: (5, 10, 50, 100, 500)}
    choice = steps.get(level, (10, 20, 50, 100, 200, 500))
    return choice[int(rng.integers(len(choice)))]


def _values(rng: np.random.Generator, level: int, count: int, step: int, top: int) -> tuple[int, ...]:
    grain = {3: step // 2, 4: step // 5}.get(level, 1)
    least = -(-top // (8 if level <= 2 else 5) // grain) * grain
    while True:
        values = rng.integers(least // grain, top // grain + 1, count) * grain
        if level == 5:  # most of them near one value
            centre = rng.integers(2 * top // 5, 4 * top // 5)
            values[1:] = np.clip(centre + rng.integers(-top // 8, top // 8 + 1, count - 1), least, top)
        if _stands_out(values, GAPS[level] * top) and (level <= 2 or values.max() - values.min() >= APART * top):
            return tuple(rng.permutation(values).tolist())


def _covered(values: tuple[tuple[int, ...], ...], gap: float) -> bool:
    """Whether the points of two lines lie on each other somewhere."""
    columns = (sorted(column) for column in zip(*values, strict=True))
    return any(after - before < gap for column in columns for before, after in pairwise(column))


def _stands_out(values: np.ndarray, gap: float) -> bool:
    ranked = np.sort(values)
    return bool(ranked[-1] - ranked[-2] >= gap and ranked[1] - ranked[0] >= gap)


def _shares(rng: np.random.Generator, count: int, gap: float) -> tuple[int, ...]:
    """Whole percents that make 100, none under 5."""
    while True:
        cuts = np.sort(rng.choice(np.arange(1, 100), count - 1, replace=False))
        shares = np.diff([0, *cuts, 100])
        if shares.min() >= 5 and _stands_out(shares, 100 * gap / 2):
            return tuple(shares.tolist())


def compose(rng: np.random.Generator, split: Split, level: int, size: Size) -> Sheet[Facts]:
    """A chart in a picture of `size`, (height, width) in pixels."""
    ink, ground = ink_and_ground(rng, level)
    most = max(LEAST_EM, round(size[0] * TEXT[level]))
    page = None
    while page is None:  # a chart too crowded for the picture is drawn anew
        said = facts(rng, split, level)
        face = choose(rng, level, split, said.title + "".join((*said.labels, *said.series)) + "0123456789%")
        number = len(said.labels) if said.form == "pie" else len(said.series)
        fills = colours(rng, number, ground)
        for em in range(most, LEAST_EM - 1, -1):
            page = draw(said, Look(ink, ground, mixed(ground, ink, 0.2), fills, face, em, level), size)
            if page is not None:
                break
    return Sheet(page, said, em, mixed(ground, (90, 80, 70), 0.6), WEAR[level])


def _series(said: Facts, rng: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """One series: ` of "name"` or nothing, and its values."""
    number = int(rng.integers(len(said.series)))
    return (f' of "{said.series[number]}"' if len(said.series) > 1 else ""), said.values[number]


def _answers(said: Facts, value: int) -> list[str]:
    return [f"{value}%", str(value)] if said.form == "pie" else [str(value)]


def _value(said: Facts, rng: np.random.Generator) -> Asked:
    of, values = _series(said, rng)
    place = int(rng.integers(len(values)))
    return f'What is the value{of} for "{said.labels[place]}"?', _answers(said, values[place])


def _highest(said: Facts, rng: np.random.Generator) -> Asked:
    of, values = _series(said, rng)
    return f"For which label is the value{of} the highest?", [said.labels[int(np.argmax(values))]]


def _lowest(said: Facts, rng: np.random.Generator) -> Asked:
    of, values = _series(said, rng)
    return f"For which label is the value{of} the lowest?", [said.labels[int(np.argmin(values))]]


def _pairs(said: Facts, values: tuple[int, ...], apart: float) -> list[tuple[int, int]]:
    places = range(len(values))
    return [(a, b) for a in places for b in places if a != b and abs(values[a] - values[b]) >= apart]


def _difference(said: Facts, rng: np.random.Generator) -> Asked:
    of, values = _series(said, rng)
    pairs = _pairs(said, values, 1 if said.printed else APART * said.top)
    first, second = pairs[int(rng.integers(len(pairs)))]
    question = f'By how much do the values{of} for "{said.labels[first]}" and "{said.labels[second]}" differ?'
    return question, _answers(said, abs(values[first] - values[second]))


def _sum(said: Facts, rng: np.random.Generator) -> Asked:
    of, values = _series(said, rng)
    first, second = (int(place) for place in rng.permutation(len(values))[:2])
    question = f'What do the values{of} for "{said.labels[first]}" and "{said.labels[second]}" come to together?'
    return question, _answers(said, values[first] + values[second])


def _count(said: Facts, rng: np.random.Generator) -> Asked:
    number = len(said.labels)
    if said.form == "pie":
        return "How many slices does the pie have?", [str(number)]
    if said.form == "lines":
        several = len(said.series) > 1
        return (
            ("How many lines are there?", [str(len(said.series))])
            if several
            else (
                "How many points does the line have?",
                [str(number)],
            )
        )
    return "How many bars are there?", [str(number * len(said.series))]


QUESTIONS: Mapping[str, Callable[[Facts, np.random.Generator], Asked]] = MappingProxyType(
    {
        "title": lambda said, _: ("What is the title of the chart?", [said.title]),
        "count": _count,
        "value": _value,
        "highest": _highest,
        "lowest": _lowest,
        "difference": _difference,
        "sum": _sum,
    }
)
"""What asks each kind of question and answers it."""
