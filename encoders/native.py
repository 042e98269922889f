"""The view policies whose views have the image's own shape: for encoders that take any size."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from vlm.errors import ConfigError, Problem, positive
from vlm.images import MAX_PIXELS
from vlm.views import Size, View, Views

from .geometry import BLACK, Colour, check_colour, check_image, counts, lowered, raised, refuse

Align = Literal["stretch", "pad", "cut"]


def _by_ratio(image: Size, box: Size) -> Size:
    ratio = max(image[0] / box[0], image[1] / box[1])
    return image if ratio <= 1 else (math.floor(image[0] / ratio), math.floor(image[1] / ratio))


def _by_scale(image: Size, box: Size) -> Size:
    scale = min(box[0] / image[0], box[1] / image[1])
    return image if scale >= 1 else (int(image[0] * scale), int(image[1] * scale))


def _by_aspect(image: Size, box: Size) -> Size:
    (height, width), longest = image, max(box)
    if max(image) <= longest:
        return image
    return (int(longest / (width / height)), longest) if width >= height else (longest, int(longest * (width / height)))


_FIT: dict[Align, Callable[[Size, Size], Size]] = {"stretch": _by_ratio, "pad": _by_scale, "cut": _by_aspect}


class Fit(Views):
    """The whole image in its own shape, reduced to the encoder's size if it is larger, never enlarged to it.

    Pixtral (arXiv 2410.07073: `multiple: 16`), Mistral Small 3.1 (`multiple: 28`), Fuyu (`multiple: 30, align: pad,
    fill: [1, 1, 1]`), Idefics2 (2405.02246: `multiple: 14, align: cut, min_side: 378`, and `quarters: true`).

    Args:
        multiple: both sides of the view are multiples of this many pixels: the patch, or a merged group of them.
        align: how. `stretch`: the image is resampled to the next multiple above. `pad`: the view is the next multiple
            above, the image at its top left. `cut`: the view is the next multiple below (but at least one), and what
            is left over at the bottom and right is cut off, as a convolution without padding does; here the longer
            side is compared with the longer side of the encoder's size.
        min_side: both sides become at least this many pixels, even if that distorts the image.
        quarters: the image's four quarters, each reduced so, stand before it. An image with a side of one pixel has
            none.
        fill: colour of the padding.
    """

    def __init__(
        self,
        *,
        multiple: int = 14,
        align: Align = "stretch",
        min_side: int = 1,
        quarters: bool = False,
        fill: Colour | None = BLACK,
    ) -> None:
        refuse([*positive(multiple=multiple, min_side=min_side), *check_colour(fill)])
        self.multiple = multiple
        self.align: Align = align
        self.min_side = min_side
        self.quarters = quarters
        self.fill = fill

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        if self.min_side > min(size):
            raise ConfigError(Problem("min_side", f"`{self.min_side}`; the encoder takes {size[0]} x {size[1]} pixels"))
        whole = self._view(image, size)
        if not self.quarters or min(image) < 2:
            return [whole]
        return [*(self._quarter(image, size, row, column) for row in (0, 1) for column in (0, 1)), whole]

    def _view(self, image: Size, size: Size) -> View:
        height, width = (max(side, self.min_side) for side in _FIT[self.align](image, size))
        step = self.multiple
        above = (raised(height, step), raised(width, step))
        if self.align == "stretch":
            return View(above, above)
        if self.align == "pad":
            return View((height, width), (min(above[0], size[0]), min(above[1], size[1])), fill=self.fill)
        return View((height, width), (lowered(height, step), lowered(width, step)), fill=self.fill)

    def _quarter(self, image: Size, size: Size, row: int, column: int) -> View:
        """An odd row or column of pixels belongs to the later quarter."""
        top, left = row * (image[0] // 2), column * (image[1] // 2)
        part = (image[0] - top if row else image[0] // 2, image[1] - left if column else image[1] // 2)
        return replace(self._view(part, size), cell=(row, column), of=View(image, part, (-top, -left)))


class Native(Views):
    """The whole image in its own shape, at about its own number of pixels: both sides go to the nearest multiple.

    Qwen2-VL (arXiv 2409.12191: `multiple: 28`), Emu3 (2409.18869: `multiple: 8`).

    Args:
        multiple: both sides of the view are multiples of this many pixels: the patch, or a merged group of them.
        min_pixels: a view with fewer is enlarged until it has at least so many.
        max_pixels: a view with more is reduced until it has at most so many (a side never goes below one multiple);
            None is the area of the encoder's own size.
        max_aspect: an image whose longer side is more than this many times the shorter one is refused.
    """

    def __init__(
        self, *, multiple: int = 28, min_pixels: int = 56 * 56, max_pixels: int | None = None, max_aspect: float = 200.0
    ) -> None:
        problems = [*counts(math.isqrt(MAX_PIXELS), multiple=multiple), *counts(MAX_PIXELS, min_pixels=min_pixels)]
        least = max(min_pixels, multiple**2)
        if not problems and max_pixels is not None and not least <= max_pixels <= MAX_PIXELS:
            problems.append(Problem("max_pixels", f"`{max_pixels}`; allowed: {least} to {MAX_PIXELS}"))
        if not max_aspect >= 1:  # nan is neither
            problems.append(Problem("max_aspect", f"`{max_aspect}`; allowed: 1 or more"))
        refuse(problems)
        self.multiple = multiple
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels
        self.max_aspect = max_aspect

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        if max(image) / min(image) > self.max_aspect:
            raise ConfigError(
                f"an image of {image[0]} x {image[1]} pixels is {max(image) / min(image):.0f} times as long as it is "
                f"wide; allowed: {self.max_aspect:g} times"
            )
        resize = self._resize(image, size[0] * size[1] if self.max_pixels is None else self.max_pixels)
        return [View(resize, resize)]

    def _resize(self, image: Size, most: int) -> Size:
        step = self.multiple
        height, width = (round(side / step) * step for side in image)
        if height * width > most:
            scale = math.sqrt(image[0] * image[1] / most)
            return lowered(image[0] / scale, step), lowered(image[1] / scale, step)
        if height * width < self.min_pixels:
            scale = math.sqrt(self.min_pixels / (image[0] * image[1]))
            return raised(image[0] * scale, step), raised(image[1] * scale, step)
        return height, width
