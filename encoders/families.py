"""What transformers does not say of a vision model: the one place for facts by `model_type`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vlm.views import Size

from .anatomy import Anatomy, plain_anatomy
from .common import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, as_size, flat_patches
from .grouped import deepstack, grouped_patches, merging, ungrouped, unwindowed
from .hub import Statistics


def _pixels(config: Any, pixels: Tensor) -> dict[str, Any]:
    return {"pixel_values": pixels}


def _hidden(config: Any, pixels: Tensor) -> dict[str, Any]:
    return {"hidden_states": pixels}


def _flat(config: Any, pixels: Tensor) -> dict[str, Any]:
    return {"pixel_values": flat_patches(pixels, as_size(config.patch_size))}


def _naflex(config: Any, pixels: Tensor) -> dict[str, Any]:
    """Flat patches and the grid that they are from; none of them is padding."""
    grid = (pixels.shape[2] // config.patch_size, pixels.shape[3] // config.patch_size)
    grids = torch.tensor([grid] * len(pixels), device=pixels.device)
    return _flat(config, pixels) | {"spatial_shapes": grids, "pixel_attention_mask": None}


def _vit(config: Any, size: Size, blocks: str, norm: str | None = None, heads: Sequence[str] = ()) -> Anatomy:
    tokens = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    return plain_anatomy(tokens, config.hidden_size, config.num_hidden_layers, blocks=blocks, norm=norm, heads=heads)


def _navit(config: Any, size: Size) -> Anatomy:
    return _vit(config, size, "encoder.layers", "post_layernorm")


def _siglip2(config: Any, size: Size) -> Anatomy:
    heads = ["head"] if vars(config).get("vision_use_head", True) else []  # no field of older releases (5.17)
    return _vit(config, size, "encoder.layers", "post_layernorm", heads)


def _pixtral(config: Any, size: Size) -> Anatomy:
    return _vit(config, size, "transformer.layers")


def _image_size(config: Any) -> Size | None:
    found = vars(config).get("image_size")
    return None if found is None else as_size(found)


def _merge_size(config: Any) -> int:
    return int(config.spatial_merge_size)


def _one(config: Any) -> int:
    return 1


def _square(config: Any) -> Size:
    side = isqrt(config.num_patches) * config.patch_size
    return side, side


def _rolled(config: Any, tokens: Tensor, size: Size) -> Tensor:
    """Hiera's tokens (arXiv 2306.00989) in raster order: poolings that are still to come keep the tokens that they
    take together apart, each pooling as an axis of its own in front, the last one innermost.
    """
    down, across = config.query_stride
    whole = (size[0] // config.patch_stride[0], size[1] // config.patch_stride[1])
    poolings = len(config.depths) - 1
    height, width = whole[0] // down**poolings, whole[1] // across**poolings
    maps = tokens.unflatten(1, (-1, height, width))  # type: ignore[no-untyped-call]
    while maps.shape[1] > 1:
        maps = maps.unflatten(1, (-1, down, across))  # [N, before, s, s, h, w, C]
        maps = maps.permute(0, 1, 4, 2, 5, 3, 6).flatten(4, 5).flatten(2, 3)
    flat: Tensor = maps.flatten(1, 3)
    return flat


@dataclass(frozen=True)
class Family:
    """Facts of one family; the defaults are those of most."""

    statistics: Statistics | None = None
    """How its weights want their pixels when no file beside them says it; None where nobody knows."""
    inputs: Callable[[Any, Tensor], dict[str, Any]] = _pixels
    """(config, pixels [N, 3, H, W]) -> keywords of the model's forward."""
    size: Callable[[Any], Size | None] = _image_size
    """config -> the size that the weights are made for; None where it does not tell."""
    headless: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its config, where it has them, that say that there is no head."""
    group: Callable[[Any], int] = _one
    """config -> patches along each side of what a merger takes together: images hold whole groups."""
    floors: bool = False
    """Pixels that do not fill a patch are left out, as its own models do; all others are refused such sizes."""
    singly: bool = False
    """The model makes one sequence of all images given, so it is given one at a time."""
    prefix_last: bool = False
    """CLS stands behind the patches."""
    anatomy: Callable[[Any, Size], Anatomy] | None = None
    """(config, size of the pixels) -> its parts, where a run without data ends at a mask that it reads."""
    raster: Callable[[Any, Tensor, Size], Tensor] | None = None
    """(config, tokens [N, T, C], size of the pixels) -> the same in raster order."""
    refused: str = ""
    """Why it cannot be an encoder, where no run would tell."""


_CLIP = Family(Statistics(CLIP_MEAN, CLIP_STD))
_HALF = Family(Statistics(HALF, HALF))
_IMAGENET = Family(Statistics(IMAGENET_MEAN, IMAGENET_STD))
_NAVIT = Family(Statistics(HALF, HALF, "bilinear"), floors=True, anatomy=_navit)
_NAVIT_LANCZOS = Family(Statistics(HALF, HALF, "lanczos"), floors=True, anatomy=_navit)
_SAM2 = Family(Statistics(IMAGENET_MEAN, IMAGENET_STD, "bilinear"))
_QWEN = Family(
    Statistics(CLIP_MEAN, CLIP_STD), inputs=grouped_patches, group=_merge_size, anatomy=merging, raster=ungrouped
)
_QWEN3 = replace(_QWEN, statistics=Statistics(HALF, HALF), anatomy=deepstack)

FAMILIES: dict[str, Family] = {
    "aimv2_vision_model": _CLIP,
    "blip_2_vision_model": _CLIP,
    "clip_vision_model": _CLIP,
    "convnext": _IMAGENET,
    "convnextv2": _IMAGENET,
    "dinov2": _IMAGENET,
    "dinov2_with_registers": _IMAGENET,
    "dinov3_convnext": _IMAGENET,
    "dinov3_vit": _IMAGENET,
    "florence_vision": Family(Statistics(IMAGENET_MEAN, IMAGENET_STD), inputs=_hidden),
    "hiera": Family(Statistics(IMAGENET_MEAN, IMAGENET_STD), raster=_rolled),
    "idefics2_vision": _NAVIT,
    "idefics3_vision": _NAVIT_LANCZOS,
    "instructblip_vision_model": _CLIP,
    "internvl_vision": _IMAGENET,
    "janus_vision_model": _HALF,
    "kosmos_2_vision_model": _CLIP,
    "llama4_vision_model": Family(Statistics(HALF, HALF, "bilinear"), prefix_last=True),
    "metaclip_2_vision_model": _CLIP,
    "mlcd_vision_model": _CLIP,
    "molmo2_vision": Family(Statistics(HALF, HALF, "bilinear"), inputs=_flat),
    "ovis2_vision": _CLIP,
    "pixtral": Family(Statistics(CLIP_MEAN, CLIP_STD), singly=True, anatomy=_pixtral),
    "sam2_hiera_det_model": _SAM2,
    "sam2_vision_model": _SAM2,
    "qwen2_5_vl_vision": replace(_QWEN, raster=unwindowed),
    "qwen2_vl_vision": _QWEN,
    "qwen3_vl_moe_vision": _QWEN3,
    "qwen3_vl_vision": _QWEN3,
    "radio": Family(Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),  # it normalises by itself
    "siglip2_vision_model": Family(Statistics(HALF, HALF, "bilinear"), inputs=_naflex, size=_square, anatomy=_siglip2),
    "siglip_vision_model": Family(Statistics(HALF, HALF), headless={"vision_use_head": False}),
    "smolvlm_vision": _NAVIT_LANCZOS,
    "swin": _IMAGENET,
    "swinv2": _IMAGENET,
    "yolos": Family(refused="its detection tokens stand behind the patches"),
}
