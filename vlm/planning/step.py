"""What an optimiser keeps and takes, read off a step of it on the meta device."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlm.planning.storages import Storages, tensors


def step_bytes(
    optimizer: torch.optim.Optimizer, states: Callable[[torch.optim.Optimizer], Iterable[Tensor]]
) -> tuple[int, int]:
    """Bytes of an optimiser's state after its first step, and those that this step takes beside it at its worst moment.

    Args:
        optimizer: of parameters on the meta device that have gradients.
        states: the tensors that it keeps.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    storages = Storages([*parameters, *(p.grad for p in parameters if p.grad is not None)])
    with _Watch(storages):
        optimizer.step()
    state = sum(tensor.numel() * tensor.element_size() for tensor in states(optimizer))
    return state, max(0, storages.peak - state)


class _Watch(TorchDispatchMode):
    """Puts what each operation makes on the books."""

    def __init__(self, storages: Storages) -> None:
        super().__init__()
        self._storages = storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors(result):
            self._storages.add(tensor)
        return result
