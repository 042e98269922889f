"""A linear layer in 4 bit as far as its bytes and operations go, on the meta device."""

from typing import Any

import torch
from torch import Tensor, nn

from vlm.quantising import FourBit

BLOCK = 64
"""Weights that share one scale, in float32."""


class PlannedFourBit(nn.Module):
    """Half a byte a weight, and the blocks' scales; the whole weight is there for a moment in each pass, never kept."""

    def __init__(self, layer: nn.Linear, how: FourBit) -> None:
        super().__init__()
        count = layer.weight.numel()
        self.sizes = tuple(layer.weight.shape)
        self.dtype = layer.weight.dtype
        self.packed = nn.Parameter(torch.empty(-(-count // 2), dtype=torch.uint8, device="meta"), requires_grad=False)
        self.register_buffer("scales", torch.empty(-(-count // BLOCK), device="meta"))
        self.bias = layer.bias

    @property
    def weight(self) -> Tensor:
        """What the 4 bits stand for [out, in]."""
        return torch.empty(self.sizes, dtype=self.dtype, device="meta")

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        result: Tensor = _Product.apply(x, self)
        return result if self.bias is None else result + self.bias.to(result.dtype)


class _Product(torch.autograd.Function):
    """Keeps nothing for the backward pass, in which the weight is unpacked again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PlannedFourBit) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        return gradient @ ctx.layer.weight.to(gradient.dtype), None
