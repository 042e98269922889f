"""Connectors that map each token by itself, into another width."""

from itertools import pairwise

from torch import nn

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Shape
from vlm.layers import Activation, Gate, Glu, NormKind, make_norm


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
        hidden: width between them, after a gated linear unit if there is one; the output's width if absent.
        activation: between the maps, by the name that transformers' configs use; `gelu` is the exact one.
        glu: `first` or `second`: the maps but the last give two halves, the activated one multiplies the other.
        bias: whether the maps have one.
        norm: in front of the first map.
        norm_out: behind the last map.
        eps: of the norms.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        depth: int = 2,
        hidden: int | None = None,
        activation: Activation = "gelu",
        glu: Glu = "none",
        bias: bool = True,
        norm: NormKind = "none",
        norm_out: NormKind = "none",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        problems = positive(depth=depth, hidden=1 if hidden is None else hidden)
        if glu != "none" and depth == 1:
            problems.append(Problem("glu", f"`{glu}` gates between maps, and with depth 1 there is only one"))
        if problems:
            raise ConfigError(problems)
        self.out_width = out_width
        self.norm = make_norm(norm, in_width, eps)
        self.gate = Gate(activation, glu)
        widths = [in_width, *[hidden or out_width] * (depth - 1), out_width]
        self.layers = nn.ModuleList(
            nn.Linear(a, b * (1 if number == depth else self.gate.halves), bias=bias)
            for number, (a, b) in enumerate(pairwise(widths), start=1)
        )
        self.norm_out = make_norm(norm_out, out_width, eps)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, T, out_width]; grid and mask stay."""
        tokens = self.layers[0](self.norm(features.tokens))
        for layer in self.layers[1:]:
            tokens = layer(self.gate(tokens))
        return features.with_tokens(self.norm_out(tokens), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.out_width, shape.grid)
