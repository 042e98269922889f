"""The view policies that cut an image into tiles of the encoder's size, with or without a view of the whole image.

A tile's `cell` is its (row, column). Where there is one view only, it shows the whole image and has no cell.
"""

from dataclasses import replace
from typing import Literal

from vlm.errors import Problem, positive
from vlm.views import Size, View, Views

from .geometry import (
    BLACK,
    MOST_SIDE,
    MOST_TILES,
    Colour,
    Grid,
    Thumbnail,
    canvas_of,
    check_colour,
    check_image,
    counts,
    cut,
    framed,
    grids,
    inside,
    inside_by_aspect,
    middle,
    raised,
    refuse,
)
from .grids import cells, closest_aspect, covering, least_rescaling, most_pixels, roomiest
from .views import Pad


class Tiles(Views):
    """Tiles of the grid with the nearest aspect ratio, squashed into it; a thumbnail if there are several.

    InternVL 1.5 to 3 (arXiv 2404.16821), NVLM (2409.11402: `max_tiles: 6`), GOT-OCR 2 (2409.01704) and Aya Vision
    (2505.08751).

    Args:
        max_tiles: tiles of a grid at most, the thumbnail not counted.
        min_tiles: and at least.
        thumbnail: where the whole image, squashed to one tile, stands.
    """

    def __init__(self, *, max_tiles: int = 12, min_tiles: int = 1, thumbnail: Thumbnail = "last") -> None:
        problems = [*counts(MOST_TILES, max_tiles=max_tiles), *positive(min_tiles=min_tiles)]
        if 0 < max_tiles < min_tiles:
            problems.append(Problem("min_tiles", f"`{min_tiles}`; allowed: at most max_tiles, {max_tiles}"))
        refuse(problems)
        self.candidates = grids(max_tiles, min_tiles)
        self.thumbnail: Thumbnail = thumbnail

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        return _squashed(closest_aspect(image, size, self.candidates), size, self.thumbnail)


class AnyRes(Views):
    """A thumbnail, and tiles of that one of the given grids in which most of the image's pixels are left.

    The image keeps its aspect ratio and lies in the middle of the grid. LLaVA-NeXT (AnyRes) with its five grids;
    LLaVA-OneVision (arXiv 2408.03326) with `grids: 6, several: pad`.

    Args:
        grids: [rows, columns] of each grid; a number n stands for all grids from 1 x 1 to n x n.
        thumbnail: where the whole image, squashed to one tile, stands; also beside a single tile.
        several: what the images of a sample with several of them get: `tiles` as well, or `pad`, one view each,
            padded to a square with the encoder's mean colour.
        fill: colour of the padding.
    """

    def __init__(
        self,
        *,
        grids: int | tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
        thumbnail: Thumbnail = "first",
        several: Literal["tiles", "pad"] = "tiles",
        fill: Colour | None = BLACK,
    ) -> None:
        refuse([*_check_grids(grids), *check_colour(fill)])
        self.candidates = grids if isinstance(grids, tuple) else _square(grids)
        self.thumbnail: Thumbnail = thumbnail
        self.several = several
        self.fill = fill

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        grid = most_pixels(image, size, self.candidates)
        canvas = canvas_of(grid, size)
        resize = inside(image, canvas, "up")
        tiles = cut(grid, size, resize=resize, corner=middle(resize, canvas), fill=self.fill)
        return framed(tiles, View(size, size), self.thumbnail)

    def among(self, images: int) -> Views:
        return Pad(base="image") if images > 1 and self.several == "pad" else self


