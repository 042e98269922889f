"""How many rows and columns of tiles an image gets: the published rules, one function each.

Everywhere `image` and `tile` are (height, width) in pixels and the answer is (rows, columns).
"""

import math
from collections.abc import Sequence
from functools import cache

from vlm.views import Size

from .geometry import Grid, canvas_of, grids


def closest_aspect(image: Size, tile: Size, candidates: Sequence[Grid]) -> Grid:
    """The grid whose aspect ratio is nearest to the image's (InternVL, GOT).

    Of grids that are equally near the larger one is taken as long as it has less than twice the image's pixels.
    """
    aspect, area = image[1] / image[0], image[0] * image[1]
    best, least = (1, 1), math.inf
    for grid in sorted(candidates, key=lambda grid: (grid[0] * grid[1], grid[1])):
        height, width = canvas_of(grid, tile)
        difference = abs(aspect - width / height)
        if difference < least or (difference == least and area > 0.5 * height * width):
            best, least = grid, difference
    return best


def most_pixels(image: Size, tile: Size, candidates: Sequence[Grid]) -> Grid:
    """The grid that shows most of the image's pixels, and among those the smallest, the first (LLaVA-NeXT).

    Where an image is so thin that a side would vanish in every grid, none shows anything, and the smallest is taken.
    """

    def shown(grid: Grid) -> int:
        height, width = canvas_of(grid, tile)
        scale = min(width / image[1], height / image[0])
        return min(int(image[0] * scale) * int(image[1] * scale), image[0] * image[1])

    return max(candidates, key=lambda grid: (shown(grid), -grid[0] * grid[1]))


def least_rescaling(image: Size, tile: Size, candidates: Sequence[Grid]) -> Grid:
    """The grid to which the image, its aspect ratio kept, must be enlarged least; reduced least if none holds it.

    Of equal ones the smallest, then the one with fewer rows (Mllama, Llama 4, Molmo). A side of `image` may be zero or
    negative, where it is what margins leave of it: at zero the other side decides, below it the smallest grid is taken.
    """

    def scale(grid: Grid) -> float:
        return min(
            length / side if side else math.inf for length, side in zip(canvas_of(grid, tile), image, strict=True)
        )

    enlarging = [grid for grid in candidates if scale(grid) >= 1]
    if enlarging:
        return min(enlarging, key=lambda grid: (scale(grid), grid[0] * grid[1], grid[0]))
    return min(candidates, key=lambda grid: (-scale(grid), grid[0] * grid[1], grid[0]))


def covering(image: Size, tile: Size, candidates: Sequence[Grid], threshold: float) -> Grid:
    """The smallest grid that covers more than `threshold` of the image, else the one that covers most (Ovis).

    The image is cut into the grid's cells; a cell counts with the area that is left once its longer side is reduced
    to the tile's height.
    """
    area = image[0] * image[1]
    covered = {grid: sum(_reduced(cell, tile[0]) for cell in cells(image, grid)) / area for grid in candidates}
    enough = [grid for grid in candidates if covered[grid] > threshold]
    if enough:
        return min(enough, key=lambda grid: (grid[0] * grid[1], -covered[grid]))
    return min(candidates, key=lambda grid: (-covered[grid], grid[0] * grid[1]))


def cells(image: Size, grid: Grid) -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of an image's parts, row by row; the last row and column take what is left over."""
    tops, lefts = _edges(image[0], grid[0]), _edges(image[1], grid[1])
    return [
        (tops[row], lefts[column], tops[row + 1], lefts[column + 1])
        for row in range(grid[0])
        for column in range(grid[1])
    ]


def _edges(length: int, parts: int) -> list[int]:
    return [*(length // parts * number for number in range(parts)), length]


def _reduced(cell: tuple[int, int, int, int], side: int) -> float:
    height, width = cell[2] - cell[0], cell[3] - cell[1]
    longer, shorter = max(height, width), min(height, width)
    return shorter / longer * side * side if longer > side else longer * shorter


def roomiest(image: Size, tile: Size, most: int) -> Grid:
    """Of the grids that hold the image unreduced, the one in which it could be drawn largest (Perception-LM).

    If none holds it: of the aspect ratios between the square's and the image's the one nearest to the image's, with as
    many tiles as there may be.
    """
    aspect = image[1] / image[0]

    def drawn(grid: Grid) -> float:
        """The image's shorter side if it filled the grid, its aspect ratio kept."""
        height, width = canvas_of(grid, tile)
        scale = min(width / image[1], height / image[0])
        if aspect > 1:
            return math.floor(scale * image[1] / aspect)
        return math.floor(scale * image[0] * aspect) if aspect < 1 else scale * image[0]

    groups = _by_aspect(most)
    sizes = [(grid, canvas_of(grid, tile)) for group in groups.values() for grid in group]
    holding = [grid for grid, canvas in sizes if canvas[0] >= image[0] and canvas[1] >= image[1]]
    if holding:
        return max(reversed(holding), key=drawn)  # of equal ones the last
    if aspect >= 1:
        return groups[min((key for key in groups if key <= aspect), key=lambda key: abs(key - aspect))][0]
    return groups[min((key for key in groups if key > aspect), key=lambda key: abs(1 / key - 1 / aspect))][0]


@cache
def _by_aspect(most: int) -> dict[float, list[Grid]]:
    """Columns / rows -> the grids of that aspect ratio, largest first."""
    found: dict[float, list[Grid]] = {}
    for tiles in range(most, 0, -1):
        for grid in sorted((grid for grid in grids(tiles, tiles)), key=lambda grid: grid[1]):
            found.setdefault(grid[1] / grid[0], []).append(grid)
    return found
