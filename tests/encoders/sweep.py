"""Image sizes on which the view policies are compared with their references, and how pixels are compared."""

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vlm.views import ImageSpec, Interpolation, Size, View, render


def sweep(tile: int, most: int) -> list[Size]:
    """More than 200 sizes for tiles of that many pixels: tiny ones, lines of one pixel, whole tiles and one off,
    extreme aspect ratios, and others up to `most` pixels a side."""
    tiny = [(height, width) for height in range(1, 5) for width in range(1, 5)]
    marks = (5, tile - 1, tile, tile + 1, 2 * tile, 3 * tile + 1, most)
    lines = [size for length in marks for side in (1, 2) for size in ((side, length), (length, side))]
    whole = [
        (rows * tile + more, columns * tile + wider)
        for rows, columns in (
            (1, 1),
            (1, 2),
            (2, 1),
            (2, 2),
            (2, 3),
            (3, 2),
            (1, 4),
            (4, 1),
            (5, 1),
            (3, 3),
            (5, 10),
            (20, 10),
        )
        for more, wider in ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, -1))
    ]
    thin = [size for long in (7, 20, 49) for size in ((tile, min(long * tile, most)), (min(long * tile, most), tile))]
    draw = random.Random(tile * 100003 + most)
    free = [tuple(round(most ** draw.random()) for _ in range(2)) for _ in range(60)]
    near = [tuple(draw.randint(max(1, most // 4), most) for _ in range(2)) for _ in range(40)]
    squares = [(side, side) for side in (draw.randint(5, most) for _ in range(20))]
    found = list(dict.fromkeys([*tiny, *lines, *whole, *thin, *free, *near, *squares]))
    assert len(found) >= 200
    return found


SMALL = sweep(16, 120)
"""For comparing every pixel."""


def noise(size: Size) -> Image.Image:
    """Every pixel different, so that no shift and no other resampling goes unseen."""
    rng = np.random.default_rng(size[0] * 100003 + size[1])
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def empty(size: Size) -> np.ndarray:
    """[3, H, W] of that size without memory: for references that only look at the shape."""
    return np.broadcast_to(np.uint8(0), (3, *size))


def colours(views: Sequence[View], image: Image.Image, interpolation: Interpolation = "bicubic") -> list[np.ndarray]:
    """The views as the encoder gets them, [3, H, W] each, as colours 0-255; the encoder's mean is black."""
    spec = ImageSpec((0, 0), (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), interpolation)
    return [pixels.numpy() for pixels in render(views, image, spec)]


def check_pixels(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], atol: float = 1e-4) -> None:
    assert [one.shape for one in found] == [np.shape(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, np.asarray(other, dtype=np.float32), atol=atol, rtol=0)


def cell_order(views: Sequence[View]) -> list[tuple[int, int] | None]:
    return [view.cell for view in views]


def row_by_row(rows: int, columns: int) -> list[tuple[int, int]]:
    return [(row, column) for row in range(rows) for column in range(columns)]
