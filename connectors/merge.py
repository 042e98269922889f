"""Several encoders' features of the same views -> one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.connector import Merge
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid, Shape


class ChannelMerge(Merge):
    """Grids are aligned by resampling and widths add up (Eagle, arXiv 2408.15998, finds it the best default).

    Args:
        grid: rows and columns of the result; the first encoder's if absent.
        resample: how a grid that differs is brought to it; `bilinear` smooths when shrinking, so nothing is skipped.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        *,
        grid: tuple[int, int] | None = None,
        resample: Literal["bilinear", "bicubic", "area", "nearest"] = "bilinear",
    ) -> None:
        super().__init__()
        for number, shape in enumerate(shapes):
            if shape.grid is None:
                place = "has prefix tokens or no grid, which channels cannot be merged on; use `prefix: drop`"
                raise ConfigError(Problem("", f"encoder {number} {place}"))
        if grid is not None and (problems := positive(**{"grid.0": grid[0], "grid.1": grid[1]})):
            raise ConfigError(problems)
        self.grid: Grid = grid or shapes[0].grid  # type: ignore[assignment]
        self.resample = resample

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] on grids -> [N, H * W, sum of C_i] on one grid."""
        aligned = [self._align(one) for one in features]
        return Features(torch.cat(aligned, dim=-1), self.grid)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return Shape(self.grid[0] * self.grid[1], sum(shape.width for shape in shapes), self.grid)

    def _align(self, features: Features) -> Tensor:
        if features.grid is None or features.mask is not None:
            raise RuntimeError(
                f"channels merge on full grids; got grid {features.grid}, mask {features.mask is not None}"
            )
        if features.grid == self.grid:
            return features.tokens
        maps = features.tokens.transpose(1, 2).unflatten(-1, features.grid)  # [N, C, H, W]
        smooth = self.resample in ("bilinear", "bicubic")
        maps = F.interpolate(maps, self.grid, mode=self.resample, antialias=smooth)
        return maps.flatten(2).transpose(1, 2)


class SequenceMerge(Merge):
    """One encoder's tokens after the other's. Where widths differ, each gets a linear map to a common one.

    Args:
        width: the common width; the widest encoder's if absent.
    """

    def __init__(self, shapes: Sequence[Shape], *, width: int | None = None) -> None:
        super().__init__()
        if width is not None and (problems := positive(width=width)):
            raise ConfigError(problems)
        widths = [shape.width for shape in shapes]
        self.width = width or max(widths)
        same = set(widths) == {self.width}
        self.maps = nn.ModuleList(nn.Identity() if same else nn.Linear(own, self.width) for own in widths)

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] -> [N, sum of T_i, width], on no grid."""
        tokens = [change(one.tokens) for change, one in zip(self.maps, features, strict=True)]
        masks = [one.mask for one in features]
        mask = None
        if any(one is not None for one in masks):
            filled = [
                torch.ones(part.shape[:2], dtype=torch.bool, device=part.device) if one is None else one
                for part, one in zip(tokens, masks, strict=True)
            ]
            mask = torch.cat(filled, dim=1)
        return Features(torch.cat(tokens, dim=1), mask=mask)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return Shape(sum(shape.tokens for shape in shapes), self.width)