class CanvasTiles(Views):
    """Tiles of the grid that changes the image's scale least: the smallest that holds it, else the one nearest to it.

    Llama 3.2 Vision (arXiv 2407.21783) with the defaults; Llama 4 with `max_tiles: 16, thumbnail: last`; Command A
    Vision with `max_tiles: 12, thumbnail: last, keep_aspect: false`. A kept aspect ratio leaves the image at the grid's
    top left, and not enlarged beyond one tile.

    Args:
        max_tiles: tiles of a grid at most, the thumbnail not counted.
        keep_aspect: pad the image to the grid's aspect ratio, or squash it.
        thumbnail: where the whole image, squashed to one tile, stands; there is none beside a single tile.
        fill: colour of the padding.
    """

    def __init__(
        self,
        *,
        max_tiles: int = 4,
        keep_aspect: bool = True,
        thumbnail: Thumbnail = "none",
        fill: Colour | None = BLACK,
    ) -> None:
        refuse([*counts(MOST_TILES, max_tiles=max_tiles), *check_colour(fill)])
        self.candidates = grids(max_tiles)
        self.keep_aspect = keep_aspect
        self.thumbnail: Thumbnail = thumbnail
        self.fill = fill

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        grid = least_rescaling(image, size, self.candidates)
        if not self.keep_aspect:
            return _squashed(grid, size, self.thumbnail)
        canvas = canvas_of(grid, size)
        box = min(max(image[0], size[0]), canvas[0]), min(max(image[1], size[1]), canvas[1])
        tiles = cut(grid, size, resize=inside(image, box, "down"), fill=self.fill)
        return _alone_or_framed(tiles, View(size, size), self.thumbnail)


class CoveringTiles(Views):
    """The image's own rows and columns as tiles, as few as cover enough of it; a thumbnail if there are several.

    Ovis 1.6 and 2 (arXiv 2405.20797): the image is cut first, and every part, as well as the whole, is padded to a
    square by itself. The port of Ovis 2 in transformers squashes the image into the grid instead, and takes the
    chosen grid's rows for columns: `keep_aspect: false, transpose: true`.

    Args:
        max_tiles: tiles of a grid at most, the thumbnail not counted.
        threshold: the part of the image's area that is enough, 0 to 1.
        keep_aspect: pad each part to the encoder's shape, or squash the image into the grid.
        transpose: exchange the chosen grid's rows and columns.
        thumbnail: where the whole image stands.
        fill: colour of the padding; None is the encoder's mean, which is zero once normalised.
    """

    def __init__(
        self,
        *,
        max_tiles: int = 9,
        threshold: float = 0.9,
        keep_aspect: bool = True,
        transpose: bool = False,
        thumbnail: Thumbnail = "first",
        fill: Colour | None = None,
    ) -> None:
        problems = [*counts(MOST_TILES, max_tiles=max_tiles), *check_colour(fill)]
        if not 0 <= threshold <= 1:
            problems.append(Problem("threshold", f"`{threshold}`; allowed: 0 to 1"))
        if transpose and keep_aspect:
            problems.append(Problem("transpose", "`true` needs `keep_aspect: false`"))
        refuse(problems)
        self.candidates = grids(max_tiles)
        self.threshold = threshold
        self.keep_aspect = keep_aspect
        self.transpose = transpose
        self.thumbnail: Thumbnail = thumbnail
        self.fill = fill

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        grid = covering(image, size, self.candidates, self.threshold)
        grid = grid[::-1] if self.transpose else grid
        if not self.keep_aspect:
            return _squashed(grid, size, self.thumbnail)
        whole = self._padded(image, size)
        if grid == (1, 1):
            return [whole]
        parts = [self._part(image, size, cell) for cell in cells(image, grid)]
        numbers = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        tiles = [replace(part, cell=number) for part, number in zip(parts, numbers, strict=True)]
        return framed(tiles, whole, self.thumbnail)

    def _part(self, image: Size, size: Size, cell: tuple[int, int, int, int]) -> View:
        top, left, bottom, right = cell
        part = bottom - top, right - left
        return replace(self._padded(part, size), of=View(image, part, (-top, -left)))

    def _padded(self, image: Size, size: Size) -> View:
        resize = inside_by_aspect(image, size)
        return View(resize, size, middle(resize, size), fill=self.fill)


