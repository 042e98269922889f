"""Pictures of one printed word or one printed line.

What each level has; where no range is given, it also has all that the ones before it have:

1. English words in lower case; a word has 3-6 characters, a line 8-16. White ground.
2. 3-9 and 10-22 characters. Capitalised, CAPITALS; lines begin with a capital. One colour on another.
3. 4-10 and 12-28 characters. Made-up words and numbers, marks between a line's words. Other faces in test.
4. 5-12 and 14-36 characters. Words are made up, in miXed cAse, or numbers, or codes such as `g&7R`. On a gradient with
   4 strokes.
5. 6-14 and 16-44 characters. Accents, and codes with one of `# % @ = * ? !`. On a gradient with 9 strokes.

| level | size | turn | slant | perspective | blur | noise | JPEG |
|---|---|---|---|---|---|---|---|
| 1 | 0.9-1 | | | | | | |
| 2 | 0.75-1 | | | | | | |
| 3 | 0.6-1 | 3° | 0.15 | 0.04 | 0.02 | 6 | |
| 4 | 0.5-0.9 | 7° | 0.25 | 0.1 | 0.03 | 12 | 40-80 |
| 5 | 0.45-0.8 | 12° | 0.35 | 0.16 | 0.04 | 16 | 30-60 |

Size is a share of the largest that fits, and never under `LEAST_EM` pixels where that fits; the others are the most
that may be (`Rules`, `canvas.Wear`). Turns are limited so that a long text loses at most a quarter of its size to
them. The words of a line are in one case, so that the case of every letter can be told. Faces: `faces`; contrast:
`canvas.CONTRAST`; words: `lexicon`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from vlm.views import Size

from . import lexicon
from .canvas import NO_WEAR, Colour, Point, Wear, ink_and_ground, ink_of, quiet, warp, worn
from .faces import choose, faces, shows
from .lexicon import Split

Form = Literal["word", "line"]
Lengths = tuple[int, int]
MARGIN = 3
"""Pixels around the text, at least."""
LEAST_EM = 12
LEAST_WORD = 3
"""Letters of a line's words, at least."""
PIXELS_A_CHARACTER = 6
"""Width that the longest text must have in a picture."""
ALPHABET = (
    "".join(map(chr, range(32, 127)))
    + lexicon.ACCENTED
    + "".join(letter.upper() for letter in lexicon.ACCENTED if len(letter.upper()) == 1)
)
"""All characters that a word or a line can have."""
NO_CHARACTER = len(ALPHABET)
"""Class of an empty slot."""


@dataclass(frozen=True)
class Rules:
    """One row of the table above."""

    lengths: dict[Form, Lengths]
    scale: tuple[float, float]
    turn: float = 0.0  # degrees
    slant: float = 0.0
    perspective: float = 0.0  # share of the text's height by which a corner is off
    strokes: int = 0
    wear: Wear = NO_WEAR


RULES: dict[int, Rules] = {
    1: Rules({"word": (3, 6), "line": (8, 16)}, (0.9, 1.0)),
    2: Rules({"word": (3, 9), "line": (10, 22)}, (0.75, 1.0)),
    3: Rules({"word": (4, 10), "line": (12, 28)}, (0.6, 1.0), 3, 0.15, 0.04, wear=Wear(blur=0.02, noise=6)),
    4: Rules(
        {"word": (5, 12), "line": (14, 36)}, (0.5, 0.9), 7, 0.25, 0.1, 4, Wear(blur=0.03, noise=12, quality=(40, 80))
    ),
    5: Rules(
        {"word": (6, 14), "line": (16, 44)}, (0.45, 0.8), 12, 0.35, 0.16, 9, Wear(blur=0.04, noise=16, quality=(30, 60))
    ),
}


@dataclass(frozen=True)
class Print:
    """A text where it lies in a picture."""

    text: str
    face: str
    em: int
    mask: Image.Image
    """The ink by itself, 0-255."""
    corners: tuple[Point, ...]
    """Where the mask's corners lie in the picture, top left first, then clockwise."""
    upright: bool
    """Whether the mask is pasted as it is."""
    ink: Colour
    ground: tuple[Colour, Colour]
    """At the two ends of the gradient."""


