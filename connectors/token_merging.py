"""Token merging: the most similar tokens become one, down to a budget."""

import torch
from torch import Tensor
from torch.nn import functional as F

from vlm.connector import Connector
from vlm.errors import ConfigError, Problem, positive
from vlm.features import Features, Shape


class MergeTokens(Connector):
    """Similar tokens are averaged until `budget` are left (ToMe, arXiv 2210.09461). Nothing to learn.

    In a round, every second token may be merged with the one of the others that it is most like (by cosine), the most
    alike first and at most half of these: the rest have no like. A merged token weighs as much as the tokens it is made
    of. The order stays.

    Args:
        budget: tokens per view; no more than there are.
    """

    def __init__(self, *, budget: int) -> None:
        super().__init__()
        if problems := positive(budget=budget):
            raise ConfigError(problems)
        self.budget = budget

    def forward(self, features: Features) -> Features:
        """[N, T, C] -> [N, budget, C], on no grid.

        Raises:
            RuntimeError: some tokens are masked, or there are fewer than the budget.
        """
        tokens = features.tokens
        if features.mask is not None:
            raise RuntimeError("merge_tokens needs as many tokens in all views, and some are masked")
        if tokens.shape[1] < self.budget:
            raise RuntimeError(f"{tokens.shape[1]} tokens cannot be merged to {self.budget}")
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))  # bfloat16 cannot count beyond 256
        sizes = torch.ones_like(tokens[..., :1])
        while tokens.shape[1] > self.budget:
            tokens, sizes = merge_round(tokens, sizes, tokens.shape[1] - self.budget)
        return features.with_tokens(tokens.to(features.tokens.dtype), grid=None, extra=None)

    def shape(self, shape: Shape) -> Shape:
        if shape.tokens < self.budget:
            raise ConfigError(Problem("budget", f"`{self.budget}` is more than the {shape.tokens} tokens there are"))
        return Shape(self.budget, shape.width)


def merge_round(tokens: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching.

    Args:
        tokens: [N, T, C].
        sizes: [N, T, 1]: how many tokens each one stands for.
        count: how many should go; no more than a quarter do, but one does.

    Returns:
        Tokens and sizes of those left.
    """
    views, length, width = tokens.shape
    count = min(count, max(length // 4, 1))
    with torch.no_grad():
        unit = F.normalize(tokens, dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)  # of each even token among the odd
        going = best.topk(count, dim=1).indices
        target = partner.gather(1, going) * 2 + 1
        source = going * 2
        kept = torch.ones(views, length, dtype=torch.bool, device=tokens.device).scatter(1, source, False)
    sums = tokens * sizes
    moved = sums.gather(1, source[..., None].expand(-1, -1, width))
    sums = sums.scatter_add(1, target[..., None].expand(-1, -1, width), moved)
    sizes = sizes.scatter_add(1, target[..., None], sizes.gather(1, source[..., None]))
    left = (length - count, -1)
    return (sums / sizes)[kept].view(views, *left), sizes[kept].view(views, *left)
