"""What all rendered pictures share: colours of a stated contrast, a canvas that knows where its text lies, and wear.

Everything random comes from the `numpy.random.Generator` passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from vlm.views import Size

from .faces import font

Colour = tuple[int, int, int]
Point = tuple[float, float]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)
LEVELS = (1, 2, 3, 4, 5)
CONTRAST: dict[int, tuple[float, float]] = {1: (21, 21), 2: (10, 21), 3: (7, 14), 4: (4.5, 9), 5: (3, 5)}
"""Least and most contrast of text and what lies under it, by level, before any wear; 21 is black on white."""
DARK_GAIN = 2.0
"""What lies on a dark ground has so many times the contrast: noise and JPEG leave less of it there."""
DARK: dict[int, float] = {1: 0, 2: 0, 3: 0.15, 4: 0.25, 5: 0.3}
"""Share of the pictures with light text on a dark ground, by level."""


def luminance(colour: Any) -> Any:
    """Relative luminance (WCAG 2) of sRGB colours [..., 3] in 0-255."""
    share = np.asarray(colour, np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def contrast(first: Any, second: Any) -> Any:
    """Contrast ratio (WCAG 2) of two colours, 1 to 21."""
    one, other = luminance(first), luminance(second)
    return (np.maximum(one, other) + 0.05) / (np.minimum(one, other) + 0.05)


def bounds(level: int, *, dark: bool) -> tuple[float, float]:
    """Least and most contrast of a level on a light or a dark ground."""
    least, most = CONTRAST[level]
    return (least * DARK_GAIN, min(21.0, most * DARK_GAIN)) if dark else (least, most)


def ink_and_ground(rng: np.random.Generator, level: int, *, paper: bool = False) -> tuple[Colour, Colour]:
    """A colour for text and one for what it stands on, with the contrast of `bounds`; `paper` is never dark."""
    if level == 1:
        return BLACK, WHITE
    dark = rng.random() < DARK[level] and not paper
    least, most = bounds(level, dark=dark)
    while True:
        base, tint, inks = rng.integers(0, 34, (64, 1)), rng.integers(0, 24, (64, 3)), rng.integers(0, 256, (64, 3))
        grounds = base + tint if dark else 255 - base - tint
        found = contrast(inks, grounds)
        fitting = np.flatnonzero((found >= least) & (found <= most))
        if len(fitting):
            return _colour(inks[fitting[0]]), _colour(grounds[fitting[0]])


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`share` of the second colour in the first."""
    return _colour(np.rint(np.asarray(first) * (1 - share) + np.asarray(second) * share))


def quiet(ground: Colour, other: Colour, ink: Colour, level: int, share: float) -> Colour:
    """The ground with as much of another colour as leaves the ink readable on it: `share`, or half, or a quarter...

    Readable too on what lies between the two: half way from one colour to another may be darker than both.
    """
    least, _ = bounds(level, dark=bool(luminance(ground) < luminance(ink)))
    while share > 0.01:
        path = [mixed(ground, other, share * part) for part in (0.2, 0.4, 0.6, 0.8, 1.0)]
        if contrast(path, ink).min() >= least:
            return path[-1]
        share /= 2
    return ground


def _colour(values: Any) -> Colour:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


@dataclass(frozen=True)
class Placed:
    """A text on a canvas: a box around its ink in pixels (left, top, right, bottom), and how it looks."""

    text: str
    box: tuple[int, int, int, int]
    face: str
    em: int
    ink: Colour
    ground: Colour
    turn: float = 0.0


@dataclass
class Canvas:
    """A picture to draw on, (height, width) in pixels; it keeps a list of all texts."""

    size: Size
    ground: Colour
    image: Image.Image = field(init=False)
    pen: ImageDraw.ImageDraw = field(init=False)
    placed: list[Placed] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.image = Image.new("RGB", (self.size[1], self.size[0]), self.ground)
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self,
        at: Point,
        text: str,
        face: str,
        em: int,
        ink: Colour,
        *,
        anchor: str = "ls",
        over: Colour | None = None,
        clear: int = 0,
    ) -> None:
        """A text on the canvas.

        Args:
            at: (x, y) of its anchor.
            text: in one line.
            face: see `faces`.
            em: in pixels.
            ink: its colour.
            anchor: Pillow's.
            over: the colour under it; the canvas's own if absent.
            clear: pixels around it that are emptied first; 0 leaves all as it is.

        Raises:
            RuntimeError: it would not lie on the canvas.
        """
        x, y = round(at[0]), round(at[1])
        left, top, right, bottom = font(face, em).getbbox(text, anchor=anchor)
        box = (int(np.floor(left)) + x, int(np.floor(top)) + y, int(np.ceil(right)) + x, int(np.ceil(bottom)) + y)
        self._keep(Placed(text, box, face, em, ink, over or self.ground))
        if clear:
            ends = (box[0] - clear, box[1] - clear, box[2] + clear - 1, box[3] + clear - 1)
            self.pen.rectangle(ends, fill=over or self.ground)
        self.pen.text((x, y), text, ink, font(face, em), anchor=anchor)

    def slanting(self, end: Point, text: str, face: str, em: int, ink: Colour, *, turn: float) -> None:
        """A text that rises by `turn` degrees towards the top right corner of its box, which is at `end`."""
        mask, right, top = slanted(text, face, em, turn), round(end[0]), round(end[1])
        box = (right - mask.width, top, right, top + mask.height)
        self._keep(Placed(text, box, face, em, ink, self.ground, turn))
        self.image.paste(ink, box[:2], mask)

    def _keep(self, placed: Placed) -> None:
        left, top, right, bottom = placed.box
        if left < 0 or top < 0 or right > self.size[1] or bottom > self.size[0]:
            raise RuntimeError(f"`{placed.text}` at {placed.box} leaves the canvas of {self.size}")
        self.placed.append(placed)


