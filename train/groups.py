"""Parameter groups of a stage: by rate, decay and warm-up, and by what kind of parameter an optimiser sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm.llm import head_parameters
from vlm.model import VLM
from vlm.rates import Setting


@dataclass(frozen=True)
class Kind:
    """What a parameter is, told before a strategy cuts it into pieces."""

    shape: tuple[int, ...]
    hidden: bool
    """Whether it is a matrix that maps one hidden state to another: no table of embeddings or positions, no head."""

    @property
    def decays(self) -> bool:
        """Matrices decay; a bias, a norm, a gate or a CLS token does not, however many dimensions of 1 it has."""
        return sum(size > 1 for size in self.shape) > 1


def kinds(model: VLM, objective: nn.Module) -> dict[str, Kind]:
    """Recipe name -> kind, of all parameters of a model and an objective.

    Hidden matrices are two-dimensional parameters by the name of `weight` (`in_proj_weight`, ...), as torch calls what
    is multiplied with, outside of embeddings, the LLM's head and the objective, whose own parameters are a head.
    """
    tables = {id(p) for one in model.modules() if isinstance(one, nn.Embedding) for p in one.parameters(recurse=False)}
    tables |= {id(p) for p in head_parameters(model.llm)}
    found = {}
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and name.endswith("weight") and id(parameter) not in tables
        found[name] = Kind(tuple(parameter.shape), hidden)
    return found | {f"objective.{name}": Kind(tuple(p.shape), False) for name, p in objective.named_parameters()}


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], settings: Mapping[str, Setting], kinds: Mapping[str, Kind]
) -> list[dict[str, Any]]:
    """The groups of an optimiser: `params`, `lr`, `weight_decay`, and what it may go by: `hidden`, `key`, `warmup`.

    What does not train is in none of them, so no optimiser keeps a state for it.

    Args:
        parameters: by their names in a recipe.
        settings: how those that train do so.
        kinds: what they are.
    """
    groups: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if name in settings:
            one, kind = settings[name], kinds[name]
            decay = one.weight_decay if kind.decays else 0.0
            groups.setdefault((one.lr, decay, kind.hidden, one.key, one.warmup), []).append(parameter)
    names = ("lr", "weight_decay", "hidden", "key", "warmup")
    return [{"params": params, **dict(zip(names, values, strict=True))} for values, params in groups.items()]


def learning_rates_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """What is logged: `lr`, the highest, and `lr/KEY` for each key of `train`, the highest of its parameters."""
    rates: dict[str, float] = {}
    for group in optimizer.param_groups:
        name = f"lr/{group['key']}"
        rates[name] = max(rates.get(name, 0.0), float(group["lr"]))
    return {"lr": max(rates.values()), **rates}


def states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """The tensors that an optimiser keeps for parameters, without counters."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.numel() > 1)
