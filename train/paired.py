"""Two optimisers as one: one state, one list of groups, one checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import torch


class Paired(torch.optim.Optimizer):
    """Steps groups marked `hidden` by the first of two optimisers and the others by the second; to schedulers and
    checkpoints it is a single one.

    Args:
        pair: the two, each built of its own ones of `groups`; None for one that has none.
        groups: all of them, in order.
    """

    def __init__(self, pair: Sequence[torch.optim.Optimizer | None], groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self._pair = pair
        self._join()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Both optimisers' steps; `closure` is called first, once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._join()
        for one in self._pair:
            if one is not None:
                one.step()
        return loss

    def _join(self) -> None:
        """State and groups are this one's, which a checkpoint replaces by new objects."""
        for one, hidden in zip(self._pair, (True, False), strict=True):
            if one is not None:
                one.state = self.state
                one.param_groups = [group for group in self.param_groups if group["hidden"] == hidden]
