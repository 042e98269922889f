"""What makes the steps of a stage: the optimisers that a recipe can name."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlm.errors import ConfigError, Problem
from vlm.planning.step import step_bytes

from .galore import GaLoreSteps
from .groups import states
from .paired import Paired

Groups = list[dict[str, Any]]


class Optimiser(ABC):
    """Makes a stage's optimiser. Of the positional `__init__` parameters the kit gives `betas`, those of the stage;
    keyword-only ones are its options in a recipe.
    """

    @abstractmethod
    def build(self, groups: Groups) -> torch.optim.Optimizer:
        """One optimiser for all groups (see `vlm.train.groups.parameter_groups`), which keeps the groups' own entries.

        Its states must be tensors and numbers, so that a checkpoint can be read without unpickling code.
        """

    def footprint(self, groups: Groups) -> tuple[int, int]:
        """Bytes of its state, and those that a step takes for a moment: read off a step on the meta device."""
        return step_bytes(self.build(groups), states)


class AdamW(Optimiser):
    """AdamW (arXiv 1711.05101), torch's own.

    Args:
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        fused: one kernel for a whole group; where it exists (CPU, CUDA) unless told otherwise.
    """

    def __init__(self, betas: tuple[float, float], *, eps: float = 1e-8, fused: bool | None = None) -> None:
        _refuse(eps=(eps, eps >= 0, "0 or more"))
        self.betas = betas
        self.eps = eps
        self.fused = fused

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        wanted = _fusible(groups) if self.fused is None else self.fused
        optimizer = torch.optim.AdamW(groups, betas=self.betas, eps=self.eps, fused=wanted or None)
        # a fused step could unscale gradients itself, and Lightning would then refuse to clip them
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    def footprint(self, groups: Groups) -> tuple[int, int]:
        """A fused step takes nothing beside the state, torch's other one on a GPU (`foreach`) a value a parameter."""
        state, _ = step_bytes(torch.optim.AdamW(groups, betas=self.betas), states)
        return state, state // 2 if self.fused is False else 0


