"""What one device holds while a stage trains, by how the work is spread over devices."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn


@dataclass(frozen=True)
class Memory:
    """Bytes on one device that holds everything itself."""

    weights: int
    """Parameters and buffers, each once, in the dtypes in which they are kept."""
    gradients: int
    """Of what is trained."""
    optimiser: int
    """Its state: of AdamW two moments a parameter."""
    activations: int
    """What the forward pass keeps for the backward pass, the micro batch's own tensors included."""
    checkpointed: int
    """The same if each block is run again in the backward pass."""
    copies: int
    """Low-precision copies of weights that mixed precision keeps until the backward pass is through."""
    trained_copies: int
    """Those of them that stay with checkpointing: torch makes the copy of a weight that trains once a forward pass."""
    temporary: int
    """What comes on top for a moment, at the worst one: the loss's logits, gradients of activations."""
    step: int
    """Needed by the optimiser's step, when the activations are gone."""
    block: int
    """Weights of the largest block."""
    rest: int
    """Weights outside of blocks."""

    def total(self, *, checkpointing: bool = False) -> int:
        """The most that is held at a time."""
        passing = self.activations + self.copies
        if checkpointing:
            passing = min(passing, self.checkpointed + self.trained_copies)
        return self.weights + self.gradients + self.optimiser + max(passing + self.temporary, self.step)


def _zero1(memory: Memory, devices: int) -> Memory:
    return replace(memory, optimiser=_share(memory.optimiser, devices), step=_share(memory.step, devices))


def _zero2(memory: Memory, devices: int) -> Memory:
    return replace(_zero1(memory, devices), gradients=_share(memory.gradients, devices))


def _zero3(memory: Memory, devices: int) -> Memory:
    return _gathered(memory, devices, memory.block)


def _fsdp(memory: Memory, devices: int) -> Memory:
    return _gathered(memory, devices, memory.block + memory.rest)


def _gathered(memory: Memory, devices: int, size: int) -> Memory:
    weights = min(memory.weights, _share(memory.weights, devices) + size)
    return replace(_zero2(memory, devices), weights=weights, copies=0, trained_copies=0)


STRATEGIES: dict[str, Callable[[Memory, int], Memory]] = {
    "DDP": lambda memory, devices: memory,
    "ZeRO-1": _zero1,
    "ZeRO-2": _zero2,
    "ZeRO-3": _zero3,
    "FSDP": _fsdp,
}
"""Name -> what one of so many devices holds.

DDP: everything. ZeRO-1: a share of the optimiser's state. ZeRO-2: of gradients too. ZeRO-3: of weights too, beside the
block at work, gathered from all devices. FSDP (full shard, a unit for each block): so too, with the weights outside of
blocks as one more gathered unit. Both make low-precision copies of what is gathered, in its place. Buffers for sending
are not counted.
"""


def nbytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, tied ones once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in {*module.parameters(), *module.buffers()})


def trainable_bytes(module: nn.Module) -> int:
    """Bytes of the parameters that train."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def _share(size: int, devices: int) -> int:
    return -(-size // devices)
