"""Parts from transformers: a config object, then the model from it, with random or pretrained weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from vlm.cards import card, check_card
from vlm.errors import ConfigError, Problem, unknown

_planning: ContextVar[bool] = ContextVar("planning", default=False)


@contextmanager
def planning() -> Iterator[None]:
    """Parts built inside get the meta device and read no weights: shapes, widths and counts only."""
    token = _planning.set(True)
    try:
        with torch.device("meta"):
            yield
    finally:
        _planning.reset(token)


def no_init() -> Any:
    """A context in which parts are built without drawing random weights, since others are about to be read."""
    from transformers.initialization import no_init_weights

    return no_init_weights()


def is_planning() -> bool:
    """Whether parts are being built for their shapes alone (see `planning`)."""
    return _planning.get()


def transformers_config(weights: str | None, config: dict[str, Any] | None, model_type: str | None = None) -> Any:
    """The transformers config object of a part.

    Args:
        weights: a hub id or local folder whose `config.json` is read; the vision part of a composite one is taken
            by the caller. Under `planning()` a hub id with a card is not read.
        config: the fields of a config, for random weights (or to rebuild a saved model).
        model_type: the config's `model_type` when the part fixes it.

    Raises:
        ConfigError: neither is given, a field does not exist (transformers itself would keep it in silence), a field
            has the wrong type, or the folder has no config.
    """
    from transformers import AutoConfig

    if config is not None:
        return _config_from_fields(dict(config), model_type)
    if weights is None:
        raise ConfigError("give `weights` (a hub id or a local folder) or `config` (sizes for random weights)")
    known = card(weights) if is_planning() else None
    if known is not None:
        return _config_from_fields(known, None)
    try:
        found = AutoConfig.from_pretrained(weights)
    except (OSError, ValueError) as error:
        raise ConfigError(Problem("weights", f"no model config at `{weights}`: {_short(error)}")) from error
    check_card(weights, found)
    return found


def _config_from_fields(config: dict[str, Any], model_type: str | None) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = config.pop("model_type", model_type)
    if model_type is None:
        raise ConfigError(Problem("config.model_type", "is missing, e.g. `llama`"))
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(Problem("config.model_type", unknown("model type", model_type, CONFIG_MAPPING.keys())))
    config_class = CONFIG_MAPPING[model_type]
    known = field_names(config_class)
    problems = [
        Problem(f"config.{name}", unknown(f"field of {config_class.__name__}", name, known))
        for name in config
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)
    try:
        return AutoConfig.for_model(model_type, **config)
    except Exception as error:  # transformers raises its own strict-dataclass errors, of several classes
        raise ConfigError(Problem("config", f"{config_class.__name__} refuses it: {_short(error)}")) from error


UNDECLARED = {"siglip_vision_model": {"vision_use_head"}}
"""Fields that the library reads although older releases (5.17) do not declare them, by model type."""


def field_names(config_class: type) -> set[str]:
    """Every keyword that the config knows: its dataclass fields, its aliases, and what it reads undeclared."""
    names = {item.name for item in fields(config_class)} if is_dataclass(config_class) else set()
    aliases: dict[str, str] = config_class.attribute_map  # type: ignore[attr-defined]
    return (
        names
        | set(aliases)
        | set(aliases.values())
        | {"architectures", "dtype", "transformers_version"}
        | (
            UNDECLARED.get(config_class.model_type, set())  # type: ignore[attr-defined]
        )
    )


def transformers_model(
    model_class: Any, config: Any, weights: str | None, *, alone: bool = False, **options: Any
) -> Any:
    """The model: random from `config`, or with `weights`; only its shapes under `planning()`.

    Args:
        model_class: a transformers model or auto class.
        config: its config object.
        weights: a hub id or local folder.
        alone: whether the folder holds this model and nothing else; if not, parameters of other parts (CLIP's text
            tower) are passed over.
        options: further keywords of the constructor.

    Raises:
        ConfigError: the config's sizes do not fit together, the weights cannot be read, lack a parameter of the model
            (transformers itself would fill it at random) or have one that the model does not.
    """
    if weights is None or is_planning():
        return _from_config(model_class, config, options)
    model, info = _loaded(model_class, weights, weights, config=config, **options)
    _check(info, weights, [key for key in info["unexpected_keys"] if alone or _is_own(key, model)])
    return model


def transformers_part(
    model_class: Any,
    config: Any,
    weights: str,
    *,
    tensors: dict[str, Tensor] | None = None,
    optional: Sequence[str] = (),
) -> Any:
    """A model with weights that are only a part of what `weights` holds, or of which a part is thrown away later.

    Args:
        model_class: a transformers model class.
        config: its config object.
        weights: a hub id or local folder.
        tensors: all that `weights` holds for this model, if already read; else it is read.
        optional: modules that are thrown away, so that `weights` may lack their parameters.

    Raises:
        ConfigError: see `transformers_model`.
    """
    source, options = (weights, {}) if tensors is None else (None, {"state_dict": tensors})
    model, info = _loaded(model_class, source, weights, config=config, **options)
    unexpected = [key for key in info["unexpected_keys"] if tensors is not None or _is_own(key, model)]
    _check(info, weights, unexpected, tuple(f"{name}." for name in optional))
    return model


def _loaded(model_class: Any, source: str | None, weights: str, **options: Any) -> Any:
    """The model, and what transformers says of names that did not fit."""
    try:
        return model_class.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # of many classes, of several libraries
        raise ConfigError(Problem("weights", f"`{weights}` cannot be loaded: {_short(error)}")) from error


def _check(info: dict[str, Any], weights: str, unexpected: Sequence[str], optional: tuple[str, ...] = ()) -> None:
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith(optional)]
    missing += sorted(str(key) for key in info["mismatched_keys"])
    problems = [
        Problem("weights", f"`{weights}` {what} {len(keys)} parameters {tail}: {', '.join(keys[:5])}")
        for what, keys, tail in (
            ("lacks", missing, "of the model"),
            ("has", sorted(unexpected), "that the model has not"),
        )
        if keys
    ]
    if problems:
        raise ConfigError(problems)


def _from_config(model_class: Any, config: Any, options: dict[str, Any]) -> Any:
    from transformers import PreTrainedModel

    if options.get("dtype") == "auto":  # the weights' own, which are not read now
        options = {**options, "dtype": config.dtype or torch.float32}
    is_model = isinstance(model_class, type) and issubclass(model_class, PreTrainedModel)
    build = model_class._from_config if is_model else model_class.from_config  # an auto class has a public one
    try:
        return build(config, **options)
    except Exception as error:  # sizes that do not fit, said by the constructor in an error of any class
        raise ConfigError(Problem("config", f"{type(config).__name__}: {_short(error)}")) from error


def _is_own(key: str, model: Any) -> bool:
    """Whether a parameter of a composite folder belongs to this part of it."""
    children = {name for name, _ in model.named_children()}
    pieces = key.split(".")
    return pieces[0] in children or (pieces[0] in ("vision_model", "vision_encoder") and pieces[1] in children)


def _short(error: BaseException) -> str:
    """A message of any library as one line."""
    text = " ".join(str(error).split())
    return (text[:300] + " ..." if len(text) > 300 else text) or type(error).__name__


def config_fields(config: Any) -> dict[str, Any]:
    """All fields of a transformers config, defaults too (a later release may have others), as plain data that
    `transformers_config` takes.

    Attributes that the config computes itself (DINOv2's `stage_names`, SAM's `scale`) are no fields and left out.
    """
    fields_: dict[str, Any] = config.to_dict()
    known = field_names(type(config)) - {"transformers_version", "architectures", "id2label", "label2id"}
    return {"model_type": config.model_type, **{k: v for k, v in fields_.items() if k in known}}
