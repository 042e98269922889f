"""Activations, norms and the feed-forward part: one table and one class of each for all of the kit's own modules."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal[
    "gelu", "gelu_tanh", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "silu", "swish", "relu", "relu2"
]
"""Names as transformers' configs have them, and `gelu_tanh`. `gelu` is the exact one; the other three `gelu_` are its
tanh approximation, `silu` and `swish` are one function."""
Glu = Literal["none", "first", "second"]
"""Gated linear unit: a map gives two halves, the activation of one of them multiplies the other."""
NormKind = Literal["layer", "rms", "none"]


class QuickGelu(nn.Module):
    """x * sigmoid(1.702 x), as in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class SquaredRelu(nn.Module):
    """max(x, 0) ** 2 (Primer, arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


def _tanh_gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_new": _tanh_gelu,
    "quick_gelu": QuickGelu,
    "silu": nn.SiLU,
    "swish": nn.SiLU,
    "relu": nn.ReLU,
    "relu2": SquaredRelu,
}


class Gate(nn.Module):
    """An activation, or a gated linear unit around it (arXiv 2002.05202).

    Args:
        activation: its name.
        glu: which half of the input is activated and multiplies the other; `none`: there are no halves.
    """

    def __init__(self, activation: Activation, glu: Glu = "none") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()
        self.glu = glu
        self.halves = 1 if glu == "none" else 2

    def forward(self, x: Tensor) -> Tensor:
        """[..., halves * C] -> [..., C]."""
        if self.glu == "none":
            return self.activation(x)  # type: ignore[no-any-return]
        first, second = x.chunk(2, dim=-1)
        gate, value = (first, second) if self.glu == "first" else (second, first)
        return self.activation(gate) * value  # type: ignore[no-any-return]


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv 1910.07467).

    Args:
        width: C.
        eps: added to the mean of squares.
        plus_one: the factor is 1 + weight, and the weight starts at 0 (Gemma).
    """

    def __init__(self, width: int, *, eps: float = 1e-6, plus_one: bool = False) -> None:
        super().__init__()
        self.offset = 1.0 if plus_one else 0.0
        self.weight = nn.Parameter(torch.full((width,), 1.0 - self.offset))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> the same."""
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * (self.weight + self.offset)


def make_norm(kind: NormKind, width: int, eps: float = 1e-5) -> nn.Module:
    """The norm of that kind over `width` channels; `none` changes nothing."""
    if kind == "none":
        return nn.Identity()
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else RmsNorm(width, eps=eps)


class FeedForward(nn.Module):
    """An optional norm, a map up, an activation or gated linear unit, a map back.

    Args:
        width: of input and output.
        hidden: between the maps (what a gated linear unit leaves).
        norm: in front, built for `width`.
        activation: its name.
        glu: see `Gate`.
        bias: of both maps.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        norm: nn.Module | None = None,
        activation: Activation = "gelu",
        glu: Glu = "none",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()
        self.gate = Gate(activation, glu)
        self.up = nn.Linear(width, hidden * self.gate.halves, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> the same; no residual."""
        return self.down(self.gate(self.up(self.norm(x))))  # type: ignore[no-any-return]
