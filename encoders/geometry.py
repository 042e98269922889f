"""Arithmetic that the view policies share. Sizes are (height, width) in pixels, grids (rows, columns) of tiles.

The published policies were written in floating point, and a side that comes out at 223.99999999999997 is cut to 223.
The same operations are done here in the same order, so that the same weights see the same pixels.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

from vlm.errors import ConfigError, Problem
from vlm.views import Size, View

Grid = tuple[int, int]
"""Rows and columns of tiles."""
Thumbnail = Literal["first", "last", "none"]
"""Where the view of the whole image stands among the tiles."""
Rounding = Literal["nearest", "half_up", "up", "down"]
"""`nearest` takes halves to the even side, `half_up` to the larger one."""
Colour = tuple[int, int, int]
"""0-255 per channel."""
BLACK: Colour = (0, 0, 0)

_ROUND: dict[Rounding, Callable[[float], int]] = {
    "nearest": round,
    "half_up": lambda length: math.floor(length + 0.5),
    "up": math.ceil,
    "down": math.floor,
}


def check_image(image: Size) -> None:
    """Every policy begins with it.

    Raises:
        ConfigError: the image has no area.
    """
    if min(image) < 1:
        raise ConfigError(f"an image of {image[0]} x {image[1]} pixels shows nothing; allowed: 1 x 1 or larger")


def check_colour(fill: Colour | None) -> list[Problem]:
    """A problem if `fill` is no colour; None stands for the encoder's mean."""
    if fill is None or all(0 <= channel <= 255 for channel in fill):
        return []
    return [Problem("fill", f"`{list(fill)}`; allowed: three numbers from 0 to 255")]


MOST_TILES = 1000
"""Of an image. Every way to arrange so many tiles is looked at, so a slip of the hand would never come to an end."""
MOST_SIDE = 32
"""Tiles along a side, of policies that count those: about as many of an image."""


def counts(most: int, **numbers: int) -> list[Problem]:
    """A problem for each of the named numbers that is not 1 to `most`."""
    wrong = {name: number for name, number in numbers.items() if not 1 <= number <= most}
    return [Problem(name, f"`{number}`; allowed: 1 to {most}") for name, number in wrong.items()]


def refuse(problems: Sequence[Problem]) -> None:
    """Raise the problems, if there are any, as one ConfigError."""
    if problems:
        raise ConfigError(problems)


def inside(
    image: Size, canvas: Size, rounding: Rounding = "nearest", *, tie: Literal["height", "width"] = "height"
) -> Size:
    """The largest size with the image's aspect ratio that lies within `canvas`; never below one pixel.

    Args:
        image: the image's size.
        canvas: what it must fit in; one of its sides is filled.
        rounding: how the other side becomes a whole number.
        tie: the side that is taken from the canvas as it is where both fit. The other one is computed, and may come
            out a pixel short.
    """
    scale_h, scale_w = canvas[0] / image[0], canvas[1] / image[1]
    if scale_h < scale_w or (scale_h == scale_w and tie == "height"):
        return canvas[0], min(max(1, _ROUND[rounding](image[1] * scale_h)), canvas[1])
    return min(max(1, _ROUND[rounding](image[0] * scale_w)), canvas[0]), canvas[1]


def inside_by_aspect(image: Size, canvas: Size) -> Size:
    """As `inside`, rounded down, but computed from the aspect ratio, which can differ by a pixel (Ovis)."""
    height, width = image
    if height / width <= canvas[0] / canvas[1]:
        return min(max(1, int(height / width * canvas[1])), canvas[0]), canvas[1]
    return canvas[0], min(max(1, int(width / height * canvas[0])), canvas[1])


def middle(resize: Size, canvas: Size) -> tuple[int, int]:
    """(top, left) of an image in the middle of a canvas; an odd rest is one pixel more at the bottom and right."""
    return (canvas[0] - resize[0]) // 2, (canvas[1] - resize[1]) // 2


def raised(length: float, step: int) -> int:
    """`length` rounded up to a multiple of `step`."""
    return math.ceil(length / step) * step


def lowered(length: float, step: int) -> int:
    """`length` rounded down to a multiple of `step`; at least one step."""
    return max(math.floor(length / step) * step, step)


def nearest(length: float, step: int) -> int:
    """The multiple of `step` that is nearest to `length`; at least one step."""
    return max(round(length / step) * step, step)


@cache
def grids(most: int, least: int = 1) -> tuple[Grid, ...]:
    """Every grid of `least` to `most` tiles, by number of tiles and then by rows."""
    found = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    return tuple(sorted((grid for grid in found if grid[0] * grid[1] >= least), key=lambda grid: grid[0] * grid[1]))


def canvas_of(grid: Grid, tile: Size) -> Size:
    """The size of all tiles of a grid together."""
    return grid[0] * tile[0], grid[1] * tile[1]


def cut(
    grid: Grid, tile: Size, *, resize: Size | None = None, corner: Size = (0, 0), fill: Colour | None = None
) -> list[View]:
    """The tiles of an image, row by row.

    Args:
        grid: rows and columns.
        tile: the size of each.
        resize: the size that the image is resampled to; None fills the grid, whatever the aspect ratio.
        corner: (top, left) of the image on the canvas of all tiles.
        fill: colour of the rest of the canvas.
    """
    resize = resize or canvas_of(grid, tile)
    return [
        View(resize, tile, (corner[0] - row * tile[0], corner[1] - column * tile[1]), (row, column), fill)
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def framed(tiles: list[View], thumbnail: View, where: Thumbnail) -> list[View]:
    """The tiles with the view of the whole image in its place."""
    return {"first": [thumbnail, *tiles], "last": [*tiles, thumbnail], "none": tiles}[where]
