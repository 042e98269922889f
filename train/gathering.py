"""What all devices have, with gradients that go back to where it came from."""

from typing import Any

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 where nothing is distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(mine: Tensor) -> tuple[Tensor, int]:
    """[n, C] on each device -> [N, C] on all, in the order of the devices, and where the own part begins. The n may
    differ.

    Backward, a device gets the sum of what all of them have for its part: the gradient of the sum of their losses.
    """
    rank, size = world()
    if size == 1:
        return mine, 0
    counts = [torch.zeros(1, dtype=torch.long, device=mine.device) for _ in range(size)]
    distributed.all_gather(counts, torch.tensor([len(mine)], device=mine.device))
    numbers = [int(count) for count in counts]
    return _Gather.apply(mine, numbers), sum(numbers[:rank])  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, counts: list[int]) -> Any:
        ctx.counts = counts
        padded = mine.new_zeros(max(counts), *mine.shape[1:])
        padded[: len(mine)] = mine
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total.split(ctx.counts)[world()[0]], None
