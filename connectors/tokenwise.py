"""Ops that change each token by itself and need no map: norms, activations, a mixture of layers."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem
from vlm.features import Features, Shape
from vlm.layers import ACTIVATIONS, Activation, RmsNorm


class UnitNorm(nn.Module):
    """x / |x|; no parameters."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=self.eps)


class Norm(Connector):
    """A norm over the channels of each token (layer norm arXiv 1607.06450, RMS norm arXiv 1910.07467).

    Args:
        kind: `layer`, `rms`, or `unit`: length 1 and nothing to learn (Kosmos-2).
        eps: for stability.
        plus_one: with `rms`, the factor is 1 + weight (Gemma).
    """

    def __init__(
        self,
        in_width: int,
        *,
        kind: Literal["layer", "rms", "unit"] = "layer",
        eps: float = 1e-5,
        plus_one: bool = False,
    ) -> None:
        super().__init__()
        if plus_one and kind != "rms":
            raise ConfigError(Problem("plus_one", f"is for `kind: rms`, not `{kind}`"))
        self.norm: nn.Module
        if kind == "rms":
            self.norm = RmsNorm(in_width, eps=eps, plus_one=plus_one)
        else:
            self.norm = nn.LayerNorm(in_width, eps=eps) if kind == "layer" else UnitNorm(eps)

    def forward(self, features: Features) -> Features:
        """[N, T, C] -> the same; grid and mask stay."""
        return features.with_tokens(self.norm(features.tokens), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return shape


class Activate(Connector):
    """An activation by itself, for places where no MLP has it: after a merge (DeepSeek-VL), at an MLP's end (Llama 4).

    Args:
        kind: by the name that transformers' configs use.
    """

    def __init__(self, *, kind: Activation = "gelu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[kind]()

    def forward(self, features: Features) -> Features:
        """[N, T, C] -> the same; grid and mask stay."""
        return features.with_tokens(self.activation(features.tokens), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return shape


class LayerMix(Connector):
    """Several layers of an encoder, which lie side by side on the channels, become one by learned weights.

    Args:
        layers: how many there are; an encoder with `layers: [-1, 3]` gives two.
        kind: `residual`: the first, plus each other times a weight that starts at 0 (DeepSeek-VL, arXiv 2403.05525);
            `softmax`: weights that sum to 1 and start equal (ELMo, arXiv 1802.05365).
    """

    def __init__(self, in_width: int, *, layers: int = 2, kind: Literal["residual", "softmax"] = "residual") -> None:
        super().__init__()
        if layers < 2 or in_width % layers:
            fit = [number for number in range(2, 17) if in_width % number == 0]
            raise ConfigError(Problem("layers", f"`{layers}`; allowed for a width of {in_width}: {fit}"))
        self.layers = layers
        self.width = in_width // layers
        self.kind = kind
        self.weights = nn.Parameter(torch.zeros(layers - 1 if kind == "residual" else layers))

    def forward(self, features: Features) -> Features:
        """[N, T, layers * C] -> [N, T, C]; grid and mask stay."""
        parts = features.tokens.unflatten(-1, (self.layers, self.width))  # type: ignore[no-untyped-call]
        if self.kind == "residual":
            factors = torch.cat([torch.ones_like(self.weights[:1]), self.weights])
        else:
            factors = self.weights.softmax(0)
        return features.with_tokens((parts * factors[:, None]).sum(-2), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.width, shape.grid)
