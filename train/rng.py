"""Everything that draws at random in a process, as plain tensors and numbers that a checkpoint can hold."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def state() -> dict[str, Any]:
    """Of torch (CPU and this process's CUDA device), numpy's global generator and Python's."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, following = random.getstate()
    found: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss],
        "python": [version, list(words), following],
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore(found: dict[str, Any]) -> None:
    """Go on from a `state`; one of a machine with CUDA can be continued on one without, though not to the bit."""
    torch.set_rng_state(found["cpu"].cpu())
    name, keys, *rest = found["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, words, following = found["python"]
    random.setstate((version, tuple(words), following))
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"].cpu())


@contextmanager
def kept() -> Iterator[None]:
    """Whatever draws at random in between, it goes on afterwards as if it had not."""
    before = state()
    try:
        yield
    finally:
        restore(before)


def of_all(world: int) -> list[dict[str, Any]]:
    """The states of all processes, by rank; every process has to ask."""
    states: list[Any] = [state()]
    if world > 1:
        states = [None] * world
        torch.distributed.all_gather_object(states, state())
    return states


def begin(rank: int, world: int, saved: list[dict[str, Any]] | None) -> None:
    """Where a stage begins or goes on: as its checkpoint says, or, of a new one, each rank with draws of its own (equal
    ones would drop the same activations of different samples). With another number of processes than the checkpoint's
    the draws are others too."""
    if saved is not None and len(saved) == world:
        restore(saved[rank])
    elif rank:
        torch.manual_seed(torch.initial_seed() + rank)