def word(rng: np.random.Generator, split: Split, level: int, lengths: Lengths) -> str:
    """The text of a word picture."""
    form = rng.random()
    if level <= 2 or (level == 3 and form < 0.3):
        found = lexicon.common(rng, split, lengths)
        return found if level == 1 else _cased(rng, found)
    if level == 3:
        return _cased(rng, lexicon.pseudo(rng, split, lengths)) if form < 0.75 else lexicon.number(rng, split, lengths)
    if level == 4:
        if form < 0.55:
            return lexicon.mixed_case(rng, lexicon.pseudo(rng, split, lengths))
        return lexicon.number(rng, split, lengths) if form < 0.7 else lexicon.code(rng, split, lengths)
    if form < 0.5:
        return lexicon.mixed_case(rng, lexicon.pseudo(rng, split, lengths, accents=True))
    return lexicon.code(rng, split, lengths, symbols=form < 0.8)


def _cased(rng: np.random.Generator, text: str) -> str:
    change: Callable[[str], str] = (str.lower, str.capitalize, str.upper)[int(rng.integers(3))]
    return change(text)


def line(rng: np.random.Generator, split: Split, level: int, lengths: Lengths) -> str:
    """The text of a line picture: words up to a length drawn from `lengths`, which is kept."""
    while True:
        words: list[str] = []
        left = int(rng.integers(lengths[0], lengths[1] + 1))
        while left >= LEAST_WORD or not words:
            words.append(_of_line(rng, split, level, (min(LEAST_WORD, left), min(10, left))))
            left -= len(words[-1]) + 1
        text = " ".join(_sentence(rng, words, level, lengths[1]))
        if lengths[0] <= len(text) <= lengths[1]:
            return text


def _of_line(rng: np.random.Generator, split: Split, level: int, lengths: Lengths) -> str:
    form = rng.random()
    if level <= 2 or form < {3: 0.6, 4: 0.35, 5: 0.2}[level]:
        return lexicon.common(rng, split, lengths)
    if form < 0.75:
        return lexicon.pseudo(rng, split, lengths, accents=level == 5 and form > 0.4)
    if level == 3 or form < 0.87:
        return lexicon.number(rng, split, lengths)
    return lexicon.code(rng, split, lengths, symbols=level == 5)


def _sentence(rng: np.random.Generator, words: list[str], level: int, longest: int) -> list[str]:
    """A capital first and a period from level 2 on, marks between words from 3 on, brackets from 4 on, if they fit."""
    if level == 1:
        return words
    words, room = [words[0][:1].upper() + words[0][1:], *words[1:]], longest - len(" ".join(words))
    mark, bracket, period = rng.random() < 0.6, rng.random() < 0.4, rng.random() < 0.7
    place = int(rng.integers(max(1, len(words) - 1)))
    if level >= 3 and mark and len(words) > 2 and room >= 1:
        words[place] += lexicon.pick(rng, ",;:")
        room -= 1
    if level >= 4 and bracket and len(words) > 2 and room >= 2:
        words[-1] = f"({words[-1]})"
        room -= 2
    if period and room >= 1:
        words[-1] += "."
    return words


def compose(
    rng: np.random.Generator, split: Split, level: int, form: Form, size: Size, lengths: Lengths | None = None
) -> Print:
    """A text and where it lies in a picture of `size`, (height, width) in pixels.

    Args:
        rng: decides everything.
        split: of words and faces.
        level: 1 to 5.
        form: a word or a line.
        size: of the picture.
        lengths: fewest and most characters; the level's own if absent.
    """
    rules = RULES[level]
    make, able = (word if form == "word" else line), faces(level, split)
    text = ""
    while not any(shows(face, text) for face in able) or not text:
        text = make(rng, split, level, lengths or rules.lengths[form])
    face = choose(rng, level, split, text)
    ink, ground = ink_and_ground(rng, level)
    other = _other(rng, ground, ink, level) if rules.strokes else ground
    shape = _Shape.draw(rng, rules)
    largest, shape = _fit(text, face, shape, size)
    em = max(int(largest * rng.uniform(*rules.scale)), min(LEAST_EM, int(largest)))
    while True:  # an em is a whole number of pixels, and ink does not shrink quite in proportion
        mask = ink_of(text, face, em)[0]
        corners = shape.corners(*mask.size)
        room = _room(corners, size)
        if min(room) >= 0 or em <= 1:
            break
        em -= 1
    shift = [MARGIN + value for value in (rng.random(2) * room).tolist()]
    upright = shape == _Shape()
    if upright:
        shift = [round(value) for value in shift]
    left, top = min(x for x, _ in corners), min(y for _, y in corners)
    moved = tuple((x - left + shift[0], y - top + shift[1]) for x, y in corners)
    return Print(text, face, em, mask, moved, upright, ink, (ground, other))


