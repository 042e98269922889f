"""Learning rates over the steps of a stage."""

import math
from collections.abc import Callable


def schedule(kind: str, steps: int, *, warmup: float, final: float) -> Callable[[int], float]:
    """Factor on the learning rate at each step: a linear rise, then the fall of `kind`.

    Args:
        kind: `cosine`, `linear` or `constant`.
        steps: of the stage.
        warmup: share of the steps that rise; the first step is never at zero.
        final: factor that the fall ends at, one step after the last.
    """
    rise = round(steps * warmup)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        progress = min(1.0, (step - rise) / max(1, steps - rise))
        if kind == "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
        return 1.0 if kind == "constant" else final + (1 - final) * (1 - progress)

    return factor
