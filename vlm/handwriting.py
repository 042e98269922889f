"""Coloured handwritten numbers: the small data set that ``vlm demo`` learns to read.

What it is: every scene is a 32x96 picture of a number of one to five handwritten digits, all in one
of seven ink colours on a dark background. The digits are the 1797 scanned 8x8 glyphs that ship inside
scikit-learn (``sklearn.datasets.load_digits``, from the UCI optical-recognition set), so nothing is
downloaded. Each glyph is enlarged, turned, sheared, scaled, thinned or thickened at random, and noise is
added. A number does not start with zero unless it is the single digit zero.

The split rule: glyphs are divided *before* any scene is composed. The first 1400 glyphs (in scikit-learn's
order, which groups them by writer) are for training, and the last 397 appear in evaluation only; a test
scene therefore contains no stroke that was ever trained on. The train split is distorted more strongly
than the test split (``TRAIN_JITTER`` and ``TEST_JITTER``).

Everything random comes from the ``numpy.random.Generator`` passed in: the same generator state gives the
same scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["train", "test"]

TRAIN_GLYPHS = 1400
"""How many glyphs, from the front, belong to training; the rest are held out."""

COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (232, 52, 56),
        "orange": (255, 146, 34),
        "yellow": (250, 226, 64),
        "green": (62, 190, 84),
        "blue": (64, 132, 250),
        "purple": (176, 92, 226),
        "white": (240, 240, 240),
    }
)
"""Ink colours by the name that answers use."""


@dataclass(frozen=True)
class Scene:
    """One picture and what is written in it."""

    image: Image.Image
    number: str
    colour: str


@dataclass(frozen=True)
class Jitter:
    """How strongly scenes vary; each value is the half-width of a uniform range around "none"."""

    turn: float  # radians, per digit
    slant: float  # shear shared by the whole number: one writer's hand
    shear: float  # shear, per digit
    stretch: float  # log of the scale, each axis of each digit
    shift: float  # vertical, per digit, as a share of the picture's height
    stroke: float  # log2 of the exponent applied to the ink: thinner or thicker strokes
    noise: float  # grey levels, per pixel and channel
    tint: float  # grey levels by which an ink may differ from its pure colour


TRAIN_JITTER = Jitter(turn=0.22, slant=0.20, shear=0.18, stretch=0.16, shift=0.05, stroke=0.8, noise=20, tint=14)
TEST_JITTER = Jitter(turn=0.08, slant=0.10, shear=0.05, stretch=0.07, shift=0.04, stroke=0.3, noise=12, tint=10)

_ENLARGE = 5  # each glyph is enlarged this much once, then sampled at the nearest point
_BORDER = 2  # empty glyph pixels around each glyph, so that sampling outside finds no ink


@lru_cache(maxsize=2)
def glyphs(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The glyphs of one split: float32 images ``[n, 8, 8]`` in 0..1 (1 is ink) and int64 labels ``[n]``."""
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(None, TRAIN_GLYPHS) if split == "train" else slice(TRAIN_GLYPHS, None)
    images = (data.images[part] / 16.0).astype(np.float32)
    labels = data.target[part].astype(np.int64)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@lru_cache(maxsize=2)