def slanted(text: str, face: str, em: int, turn: float) -> Image.Image:
    """The ink of a turned text, 0-255, without empty rows and columns around it."""
    mask = ink_of(text, face, em)[0].rotate(turn, Image.Resampling.BICUBIC, expand=True)
    return mask.crop(mask.getbbox())


def ink_of(text: str, face: str, em: int, border: int = 2) -> tuple[Image.Image, int]:
    """The ink of a text, 0-255, with `border` empty pixels around its line, and the row of its baseline.

    The line is as high as the face's ascent and descent, or higher where a letter is.
    """
    used = font(face, em)
    ascent, descent = used.getmetrics()
    left, top, right, bottom = used.getbbox(text, anchor="ls")
    base = max(ascent, int(np.ceil(-top))) + border
    width, height = int(np.ceil(right - left)) + 2 * border + 1, base + max(descent, int(np.ceil(bottom))) + border
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).text((border - int(np.floor(left)), base), text, 255, used, anchor="ls")
    return mask, base


@dataclass(frozen=True)
class Wear:
    """What a picture went through; all zero is none."""

    tilt: float = 0.0
    """How far each corner of a sheet may lie from where it belongs, as a share of the sides: a photo at an angle."""
    shade: float = 0.0
    """Uneven light: the largest share by which a place is darker."""
    blur: float = 0.0
    """Largest radius of a mean over a square, as a share of the text's em."""
    noise: int = 0
    """Largest change of a pixel in grey levels, each change as likely as the next."""
    quality: tuple[int, int] | None = None
    """Range of the JPEG quality."""


NO_WEAR = Wear()
F = TypeVar("F")
Asked = tuple[str, list[str]]
"""A question and its accepted answers, of which the first is the one to learn."""


@dataclass(frozen=True)
class Sheet(Generic[F]):
    """A document as it is drawn, before any wear, and what it says."""

    page: Canvas
    facts: F
    em: int
    """Of most of its text, in pixels."""
    desk: Colour
    """What a sheet that is seen at an angle lies on."""
    wear: Wear

    def worn(self, rng: np.random.Generator) -> Image.Image:
        """The picture after its wear."""
        return worn(rng, self.page.image, self.wear, self.em, self.desk)


def warp(
    image: Image.Image,
    corners: Sequence[Point],
    size: Size,
    fill: Any = 0,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """`image` in perspective on a picture of `size`; its own come to lie at `corners`, clockwise from top left."""
    ends = [(0, 0), (image.width, 0), (image.width, image.height), (0, image.height)]
    rows, values = [], []
    for (x, y), (u, v) in zip(corners, ends, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    numbers = np.linalg.solve(np.array(rows, np.float64), np.array(values, np.float64))
    transform = Image.Transform.PERSPECTIVE
    return image.transform((size[1], size[0]), transform, tuple(numbers.tolist()), resample, fillcolor=fill)


def photographed(rng: np.random.Generator, image: Image.Image, tilt: float, desk: Colour) -> Image.Image:
    """The whole image as a sheet on a desk, seen at an angle, in a picture of the same size."""
    shifts = rng.uniform(0.005, tilt, (4, 2)) * (image.width, image.height)
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    ends = [(0, 0), (image.width, 0), (image.width, image.height), (0, image.height)]
    corners = [
        (x + sx * dx, y + sy * dy) for (x, y), (sx, sy), (dx, dy) in zip(ends, signs, shifts.tolist(), strict=True)
    ]
    # A whole page takes half the time so, and what it loses in sharpness is part of the wear.
    return warp(image, corners, (image.height, image.width), desk, Image.Resampling.BILINEAR)


def worn(rng: np.random.Generator, image: Image.Image, wear: Wear, em: float, desk: Colour = BLACK) -> Image.Image:
    """The image after tilt, shade, blur, noise and JPEG, in that order; `em` is that of its text, in pixels."""
    if wear.tilt:
        image = photographed(rng, image, wear.tilt, desk)
    if wear.shade:
        light = Image.fromarray((255 - 255 * wear.shade * rng.random((3, 4))).astype(np.uint8))
        light = light.resize(image.size, Image.Resampling.BICUBIC)
        image = _darker(image, light)
    if wear.blur:
        image = image.filter(ImageFilter.BoxBlur(wear.blur * em * rng.random()))
    if wear.noise:
        image = _noisy(rng, image, wear.noise)
    if wear.quality:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(wear.quality[0], wear.quality[1] + 1)))
        image = Image.open(file).convert("RGB")
    return image


def _darker(image: Image.Image, light: Image.Image) -> Image.Image:
    return ImageChops.multiply(image, Image.merge("RGB", (light, light, light)))


def _noisy(rng: np.random.Generator, image: Image.Image, most: int) -> Image.Image:
    """One change a pixel, the same for its three channels."""
    changes = np.frombuffer(rng.bytes(image.width * image.height), np.int8).astype(np.int16)
    changes = (changes * most) >> 7
    pixels = np.asarray(image, np.int16) + changes.reshape(image.height, image.width, 1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
