"""Cross-entropy over a large vocabulary, a piece at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ELEMENTS = 2**25
"""Logits that exist at a time, 128 MiB in float32."""
IGNORED = -100


def cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    *,
    parameters: Sequence[Tensor],
    vocabulary: int,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
) -> Tensor:
    """The sum of the cross-entropies of S positions, whose logits [S, V] never exist at once.

    Gradients are taken piece by piece in the forward pass, while a piece's logits are there, so that nothing is
    computed twice; only those of `hidden` and `parameters` are kept. The idea of Liger Kernel's fused linear
    cross-entropy (arXiv 2410.10989), for any head.

    Args:
        hidden: [S, C].
        targets: long [S].
        logits: the head, [s, C] -> [s, V].
        parameters: what the head depends on besides.
        vocabulary: V.
        label_smoothing: share of the target spread over the vocabulary.
        weights: float [S], of each position in the sum; 1 if absent.
    """
    size = max(1, ELEMENTS // vocabulary)

    def loss(piece: Tensor, start: int) -> Tensor:
        aims = targets[start : start + len(piece)]
        how = "sum" if weights is None else "none"
        found = F.cross_entropy(logits(piece).float(), aims, reduction=how, label_smoothing=label_smoothing)
        return found if weights is None else (found * weights[start : start + len(piece)]).sum()

    if not torch.is_grad_enabled():
        return torch.stack([loss(hidden[start : start + size], start) for start in range(0, len(hidden), size)]).sum()
    return _Pieces.apply(hidden, loss, size, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def log_probabilities(
    hidden: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], *, vocabulary: int
) -> Tensor:
    """The log-probability of each target, float32 [S], a piece of logits at a time and without gradients.

    A loss that is a function of them gets its gradients from `cross_entropy`, weighted by the loss's derivatives.

    Args:
        hidden: [S, C].
        targets: long [S].
        logits: the head, [s, C] -> [s, V].
        vocabulary: V.
    """
    size = max(1, ELEMENTS // vocabulary)
    with torch.no_grad():
        pieces = zip(hidden.split(size), targets.split(size), strict=True)
        found = [-F.cross_entropy(logits(piece).float(), aims, reduction="none") for piece, aims in pieces]
    return torch.cat(found)


class _Pieces(torch.autograd.Function):
    """The sum of `loss(piece, start)` over pieces of `size` rows, with its gradients at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Callable[[Tensor, int], Tensor], size: int, *parameters: Tensor) -> Any:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in trained]
        gradient = torch.empty_like(hidden) if hidden.requires_grad else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), size):
            with torch.enable_grad():
                piece = hidden[start : start + size].detach().requires_grad_(gradient is not None)
                value = loss(piece, start)
            wanted = ([piece] if gradient is not None else []) + trained
            found = list(torch.autograd.grad(value, wanted)) if wanted else []
            if gradient is not None:
                gradient[start : start + size] = found.pop(0)
            for one, more in zip(sums, found, strict=True):
                one += more
            total += value.detach()
        ctx.save_for_backward(gradient, *(one.to(of.dtype) for one, of in zip(sums, trained, strict=True)))
        ctx.trains = [parameter.requires_grad for parameter in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # type: ignore[override]
        gradient, *kept = ctx.saved_tensors
        scaled = [one * scale.to(one.dtype) for one in kept]
        of_hidden = None if gradient is None else gradient * scale.to(gradient.dtype)
        return of_hidden, None, None, *(scaled.pop(0) if trains else None for trains in ctx.trains)