class EdgeTiles(Views):
    """The image with its longer side a given number of tiles long, and as many tiles as that takes.

    Idefics3 (arXiv 2408.12637) and SmolVLM (2504.05299). The image is resampled twice, to the longer side and then to
    whole tiles, which does not quite keep its aspect ratio, and a third time for the thumbnail.

    Args:
        longest: the longer side in tiles.
        thumbnail: where the whole image, squashed to one tile, stands; there is none beside a single tile.
    """

    def __init__(self, *, longest: int = 4, thumbnail: Thumbnail = "last") -> None:
        refuse(counts(MOST_SIDE, longest=longest))
        self.longest = longest
        self.thumbnail: Thumbnail = thumbnail

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        resize = self._resize(image, size)
        canvas = _whole_tiles(resize, size)
        base = View(resize, resize)
        tiles = [replace(tile, of=base) for tile in cut((canvas[0] // size[0], canvas[1] // size[1]), size)]
        return _alone_or_framed(tiles, View(size, size, of=View(canvas, canvas, of=base)), self.thumbnail)

    def _resize(self, image: Size, tile: Size) -> Size:
        """The shorter side goes to the next even number, and never below one pixel."""
        aspect = image[1] / image[0]
        if image[1] >= image[0]:
            width = self.longest * tile[1]
            height = int(width / aspect)
            return max(1, height + height % 2), width
        height = self.longest * tile[0]
        width = int(height * aspect)
        return height, max(1, width + width % 2)


class RoomyTiles(Views):
    """A thumbnail, and tiles of the grid in which the image can be drawn largest, if one holds it; squashed into it.

    Perception-LM (arXiv 2504.13180).

    Args:
        max_tiles: tiles of a grid at most, the thumbnail not counted.
        thumbnail: where the whole image, squashed to one tile, stands; also beside a single tile.
    """

    def __init__(self, *, max_tiles: int = 36, thumbnail: Thumbnail = "first") -> None:
        refuse(counts(MOST_TILES, max_tiles=max_tiles))
        self.max_tiles = max_tiles
        self.thumbnail: Thumbnail = thumbnail

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        return framed(cut(roomiest(image, size, self.max_tiles), size), View(size, size), self.thumbnail)


def _squashed(grid: Grid, size: Size, thumbnail: Thumbnail) -> list[View]:
    return _alone_or_framed(cut(grid, size), View(size, size), thumbnail)


def _alone_or_framed(tiles: list[View], whole: View, thumbnail: Thumbnail) -> list[View]:
    """A single tile shows the whole image and stands alone."""
    return [replace(tiles[0], cell=None)] if len(tiles) == 1 else framed(tiles, whole, thumbnail)


def _check_grids(grids: int | tuple[Grid, ...]) -> list[Problem]:
    if isinstance(grids, int):
        return counts(MOST_SIDE, grids=grids)
    sound = grids and all(min(grid) > 0 and grid[0] * grid[1] <= MOST_TILES for grid in grids)
    shown = [list(grid) for grid in grids]
    allowed = f"1 to {MOST_SIDE}, or [rows, columns] of 1 to {MOST_TILES} tiles in all"
    return [] if sound else [Problem("grids", f"`{shown}`; allowed: {allowed}")]


def _square(most: int) -> tuple[Grid, ...]:
    return tuple((rows, columns) for rows in range(1, most + 1) for columns in range(1, most + 1))


def _whole_tiles(image: Size, tile: Size) -> Size:
    """The longer side rounded up to whole tiles, the other one after it, its own aspect ratio kept first."""
    aspect = image[1] / image[0]
    if image[1] >= image[0]:
        width = raised(image[1], tile[1])
        return raised(int(width / aspect), tile[0]), width
    height = raised(image[0], tile[0])
    return height, raised(int(height * aspect), tile[1])