def _enlarged(split: Split) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Smoothly enlarged glyphs ``[n, side * side]``, and for each digit the rows that show it."""
    images, labels = glyphs(split)
    side = (8 + 2 * _BORDER) * _ENLARGE
    padded = np.pad(images, ((0, 0), (_BORDER, _BORDER), (_BORDER, _BORDER)))
    large = [np.asarray(Image.fromarray(g).resize((side, side), Image.Resampling.BICUBIC)) for g in padded]
    rows = tuple(np.flatnonzero(labels == digit) for digit in range(10))
    return np.clip(np.stack(large), 0.0, 1.0).reshape(len(images), side * side), rows


@lru_cache(maxsize=8)
def _offsets(patch: int) -> np.ndarray:
    """Pixel positions of a square patch relative to its centre, ``[2, patch * patch]`` as (x, y)."""
    y, x = np.mgrid[:patch, :patch].astype(np.float32) - (patch - 1) / 2
    return np.stack([x.ravel(), y.ravel()])


def compose(
    rng: np.random.Generator, split: Split, *, digits: tuple[int, int] = (1, 5), height: int = 32, width: int = 96
) -> Scene:
    """Draw one scene whose number has between ``digits[0]`` and ``digits[1]`` digits, both included."""
    fewest, most = digits
    if not 1 <= fewest <= most:
        raise ValueError(f"digits must be a range (fewest, most) with 1 <= fewest <= most, not {digits}")
    jitter = TRAIN_JITTER if split == "train" else TEST_JITTER
    large, rows = _enlarged(split)
    count = int(rng.integers(fewest, most + 1))
    values = rng.integers(0, 10, count)
    if count > 1 and values[0] == 0:
        values[0] = rng.integers(1, 10)
    common, each = rng.random(16), rng.random((7, count))
    spread = 2 * each - 1  # -1..1
    chosen = np.array([rows[v][int(u * len(rows[v]))] for v, u in zip(values, each[0], strict=True)])

    # Layout: digits of about one height on one line, which may start anywhere that leaves it room.
    size = min(height * (0.62 + 0.16 * common[0]), 1.2 * (width - 4) / count)
    pitch = min(size * (0.76 + 0.12 * common[1]), (width - 4) / count)
    left = 2 + (width - 4 - pitch * count) * common[2]
    centre_x = left + pitch * (np.arange(count) + 0.5) + 0.04 * size * spread[1]
    room = max(0.0, (height - size) / 2 - 1)
    centre_y = height / 2 + room * (2 * common[3] - 1) * 0.7 + jitter.shift * height * spread[2]

    # Sample every glyph through the inverse of its own turn, shear and scale.
    patch = math.ceil(size * 1.25) | 1
    corner_x, corner_y = (np.rint(c).astype(np.int64) - patch // 2 for c in (centre_x, centre_y))
    scale = 8 * _ENLARGE / size * np.exp(jitter.stretch * spread[3:5])
    turn = jitter.turn * spread[5]
    shear = jitter.slant * (2 * common[4] - 1) + jitter.shear * spread[6]
    cos, sin = np.cos(turn), np.sin(turn)
    inverse = np.array([[cos * scale[0], (sin + shear) * scale[0]], [-sin * scale[1], cos * scale[1]]], np.float32)
    side = (8 + 2 * _BORDER) * _ENLARGE
    source = np.einsum("ijn,jp->inp", inverse, _offsets(patch))
    source += (side - 1) / 2 + 0.5  # to the centre; the half makes truncation round to the nearest
    points = np.clip(source, 0, side - 1).astype(np.int32)
    ink = np.take_along_axis(large[chosen], points[1] * side + points[0], axis=1)
    ink = ink ** np.float32(2 ** (jitter.stroke * (2 * common[5] - 1)))

    # Paint on a canvas with margins, so that a patch may reach past the edge.
    cover = np.zeros((height + 2 * patch, width + 2 * patch), np.float32)
    for one, x, y in zip(ink.reshape(count, patch, patch), corner_x + patch, corner_y + patch, strict=True):
        spot = cover[y : y + patch, x : x + patch]
        np.maximum(spot, one, out=spot)
    cover = cover[patch:-patch, patch:-patch, None]
    colour = list(COLOURS)[int(common[6] * len(COLOURS))]
    pure = np.asarray(COLOURS[colour], np.float32) + jitter.tint * (2 * common[7:10] - 1).astype(np.float32)
    ground = (16 + 34 * common[10] + 22 * common[11:14]).astype(np.float32)
    noise = np.frombuffer(rng.bytes(height * width * 3), np.int8).reshape(height, width, 3)
    pixels = ground + cover * (pure - ground) + noise * np.float32(jitter.noise / 128)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return Scene(image, "".join(map(str, values.tolist())), colour)


def _parity(scene: Scene) -> str:
    return "odd" if int(scene.number[-1]) % 2 else "even"


QUESTIONS: Mapping[str, tuple[str, Callable[[Scene], str]]] = MappingProxyType(
    {
        "number": ("What is the number?", lambda scene: scene.number),
        "colour": ("What colour is it?", lambda scene: scene.colour),
        "count": ("How many digits?", lambda scene: str(len(scene.number))),
        "largest": ("What is the largest digit?", lambda scene: max(scene.number)),
        "first": ("What is the first digit?", lambda scene: scene.number[0]),
        "last": ("What is the last digit?", lambda scene: scene.number[-1]),
        "parity": ("Is it even or odd?", _parity),
    }
)
"""Each kind of question: its wording, and what answers it."""


def ask(scene: Scene, kind: str) -> tuple[str, str]:
    """The question of this kind about a scene, and its answer."""
    question, answer = QUESTIONS[kind]
    return question, answer(scene)
