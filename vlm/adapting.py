"""What a stage does about adapters before it trains: merge some, put others, and leave those that go on."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import nn

from vlm.adapters import Adapted, AdapterSpec
from vlm.errors import ConfigError, Problem, choices, join


class AdaptingStage(Protocol):
    """What a stage of a recipe says about adapters."""

    adapt: dict[str, AdapterSpec]
    merge: list[str]


class Adaptable(Protocol):
    """A model of several parts (see `vlm.model.VLM`)."""

    adapters: dict[str, Adapted]

    def parts(self) -> dict[str, nn.Module]: ...

    def adapt(self, part: str, spec: AdapterSpec) -> None: ...

    def merge(self, parts: Sequence[str] = ()) -> None: ...


def begin_stage(model: Adaptable, stage: AdaptingStage, seed: int | None = None) -> None:
    """Give `model` the adapters that a stage trains with: merge those that it says, then put the new ones.

    Adapters that are there and that the stage names again are trained on, if it names them as they are.

    Args:
        model: as the stage before has left it.
        stage: the stage.
        seed: of what adapters begin with; torch's own random state is left as it is.

    Raises:
        ConfigError: the model has other adapters, or none, where the stage says so; layers that cannot have one.
    """
    problems: list[Problem] = []
    parts = list(model.parts())
    merged = list(spread(stage.merge, parts, "merge", problems))
    held = {part: adapted.spec for part, adapted in model.adapters.items()}
    problems += [
        Problem("merge", f"`{part}` has no adapters;{choices(part, list(held))}") for part in merged if part not in held
    ]
    held = {part: spec for part, spec in held.items() if part not in merged}
    wanted: dict[str, AdapterSpec] = {}
    for key, spec in stage.adapt.items():
        for part in spread([key], parts, "adapt", problems):
            wanted[part] = spec
            if part in held and held[part] != spec:
                problems.append(Problem(join("adapt", key), _other(part, held[part], spec)))
    if problems:
        raise ConfigError(problems)
    with torch.random.fork_rng():
        torch.manual_seed(seed or 0)
        if merged:
            model.merge(merged)
        for part, spec in wanted.items():
            if part not in held:
                _put(model, part, spec)


def _put(model: Adaptable, part: str, spec: AdapterSpec) -> None:
    try:
        model.adapt(part, spec)
    except ConfigError as error:
        raise error.under(join("adapt", part)) from error


def spread(names: Sequence[str], parts: Sequence[str], place: str, problems: list[Problem]) -> Iterator[str]:
    """Each part that is meant: `encoders` are all of them."""
    for name in names:
        found = [part for part in parts if part == name or (name == "encoders" and part.startswith("encoders."))]
        if not found:
            problems.append(Problem(join(place, name), f"no such part;{choices(name, ['encoders', *parts])}"))
        yield from found


def _other(part: str, held: AdapterSpec, wanted: AdapterSpec) -> str:
    old, new = held.model_dump(), wanted.model_dump()
    told = ", ".join(f"{key} {old[key]} for {new[key]}" for key in old if old[key] != new[key])
    return f"`{part}` has other adapters already ({told}); leave it away to train them on, or `merge: [{part}]` first"
