"""Flamingo's resampler: a fixed number of learned latents look at any number of visual tokens."""

import torch
from torch import Tensor, nn

from vlm.attention import MultiHead, default_heads
from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape


class Perceiver(Connector):
    """Perceiver resampler (Flamingo, arXiv 2204.14198): each block's latents attend to tokens and latents together.

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
        self.out_width = out_width
        self.latents = nn.Parameter(torch.randn(latents, in_width) * in_width**-0.5)
        self.blocks = nn.ModuleList(
            PerceiverBlock(in_width, heads=default_heads(in_width) if heads is None else heads, mlp_ratio=mlp_ratio)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(in_width)
        self.projection = nn.Linear(in_width, out_width)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, latents, out_width], on no grid; masked tokens are not looked at."""
        latents = self.latents.expand(features.tokens.shape[0], -1, -1)
        mask = self._mask(features, latents)
        for block in self.blocks:
            latents = block(latents, features.tokens, mask)
        return Features(self.projection(self.norm(latents)))

    def shape(self, shape: Shape) -> Shape:
        return Shape(len(self.latents), self.out_width)

    @staticmethod
    def _mask(features: Features, latents: Tensor) -> Tensor | None:
        """Latents see each other always: bool [N, 1, 1, T + latents]."""
        if features.mask is None:
            return None
        own = torch.ones(latents.shape[:2], dtype=torch.bool, device=latents.device)
        return torch.cat([features.mask, own], dim=1)[:, None, None]


class PerceiverBlock(nn.Module):
    """Pre-norm attention of latents over [tokens; latents], then a pre-norm feed-forward, both residual."""

    def __init__(self, width: int, *, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_latents = nn.LayerNorm(width)
        self.attention = MultiHead(width, heads=heads)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, latents: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """latents [N, L, C], tokens [N, T, C], mask bool [N, 1, 1, T + L] -> [N, L, C]."""
        queries = self.norm_latents(latents)
        context = torch.cat([self.norm_tokens(tokens), queries], dim=1)
        latents = latents + self.attention(queries, context, mask)
        return latents + self.mlp(latents)  # type: ignore[no-any-return]