class AdamW8bit(Optimiser):
    """AdamW with both moments in 8 bits, in blocks of 256 values (arXiv 2110.02861): bitsandbytes' own.

    Args:
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        paged: the state moves to the CPU's memory when the GPU's is full.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """

    SMALLEST = 4096
    """Values of a parameter from which on its moments are in 8 bits."""
    BLOCK = 256

    def __init__(self, betas: tuple[float, float], *, eps: float = 1e-8, paged: bool = False) -> None:
        if find_spec("bitsandbytes") is None:
            message = "`adamw8bit` needs bitsandbytes, which is not installed: pip install bitsandbytes"
            raise ConfigError(message)
        _refuse(eps=(eps, eps >= 0, "0 or more"))
        self.betas = betas
        self.eps = eps
        self.paged = paged

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        from bitsandbytes import optim

        made_by = optim.PagedAdamW8bit if self.paged else optim.AdamW8bit
        return made_by(groups, betas=self.betas, eps=self.eps)  # type: ignore[no-any-return]

    def footprint(self, groups: Groups) -> tuple[int, int]:
        """By its layout: two bytes a value and two scales of 4 a block; small parameters two moments of 4 bytes."""
        return sum(self._state(p.numel()) for group in groups for p in group["params"]), 0

    def _state(self, count: int) -> int:
        return 8 * count if count < self.SMALLEST else 2 * (count + 4 * -(-count // self.BLOCK))


class Adafactor(Optimiser):
    """Adafactor (arXiv 1804.04235), transformers' own: of a matrix [m, n] it keeps m + n values in place of 2 m n.

    The stage's rates and schedule hold, as with AdamW; the paper's own schedule is off.

    Args:
        clip_threshold: largest root mean square of an update before the rate.
        decay_rate: power of the step by which the second moment is forgotten.
        momentum: decay of a first moment, which takes one value a parameter; there is none if absent.
        scale_parameter: rates are relative to the root mean square of each parameter, as in the paper.
    """

    def __init__(
        self,
        *,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        momentum: float | None = None,
        scale_parameter: bool = False,
    ) -> None:
        _refuse(
            clip_threshold=(clip_threshold, clip_threshold > 0, "more than 0"),
            decay_rate=(decay_rate, decay_rate < 0, "less than 0"),
            momentum=(momentum, momentum is None or 0 <= momentum < 1, "0 to less than 1"),
        )
        self._options = {"clip_threshold": clip_threshold, "decay_rate": decay_rate, "beta1": momentum}
        self._scale = scale_parameter

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        _whole(groups, "adafactor")
        _in_one_place(groups, "adafactor")
        return self._built(groups, self._scale)

    def footprint(self, groups: Groups) -> tuple[int, int]:
        """Read off a step without scaling, which asks for values but keeps nothing more."""
        return step_bytes(self._built(groups, False), states)

    def _built(self, groups: Groups, scale: bool) -> torch.optim.Optimizer:
        from .adafactor import ExactAdafactor

        own = {"relative_step": False, "warmup_init": False, "scale_parameter": scale}
        return ExactAdafactor(groups, lr=0.0, **own, **self._options)


class Muon(Optimiser):
    """Muon (arXiv 2502.16982), torch's own, for hidden matrices; AdamW for everything else.

    Steps are scaled to the root mean square of AdamW's, so the same rates and decay do for both.

    Args:
        betas: of AdamW.
        momentum: decay of the gradients' mean.
        nesterov: looks ahead by it.
        ns_steps: Newton-Schulz iterations, which make a step's singular values alike.
    """

    def __init__(
        self, betas: tuple[float, float], *, momentum: float = 0.95, nesterov: bool = True, ns_steps: int = 5
    ) -> None:
        _refuse(
            momentum=(momentum, 0 <= momentum < 1, "0 to less than 1"),
            ns_steps=(ns_steps, 0 < ns_steps < 100, "1 to 99"),
        )
        self.betas = betas
        self._options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        _whole(groups, "muon")
        hidden, others = divided(groups)
        muon = torch.optim.Muon(hidden, adjust_lr_fn="match_rms_adamw", **self._options) if hidden else None
        return Paired([muon, AdamW(self.betas).build(others) if others else None], groups)


class GaLore(Optimiser):
    """GaLore (arXiv 2403.03507): AdamW on the gradients of hidden matrices projected to a few dimensions.

    Everything else, and a matrix that has no more dimensions than these, gets plain AdamW.

    Args:
        betas: of AdamW.
        rank: dimensions left of the smaller side of a matrix.
        every: steps after which the projection is found anew.
        scale: factor on projected steps.
        eps: added to the root of the second moment.
    """

    def __init__(
        self,
        betas: tuple[float, float],
        *,
        rank: int = 128,
        every: int = 200,
        scale: float = 0.25,
        eps: float = 1e-8,
    ) -> None:
        _refuse(
            rank=(rank, rank > 0, "1 or more"),
            every=(every, every > 0, "1 or more"),
            scale=(scale, scale > 0, "more than 0"),
            eps=(eps, eps >= 0, "0 or more"),
        )
        self.betas = betas
        self.rank = rank
        self.eps = eps
        self._options: dict[str, Any] = {"rank": rank, "every": every, "scale": scale}

    def build(self, groups: Groups) -> torch.optim.Optimizer:
        _whole(groups, "galore")
        large = [
            {**group, "hidden": hidden, "params": params}
            for group in groups
            for hidden in (True, False)
            if (params := [p for p in group["params"] if (group["hidden"] and min(p.shape) > self.rank) == hidden])
        ]
        hidden, others = divided(large)
        projected = GaLoreSteps(hidden, betas=self.betas, eps=self.eps, **self._options) if hidden else None
        return Paired([projected, AdamW(self.betas, eps=self.eps).build(others) if others else None], large)


def divided(groups: Groups) -> tuple[Groups, Groups]:
    """Groups of hidden matrices, and the others."""
    return [group for group in groups if group["hidden"]], [group for group in groups if not group["hidden"]]


def _refuse(**options: tuple[Any, bool, str]) -> None:
    """
    Args:
        options: by name the value, whether it is right, and what is allowed.

    Raises:
        ConfigError: all options that are wrong.
    """
    problems = [
        Problem(name, f"`{value}`; allowed: {allowed}")
        for name, (value, right, allowed) in options.items()
        if not right
    ]
    if problems:
        raise ConfigError(problems)


def _whole(groups: Groups, name: str) -> None:
    """
    Raises:
        ConfigError: a strategy has cut matrices into flat pieces.
    """
    if any(p.ndim != 2 for group in groups if group["hidden"] for p in group["params"]):
        message = f"`{name}` works on whole matrices, and this strategy keeps flat pieces of them; take DDP, or `adamw`"
        raise ConfigError(Problem("optimiser", message))


def _in_one_place(groups: Groups, name: str) -> None:
    """
    Raises:
        ConfigError: a strategy has spread parameters over devices.
    """
    if any(isinstance(p, DTensor) for group in groups for p in group["params"]):
        message = f"`{name}` cannot step parameters that are spread over devices; take DDP, or `adamw`"
        raise ConfigError(Problem("optimiser", message))


def _fusible(groups: Groups) -> bool:
    """Whether torch has the kernel for all of them."""
    every: list[Tensor] = [p for group in groups for p in group["params"]]
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in every)


def facts(betas: Sequence[float]) -> dict[str, Any]:
    """What the kit gives an optimiser's constructor."""
    return {"betas": tuple(betas)}
