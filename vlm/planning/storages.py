"""Which bytes are alive during a run, and which of them a backward pass still needs."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor


@dataclass
class _Kept:
    """One storage on the books."""

    size: int
    """Bytes."""
    alive: Any
    """A weak reference, whose callback takes the storage off the books."""
    savers: set[int | None] = field(default_factory=set)
    """Blocks in which it was saved for the backward pass; None stands for outside of all blocks."""
    copies: bool | None = None
    """Of a weight in low precision: whether that weight trains. None for all other storages."""


class Storages:
    """Bytes of every storage but the persistent ones; tensors that share a storage count once.

    Args:
        persistent: tensors that are there before and after (weights, gradients): no activations.
    """

    def __init__(self, persistent: Iterable[Tensor]) -> None:
        self.live = 0
        """Bytes alive now."""
        self.peak = 0
        """The most bytes that were alive at a time."""
        self._persistent = {key_of(tensor) for tensor in persistent}
        self._kept: dict[int, _Kept] = {}
        self._inputs: dict[int, set[int]] = {}

    def add(self, tensor: Tensor) -> None:
        """Put a tensor's storage on the books; a second time changes nothing."""
        key = key_of(tensor)
        if key in self._kept or key in self._persistent:
            return
        storage = tensor.untyped_storage()
        self._kept[key] = _Kept(storage.nbytes(), weakref.ref(storage, partial(self._freed, key)))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)

    def save(self, tensor: Tensor, block: int | None) -> None:
        """Note that a backward pass needs it, for what happens in `block`."""
        self.add(tensor)
        if kept := self._kept.get(key_of(tensor)):
            kept.savers.add(block)

    def copy(self, tensor: Tensor, *, trained: bool) -> None:
        """Note that it is a weight in low precision."""
        self.add(tensor)
        self._kept[key_of(tensor)].copies = trained

    def enter(self, block: int, given: Iterable[Tensor]) -> None:
        """Note what a block is called with."""
        for tensor in given:
            self.add(tensor)
            self._inputs.setdefault(block, set()).add(key_of(tensor))

    def saved(self) -> int:
        """Bytes that are kept for the backward pass, but for copies of weights."""
        return sum(kept.size for kept in self._saved() if kept.copies is None)

    def copied(self, *, trained: bool = False) -> int:
        """Bytes of the low-precision copies that are kept, of all weights or of those that train."""
        return sum(kept.size for kept in self._saved() if kept.copies or (kept.copies is not None and not trained))

    def working_blocks(self) -> set[int]:
        """Blocks through which a gradient passes."""
        return {block for kept in self._saved() for block in kept.savers if block is not None}

    def checkpointed(self) -> int:
        """Bytes that are kept if each block is run again in the backward pass, but for copies of weights that train:
        what the blocks are called with, what is saved outside of them, and the largest block's own."""
        blocks = self.working_blocks()
        inputs = {key for block in blocks for key in self._inputs.get(block, ())}
        inside = dict.fromkeys(blocks, 0)
        total = sum(self._kept[key].size for key in inputs if key in self._kept)
        for key, kept in self._kept.items():
            if key not in inputs and not kept.copies:
                total += kept.size if None in kept.savers else 0
                for block in set() if None in kept.savers else blocks & kept.savers:
                    inside[block] += kept.size
        return total + max(inside.values(), default=0)

    def _saved(self) -> Iterator[_Kept]:
        return (kept for kept in self._kept.values() if kept.savers)

    def _freed(self, key: int, _: Any) -> None:
        self.live -= self._kept.pop(key).size


def key_of(tensor: Tensor) -> int:
    """The number of a tensor's storage; tensors that share it have the same."""
    return int(tensor.untyped_storage()._cdata)


def tensors(node: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from tensors(item)
    elif isinstance(node, dict):
        yield from tensors(list(node.values()))
