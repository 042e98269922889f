"""Resampler: a fixed number of learned queries look at any number of visual tokens."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Grid, Shape
from vlm.layers import make_norm

from .grids import check_sincos, grid_of, resample, sincos
from .latents import AttentionOptions, LatentBlock, MlpOptions, NormOptions, make_attention, make_mlp

T = TypeVar("T")
Where = Literal["none", "keys", "both", "stretched"]


class Resampler(Connector):
    """Learned queries look at the tokens in one or more blocks, at the output's width (Qwen-VL, arXiv 2308.12966).

    With options it is the resampler of MiniCPM-V (arXiv 2408.01800), Idefics2 (arXiv 2405.02246), Aria (arXiv
    2410.05993) or Kosmos-2 (arXiv 2306.14824); docs/connectors.md has them. Tokens of another width go through a
    linear map without bias first.

    Args:
        latents: number of queries, which is the number of tokens per view; or `{"1225": 128, "4900": 256}`: the first
            128 for views of up to 1225 tokens, 256 for up to 4900, an error for more.
        depth: number of blocks.
        mutual: the queries look at each other too.
        residual: what attention finds is added to the queries, rather than taking their place.
        positions: 2D sines and cosines for the grid at hand, on `keys`, or on `both` queries and keys (the queries
            form a square); `stretched`: as both, the keys' interpolated from the queries' (Qwen-VL); or `none`.
        attention: heads, kv_heads, head_width, bias, qk_norm, double (see `AttentionOptions`).
        norm: kind, eps, place (see `NormOptions`).
        mlp: ratio, activation, glu, bias (see `MlpOptions`); no feed-forward part if absent.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        latents: int | dict[int, int] = 64,
        depth: int = 1,
        mutual: bool = False,
        residual: bool = True,
        positions: Where = "keys",
        attention: AttentionOptions = AttentionOptions(),  # noqa: B008
        norm: NormOptions = NormOptions(),  # noqa: B008
        mlp: MlpOptions | None = None,
    ) -> None:
        super().__init__()
        count = latents if isinstance(latents, int) else max(latents.values(), default=0)
        _check(latents, count, depth, out_width, positions)
        self.out_width = out_width
        self.table = {} if isinstance(latents, int) else latents
        self.positions: Where = positions
        self.map = nn.Identity() if in_width == out_width else nn.Linear(in_width, out_width, bias=False)
        self.latents = nn.Parameter(torch.randn(count, out_width) * out_width**-0.5)
        self.blocks = nn.ModuleList(
            LatentBlock(
                out_width,
                attention=_under("attention", make_attention, out_width, attention),
                mlp=None if mlp is None else _under("mlp", make_mlp, out_width, mlp, norm),
                norm=norm,
                residual=residual,
                mutual=mutual,
            )
            for _ in range(depth)
        )
        self.norm = make_norm(norm.kind if norm.place == "pre" else "none", out_width, norm.eps)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, latents, out_width], on no grid; masked tokens are not looked at."""
        tokens = self.map(features.tokens)
        latents = self.latents[: self._count(tokens.shape[1])].expand(len(tokens), -1, -1)
        places = self._places(features.grid, latents)
        for block in self.blocks:
            latents = block(latents, tokens, features.mask, places)
        return features.with_tokens(self.norm(latents), grid=None, mask=None, extra=None)

    def shape(self, shape: Shape) -> Shape:
        if self.positions != "none":
            grid_of(shape)
        return Shape(self._count(shape.tokens), self.out_width)

    def _count(self, tokens: int) -> int:
        if not self.table:
            return len(self.latents)
        enough = [most for most in sorted(self.table) if tokens <= most]
        if not enough:
            raise ConfigError(Problem("latents", f"has no entry for {tokens} tokens; it has {sorted(self.table)}"))
        return self.table[enough[0]]

    def _places(self, grid: Grid | None, latents: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """Position embeddings of queries and keys, or 0."""
        if self.positions == "none":
            return 0.0, 0.0
        if grid is None:
            raise RuntimeError("positions need tokens on a grid; these lie on none (`positions: none` asks for none)")
        side = math.isqrt(latents.shape[1])
        own = sincos((side, side), self.out_width, device=latents.device)
        if self.positions == "stretched":
            maps = own.T.reshape(1, -1, side, side)
            keys = resample(maps, grid, "bicubic", smooth=False).flatten(2)[0].T
        else:
            keys = sincos(grid, self.out_width, device=latents.device)
        return 0.0 if self.positions == "keys" else own.to(latents.dtype), keys.to(latents.dtype)


def _under(place: str, make: Callable[..., T], *arguments: Any) -> T:
    try:
        return make(*arguments)
    except ConfigError as error:
        raise error.under(place) from error


def _check(latents: int | dict[int, int], count: int, depth: int, width: int, positions: Where) -> None:
    problems = positive(latents=count, depth=depth)
    counts = [latents] if isinstance(latents, int) else list(latents.values())
    if not problems and min(counts) < 1:
        problems = positive(latents=min(counts))
    if positions != "none":
        problems += check_sincos(width)
    if positions in ("both", "stretched") and any(math.isqrt(max(one, 0)) ** 2 != one for one in counts):
        problems.append(Problem("latents", f"`{latents}` form no square, which `positions: {positions}` needs"))
    if problems:
        raise ConfigError(problems)
