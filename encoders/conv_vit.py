"""A small encoder to be trained from scratch: a convolutional stem, then a few transformer blocks."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.attention import MultiHead, head_size
from vlm.encoder import Encoder
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid
from vlm.views import ImageSpec, Size

from .common import HALF, whole_patches


class ConvVit(Encoder):
    """3x3 convolutions with batch norm, then pre-norm transformer blocks and a final norm.

    Early convolutions in place of one big patch make a small ViT learn quickly and stably (arXiv 2106.14881).

    Args:
        size: (height, width) in pixels.
        width: C of the tokens.
        stem: channels of one convolution each.
        strides: (vertical, horizontal) stride of each, (2, 2) unless given: a line of text wants (2, 1) somewhere.
        depth: number of transformer blocks.
        heads: attention heads; they divide `width`.
        mean: per channel, of pixels in 0-1.
        std: per channel.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int] = (32, 96),
        width: int = 128,
        stem: tuple[int, ...] = (32, 64, 128, 128),
        strides: tuple[tuple[int, int], ...] | None = None,
        depth: int = 2,
        heads: int = 4,
        mean: tuple[float, float, float] = HALF,
        std: tuple[float, float, float] = HALF,
    ) -> None:
        super().__init__()
        steps = [(2, 2)] * len(stem) if strides is None else [(down, across) for down, across in strides]
        _check(stem, steps, width, depth, heads)
        self._options = {"width": width, "stem": list(stem), "strides": [list(step) for step in steps]}
        self._options |= {"depth": depth, "heads": heads}
        self._step = (math.prod(step[0] for step in steps), math.prod(step[1] for step in steps))
        self.width, self.layers, self.prefix = width, (-1,), 0
        self.image = ImageSpec((size[0], size[1]), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
        self.stem = nn.Sequential(*_stem(stem, steps, width))
        self.positions = nn.Parameter(torch.randn(1, width, *self.grid(self.image.size)) * 0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, C]."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        pixels = pixels.contiguous(memory_format=torch.channels_last)  # in which convolutions are fastest
        hidden = self.stem(pixels) + self._positions_at(grid)  # [N, C, h, w]
        hidden = hidden.flatten(2).transpose(1, 2)  # [N, T, C]
        for block in self.blocks:
            hidden = block(hidden)
        return Features(self.norm(hidden), grid)

    def grid(self, size: Size) -> Grid:
        return whole_patches(size, self._step)

    def resolved(self) -> dict[str, Any]:
        spec = {"size": list(self.image.size), "mean": list(self.image.mean), "std": list(self.image.std)}
        return {**self._options, **spec}

    def _positions_at(self, grid: Grid) -> Tensor:
        if self.positions.shape[2:] == grid:
            return self.positions
        return F.interpolate(self.positions, size=grid, mode="bicubic", align_corners=False)


def _check(stem: tuple[int, ...], strides: list[tuple[int, int]], width: int, depth: int, heads: int) -> None:
    problems = positive(width=width, **{f"stem.{index}": channels for index, channels in enumerate(stem)})
    for index, (down, across) in enumerate(strides):
        problems += positive(**{f"strides.{index}.0": down, f"strides.{index}.1": across})
    if depth < 0:
        problems.append(Problem("depth", f"`{depth}`; allowed: 0 (the stem alone) or more"))
    if not stem:
        problems.append(Problem("stem", "give the channels of at least one convolution, e.g. [32, 64]"))
    if len(strides) != len(stem):
        problems.append(Problem("strides", f"{len(strides)} strides for {len(stem)} convolutions in `stem`"))
    try:
        if width > 0:
            head_size(width, heads)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def _stem(channels: tuple[int, ...], strides: list[tuple[int, int]], width: int) -> list[nn.Module]:
    """Convolution, batch norm and ReLU each; a 1x1 convolution to `width` where the last is not that wide."""
    layers: list[nn.Module] = []
    before = 3
    for after, stride in zip(channels, strides, strict=True):
        # no bias: batch norm has one
        layers += [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    if before != width:
        layers.append(nn.Conv2d(before, width, 1))
    return layers


class _Block(nn.Module):
    """Pre-norm attention and MLP (four times as wide), each with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = MultiHead(width, heads=heads, bias=True)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        normed = self.norm1(hidden)
        hidden = hidden + self.attention(normed, normed)
        out: Tensor = hidden + self.mlp(self.norm2(hidden))
        return out
