"""Which parameter belongs to which part, and which of them a stage trains how fast."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from vlm.adapters import adapted_layer, doubled, is_adapter_of, plain
from vlm.errors import ConfigError, Problem, choices


def matches(pattern: str, name: str) -> bool:
    """Whether a key of `train` means the parameter `name`: a part (a dotted prefix) or a glob over the whole name. With
    `.lora` at its end it means the adapters in there; names are as without adapters (see `vlm.adapters.plain`)."""
    if pattern.endswith(".lora"):
        return is_adapter_of(pattern.removesuffix(".lora"), name)
    name = plain(name)
    return name == pattern or name.startswith(pattern + ".") or fnmatchcase(name, pattern)


def learning_rates(names: Iterable[str], train: Mapping[str, float]) -> dict[str, float]:
    """Parameter name -> learning rate, for those that train. Where several keys match, the last one written wins;
    a parameter that no key matches, or whose rate is 0, is left out: it is frozen.

    Raises:
        ConfigError: keys that match no parameter at all, with the nearest part; weights that would train beside an
            adapter of them.
    """
    won = winners(names, train)
    rates = {name: train[pattern] for name, pattern in won.items() if train[pattern] > 0}
    refuse_both(rates, train)
    return rates


def winners(names: Iterable[str], train: Iterable[str]) -> dict[str, str]:
    """Parameter name -> the last of the keys of `train` that matches it, for those that any key matches.

    Raises:
        ConfigError: keys that match no parameter at all, with the nearest part.
    """
    names, train = list(names), list(train)
    won: dict[str, str] = {}
    for pattern in train:
        won.update({name: pattern for name in names if matches(pattern, name)})
    idle = [pattern for pattern in train if not any(matches(pattern, name) for name in names)]
    if idle:
        known = [*prefixes(names), *(f"{part}.lora" for part in prefixes(filter(adapted_layer, names)))]
        raise ConfigError([Problem(key, f"matches no parameter;{choices(key, known)}, or a glob") for key in idle])
    return won


def refuse_both(trained: Iterable[str], train: Iterable[str]) -> None:
    """
    Args:
        trained: names of the parameters that train.
        train: the keys by which they do.

    Raises:
        ConfigError: weights would train beside an adapter of them; one problem a key.
    """
    keys: dict[str, list[str]] = {}
    train = list(train)
    for name in doubled(trained):
        keys.setdefault([key for key in train if matches(key, name)][-1], []).append(plain(name))
    problems = [
        Problem(
            key,
            f"would train {len(found)} weights (`{found[0]}`, ...) beside their adapters; for the adapters alone write "
            f"`{found[0].split('.')[0]}.lora`, for the weights alone give the adapters the rate 0",
        )
        for key, found in keys.items()
    ]
    if problems:
        raise ConfigError(problems)


def prefixes(names: Iterable[str]) -> list[str]:
    """The parts that parameter names belong to: `encoders`, `encoders.0`, `connector`, `llm`, ..."""
    found: dict[str, None] = {}
    for name in names:
        pieces = name.split(".")
        found[pieces[0]] = None
        if pieces[0] == "encoders":
            found[".".join(pieces[:2])] = None
    return list(found)


def set_trainable(model: nn.Module, rates: Mapping[str, float]) -> None:
    """`requires_grad` on for the parameters in `rates` and off for all others: both ways, whatever was set before."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in rates)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In eval mode for a while; afterwards every module is in the mode that it was in."""
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for one, training in modes:  # not `train()`: in a stage, frozen parts are in eval mode
            one.training = training


def set_modes(module: nn.Module, inherited: bool = False) -> None:
    """Train mode for modules with a trainable parameter in or below them, eval mode for all others; a module without
    parameters (a dropout) follows the one that holds it.

    A frozen module in train mode would still drop activations at random and move its batch statistics.
    """
    flags = [parameter.requires_grad for parameter in module.parameters()]
    module.training = any(flags) if flags else inherited
    for child in module.children():
        set_modes(child, module.training)
