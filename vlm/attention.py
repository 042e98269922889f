"""Attention for the kit's own modules, by one of two equal routes."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError, Problem

Implementation = Literal["sdpa", "eager"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, how: Implementation) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over heads; never causal.

    Args:
        q: [N, H, Tq, D].
        k: [N, H, Tk, D].
        v: [N, H, Tk, D].
        mask: bool, broadcast to [N, H, Tq, Tk], True where a query may look; every query must see something.
        how: `sdpa` is torch's fused kernel, `eager` two matrix products, whose backward is faster on some CPUs.

    Returns:
        [N, H, Tq, D].
    """
    if how == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) @ v


class MultiHead(nn.Module):
    """Queries from one sequence, keys and values from another (or the same).

    Args:
        width: of queries and output.
        context: width of what is looked at; `width` if absent.
        heads: number of heads.
        head_width: of each head; `width / heads` if absent.
        bias: of the four maps.
    """

    def __init__(
        self,
        width: int,
        context: int | None = None,
        *,
        heads: int,
        head_width: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (head_width or head_size(width, heads))
        self.q = nn.Linear(width, inner, bias=bias)
        self.k = nn.Linear(context or width, inner, bias=bias)
        self.v = nn.Linear(context or width, inner, bias=bias)
        self.out = nn.Linear(inner, width, bias=bias)
        self.how: Implementation = "sdpa"

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries [N, Tq, width], context [N, Tk, context], mask as in `attend` -> [N, Tq, width]."""
        return self.look(queries, *self.keys_values(context), mask=mask)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """[N, Tk, context] -> two of [N, H, Tk, D]: what can be kept while the context stays the same."""
        return self._split(self.k(context)), self._split(self.v(context))

    def look(self, queries: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Queries [N, Tq, width] over given keys and values -> [N, Tq, width]."""
        found = attend(self._split(self.q(queries)), k, v, mask, self.how)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, tokens: Tensor) -> Tensor:
        heads: Tensor = tokens.unflatten(-1, (self.heads, -1))  # type: ignore[no-untyped-call]
        return heads.transpose(1, 2)


def head_size(width: int, heads: int) -> int:
    """Width of one head.

    Raises:
        ConfigError: the heads do not divide the width.
    """
    if heads < 1 or width % heads:
        dividing = [number for number in (1, 2, 4, 6, 8, 12, 16, 32) if width % number == 0]
        raise ConfigError(Problem("heads", f"`{heads}` does not divide the width {width}; e.g. {dividing}"))
    return width // heads


def default_heads(width: int) -> int:
    """As many heads of width 64 as fit, or else the most of width 32 or less that divide."""
    sizes = [size for size in (64, 32, 16, 8, 4, 2, 1) if width % size == 0]
    return width // sizes[0]


def set_attention(module: nn.Module, how: Implementation) -> None:
    """Choose the route for every attention of the kit's own inside `module`."""
    for part in module.modules():
        if isinstance(part, MultiHead):
            part.how = how
