"""Several processes that share the work of one evaluation, as `torchrun` starts them."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a process that is done waits for the others; `torchrun` ends all when one fails."""


@dataclass(frozen=True)
class World:
    """This process among all; by itself unless told otherwise."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Go on when every process has come to this place."""
        if self.size == 1:
            return
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=PATIENCE)
        dist.barrier()

    def device(self) -> str | None:
        """The GPU of this process, where there is one for it; None leaves the choice."""
        import torch

        if self.size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ.get('LOCAL_RANK', self.rank)) % torch.cuda.device_count()}"

    def share(self, items: Iterable[T], together: Callable[[T], str]) -> list[T]:
        """This process's part: items that belong together stay together, and the parts are of like size.

        Args:
            items: the same in every process, in the same order.
            together: the name of what an item belongs to; items of one name stand side by side in the result.
        """
        groups: dict[str, list[T]] = {}
        for item in items:
            groups.setdefault(together(item), []).append(item)
        parts: list[list[T]] = [[] for _ in range(self.size)]
        for group in groups.values():
            _shortest(parts).extend(group)
        return parts[self.rank]


def _shortest(parts: Sequence[list[T]]) -> list[T]:
    return min(parts, key=len)


def world() -> World:
    """What `torchrun` says of this process in its environment."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
