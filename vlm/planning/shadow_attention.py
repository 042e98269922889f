"""Torch's fused attention for shapes: on the meta device torch itself falls back to two products and all scores."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Count = Callable[[int], None]


@contextmanager
def fused_attention(count: Count) -> Iterator[None]:
    """In here, `scaled_dot_product_attention` of meta tensors keeps what a fused kernel keeps, and tells `count` its
    FLOPs as torch's counter has them: masks save none, and the backward pass computes the scores again."""

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        return _Fused.apply(query, key, value, attn_mask, count)  # type: ignore[no-untyped-call, no-any-return]

    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", attention, "AutogradMeta")
    try:
        yield
    finally:
        library._destroy()


class _Fused(torch.autograd.Function):
    """Letters: N batch, H heads (K and V may have fewer), Tq queries, Tk keys, D and Dv widths of a head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, count: Count) -> Tensor:
        """query [N, H, Tq, D], key [N, h, Tk, D], value [N, h, Tk, Dv], mask broadcast to [N, H, Tq, Tk]."""
        out = _heads_last(query, value.shape[-1])
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)  # the softmax's, from which it is made again
        if mask is not None and mask.dtype == torch.bool:
            mask = query.new_empty(mask.shape)  # the kernels add it, so they make numbers of it
        ctx.save_for_backward(query, key, value, mask, out, sums)
        ctx.count = count
        count(_products(query, key, query.shape[-1] + value.shape[-1]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        query, key, value, mask, _, _ = ctx.saved_tensors
        ctx.count(_products(query, key, 3 * query.shape[-1] + 2 * value.shape[-1]))
        wanted = torch.empty_like(mask) if ctx.needs_input_grad[3] else None
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), wanted, None


def _heads_last(query: Tensor, width: int) -> Tensor:
    """The output, in memory with the heads beside each other: so do all fused kernels, and what joins the heads then
    copies nothing."""
    if query.ndim != 4:
        return query.new_empty(*query.shape[:-1], width)
    n, heads, queries, _ = query.shape
    return query.new_empty(n, queries, heads, width).transpose(1, 2)


def _products(query: Tensor, key: Tensor, widths: int) -> int:
    """FLOPs of matrix products between all queries and keys, of so much width in all."""
    return 2 * query.shape[:-1].numel() * key.shape[-2] * widths
