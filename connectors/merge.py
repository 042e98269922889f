"""Several encoders' features of the same views -> one."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vlm.connector import Merge
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid, Shape

from .grids import Resampling, resample


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
        resample: Resampling = "bilinear",
    ) -> None:
        super().__init__()
        _check(shapes, grid)
        self.grid = grid
        self.resample = resample

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] on grids -> [N, H * W, sum of C_i] on one grid."""
        grid = _target(self.grid, features[0].grid)
        tokens = torch.cat([_aligned(one, grid, self.resample) for one in features], dim=-1)
        return Features(tokens, grid, question=features[0].question)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        grid = _target(self.grid, shapes[0].grid)
        return Shape(grid[0] * grid[1], sum(shape.width for shape in shapes), grid)


class GatedMerge(Merge):
    """Grids are aligned, widths brought to a common one, and the encoders added with learned weights that sum to 1.

    The weights start equal.

    Args:
        gate: one weight per `encoder`, or per encoder and `channel`, or per encoder and `token`: there, a linear map of
            all encoders' tokens at that place decides.
        width: the common width; the widest encoder's if absent. Where widths differ from it, all get a linear map.
        grid: rows and columns of the result; the first encoder's if absent.
        resample: how a grid that differs is brought to it.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        *,
        gate: Literal["encoder", "channel", "token"] = "channel",
        width: int | None = None,
        grid: tuple[int, int] | None = None,
        resample: Resampling = "bilinear",
    ) -> None:
        super().__init__()
        _check(shapes, grid)
        self.maps, self.width = _maps(shapes, width)
        self.grid = grid
        self.resample = resample
        count = len(shapes)
        self.gate = nn.Parameter(torch.zeros(count, self.width if gate == "channel" else 1))
        self.judge = nn.Linear(count * self.width, count, bias=False) if gate == "token" else None
        if self.judge is not None:
            nn.init.zeros_(self.judge.weight)

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] on grids -> [N, H * W, width] on one grid."""
        grid = _target(self.grid, features[0].grid)
        pairs = zip(self.maps, features, strict=True)
        tokens = torch.stack([change(_aligned(one, grid, self.resample)) for change, one in pairs], dim=-2)
        logits = self.gate if self.judge is None else self.gate + self.judge(tokens.flatten(-2))[..., None]
        return Features((tokens * logits.softmax(-2)).sum(-2), grid, question=features[0].question)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        grid = _target(self.grid, shapes[0].grid)
        return Shape(grid[0] * grid[1], self.width, grid)


class SequenceMerge(Merge):
    """One encoder's tokens after the other's. Where widths differ, each gets a linear map to a common one.

    Args:
        width: the common width; the widest encoder's if absent.
    """

    def __init__(self, shapes: Sequence[Shape], *, width: int | None = None) -> None:
        super().__init__()
        self.maps, self.width = _maps(shapes, width)

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] -> [N, sum of T_i, width], on no grid."""
        tokens = [change(one.tokens) for change, one in zip(self.maps, features, strict=True)]
        masks = _masks(features)
        mask = None if masks is None else torch.cat(masks, dim=1)
        return Features(torch.cat(tokens, dim=1), mask=mask, question=features[0].question)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        return Shape(sum(shape.tokens for shape in shapes), self.width)


class InterleaveMerge(Merge):
    """The encoders' tokens alternate place by place, so that those of one spot stand together (arXiv 2401.06209).

    Encoders with as many tokens need no grid; others are resampled to one.

    Args:
        width: the common width; the widest encoder's if absent. Where widths differ from it, all get a linear map.
        grid: rows and columns that all are brought to; the first encoder's if absent and counts differ.
        resample: how a grid that differs is brought to it.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        *,
        width: int | None = None,
        grid: tuple[int, int] | None = None,
        resample: Resampling = "bilinear",
    ) -> None:
        super().__init__()
        if not _alike(shapes) or grid is not None:
            _check(shapes, grid)
        self.maps, self.width = _maps(shapes, width)
        self.grid = grid
        self.resample = resample

    def forward(self, features: Sequence[Features]) -> Features:
        """[N, T_i, C_i] -> [N, encoders * T, width], on no grid."""
        shapes = [Shape(one.tokens.shape[1], one.width, one.grid) for one in features]
        masks = None
        if self.grid is None and _alike(shapes):
            tokens, masks = [one.tokens for one in features], _masks(features)
        else:
            grid = _target(self.grid, features[0].grid)
            tokens = [_aligned(one, grid, self.resample) for one in features]
        mapped = [change(part) for change, part in zip(self.maps, tokens, strict=True)]
        mask = None if masks is None else torch.stack(masks, dim=2).flatten(1, 2)
        return Features(torch.stack(mapped, dim=2).flatten(1, 2), mask=mask, question=features[0].question)

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        if self.grid is None and _alike(shapes):
            return Shape(len(shapes) * shapes[0].tokens, self.width)
        grid = _target(self.grid, shapes[0].grid)
        return Shape(len(shapes) * grid[0] * grid[1], self.width)


def _check(shapes: Sequence[Shape], grid: Grid | None) -> None:
    """Raises ConfigError where an encoder has no grid, or the one asked for has no cell."""
    for number, shape in enumerate(shapes):
        if shape.grid is None:
            place = "has prefix tokens or no grid, which this merge cannot align; use `prefix: drop`"
            raise ConfigError(Problem("", f"encoder {number} {place}"))
    if grid is not None and (problems := positive(**{"grid.0": grid[0], "grid.1": grid[1]})):
        raise ConfigError(problems)


def _target(asked: Grid | None, first: Grid | None) -> Grid:
    grid = asked or first
    if grid is None:
        raise RuntimeError("this merge needs features on grids, and the first encoder's lie on none")
    return grid


def _alike(shapes: Sequence[Shape]) -> bool:
    """As many tokens everywhere, and on no two different grids."""
    return len({shape.tokens for shape in shapes}) == 1 and len({shape.grid for shape in shapes} - {None}) < 2


def _maps(shapes: Sequence[Shape], width: int | None) -> tuple[nn.ModuleList, int]:
    """A map per encoder to the common width, and that width; no maps where all have it already."""
    if width is not None and (problems := positive(width=width)):
        raise ConfigError(problems)
    widths = [shape.width for shape in shapes]
    common = width or max(widths)
    same = set(widths) == {common}
    return nn.ModuleList(nn.Identity() if same else nn.Linear(own, common) for own in widths), common


def _masks(features: Sequence[Features]) -> list[Tensor] | None:
    """bool [N, T_i] per encoder, or None where every token is real."""
    if all(one.mask is None for one in features):
        return None
    return [
        torch.ones(one.tokens.shape[:2], dtype=torch.bool, device=one.tokens.device) if one.mask is None else one.mask
        for one in features
    ]


def _aligned(features: Features, grid: Grid, how: Resampling) -> Tensor:
    """Tokens [N, T, C] brought to `grid`."""
    if features.grid is None or features.mask is not None:
        raise RuntimeError(f"grids are aligned in full; got grid {features.grid}, mask {features.mask is not None}")
    if features.grid == grid:
        return features.tokens
    maps = features.tokens.transpose(1, 2).unflatten(-1, features.grid)
    return resample(maps, grid, how, smooth=True).flatten(2).transpose(1, 2)
