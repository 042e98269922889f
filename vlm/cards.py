"""What published weights look like, so that planning needs no download: `cards.yaml`, hub id -> its config's fields."""

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem
from vlm.recipe import read_yaml

LENGTH = "tokenizer_length"
"""A card's one key that is no field of the config: how many tokens the tokenizer has, where not `vocab_size`."""


@cache
def _cards() -> dict[str, dict[str, Any]]:
    return read_yaml(Path(str(resources.files("vlm"))) / "cards.yaml")


def card(weights: str) -> dict[str, Any] | None:
    """The fields of a hub id's config that decide shapes, with its `model_type`; None where there is no card, or one of
    its tokenizer alone.

    A local folder of the same name comes first, as it does for transformers.
    """
    found = {name: value for name, value in _find(weights).items() if name != LENGTH}
    return found or None


def tokenizer_length(name: str) -> int | None:
    """How many tokens the tokenizer of a hub id has; None where no card says so."""
    found = _find(name)
    length = found.get(LENGTH, found.get("vocab_size"))
    return None if length is None else int(length)


def _find(name: str) -> dict[str, Any]:
    return {} if Path(name).is_dir() else _cards().get(name, {})


def check_card(weights: str, config: Any) -> None:
    """Compare a config that was read with the card that plans were made with.

    Args:
        weights: the hub id.
        config: its transformers config; the card may be of a part of it (CLIP's vision tower).

    Raises:
        ConfigError: the fields that differ. The card is then wrong, and so was the plan.
    """
    wanted = card(weights)
    if wanted is None:
        return
    parts = [config, *(value for name, value in vars(config).items() if name.endswith("_config"))]
    own = [part for part in parts if getattr(part, "model_type", None) == wanted["model_type"]]
    if not own:
        raise ConfigError(_problem(weights, "model_type", config.model_type, wanted["model_type"]))
    found = {name: getattr(own[0], name) for name in wanted}
    differ = [name for name in wanted if _plain(found[name]) != _plain(wanted[name])]
    if differ:
        raise ConfigError([_problem(weights, name, found[name], wanted[name]) for name in differ])


def _problem(weights: str, name: str, found: Any, wanted: Any) -> Problem:
    return Problem("weights", f"`{weights}` has {name} `{found}`, but its card (vlm/cards.yaml) says `{wanted}`")


def _plain(value: Any) -> Any:
    """A tuple and a YAML list are the same; a single dtype or size as well."""
    return list(value) if isinstance(value, tuple) else value
