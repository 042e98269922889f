"""AdamW on projected gradients of matrices."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class GaLoreSteps(torch.optim.Optimizer):
    """GaLore (arXiv 2403.03507) of matrices [m, n], each with both sides larger than `rank`.

    A gradient G is projected from its smaller side: with m <= n to R = P^T G [r, n], P [m, r] being the left singular
    vectors of the r largest singular values; else to R = G P [m, r] with the right ones. R goes through Adam, and the
    step is projected back. The moments stay when P changes, as in the paper. Decay is AdamW's, of the whole matrix.

    Args:
        groups: with `lr` and `weight_decay`.
        betas: decay of the moments.
        eps: added to the root of the second one.
        rank: r.
        every: steps after which P is found anew.
        scale: factor on the step.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        betas: tuple[float, float],
        eps: float,
        rank: int,
        every: int,
        scale: float,
    ) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps, "rank": rank, "every": every, "scale": scale})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._one(parameter, parameter.grad, group)
        return loss

    def _one(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        left = gradient.shape[0] <= gradient.shape[1]
        count = state.get("step", 0)
        if count % group["every"] == 0:
            state["projection"] = projection(gradient, group["rank"])
        basis = state["projection"]
        small = basis.T @ gradient if left else gradient @ basis
        if not count:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(small), torch.zeros_like(small)
        state["step"] = count = count + 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        first.lerp_(small, 1 - beta1)
        second.mul_(beta2).addcmul_(small, small, value=1 - beta2)
        root = second.sqrt().div_((1 - beta2**count) ** 0.5).add_(group["eps"])
        step = first / root
        whole = basis @ step if left else step @ basis.T
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(whole, alpha=-group["lr"] * group["scale"] / (1 - beta1**count))


def projection(gradient: Tensor, rank: int) -> Tensor:
    """gradient [m, n] -> [min(m, n), rank]: singular vectors of its smaller side, those of the largest values.

    Found as eigenvectors of that side's Gram matrix, which is quicker than the whole decomposition. The sign of each is
    such that its largest entry is positive, so that moments which outlive a projection do not hang on a library.
    """
    whole = gradient.float()
    gram = whole @ whole.T if whole.shape[0] <= whole.shape[1] else whole.T @ whole
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)  # [side, rank], the largest value first
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = vectors * largest.sign()
    return signed.to(gradient.dtype)
