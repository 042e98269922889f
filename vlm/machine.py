"""What a run is given to compute on. Not part of a recipe: the same recipe runs on a laptop and on a cluster."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Devices and how a model is spread over them; what is None the trainer finds out by itself."""

    devices: int | None = None
    """Of each node; all there are if None."""
    nodes: int | None = None
    """Machines; 1 if None."""
    strategy: str | None = None
    """A name in `vlm.train.strategies.STRATEGIES`; `ddp` if None and there are several devices."""
    accelerator: str | None = None
    """`cpu`, `gpu`, ...; the fastest there is if None."""

    def given(self) -> dict[str, Any]:
        """Keywords of Lightning's trainer, but for the strategy."""
        found = {"devices": self.devices, "num_nodes": self.nodes, "accelerator": self.accelerator}
        return {name: value for name, value in found.items() if value is not None}
