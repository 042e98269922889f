"""Parts that begin with the weights of another model's part: the `start` of a recipe."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from vlm.adapters import insert, plain
from vlm.adapting import Adaptable
from vlm.errors import ConfigError, Problem, choices
from vlm.parts import prefixes
from vlm.saving import WEIGHTS, model_folder, saved_adapters, weights

Shapes = Mapping[str, tuple[int, ...]]


def put_adapters(model: Adaptable, start: Mapping[str, str]) -> None:
    """Give the parts that start from a model's part with adapters the same ones; of folders in which no model can be
    read, `start_problems` tells."""
    for part, folder in start.items():
        with suppress(ConfigError, OSError):
            for name, adapted in saved_adapters(model_folder(Path(folder))).items():
                if f"{name}.".startswith(f"{part}.") and name in model.parts():
                    insert(model.parts()[name], adapted, drawn=False)
                    model.adapters[name] = adapted


def start_problems(start: Mapping[str, str], model: nn.Module | None) -> list[Problem]:
    """What stands against starting `model` so; reads names and shapes of saved weights, no weight.

    Args:
        start: part -> folder of a saved model or of a run.
        model: without weights; None where it could not be built.
    """
    problems: list[Problem] = []
    for part, folder in start.items():
        try:
            problems += misfits(part, _saved_shapes(Path(folder)), model, folder)
        except (ConfigError, OSError) as error:
            problems.append(Problem(part, str(error)))
    return [problem.under("start") for problem in problems]


def misfits(part: str, saved: Shapes, model: nn.Module | None, name: str) -> list[Problem]:
    """How a part of `model` differs from the same part among the `saved` weights of the model called `name`."""
    own = {} if model is None else shapes(model)
    wanted, found = _within(part, own), _within(part, saved)
    if model is not None and not wanted:
        return [Problem(part, f"no such part;{choices(part, prefixes(own))}")]
    if not found:
        return [Problem(part, f"`{name}` has no such part;{choices(part, prefixes(saved))}")]
    if model is None:
        return []
    complaints = [
        *(f"lacks {key}" for key in sorted(wanted.keys() - found.keys())),
        *(f"has {key} besides" for key in sorted(found.keys() - wanted.keys())),
        *(
            f"has {key} of shape {found[key]} for {wanted[key]}"
            for key in sorted(wanted.keys() & found.keys())
            if found[key] != wanted[key]
        ),
    ]
    more = f", and {len(complaints) - 4} more" if len(complaints) > 4 else ""
    return [Problem(part, f"`{name}` does not fit: it {'; it '.join(complaints[:4])}{more}")] if complaints else []


def begin(model: nn.Module, start: Mapping[str, str]) -> None:
    """Put the named parts' saved weights into `model`, in its own precision.

    Raises:
        ConfigError: a folder holds no model, or its part does not fit.
    """
    from safetensors import safe_open

    if problems := start_problems(start, model):
        raise ConfigError(problems)
    own = {plain(name): tensor for name, tensor in model.state_dict().items()}
    for part, folder in start.items():
        with safe_open(str(model_folder(Path(folder)) / WEIGHTS), "pt") as file, torch.no_grad():
            for name in _within(part, dict.fromkeys(file.keys(), ())):
                own[name].copy_(file.get_tensor(name))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all weights that a saved model would have."""
    return {name: tuple(tensor.shape) for name, tensor in weights(model).items()}


def _saved_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import safe_open

    with safe_open(str(model_folder(folder) / WEIGHTS), "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def _within(part: str, names: Shapes) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in names.items() if name.startswith(part + ".")}
