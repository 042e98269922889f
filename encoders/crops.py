"""Molmo's overlapping crops: every patch of the image is seen with its surroundings, and used once."""

from dataclasses import replace

import numpy as np

from vlm.errors import ConfigError, Problem, positive
from vlm.views import Size, View, Views

from .geometry import (
    BLACK,
    MOST_TILES,
    Colour,
    Grid,
    Thumbnail,
    check_colour,
    check_image,
    counts,
    framed,
    grids,
    middle,
    refuse,
)
from .grids import least_rescaling


class OverlappingCrops(Views):
    """Crops of the encoder's size that overlap, so that no patch is cut off from what lies beside it.

    A crop's `keep` leaves out the margins that it shares with its neighbours: what all crops keep together is the
    image, once. Molmo (arXiv 2409.17146) with the defaults; Molmo 2 with `max_crops: 8, keep_aspect: false`. The grid
    is the one that changes the scale least, both image and crops counted without the outer margins.

    Args:
        max_crops: crops at most, the thumbnail not counted.
        margins: patches of a crop that are seen but not used, at the top and left, and at the bottom and right.
        patch: the encoder's patch in pixels.
        keep_aspect: pad the image, in the middle, or squash it.
        thumbnail: where the whole image at one crop's size stands.
        fill: colour of the padding.
    """

    def __init__(
        self,
        *,
        max_crops: int = 12,
        margins: tuple[int, int] = (4, 4),
        patch: int = 14,
        keep_aspect: bool = True,
        thumbnail: Thumbnail = "first",
        fill: Colour | None = BLACK,
    ) -> None:
        problems = [*counts(MOST_TILES, max_crops=max_crops), *positive(patch=patch), *check_colour(fill)]
        if min(margins) < 0:
            problems.append(Problem("margins", f"`{list(margins)}`; allowed: 0 or more"))
        refuse(problems)
        self.candidates = grids(max_crops)
        self.margins = (margins[0] * patch, margins[1] * patch)
        self.patch = patch
        self.keep_aspect = keep_aspect
        self.thumbnail: Thumbnail = thumbnail
        self.fill = fill

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        window = self._window(size)
        margin = sum(self.margins)
        grid = least_rescaling((image[0] - margin, image[1] - margin), window, self.candidates)
        canvas = grid[0] * window[0] + margin, grid[1] * window[1] + margin
        large = self._placed(image, canvas)
        crops = [
            self._crop(large, size, window, grid, (row, column)) for row in range(grid[0]) for column in range(grid[1])
        ]
        return framed(crops, self._placed(image, size), self.thumbnail)

    def _window(self, size: Size) -> Size:
        """What a crop adds to its neighbours."""
        if any(side % self.patch or side <= sum(self.margins) for side in size):
            needed = f"allowed: whole patches of {self.patch} pixels, more than the margins of {sum(self.margins)}"
            raise ConfigError(Problem("margins", f"the encoder takes {size[0]} x {size[1]} pixels; {needed}"))
        return size[0] - sum(self.margins), size[1] - sum(self.margins)

    def _placed(self, image: Size, canvas: Size) -> View:
        if not self.keep_aspect:
            return View(canvas, canvas)
        resize = _inside(image, canvas)
        return View(resize, canvas, middle(resize, canvas), fill=self.fill)

    def _crop(self, large: View, size: Size, window: Size, grid: Grid, cell: tuple[int, int]) -> View:
        before, after = self.margins
        top, left = (before if number else 0 for number in cell)
        bottom, right = (
            side - after if number < count - 1 else side for side, number, count in zip(size, cell, grid, strict=True)
        )
        offset = (large.offset[0] - cell[0] * window[0], large.offset[1] - cell[1] * window[1])
        return replace(large, size=size, offset=offset, cell=cell, keep=(top, left, bottom, right))


def _inside(image: Size, canvas: Size) -> Size:
    """The largest size with the image's aspect ratio within `canvas`, in single precision and rounded down on both
    sides, as Molmo was trained; never below one pixel."""
    scale = min(np.float32(length) / np.float32(side) for length, side in zip(canvas, image, strict=True))
    height, width = (max(1, int(np.float32(side) * scale)) for side in image)
    return height, width
