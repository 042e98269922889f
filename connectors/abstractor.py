"""C-Abstractor: convolution, adaptive pooling, convolution."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Shape

from .grids import from_maps, grid_of, to_maps
from .mlp import Mlp


class Abstractor(Connector):
    """Convolution blocks, adaptive average pooling to a grid, blocks again, an MLP (Honeybee's C-Abstractor).

    arXiv 2312.06742; MM1 (arXiv 2403.09611) finds its token count to matter more than its kind. Honeybee puts
    `{name: positions, kind: learned}` in front.

    Args:
        grid: rows and columns of the result, no more than the input's.
        width: of the blocks.
        depth: number of blocks before and after pooling, each.
        mlp_depth: linear maps at the end, with SiLU between them.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        grid: tuple[int, int] = (12, 12),
        width: int = 1024,
        depth: int = 3,
        mlp_depth: int = 2,
    ) -> None:
        super().__init__()
        sides = {"grid.0": grid[0], "grid.1": grid[1]}
        if problems := positive(**sides, width=width, depth=depth, mlp_depth=mlp_depth):
            raise ConfigError(problems)
        self.grid = grid
        self.before = nn.Sequential(*_stage(in_width, width, depth))
        self.after = nn.Sequential(*_stage(width, width, depth))
        self.readout = Mlp(width, out_width, depth=mlp_depth, activation="silu")

    def forward(self, features: Features) -> Features:
        """[N, H * W, in_width] -> [N, h * w, out_width] for the grid (h, w)."""
        pooled = F.adaptive_avg_pool2d(self.before(to_maps(features)), self.grid)
        return self.readout(from_maps(self.after(pooled), features))  # type: ignore[no-any-return]

    def shape(self, shape: Shape) -> Shape:
        own = grid_of(shape)
        if self.grid[0] > own[0] or self.grid[1] > own[1]:
            raise ConfigError(Problem("grid", f"`{list(self.grid)}` is more than the input's {own[0]} x {own[1]}"))
        return Shape(self.grid[0] * self.grid[1], self.readout.out_width, self.grid)


def _stage(in_width: int, width: int, depth: int) -> list[nn.Module]:
    return [Bottleneck(in_width if number == 0 else width, width) for number in range(depth)]


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps [N, C, H, W]."""

    def forward(self, maps: Tensor) -> Tensor:
        return super().forward(maps.movedim(1, -1)).movedim(-1, 1)


class Bottleneck(nn.Module):
    """RegNet's residual block (arXiv 2003.13678) with layer norms: 1x1, depthwise 3x3, squeeze and excitation, 1x1."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_width, width, 1, bias=False)
        self.norm_enter = ChannelNorm(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm_mix = ChannelNorm(width)
        self.squeeze = nn.Conv2d(width, max(round(in_width / 4), 1), 1)
        self.excite = nn.Conv2d(self.squeeze.out_channels, width, 1)
        self.leave = nn.Conv2d(width, width, 1, bias=False)
        self.norm_leave = ChannelNorm(width)
        self.shortcut: nn.Module = nn.Identity()
        if in_width != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), ChannelNorm(width))

    def forward(self, maps: Tensor) -> Tensor:
        """[N, in_width, H, W] -> [N, width, H, W]."""
        found = F.silu(self.norm_enter(self.enter(maps)))
        found = F.silu(self.norm_mix(self.mix(found)))
        overall = found.mean((2, 3), keepdim=True)
        found = found * torch.sigmoid(self.excite(F.silu(self.squeeze(overall))))
        return F.silu(self.norm_leave(self.leave(found)) + self.shortcut(maps))
