"""Flamingo's resampler: a fixed number of learned latents look at any number of visual tokens."""

import torch
from torch import nn

from vlm.attention import MultiHead, default_heads
from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape

from .latents import LatentBlock, MlpOptions, NormOptions, make_mlp


class Perceiver(Connector):
    """Perceiver resampler (Flamingo, arXiv 2204.14198): each block's latents attend to tokens and latents together.

    It works at the tokens' width and ends with a linear map; `resampler` is the general form.

    Args:
        latents: number of learned queries, which is the number of tokens per view.
        depth: number of blocks.
        heads: attention heads; as many of width 64 as fit if absent.
        mlp_ratio: width of the feed-forward part relative to the tokens'.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        latents: int = 64,
        depth: int = 2,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if problems := positive(latents=latents, depth=depth, mlp_ratio=int(in_width * mlp_ratio)):
            raise ConfigError(problems)
        heads = default_heads(in_width) if heads is None else heads
        norm, mlp = NormOptions(eps=1e-5), MlpOptions(ratio=mlp_ratio)
        self.out_width = out_width
        self.latents = nn.Parameter(torch.randn(latents, in_width) * in_width**-0.5)
        self.blocks = nn.ModuleList(
            LatentBlock(
                in_width,
                attention=MultiHead(in_width, heads=heads),
                mlp=make_mlp(in_width, mlp, norm),
                norm=norm,
                mutual=True,
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(in_width)
        self.projection = nn.Linear(in_width, out_width)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, latents, out_width], on no grid; masked tokens are not looked at."""
        latents = self.latents.expand(features.tokens.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, features.tokens, features.mask)
        tokens = self.projection(self.norm(latents))
        return features.with_tokens(tokens, grid=None, mask=None, extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(len(self.latents), self.out_width)
