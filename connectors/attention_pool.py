"""Pooling of blocks by attention."""

import torch
from torch import Tensor

from vlm.attention import MultiHead, default_heads
from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape

from .grids import Uneven, blocks_of, cut, grid_of, to_maps


class AttentionPool(Connector):
    """Each block of cells becomes one token: its mean looks at its cells (Molmo, arXiv 2409.17146). No residual.

    Args:
        factor: side of a block.
        heads: of attention; as many of width 64 as fit if absent.
        kv_heads: of keys and values, shared by as many query heads each; `heads` if absent.
        head_width: of each head; the input's width / heads if absent.
        bias: of the four maps.
        uneven: with a grid that the factor does not divide: `refuse`; `pad`: blocks at the bottom and right have fewer
            cells (Molmo); or `drop` cells there.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        factor: int = 2,
        heads: int | None = None,
        kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = True,
        uneven: Uneven = "refuse",
    ) -> None:
        super().__init__()
        if problems := positive(factor=factor):
            raise ConfigError(problems)
        self.out_width = out_width
        self.factor = factor
        self.uneven = uneven
        self.attention = MultiHead(
            in_width,
            out_width=out_width,
            heads=default_heads(in_width) if heads is None else heads,
            kv_heads=kv_heads,
            head_width=head_width,
            bias=bias,
        )

    def forward(self, features: Features) -> Features:
        """[N, H * W, in_width] -> [N, H * W / factor^2, out_width]."""
        maps = to_maps(features)
        blocks = blocks_of((maps.shape[-2], maps.shape[-1]), self.factor, self.uneven)
        cells = self._cells(maps, blocks)  # [N * blocks, factor^2, C], zeros where a block has fewer
        there = self._cells(torch.ones_like(maps[:, :1]), blocks)
        means = cells.sum(1, keepdim=True) / there.sum(1, keepdim=True)
        mask = there.bool()[:, None, None, :, 0] if self.uneven == "pad" else None
        found = self.attention(means, cells, mask)
        return features.with_tokens(found.unflatten(0, (maps.shape[0], -1))[:, :, 0], grid=blocks, extra=None)

    def shape(self, shape: Shape) -> Shape:
        blocks = blocks_of(grid_of(shape), self.factor, self.uneven)
        return Shape(blocks[0] * blocks[1], self.out_width, blocks)

    def _cells(self, maps: Tensor, blocks: tuple[int, int]) -> Tensor:
        """[N, C, H, W] -> [N * h * w, factor^2, C], blocks and cells in raster order."""
        cells = cut(maps, blocks, self.factor)  # [N, C, h, dh, w, dw]
        return cells.permute(0, 2, 4, 3, 5, 1).flatten(3, 4).flatten(0, 2)
