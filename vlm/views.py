"""One image -> its views. A view policy is pure geometry; rendering is the same for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Size = tuple[int, int]
"""(height, width) in pixels."""
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box"]


@dataclass(frozen=True)
class ImageSpec:
    """How pixels must look to one encoder: read from the weights, owned by the encoder, saved with the model."""

    size: Size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation = "bicubic"

    def normalise(self, image: Image.Image) -> Tensor:
        """An RGB image -> float32 [3, H, W], (x / 255 - mean) / std per channel."""
        mean, std = np.array(self.mean, dtype=np.float32), np.array(self.std, dtype=np.float32)
        array = (np.asarray(image, dtype=np.float32) / np.float32(255) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """[3, H, W] -> the RGB image that the encoder saw (the inverse of `normalise`)."""
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        array = ((pixels.detach().cpu().float() * std + mean) * 255).round().clamp(0, 255)
        return Image.fromarray(array.permute(1, 2, 0).to(torch.uint8).numpy())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class View:
    """Where the image lies on one view: resampled to `resize`, pasted at `offset` on a canvas of `size`.

    A negative offset cuts (a crop, a tile of a larger image), a positive one pads.
    """

    resize: Size
    size: Size
    offset: tuple[int, int] = (0, 0)
    """(top, left) of the resampled image on the canvas, in pixels."""
    cell: tuple[int, int] | None = None
    """(row, column) of a tile; None for a view of the whole image."""
    fill: tuple[int, int, int] | None = None
    """Colour of the padding, 0-255; None is the encoder's mean, which is zero once normalised."""
    keep: tuple[int, int, int, int] | None = None
    """(top, left, bottom, right) of the part of the canvas whose tokens are used, in pixels; None is all of it.
    Tiles that overlap (Molmo) see more than they are used for."""
    of: "View | None" = None
    """The view that this one is made from; None is the image itself. Two resamplings in a row are not one."""

    def on(self, size: Size) -> "View":
        """The same part of the image on a canvas of another size."""
        factors = size[0] / self.size[0], size[1] / self.size[1]

        def scaled(lengths: Sequence[int], least: int = 0) -> list[int]:
            found = [round(length * factors[number % 2]) for number, length in enumerate(lengths)]
            return [max(least, one) for one in found] if least else found

        height, width = scaled(self.resize, 1)
        top, left = scaled(self.offset)
        return replace(
            self,
            resize=(height, width),
            size=size,
            offset=(top, left),
            keep=None if self.keep is None else tuple(scaled(self.keep)),  # type: ignore[arg-type]
            of=None if self.of is None else self.of.on((scaled(self.of.size, 1)[0], scaled(self.of.size, 1)[1])),
        )

    @property
    def valid(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the part of the canvas that shows the image, in pixels; of no area if none."""
        sides = list(zip(self.size, self.offset, self.resize, strict=True))
        top, left = (min(max(0, offset), size) for size, offset, _ in sides)
        bottom, right = (max(0, min(size, offset + length)) for size, offset, length in sides)
        return top, left, bottom, right

    def render(self, image: Image.Image, spec: ImageSpec) -> Tensor:
        """The view of an RGB `image` as the encoder wants it: float32 [3, H, W]."""
        return spec.normalise(self.draw(image, spec))

    def draw(self, image: Image.Image, spec: ImageSpec) -> Image.Image:
        """The view of an RGB `image` in colours."""
        return self._paste(self._resized(image, spec), spec)

    def _resized(self, image: Image.Image, spec: ImageSpec) -> Image.Image:
        image = image if self.of is None else self.of.draw(image, spec)
        if image.size == self.resize[::-1]:
            return image
        return image.resize(self.resize[::-1], Image.Resampling[spec.interpolation.upper()])

    def _paste(self, resized: Image.Image, spec: ImageSpec) -> Image.Image:
        if self.resize == self.size and self.offset == (0, 0):
            return resized
        fill = self.fill or tuple(int(255 * mean) for mean in spec.mean)
        canvas = Image.new("RGB", self.size[::-1], fill)  # type: ignore[arg-type]
        canvas.paste(resized, self.offset[::-1])
        return canvas


def render(views: Sequence[View], image: Image.Image, spec: ImageSpec) -> list[Tensor]:
    """The views of an RGB `image` as an encoder wants them, [3, H, W] each; tiles of one resampling share it."""
    resized: dict[tuple[Size, View | None], Image.Image] = {}
    for view in views:
        if (view.resize, view.of) not in resized:
            resized[view.resize, view.of] = view._resized(image, spec)
    return [spec.normalise(view._paste(resized[view.resize, view.of], spec)) for view in views]


class Views(ABC):
    """A view policy: which views an encoder gets of an image. One policy for training and inference."""

    @abstractmethod
    def plan(self, image: Size, size: Size) -> list[View]:
        """The views of an image of `image` = (height, width) for an encoder that takes `size`, in order.

        Raises:
            ConfigError: the image lies outside what the policy can do; the message says what is allowed.
        """

    def among(self, images: int) -> "Views":
        """The policy for each image of a sample that has `images` of them: this one unless a policy says otherwise."""
        return self
