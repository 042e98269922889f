"""What a run on the meta device costs: floating-point operations by part, and bytes that are alive at a time."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import flop_registry

from vlm.planning.shadow import KnownNumbers, Shadow
from vlm.planning.shadow_attention import fused_attention
from vlm.planning.storages import Storages, tensors


class Meter:
    """Counts while its `running` context is open.

    FLOPs are torch's own: `torch.utils.flop_counter` has a formula for matrix products, convolutions and attention,
    with two operations for each multiplication and addition; everything else is free.

    Args:
        parts: (name, module): under a part's name is counted what happens inside it and in no other part within.
        blocks: modules that activation checkpointing runs again.
        persistent: tensors that are no activations (weights, buffers, gradients).
    """

    def __init__(
        self,
        parts: Iterable[tuple[str, nn.Module]] = (),
        blocks: Sequence[nn.Module] = (),
        persistent: Iterable[Tensor] = (),
    ) -> None:
        self.flops: dict[str, int] = defaultdict(int)
        """By part; "" outside of all parts."""
        self.recomputed: dict[int, int] = {}
        """By block, up to the last thing that it saves: there torch's checkpointing stops when it runs it again."""
        self.storages = Storages(persistent)
        self._modules = list(parts)
        self._blocks = list(blocks)
        self._parts = [""]
        self._block: int | None = None
        self._in_block = 0

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return sum(self.flops.values())

    @contextmanager
    def running(self) -> Iterator[None]:
        """What runs in here is run for its shapes (see `Shadow`) and counted."""
        with ExitStack() as stack:
            for name, part in self._modules:
                self._watch(stack, part, lambda _, name=name: self._parts.append(name), self._parts.pop)
            for number, block in enumerate(self._blocks):
                self._watch(stack, block, lambda given, number=number: self._enter(number, given), self._leave)
            stack.enter_context(fused_attention(self._count))
            stack.enter_context(saved_tensors_hooks(self._save, lambda tensor: tensor))
            stack.enter_context(KnownNumbers())
            stack.enter_context(Shadow(self._seen))
            yield

    def _watch(self, stack: ExitStack, module: nn.Module, before: Any, after: Any) -> None:
        first = module.register_forward_pre_hook(
            lambda _, args, kwargs: before((args, kwargs)) and None, with_kwargs=True
        )
        last = module.register_forward_hook(lambda *_: after() and None, always_call=True)
        stack.callback(first.remove)
        stack.callback(last.remove)

    def _enter(self, number: int, given: Any) -> None:
        self._block, self._in_block = number, 0
        self.storages.enter(number, tensors(given))

    def _leave(self) -> None:
        self._block = None

    def _save(self, tensor: Tensor) -> Tensor:
        self.storages.save(tensor, self._block)
        if self._block is not None:
            self.recomputed[self._block] = self._in_block
        return tensor

    def _seen(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        for tensor in tensors(result):
            self.storages.add(tensor)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self._count(formula(*args, **kwargs, out_val=result))

    def _count(self, flops: int) -> None:
        self.flops[self._parts[-1]] += flops
        self._in_block += flops


def _grouped(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Each row of `a` times one of the matrices `b` (experts), or the gradient of that: for which torch has none."""
    return 2 * a.shape[-2] * a.shape[-1] * b.shape[-1]


_FORMULAS = {torch.ops.aten._grouped_mm: _grouped, **flop_registry}
