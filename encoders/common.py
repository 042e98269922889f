"""What the encoders share: reading their options, and hidden states -> Features."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vlm.errors import ConfigError, Problem, unknown
from vlm.features import Features, Grid
from vlm.views import ImageSpec, Interpolation, Size

Prefix = Literal["drop", "keep"]
"""What becomes of the prefix tokens (CLS, registers): aside into `Features.extra`, or kept in front of the tokens."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


def as_size(value: int | Sequence[int]) -> Size:
    """`384` and `[384, 384]` are both (384, 384).

    Raises:
        ConfigError: a list of another length.
    """
    if isinstance(value, int):
        return value, value
    if len(value) != 2:
        raise ConfigError(Problem("size", f"`{list(value)}`; allowed: pixels, or [height, width]"))
    height, width = value
    return int(height), int(width)


def image_spec(image: Mapping[str, Any], *, place: str = "image") -> ImageSpec:
    """An `ImageSpec` from its saved fields (JSON made the tuples lists).

    Raises:
        ConfigError: a field is not known or missing, or the interpolation is none of the known ones.
    """
    known = [item.name for item in fields(ImageSpec)]
    problems = [Problem(f"{place}.{name}", unknown("field", name, known)) for name in image if name not in known]
    problems += [Problem(f"{place}.{name}", "is missing") for name in ("size", "mean", "std") if name not in image]
    interpolation = image.get("interpolation", "bicubic")
    if interpolation not in get_args(Interpolation):
        message = unknown("interpolation", str(interpolation), get_args(Interpolation))
        problems.append(Problem(f"{place}.interpolation", message))
    if problems:
        raise ConfigError(problems)
    mean, std = (tuple(float(value) for value in image[name]) for name in ("mean", "std"))
    return ImageSpec(as_size(image["size"]), mean, std, interpolation)  # type: ignore[arg-type]


def saved_spec(spec: ImageSpec) -> dict[str, Any]:
    """The fields of `spec` as JSON has them; `image_spec` is the way back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in spec.to_dict().items()}


def layer_indices(layers: Sequence[int], depth: int, *, first: int = 0) -> tuple[int, ...]:
    """`layers` counted from the front, in the order given: 0 is the input of block 0, i the output of block i - 1.

    Args:
        layers: as the user wrote them; negative ones count from the end (-1 is `depth`).
        depth: number of blocks.
        first: the lowest layer that the encoder can yield (1 where the library does not give block 0's input).

    Raises:
        ConfigError: nothing is selected, or a layer is not there.
    """
    if not layers:
        raise ConfigError(Problem("layers", "select at least one, e.g. [-1]"))
    allowed = f"{first} to {depth}, or {first - depth - 1} to -1 from the end"
    absolute = tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers)
    problems = [
        Problem("layers", f"no layer {given}: {depth} blocks give layers {allowed}")
        for given, layer in zip(layers, absolute, strict=True)
        if not first <= layer <= depth
    ]
    if problems:
        raise ConfigError(problems)
    return absolute


def whole_patches(size: Size, patch: Size, own: Size | None = None) -> Grid:
    """Rows and columns of patches in an image.

    Args:
        size: of the image.
        patch: of a patch.
        own: the size that the weights were made at. It may leave pixels over (SigLIP's 384 at a patch of 14), which
            were cut off at the bottom and right in training too.

    Raises:
        ConfigError: the patches do not fill it (the library would cut off the rest in silence).
    """
    if size == own and size[0] >= patch[0] and size[1] >= patch[1]:
        return size[0] // patch[0], size[1] // patch[1]
    for name, length, step in zip(("height", "width"), size, patch, strict=True):
        if length % step or length < step:
            near = max(1, round(length / step)) * step
            message = f"{name} {length} is not a multiple of the encoder's step of {step} pixels; the nearest is {near}"
            raise ConfigError(Problem("size", message))
    return size[0] // patch[0], size[1] // patch[1]


def lattice(tokens: int, size: Size, patch: Size | None) -> Grid:
    """The grid of a sequence of tokens over pixels of `size`.

    Args:
        tokens: how many, with a prefix in a ViT.
        size: of the pixels.
        patch: pixels of a ViT's token; without, one step is looked for that gives as many tokens, as pyramids have.

    Raises:
        ConfigError: there is none.
    """
    if patch is not None and (size[0] // patch[0]) * (size[1] // patch[1]) <= tokens:
        return size[0] // patch[0], size[1] // patch[1]
    for step in range(1, max(size) + 1):
        for height, width in ((size[0] // step, size[1] // step), (-(-size[0] // step), -(-size[1] // step))):
            if height * width == tokens:
                return height, width
    raise ConfigError(f"{tokens} tokens of {size[0]}x{size[1]} pixels lie on no grid")


def flat_patches(pixels: Tensor, patch: Size) -> Tensor:
    """pixels [N, c, H, W] -> [N, T, h * w * c]: patches in raster order, each as its rows of pixels.

    What does not fill a patch is left out.
    """
    height, width = patch
    rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
    cut = pixels[:, :, : rows * height, : columns * width]
    parts = cut.unflatten(2, (rows, height)).unflatten(4, (columns, width))  # type: ignore[no-untyped-call]
    flat: Tensor = parts.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # [N, rows, columns, h, w, c]
    return flat


def select(states: Sequence[Tensor], grid: Grid, *, count: int, keep: bool) -> Features:
    """Hidden states of the selected layers -> Features, concatenated on channels in the order given.

    Args:
        states: one [N, E + T, C] per layer; the E = `count` prefix tokens stand first.
        grid: (H, W), H * W = T.
        count: number of prefix tokens.
        keep: whether they stay in front of the tokens, which then lie on no grid.
    """
    tokens = states[0] if len(states) == 1 else torch.cat(list(states), dim=-1)  # [N, E + T, C * layers]
    if keep:
        return Features(tokens)
    return Features(tokens[:, count:], grid, extra=tokens[:, :count] if count else None)
