"""Vision parts of Hugging Face folders: their config, their weights and their image statistics."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from inspect import isclass, signature
from typing import Any

import torch
from PIL import Image
from torch import nn

from vlm.cards import card
from vlm.errors import ConfigError, Problem, choices, positive
from vlm.views import ImageSpec, Interpolation, Size
from vlm.weights import config_fields, is_planning, planning, transformers_config, transformers_model

from .common import HALF, as_size, image_spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """How a family of weights wants its pixels when no file beside the weights says it."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"


def vision_config(weights: str | None, config: dict[str, Any] | None, model_types: tuple[str, ...]) -> tuple[Any, bool]:
    """The config object of a vision model: a folder's own, or the vision part of a composite one (CLIP, a VLM).

    Args:
        weights: a hub id or local folder.
        config: fields of the config instead; the first of `model_types` unless they say `model_type`.
        model_types: what the encoder can build; anything if empty.

    Returns:
        The config, and whether it is only a part of what the folder holds.

    Raises:
        ConfigError: neither or both are given, what was found is another kind of model, or a size is 0.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if weights is not None and config is not None:
        raise ConfigError(Problem("config", "stands beside `weights`, which bring their own; give one of the two"))
    found = transformers_config(weights, config, model_types[0] if model_types else None)
    parts = [part for part in _with_parts(found) if part.model_type in model_types]
    part = parts[0] if parts else vars(found).get("vision_config", found)
    place = "weights" if config is None else "config"
    if model_types and not parts:
        where = place if config is None else "config.model_type"
        raise ConfigError(Problem(where, f"is a `{part.model_type}`;{choices(part.model_type, model_types)}"))
    if part.model_type not in CONFIG_MAPPING:
        kind = type(part).__name__
        raise ConfigError(Problem(place, f"this release of transformers has no `model_type` for a {kind} alone"))
    sizes = {name: vars(part).get(name) for name in ("hidden_size", "num_attention_heads", "patch_size")}
    numbers = {
        name: min(value, default=0) if isinstance(value, (list, tuple)) else value for name, value in sizes.items()
    }
    if problems := positive(**{name: number for name, number in numbers.items() if isinstance(number, int)}):
        raise ConfigError(problems).under(place)  # transformers divides by them unchecked
    return part, part is not found


def _with_parts(config: Any) -> Iterator[Any]:
    """A config and all configs inside it, outer ones first."""
    from transformers import PretrainedConfig

    yield config
    for part in vars(config).values():
        if isinstance(part, PretrainedConfig):
            yield from _with_parts(part)


def model_class(config: Any) -> Any:
    """The class that a config builds.

    That is what `AutoModel` makes of it; a vision part that only a VLM builds is the last class of the VLM's module
    that is made for it: whole models are written below their parts there, heads for a task are left out.

    Raises:
        ConfigError: there is none.
    """
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = type(config)
    if kind in MODEL_MAPPING:
        found = MODEL_MAPPING[kind]
        return found[0] if isinstance(found, tuple) else found
    module = import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    classes = [
        item
        for name, item in vars(module).items()
        if isclass(item) and issubclass(item, PreTrainedModel) and item.config_class is kind
        if item.__module__ == module.__name__ and not ("For" in name or "Projection" in name or "PreTrained" in name)
    ]
    if not classes:
        raise ConfigError(f"transformers has no vision model for a `{config.model_type}`")
    pixels = [item for item in classes if "pixel_values" in signature(item.forward).parameters]
    return (pixels or classes)[-1]


def without_weights(made_by: Any, config: Any) -> Any:
    """The model's shapes, on the meta device and in eval mode."""
    with planning():
        return transformers_model(made_by, config, None).eval()


def image_of(
    weights: str | None,
    own: Size | None,
    default: Statistics | None,
    *,
    size: int | tuple[int, int] | None,
    image: dict[str, Any] | None,
) -> ImageSpec:
    """How pixels must look.

    Args:
        weights: hub id or local folder, whose preprocessor file is read.
        own: the size that the weights are made for; None if unknown.
        default: statistics of the family, for a folder that has no such file.
        size: what the user wants instead of `own`.
        image: fields of a saved `ImageSpec`; overrides everything.

    Raises:
        ConfigError: the size or the statistics are told nowhere.
    """
    if image is not None:
        return image_spec(image)
    wanted = own if size is None else as_size(size)
    if wanted is None:
        raise ConfigError(Problem("size", "its config tells none; give (height, width) in pixels"))
    return read_spec(weights, wanted, default)


def read_spec(weights: str | None, size: Size, default: Statistics | None) -> ImageSpec:
    """Mean, std and interpolation from the folder's `preprocessor_config.json` (or `processor_config.json`).

    Its own `size` is not used: it may be a resize before a crop (DINOv2: 256, then 224) while the position embeddings
    are another (518). `size` is the one at which the weights need no interpolation.

    Raises:
        ConfigError: no file tells the statistics, and the family's are not known.
    """
    known = weights is None or (is_planning() and card(weights) is not None)
    saved = {} if known else _preprocessor(str(weights))
    if saved.get("do_normalize") is False:
        saved |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
    if default is None and not known and not (saved.get("image_mean") and saved.get("image_std")):
        raise ConfigError(Problem("image", f"`{weights}` does not tell its mean and std; give them with the size"))
    default = default or Statistics(HALF, HALF)  # random weights want nothing in particular
    resample = saved.get("resample")
    return image_spec(
        {
            "size": size,
            "mean": saved.get("image_mean") or default.mean,
            "std": saved.get("image_std") or default.std,
            # PIL's number, e.g. 3; Hamming is the only one that the kit does not have
            "interpolation": default.interpolation if resample is None else Image.Resampling(resample).name.lower(),
        },
        place="weights: preprocessor_config.json",
    )


def final_spec(spec: ImageSpec, size: int | tuple[int, int] | None, image: dict[str, Any] | None) -> ImageSpec:
    """`spec` of the weights, at the `size` asked for; a saved `image` overrides everything."""
    if image is not None:
        return image_spec(image)
    return spec if size is None else ImageSpec(as_size(size), spec.mean, spec.std, spec.interpolation)


def saved_config(config: Any, model: nn.Module) -> dict[str, Any]:
    """The fields that build `model` again, in the dtype that it has now (the folder's may have been another)."""
    saved = config_fields(config)
    saved.pop("dtype", None)
    dtype = next(model.parameters()).dtype
    return saved if dtype == torch.float32 else saved | {"dtype": str(dtype).removeprefix("torch.")}


def _preprocessor(weights: str) -> dict[str, Any]:
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        saved: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(weights)[0]
    except OSError:
        _log.warning("%s has no preprocessor_config.json: the family's own mean and std are used", weights)
        return {}
    return saved
