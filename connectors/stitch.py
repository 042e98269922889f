"""A packer that puts tiles together to one map of tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError, positive
from vlm.features import Grid, Shape
from vlm.packer import ImagePlan, Packer, Run
from vlm.views import Size, View

Box = tuple[int, int, int, int]
"""(top, left, bottom, right), the last two excluded."""


class Stitch(Packer):
    """Tiles become one map of tokens in raster order, with a learned newline behind each row: LLaVA-NeXT and, with
    `max_tiles`, LLaVA-OneVision (arXiv 2408.03326). Of tiles that overlap only the inner tokens are used, and with
    `newline: none` that is Molmo (arXiv 2409.17146). Views of the whole image stay as they are, before or after the
    map as the view policy has them. Tokens must lie on a grid.

    Args:
        unpad: leave out the tokens that show nothing but padding, by LLaVA-NeXT's rule; it must lie on both sides.
        newline: a learned token behind each row of the map, and behind the last token of an image without tiles
            (`tiles`); behind each row of every view (`all`); or none.
        max_tiles: a map of more than 1.1 times as many tokens as so many tiles have is shrunk to about that number.
        end: a learned token behind all others.
    """

    def __init__(
        self,
        width: int,
        *,
        unpad: bool = True,
        newline: Literal["tiles", "all", "none"] = "tiles",
        max_tiles: int | None = None,
        end: bool = False,
    ) -> None:
        super().__init__()
        if max_tiles is not None and (problems := positive(max_tiles=max_tiles)):
            raise ConfigError(problems)
        self.unpad = unpad
        self.newline_at = newline
        self.max_tiles = max_tiles
        self.newline = None if newline == "none" else nn.Parameter(torch.randn(width) * width**-0.5)
        self.end = nn.Parameter(torch.randn(width) * width**-0.5) if end else None

    def forward(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], image: ImagePlan) -> Tensor:
        """V tensors [t, C] and their shapes -> [T, C]."""
        views = image.views[0]
        plan = self._plan(shapes, views, image.size)
        parts: list[Tensor] = []
        for number, view in enumerate(views):
            if view.cell is None:
                shape = _kept(shapes[number], view)
                parts += self._whole(_cut(tokens[number], shapes[number], view), shape, alone=plan is None)
            elif plan is not None and number == plan.first:
                parts += self._rows(self._map(tokens, shapes, views, plan))
        if self.end is not None:
            parts.append(self.end[None].to(tokens[0]))
        return torch.cat(parts)

    def runs(self, shapes: Sequence[Shape], image: ImagePlan) -> list[Run]:
        views = image.views[0]
        plan = self._plan(shapes, views, image.size)
        runs: list[Run] = []
        for number, view in enumerate(views):
            if view.cell is None:
                runs.append(Run(self._whole_shape(_kept(shapes[number], view), alone=plan is None), "whole"))
            elif plan is not None and number == plan.first:
                runs.append(Run(self._row_shape(plan.size, shapes[number].width), "tiles"))
        if self.end is not None:
            last = runs[-1].shape
            runs[-1] = Run(Shape(last.tokens + 1, last.width), runs[-1].shows)
        return runs

    def _plan(self, shapes: Sequence[Shape], views: Sequence[View], image: Size) -> "_Plan | None":
        """How the map is made; None for an image without tiles."""
        cells = {view.cell: number for number, view in enumerate(views) if view.cell is not None}
        if not cells:
            return None
        rows, columns = max(row for row, _ in cells) + 1, max(column for _, column in cells) + 1
        if len(cells) != rows * columns or len(cells) != sum(view.cell is not None for view in views):
            raise ConfigError(f"tiles at {sorted(cells)} (row, column) fill no rectangle, so they make no map")
        numbers = [[cells[row, column] for column in range(columns)] for row in range(rows)]
        boxes = {number: _box(shapes[number], views[number]) for number in cells.values()}
        grid = _whole_grid(numbers, {n: (b - t, r - le) for n, (t, le, b, r) in boxes.items()})
        cut = (0, 0, *grid)
        if self.unpad and _padded(views, numbers):
            cut = _unpadded(grid, image)
        first = min(cells.values())
        return _Plan(numbers, boxes, first, cut, self._shrunk((cut[2] - cut[0], cut[3] - cut[1]), shapes[first]))

    def _shrunk(self, grid: Grid, tile: Shape) -> Grid:
        if self.max_tiles is None:
            return grid
        ratio = math.sqrt(grid[0] * grid[1] / (self.max_tiles * tile.tokens))
        if ratio <= 1.1:
            return grid
        return max(1, int(grid[0] // ratio)), max(1, int(grid[1] // ratio))

    def _map(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], views: Sequence[View], plan: "_Plan") -> Tensor:
        """The tiles' tokens as one map [H, W, C]."""
        tiles = {n: _cut(tokens[n], shapes[n], views[n]).unflatten(0, _size(box)) for n, box in plan.boxes.items()}
        whole = torch.cat([torch.cat([tiles[number] for number in row], dim=1) for row in plan.numbers])
        top, left, bottom, right = plan.cut
        whole = whole[top:bottom, left:right]
        if whole.shape[:2] == plan.size:
            return whole
        return F.interpolate(whole.permute(2, 0, 1)[None], plan.size, mode="bilinear")[0].permute(1, 2, 0)

    def _rows(self, grid: Tensor) -> list[Tensor]:
        """[H, W, C] -> [H * W, C], or [H * (W + 1), C] with the newline."""
        if self.newline is not None:
            grid = torch.cat([grid, self.newline.to(grid).expand(grid.shape[0], 1, -1)], dim=1)
        return [grid.flatten(0, 1)]

    def _row_shape(self, grid: Grid, width: int) -> Shape:
        height, columns = grid[0], grid[1] + (self.newline is not None)
        return Shape(height * columns, width, (height, columns))

    def _whole(self, tokens: Tensor, shape: Shape, *, alone: bool) -> list[Tensor]:
        if self.newline is None or (self.newline_at == "tiles" and not alone):
            return [tokens]
        if self.newline_at == "tiles":
            return [tokens, self.newline[None].to(tokens)]
        return self._rows(tokens.unflatten(0, _grid(shape)))

    def _whole_shape(self, shape: Shape, *, alone: bool) -> Shape:
        if self.newline is None or (self.newline_at == "tiles" and not alone):
            return shape
        if self.newline_at == "tiles":
            return Shape(shape.tokens + 1, shape.width)
        return self._row_shape(_grid(shape), shape.width)


