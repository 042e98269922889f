"""What all devices have, with gradients that go back to where it came from."""

from typing import Any

import torch
from torch import Tensor, distributed


def world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 where nothing is distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(mine: Tensor) -> Tensor:
    """[n, C] on each of W devices -> [W * n, C] on all, in the order of the devices.

    Backward, a device gets the sum of what all of them have for its part: the gradient of the sum of their losses.
    """
    return mine if world()[1] == 1 else _Gather.apply(mine)  # type: ignore[no-any-return, no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Any:
        parts = [torch.empty_like(mine) for _ in range(world()[1])]
        distributed.all_gather(parts, mine.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        rank, size = world()
        total = gradient.contiguous().clone()
        distributed.all_reduce(total)
        return total.chunk(size)[rank]
