"""The view policies that give one view of the whole image: squash, pad and crop."""

from typing import Literal

from vlm.errors import ConfigError, Problem, positive
from vlm.images import MAX_PIXELS
from vlm.views import Size, View, Views

from .geometry import Colour, Rounding, check_colour, check_image, inside, middle, raised, refuse


class Squash(Views):
    """The whole image at exactly the encoder's size; its aspect ratio is not kept."""

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        return [View(resize=size, size=size)]


class Pad(Views):
    """The whole image, as large as fits with its aspect ratio kept; the rest is one colour.

    LLaVA-1.5 (arXiv 2310.03744: `base: image`), DeepSeek-VL and Janus (2403.05525, 2410.13848: `min_side: 14`),
    SAM (2304.02643: `centre: false, rounding: half_up`), Aria (2410.05993: `centre: false, rounding: down,
    min_side: 336, fill: [0, 0, 0], trim: 14`, which leaves out what its mask hides).

    Args:
        centre: the image in the middle, or at the top left.
        fill: colour of the padding, 0-255 per channel; None is the encoder's mean colour, as in LLaVA, which is zero
            once normalised.
        base: where the padding is done. None: at the encoder's own size. A size in pixels (`1024`, `[1024, 1024]`):
            there, and each encoder gets that view squashed to its own size; with two encoders they see the same
            padded picture (DeepSeek-VL's hybrid). `image`: around the image's own pixels, before any resampling;
            only an image whose padded square has more than 2 ** 30 / 12 pixels, 256 MiB, is padded at the encoder's
            size after all.
        min_side: the image's shorter side becomes at least this many pixels, even if that distorts it.
        rounding: how the shorter side becomes a whole number.
        trim: leave out the padding but for what fills the last patch, of so many pixels a side, and with it the tokens
            that published models mask; for encoders that take any size.
    """

    def __init__(
        self,
        *,
        centre: bool = True,
        fill: Colour | None = None,
        base: Literal["image"] | int | tuple[int, int] | None = None,
        min_side: int = 1,
        rounding: Rounding = "nearest",
        trim: int | None = None,
    ) -> None:
        self.centre = centre
        self.fill = fill if fill is None else (fill[0], fill[1], fill[2])
        self.base = (base, base) if isinstance(base, int) else base
        self.min_side = min_side
        self.rounding: Rounding = rounding
        self.trim = trim
        sides = self.base if isinstance(self.base, tuple) else (1, 1)
        problems = [
            *check_colour(fill),
            *positive(min_side=min_side, base=min(sides), trim=1 if trim is None else trim),
        ]
        if trim is not None and (centre or base is not None):
            problems.append(
                Problem("trim", f"`{trim}` wants the image at the top left: `centre: false`, and no `base`")
            )
        if sides[0] * sides[1] > MAX_PIXELS:
            problems.append(Problem("base", f"`{list(sides)}`; allowed: at most {MAX_PIXELS} pixels in all"))
        refuse(problems)

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        padded = self._padded(image, size)
        if self.trim is not None:
            height, width = (min(raised(a, self.trim), b) for a, b in zip(padded.resize, size, strict=True))
            return [self._place(padded.resize, (height, width))]
        return [padded if padded.size == size else View(size, size, of=padded)]

    def _padded(self, image: Size, size: Size) -> View:
        if self.base == "image":
            canvas = _around(image, size)
            if canvas[0] * canvas[1] <= MAX_PIXELS:
                return self._place(image, canvas)
        base = self.base if isinstance(self.base, tuple) else size
        if self.min_side > min(base):
            raise ConfigError(Problem("min_side", f"`{self.min_side}`; the view has {base[0]} x {base[1]} pixels"))
        height, width = inside(image, base, self.rounding, tie="width")
        return self._place((max(height, self.min_side), max(width, self.min_side)), base)

    def _place(self, resize: Size, canvas: Size) -> View:
        return View(resize, canvas, middle(resize, canvas) if self.centre else (0, 0), fill=self.fill)


class Crop(Views):
    """The middle of the image: its shorter side fills the encoder's size, what is left over is cut off.

    CLIP's own preprocessing (arXiv 2103.00020). It loses the ends of a page; models trained so need it. An image so
    thin that it would be resampled to more than 2 ** 30 / 12 pixels is refused.
    """

    def plan(self, image: Size, size: Size) -> list[View]:
        check_image(image)
        resize = outside(image, size)
        if resize[0] * resize[1] > MAX_PIXELS:
            raise ConfigError(
                f"an image of {image[0]} x {image[1]} pixels is too thin to crop: with its shorter side filling "
                f"{size[0]} x {size[1]} it has {resize[0]} x {resize[1]} pixels; allowed: {MAX_PIXELS} in all"
            )
        top, left = middle(size, resize)
        return [View(resize, size, (-top, -left))]


def outside(image: Size, size: Size) -> Size:
    """The smallest size with the image's aspect ratio that covers `size`.

    The longer side is rounded down, as torchvision and Hugging Face do, so that the same pixels come out.
    """
    height, width = image
    if height * size[1] > width * size[0]:  # taller than the canvas: the width decides
        return max(size[0], height * size[1] // width), size[1]
    return size[0], max(size[1], width * size[0] // height)


def _around(image: Size, size: Size) -> Size:
    """The smallest canvas of the encoder's shape that holds the image's own pixels; for a square one, a square."""
    height, width = image
    if height * size[1] > width * size[0]:
        return height, max(width, round(height * size[1] / size[0]))
    return max(height, round(width * size[0] / size[1])), width
