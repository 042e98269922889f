"""A visual vocabulary: each token is a mixture of learned words."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Shape


class SoftVocabulary(Connector):
    """Each token becomes a probability over visual words, and that a mixture of their embeddings (Ovis).

    arXiv 2405.20797. The head is a linear map without bias and a layer norm over the words.

    Args:
        size: number of visual words.
        kind: `softmax`; `argmax`: the most probable word alone, with the softmax's gradient; `gumbel`: the same after
            random noise while training, and without any otherwise.
        temperature: of `softmax` and `gumbel`.
        eps: of the norm.
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        size: int = 16384,
        kind: Literal["softmax", "argmax", "gumbel"] = "softmax",
        temperature: float = 1.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        problems = positive(size=size)
        if temperature <= 0:
            problems.append(Problem("temperature", f"`{temperature}`; allowed: more than 0"))
        if problems:
            raise ConfigError(problems)
        self.out_width = out_width
        self.kind = kind
        self.temperature = temperature
        self.head = nn.Linear(in_width, size, bias=False)
        self.norm = nn.LayerNorm(size, eps=eps)
        self.table = nn.Parameter(torch.randn(size, out_width) * 0.02)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, T, out_width]; grid and mask stay."""
        logits = self.norm(self.head(features.tokens))
        return features.with_tokens(self._probabilities(logits) @ self.table, extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.out_width, shape.grid)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """[N, T, size] -> the same, each row with sum 1."""
        if self.kind == "gumbel" and self.training:
            return F.gumbel_softmax(logits, tau=self.temperature, hard=True)
        soft = (logits / self.temperature).softmax(-1)
        if self.kind == "softmax":
            return soft
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())  # the value of one, the gradient of the other
