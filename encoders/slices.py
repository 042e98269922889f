"""MiniCPM-V's adaptive slices: parts of the image that keep their own shape, at about the encoder's area each."""

import math

from vlm.errors import positive
from vlm.views import Size, View, Views

from .geometry import MOST_TILES, Grid, Thumbnail, check_image, counts, cut, framed, grids, nearest, refuse


class Slices(Views):
    """The image cut into as many slices as its area asks for, in the grid that leaves each nearest to a square.

    MiniCPM-V 2 to 2.6 (arXiv 2408.01800) after LLaVA-UHD (2403.11703) with the defaults; MiniCPM-V 4.6 with
    `multiple: 56` (`28` at its lower compression). An image of at most the encoder's area is not sliced: it is one
    view, brought up to that area. Sides of views are multiples of the patch, in any aspect ratio, and at least one
    patch. A part that is wider than high by more than the encoder's area in pixels vanishes on both sides, and is one
    patch altogether.

    Args:
        max_slices: slices of an image at most, the thumbnail not counted.
        multiple: the patch in pixels, or a merged group of them.
        thumbnail: where the whole image, brought down to the encoder's area, stands beside slices.
    """

    def __init__(self, *, max_slices: int = 9, multiple: int = 14, thumbnail: Thumbnail = "first") -> None:
        refuse([*counts(MOST_TILES, max_slices=max_slices), *positive(multiple=multiple)])
        self.max_slices = max_slices
        self.multiple = multiple
        self.thumbnail: Thumbnail = thumbnail

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        area = size[0] * size[1]
        ideal = min(math.ceil(image[0] * image[1] / area), self.max_slices)
        whole = self._at_area(image, area)
        if ideal <= 1:
            return [View(whole, whole)]
        grid = best_grid(image, ideal, self.max_slices)
        rows, columns = grid
        part = self._at_area((nearest(image[0], rows) / rows, nearest(image[1], columns) / columns), area)
        return framed(cut(grid, part), View(whole, whole), self.thumbnail)

    def _at_area(self, image: tuple[float, float], area: int) -> Size:
        aspect = image[1] / image[0]
        height = int(math.sqrt(area) / math.sqrt(aspect))
        return nearest(height, self.multiple), nearest(int(height * aspect), self.multiple)


def best_grid(image: Size, ideal: int, most: int) -> Grid:
    """The grid of `ideal` slices, one more or one less, whose aspect ratio is nearest to the image's as a logarithm.

    Of equally near ones that with most rows. One slice is no grid, and more than `most` are not allowed.
    """
    aspect = math.log(image[1] / image[0])
    candidates = [grid for count in (ideal - 1, ideal, ideal + 1) if 1 < count <= most for grid in grids(count, count)]
    return min(candidates, key=lambda grid: (abs(aspect - math.log(grid[1] / grid[0])), -grid[0]))
