"""Attention for the kit's own modules, by one of two equal routes."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.errors import ConfigError, Problem, positive

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
        width: of queries.
        context: width of what is looked at; `width` if absent.
        out_width: of the output; `width` if absent.
        heads: number of heads.
        kv_heads: number of heads of keys and values, shared by as many query heads each (arXiv 2305.13245); `heads`
            if absent.
        head_width: of each head; `width / heads` if absent.
        bias: of the four maps.
        qk_norm: makes a norm for a width, put over the queries and the keys of each head (arXiv 2302.05442).

    Raises:
        ConfigError: the heads do not divide the width, or the kv_heads the heads.
    """

    def __init__(
        self,
        width: int,
        context: int | None = None,
        *,
        out_width: int | None = None,
        heads: int,
        kv_heads: int | None = None,
        head_width: int | None = None,
        bias: bool = False,
        qk_norm: Callable[[int], nn.Module] = nn.Identity,
    ) -> None:
        super().__init__()
        size = head_size(width, heads) if head_width is None else head_width
        self.heads = heads
        self.kv_heads = heads if kv_heads is None else kv_heads
        if problems := positive(heads=heads, kv_heads=self.kv_heads, head_width=size):
            raise ConfigError(problems)
        if heads % self.kv_heads:
            raise ConfigError(Problem("kv_heads", f"`{self.kv_heads}` does not divide the {heads} heads"))
        self.q = nn.Linear(width, heads * size, bias=bias)
        self.k = nn.Linear(context or width, self.kv_heads * size, bias=bias)
        self.v = nn.Linear(context or width, self.kv_heads * size, bias=bias)
        self.out: nn.Module = nn.Linear(heads * size, out_width or width, bias=bias)
        self.norm_q = qk_norm(size)
        self.norm_k = qk_norm(size)
        self.how: Implementation = "sdpa"

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """queries [N, Tq, width], context [N, Tk, context], mask as in `attend` -> [N, Tq, out_width]."""
        return self.look(queries, *self.keys_values(context), mask=mask)

    def keys_values(self, keys: Tensor, values: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[N, Tk, context] (and as much for values, if they differ) -> two of [N, kv_heads, Tk, D]: what can be kept
        while the context stays the same."""
        k, v = self.k(keys), self.v(keys if values is None else values)
        return self.norm_k(_split(k, self.kv_heads)), _split(v, self.kv_heads)

    def look(self, queries: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Queries [N, Tq, width] over given keys and values -> [N, Tq, out_width]."""
        shared = self.heads // self.kv_heads
        if shared > 1:
            k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
        found = attend(self.norm_q(_split(self.q(queries), self.heads)), k, v, mask, self.how)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed


class DoubleMultiHead(MultiHead):
    """As `MultiHead`, with two linear maps in a row in place of each (Aria, arXiv 2410.05993).

    The first of queries, keys and values keeps the width and has no bias.
    """

    def __init__(self, width: int, **options: Any) -> None:
        super().__init__(width, **options)
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Sequential(nn.Linear(width, width, bias=False), getattr(self, name)))
        self.out = nn.Sequential(self.out, nn.Linear(width, width, bias=options.get("bias", False)))


def _split(tokens: Tensor, heads: int) -> Tensor:
    """[N, T, heads * D] -> [N, heads, T, D]."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call, no-any-return]


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
