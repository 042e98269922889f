"""Vision parts of Hugging Face folders: their config and their image statistics."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import nn

from vlm.cards import card
from vlm.errors import ConfigError, Problem, choices, positive
from vlm.views import ImageSpec, Interpolation, Size
from vlm.weights import config_fields, is_planning, transformers_config

from .common import as_size, image_spec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics:
    """How a family of weights wants its pixels when no file beside the weights says it."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"


def vision_config(weights: str | None, config: dict[str, Any] | None, model_types: tuple[str, ...]) -> Any:
    """The config object of a vision model: a folder's own, or the vision part of a composite one (CLIP with text).

    Args:
        weights: a hub id or local folder.
        config: fields of the config instead; the first of `model_types` unless they say `model_type`.
        model_types: what the encoder can build.

    Raises:
        ConfigError: neither or both are given, what was found is another kind of model, or a size is 0.
    """
    if weights is not None and config is not None:
        raise ConfigError(Problem("config", "stands beside `weights`, which bring their own; give one of the two"))
    found = transformers_config(weights, config, model_types[0])
    part = vars(found).get("vision_config", found)
    if part.model_type not in model_types:
        place = "weights" if config is None else "config.model_type"
        raise ConfigError(Problem(place, f"is a `{part.model_type}`;{choices(part.model_type, model_types)}"))
    sizes = {name: getattr(part, name) for name in ("hidden_size", "num_attention_heads")}
    sizes["patch_size"] = min(as_size(part.patch_size))
    if problems := positive(**sizes):  # transformers divides by them unchecked
        raise ConfigError(problems).under("weights" if config is None else "config")
    return part


def read_spec(weights: str | None, size: Size, default: Statistics) -> ImageSpec:
    """Mean, std and interpolation from the folder's `preprocessor_config.json` (or `processor_config.json`).

    Its own `size` is not used: it may be a resize before a crop (DINOv2: 256, then 224) while the position embeddings
    are another (518). `size` is the one at which the weights need no interpolation.
    """
    saved = {} if weights is None or (is_planning() and card(weights)) else _preprocessor(weights)
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
