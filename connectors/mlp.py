"""Connectors that map each token by itself."""

from itertools import pairwise
from typing import Literal

from torch import nn

from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]
ACTIVATIONS = {
    "gelu": lambda: nn.GELU(),
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": lambda: nn.SiLU(),
    "relu": lambda: nn.ReLU(),
}


class LinearConnector(Connector):
    """One linear map per token (LLaVA, arXiv 2304.08485)."""

    def __init__(self, in_width: int, out_width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.out_width = out_width
        self.projection = nn.Linear(in_width, out_width, bias=bias)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, T, out_width]; grid and mask stay."""
        return features.with_tokens(self.projection(features.tokens), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.out_width, shape.grid)


class Mlp(Connector):
    """`depth` linear maps with an activation between them (LLaVA-1.5, arXiv 2310.03744, with depth 2).

    Args:
        depth: number of linear maps.
        hidden: width between them; the output's width if absent.
        activation: between the maps; `gelu` is the exact one.
        bias: whether the maps have one.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        depth: int = 2,
        hidden: int | None = None,
        activation: Activation = "gelu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        if problems := positive(depth=depth, hidden=1 if hidden is None else hidden):
            raise ConfigError(problems)
        self.out_width = out_width
        widths = [in_width, *[hidden or out_width] * (depth - 1), out_width]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, T, out_width]; grid and mask stay."""
        tokens = self.layers[0](features.tokens)
        for layer in self.layers[1:]:
            tokens = layer(self.activation(tokens))
        return features.with_tokens(tokens, extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.out_width, shape.grid)