@dataclass(frozen=True)
class _Plan:
    """How tiles become a map."""

    numbers: list[list[int]]
    """Of the tiles among the views, row by row."""
    boxes: dict[int, Box]
    """The tokens used of each tile."""
    first: int
    """Number of the first tile: the map stands where it stood."""
    cut: Box
    """What is used of the map."""
    size: Grid
    """Rows and columns of what is used, once shrunk."""


def _grid(shape: Shape) -> Grid:
    if shape.grid is None or shape.grid[0] * shape.grid[1] != shape.tokens:
        raise ConfigError(
            f"tokens can only be stitched on a full grid; the connector gives {shape.tokens} tokens "
            f"on {'none' if shape.grid is None else f'one of {shape.grid}'}"
        )
    return shape.grid


def _box(shape: Shape, view: View) -> Box:
    """The tokens of a view that are used: its `keep`, from pixels to tokens."""
    grid = _grid(shape)
    if view.keep is None:
        return 0, 0, *grid
    box = [edge * grid[n % 2] / view.size[n % 2] for n, edge in enumerate(view.keep)]
    if any(edge != int(edge) for edge in box):
        raise ConfigError(
            f"of a view of {view.size} px the part {view.keep} is used, which on a grid of {grid} tokens begins or "
            "ends within a token; allowed: a margin of whole tokens"
        )
    return int(box[0]), int(box[1]), int(box[2]), int(box[3])


def _size(box: Box) -> Grid:
    return box[2] - box[0], box[3] - box[1]


def _kept(shape: Shape, view: View) -> Shape:
    if view.keep is None:
        return shape
    grid = _size(_box(shape, view))
    return Shape(grid[0] * grid[1], shape.width, grid)


def _cut(tokens: Tensor, shape: Shape, view: View) -> Tensor:
    """[t, C] -> the tokens that are used."""
    if view.keep is None:
        return tokens
    top, left, bottom, right = _box(shape, view)
    rows: Tensor = tokens.unflatten(0, _grid(shape))
    return rows[top:bottom, left:right].flatten(0, 1)


def _whole_grid(numbers: Sequence[Sequence[int]], sizes: dict[int, Grid]) -> Grid:
    """Rows and columns of the map: tiles of one row are equally high, those of one column equally wide."""
    heights = [{sizes[number][0] for number in row} for row in numbers]
    widths = [{sizes[number][1] for number in column} for column in zip(*numbers, strict=True)]
    if any(len(same) > 1 for same in heights + widths):
        raise ConfigError(f"tiles of {sorted(set(sizes.values()))} tokens do not fit side by side")
    return sum(height for (height,) in heights), sum(width for (width,) in widths)


def _padded(views: Sequence[View], numbers: Sequence[Sequence[int]]) -> bool:
    """Whether the tiles show padding at all.

    Raises:
        ConfigError: it does not lie on both sides, where the rule looks for it.
    """
    kept = {number: _size(views[number].keep or (0, 0, *views[number].size)) for row in numbers for number in row}
    canvas = _whole_grid(numbers, kept)
    corner = views[numbers[0][0]]
    spare = [whole - part for whole, part in zip(canvas, corner.resize, strict=True)]
    if any(abs(rest - 2 * offset) > 1 for rest, offset in zip(spare, corner.offset, strict=True)):
        raise ConfigError(
            f"an image of {corner.resize} px lies at {corner.offset} on the tiles' {canvas} px: its padding is not "
            "the same on both sides, so it cannot be removed; write `unpad: false`, or use views that centre"
        )
    return any(rest > 0 for rest in spare)


def _unpadded(grid: Grid, image: Size) -> Box:
    """The part of the map that shows an image of that size, which lies in the middle as large as it fits.

    Which half-covered rows go and which stay is what the published models have learned with: the length is rounded
    down (after rounding to 7 digits, so that 47.99999999 is 48), and the padding once more by halves.
    """
    rows, columns = grid
    height, width = image
    if width / height > columns / rows:  # padding above and below
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return padding, 0, rows - padding, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, padding, rows, columns - padding
