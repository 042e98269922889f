"""Ops on a grid that only move or average cells: space-to-depth, pooling, resizing, positions."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid, Shape

from .grids import (
    Resampling,
    Uneven,
    blocks_of,
    check_sincos,
    cut,
    from_maps,
    grid_of,
    resample,
    sincos,
    to_maps,
)


class SpaceToDepth(Connector):
    """Blocks of cells become one token each, their channels side by side: factor^2 fewer tokens, as many times wider.

    Also called pixel unshuffle, patch merging (Idefics3 arXiv 2408.12637, InternVL arXiv 2404.16821).

    Args:
        factor: side of a block.
        order: of the output's channels: `hwc`: cell after cell; `chw`: channel after channel (Mistral 3).
        uneven: with a grid that the factor does not divide: `refuse`, `pad` with zeros (Ovis) or `drop` cells (Mistral
            3), both at the bottom and right.
    """

    def __init__(
        self, in_width: int, *, factor: int = 2, order: Literal["hwc", "chw"] = "hwc", uneven: Uneven = "refuse"
    ) -> None:
        super().__init__()
        if problems := positive(factor=factor):
            raise ConfigError(problems)
        self.out_width = in_width * factor**2
        self.factor = factor
        self.order = order
        self.uneven = uneven

    def forward(self, features: Features) -> Features:
        """[N, H * W, C] -> [N, H * W / factor^2, C * factor^2]."""
        maps = to_maps(features)
        blocks = blocks_of((maps.shape[-2], maps.shape[-1]), self.factor, self.uneven)
        cells = cut(maps, blocks, self.factor)  # [N, C, h, dh, w, dw]
        order = (0, 2, 4, 3, 5, 1) if self.order == "hwc" else (0, 2, 4, 1, 3, 5)
        tokens = cells.permute(order).flatten(3).flatten(1, 2)
        return features.with_tokens(tokens, grid=blocks, extra=None)

    def shape(self, shape: Shape) -> Shape:
        blocks = blocks_of(grid_of(shape), self.factor, self.uneven)
        return Shape(blocks[0] * blocks[1], self.out_width, blocks)


class Pool(Connector):
    """Neighbouring tokens become one: average, adaptive average or bilinear. Nothing to learn.

    One of `factor` and `grid` is given.

    Args:
        kind: `average`: of equal blocks (Gemma 3, arXiv 2503.19786); `adaptive`: of blocks that may differ by a row or
            column (Perception-LM, arXiv 2504.13180; DeCo, arXiv 2405.20985); `bilinear`: interpolation
            (LLaVA-OneVision's videos, arXiv 2408.03326).
        factor: of reduction per side. A side that it does not divide is an error for `average`, rounded down for
            `adaptive`, rounded up for `bilinear`.
        grid: rows and columns of the result, whatever the input's.
    """

    def __init__(
        self,
        *,
        kind: Literal["average", "adaptive", "bilinear"] = "average",
        factor: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if (factor is None) == (grid is None):
            raise ConfigError("give one of `factor` and `grid`, e.g. `factor: 2`")
        if problems := _sides(grid) if grid else positive(factor=factor or 0):
            raise ConfigError(problems)
        self.kind = kind
        self.factor = factor
        self.grid = grid

    def forward(self, features: Features) -> Features:
        """[N, H * W, C] -> [N, h * w, C]."""
        maps = to_maps(features)
        grid = self._grid((maps.shape[-2], maps.shape[-1]))
        if self.kind == "bilinear":
            return from_maps(resample(maps, grid, "bilinear", smooth=False), features)
        return from_maps(F.adaptive_avg_pool2d(maps, grid), features)  # equal blocks where sides divide

    def shape(self, shape: Shape) -> Shape:
        grid = self._grid(grid_of(shape))
        return Shape(grid[0] * grid[1], shape.width, grid)

    def _grid(self, grid: Grid) -> Grid:
        if self.factor is not None:
            uneven: Uneven = ROUNDING[self.kind]
            return blocks_of(grid, self.factor, uneven, "`kind: adaptive`")
        asked: Grid = self.grid  # type: ignore[assignment]
        even = not (grid[0] % asked[0] or grid[1] % asked[1])
        if asked[0] <= grid[0] and asked[1] <= grid[1] and (even or self.kind != "average"):
            return asked
        rule = "divisors of its sides, or others with `kind: adaptive`" if self.kind == "average" else "no more than it"
        raise ConfigError(Problem("grid", f"`{list(asked)}` from a grid of {grid[0]} x {grid[1]}; allowed: {rule}"))


ROUNDING: dict[str, Uneven] = {"average": "refuse", "adaptive": "drop", "bilinear": "pad"}
"""What each kind of pooling does with a side that the factor does not divide."""


class Resize(Connector):
    """The grid is interpolated to another size, larger or smaller.

    Args:
        grid: rows and columns of the result.
        how: of interpolation.
        smooth: with `bilinear` and `bicubic`, look at every cell when shrinking.
        corners: with these, let the corner cells' centres coincide (Eagle, arXiv 2408.15998).
    """

    def __init__(
        self, *, grid: tuple[int, int], how: Resampling = "bilinear", smooth: bool = False, corners: bool = False
    ) -> None:
        super().__init__()
        if problems := _sides(grid):
            raise ConfigError(problems)
        self.grid = grid
        self.how = how
        self.smooth = smooth
        self.corners = corners

    def forward(self, features: Features) -> Features:
        """[N, H * W, C] -> [N, h * w, C]."""
        maps = resample(to_maps(features), self.grid, self.how, smooth=self.smooth, corners=self.corners)
        return from_maps(maps, features)

    def shape(self, shape: Shape) -> Shape:
        grid_of(shape)
        return Shape(self.grid[0] * self.grid[1], shape.width, self.grid)


def _sides(grid: tuple[int, int]) -> list[Problem]:
    return positive(**{"grid.0": grid[0], "grid.1": grid[1]})


class Positions(Connector):
    """A position embedding is added to every token, in front of an op that does not know where tokens lie.

    Args:
        kind: `sincos`: sines and cosines of row and column, for any grid; `learned`: a table for the encoder's own
            grid (C-Abstractor), interpolated for others.
    """

    def __init__(self, in_width: int, grid: Grid | None, *, kind: Literal["sincos", "learned"] = "sincos") -> None:
        super().__init__()
        if kind == "sincos" and (problems := check_sincos(in_width)):
            raise ConfigError(problems)
        self.kind = kind
        if kind == "learned":
            self.table = nn.Parameter(torch.randn(1, in_width, *grid_of(Shape(0, in_width, grid))) * 0.02)

    def forward(self, features: Features) -> Features:
        """[N, T, C] -> the same; the mask stays."""
        return features.with_tokens(features.tokens + self._embedding(features), extra=None)

    def shape(self, shape: Shape) -> Shape:
        grid_of(shape)
        return shape

    def _embedding(self, features: Features) -> Tensor:
        """[T, C] for the grid at hand."""
        if features.grid is None:
            raise RuntimeError("positions need tokens on a grid; these lie on none")
        if self.kind == "sincos":
            table = sincos(features.grid, features.width, device=features.tokens.device)
            return table.to(features.tokens.dtype)
        return resample(self.table, features.grid, "bicubic", smooth=False).flatten(2).transpose(1, 2)[0]