def _other(rng: np.random.Generator, ground: Colour, ink: Colour, level: int, tries: int = 6) -> Colour:
    """A ground of another colour; the same one where the ink allows of no other."""
    for _ in range(tries):
        red, green, blue = rng.integers(0, 256, 3).tolist()
        found = quiet(ground, (red, green, blue), ink, level, 0.3)
        if found != ground:
            return found
    return ground


@dataclass(frozen=True)
class _Shape:
    """How a text's rectangle is distorted."""

    turn: float = 0.0
    slant: float = 0.0
    offs: tuple[Point, ...] = ((0.0, 0.0),) * 4

    @classmethod
    def draw(cls, rng: np.random.Generator, rules: Rules) -> "_Shape":
        turn, slant = rng.uniform(-1, 1, 2).tolist()
        offs = rng.uniform(-1, 1, (4, 2)) * rules.perspective
        return cls(np.radians(rules.turn) * turn, rules.slant * slant, tuple((x, y) for x, y in offs.tolist()))

    def halved(self) -> "_Shape":
        return _Shape(self.turn / 2, self.slant / 2, tuple((x / 2, y / 2) for x, y in self.offs))

    def corners(self, width: float, height: float) -> tuple[Point, ...]:
        """Where the corners of a rectangle go."""
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        ends = [(0, 0), (width, 0), (width, height), (0, height)]
        moved = [
            (x + self.slant * (height - y) + dx * height, y + dy * height)
            for (x, y), (dx, dy) in zip(ends, self.offs, strict=True)
        ]
        return tuple((float(x * cos + y * sin), float(-x * sin + y * cos)) for x, y in moved)


def _room(corners: tuple[Point, ...], size: Size) -> tuple[float, float]:
    """What is left of the picture's width and height."""
    xs, ys = zip(*corners, strict=True)
    return size[1] - 2 * MARGIN - (max(xs) - min(xs)), size[0] - 2 * MARGIN - (max(ys) - min(ys))


def _fit(text: str, face: str, shape: _Shape, size: Size, em: int = 32) -> tuple[float, _Shape]:
    """The largest em that fits, and the shape with which it does: milder where it would cost a quarter of the size."""
    width, height = ink_of(text, face, em, border=1)[0].size
    inner = (size[1] - 2 * MARGIN, size[0] - 2 * MARGIN)

    def largest(tried: _Shape) -> float:
        xs, ys = zip(*tried.corners(width, height), strict=True)
        return float(em * min(inner[0] / (max(xs) - min(xs)), inner[1] / (max(ys) - min(ys))))

    flat = largest(_Shape())
    while largest(shape) < 0.75 * flat:
        shape = shape.halved()
    return largest(shape), shape


def paint(rng: np.random.Generator, found: Print, level: int, size: Size) -> Image.Image:
    """The picture of `size`."""
    rules = RULES[level]
    ground = _ground(rng, found, level, size)
    if found.upright:
        ground.paste(found.ink, (round(found.corners[0][0]), round(found.corners[0][1])), found.mask)
    else:
        ground.paste(found.ink, (0, 0), warp(found.mask, found.corners, size))
    return worn(rng, ground, rules.wear, found.em)


def _ground(rng: np.random.Generator, found: Print, level: int, size: Size) -> Image.Image:
    """One colour or a gradient, and strokes of which the text keeps its contrast too."""
    first, second = found.ground
    if first == second and not RULES[level].strokes:
        return Image.new("RGB", (size[1], size[0]), first)
    shares = rng.permutation([0.0, 0.3, 0.7, 1.0])  # of the second colour, in each corner
    pixels = np.asarray(first) * (1 - shares[:, None]) + np.asarray(second) * shares[:, None]
    corners = Image.fromarray(np.rint(pixels).astype(np.uint8).reshape(2, 2, 3))
    image = corners.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    for _ in range(RULES[level].strokes):
        _stroke(rng, pen, found, level, size)
    return image


def _stroke(rng: np.random.Generator, pen: ImageDraw.ImageDraw, found: Print, level: int, size: Size) -> None:
    colour = _other(rng, found.ground[int(rng.integers(2))], found.ink, level)
    thick = 1 + int(rng.integers(max(2, size[0] // 16)))
    ends = (rng.uniform(-0.1, 1.1, (2, 2)) * (size[1], size[0])).tolist()
    if rng.random() < 0.6:
        pen.line([tuple(end) for end in ends], colour, thick)
    else:
        (x, y), radius = ends[0], size[0] * rng.uniform(0.15, 0.7)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=thick)
