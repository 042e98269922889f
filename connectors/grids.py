"""What the ops on a grid share: tokens as maps and back, blocks of cells, resampling, positions."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.errors import ConfigError, Problem
from vlm.features import Features, Grid, Shape

Uneven = Literal["refuse", "pad", "drop"]
"""What happens to a grid that a factor does not divide: an error, empty cells at the bottom and right, or fewer."""
Resampling = Literal["bilinear", "bicubic", "area", "nearest"]


def grid_of(shape: Shape) -> Grid:
    """The grid of a shape, at planning.

    Raises:
        ConfigError: there is none.
    """
    if shape.grid is None:
        why = "an encoder with `prefix: keep` gives none, nor do a resampler, merged tokens or a sequence merge"
        raise ConfigError(f"needs tokens on a grid, and there is none here: {why}")
    return shape.grid


def to_maps(features: Features) -> Tensor:
    """[N, T, C] on a grid -> [N, C, H, W].

    Raises:
        RuntimeError: there is no grid, or some tokens are masked, which would mix with real ones.
    """
    if features.grid is None:
        raise RuntimeError(f"this op needs tokens on a grid; got {tuple(features.tokens.shape)} without one")
    if features.mask is not None:
        raise RuntimeError("this op needs a full grid, and some tokens are masked; a resampler can take them")
    return features.tokens.transpose(1, 2).unflatten(-1, features.grid)  # type: ignore[no-untyped-call, no-any-return]


def from_maps(maps: Tensor, features: Features) -> Features:
    """[N, C, H, W] -> tokens [N, H * W, C] on that grid; what else is known of `features` stays."""
    grid = (maps.shape[-2], maps.shape[-1])
    return features.with_tokens(maps.flatten(2).transpose(1, 2), grid=grid, extra=None)


def blocks_of(grid: Grid, factor: int, uneven: Uneven, instead: str = "`uneven: pad` or `drop`") -> Grid:
    """Rows and columns of blocks of `factor` x `factor` cells; `instead` is what an error advises in the end.

    Raises:
        ConfigError: a side is not a multiple of `factor` and `uneven` refuses that, or nothing is left.
    """
    height, width = grid
    if uneven == "pad":
        return -(-height // factor), -(-width // factor)
    if min(grid) < factor:
        raise ConfigError(Problem("factor", f"`{factor}` is more than a side of the grid {height} x {width}"))
    if uneven == "refuse" and (height % factor or width % factor):
        raise ConfigError(Problem("factor", _no_divisor(grid, factor, instead)))
    return height // factor, width // factor


def _no_divisor(grid: Grid, factor: int, instead: str) -> str:
    height, width = grid
    divisors = [number for number in range(2, min(grid) + 1) if height % number == 0 and width % number == 0]
    near = sorted(divisors, key=lambda number: (abs(number - factor), number))[:2]
    less = f"{height // factor * factor} x {width // factor * factor}"
    more = f"{-(-height // factor) * factor} x {-(-width // factor) * factor}"
    factors = f"factor {' or '.join(map(str, sorted(near)))}; " if near else ""
    return (
        f"`{factor}` does not divide the grid {height} x {width}; nearest: {factors}"
        f"an image size that gives {less} or {more}; or {instead}"
    )


def cut(maps: Tensor, blocks: Grid, factor: int) -> Tensor:
    """[N, C, H, W] -> [N, C, h, factor, w, factor], h x w blocks; zeros are added or cells left out at the bottom and
    right where the grid does not fit."""
    height, width = blocks[0] * factor, blocks[1] * factor
    missing = max(height - maps.shape[-2], 0), max(width - maps.shape[-1], 0)
    if any(missing):
        maps = F.pad(maps, (0, missing[1], 0, missing[0]))
    return maps[..., :height, :width].reshape(*maps.shape[:2], blocks[0], factor, blocks[1], factor)


def resample(maps: Tensor, grid: Grid, how: Resampling, *, smooth: bool, corners: bool = False) -> Tensor:
    """[N, C, H, W] -> [N, C, *grid].

    Args:
        maps: what is resampled.
        grid: rows and columns of the result.
        how: of interpolation.
        smooth: with `bilinear` and `bicubic`, look at every cell when shrinking.
        corners: with these, let the corner cells' centres coincide.
    """
    if maps.shape[-2:] == grid:
        return maps
    linear = how in ("bilinear", "bicubic")
    aligned = corners if linear else None
    exact = maps.float() if smooth and linear and maps.dtype != torch.double else maps  # none in bfloat16 on a CPU
    found = F.interpolate(exact, grid, mode=how, antialias=smooth and linear, align_corners=aligned)
    return found.to(maps.dtype)


def sincos(grid: Grid, width: int, *, device: torch.device) -> Tensor:
    """Sines and cosines of column and row at falling frequencies, [H * W, width] float32 (as in MAE, arXiv 2111.06377).

    Quarters of the channels: sines of the column, cosines of it, sines of the row, cosines of it.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, device=device, dtype=torch.float32) / (width // 4))
    rows, columns = (torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies for side in grid)
    by_row = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, grid[1], -1)
    by_column = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(grid[0], -1, -1)
    return torch.cat([by_column, by_row], dim=-1).flatten(0, 1)


def check_sincos(width: int) -> list[Problem]:
    """A problem if sines and cosines of two coordinates do not fill `width` channels."""
    if width % 4 == 0:
        return []
    return [Problem("positions", f"need a width that 4 divides; it is {width}, so tell `out_width` or take none")]
