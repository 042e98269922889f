"""The view policies that give one view of the whole image: squash, pad and crop."""

from vlm.views import Size, View, Views


class Squash(Views):
    """The whole image at exactly the encoder's size; its aspect ratio is not kept."""

    def plan(self, image: Size, size: Size) -> list[View]:
        return [View(resize=size, size=size)]


class Pad(Views):
    """The whole image, as large as fits with its aspect ratio kept; the rest is one colour.

    LLaVA-1.5's policy (arXiv 2310.03744): it pads to a square and then resizes, which is the same geometry.

    Args:
        centre: the image in the middle (LLaVA), or at the top left (SAM).
        fill: colour of the padding, 0-255 per channel; None is the encoder's mean colour, as in LLaVA, which is zero
            once normalised.
    """

    def __init__(self, *, centre: bool = True, fill: tuple[int, int, int] | None = None) -> None:
        self.centre = centre
        self.fill = fill if fill is None else (fill[0], fill[1], fill[2])

    def plan(self, image: Size, size: Size) -> list[View]:
        resize = inside(image, size)
        offset = ((size[0] - resize[0]) // 2, (size[1] - resize[1]) // 2) if self.centre else (0, 0)
        return [View(resize, size, offset, fill=self.fill)]


class Crop(Views):
    """The middle of the image: its shorter side fills the encoder's size, what is left over is cut off.

    CLIP's own preprocessing (arXiv 2103.00020). It loses the ends of a page; models trained so need it.
    """

    def plan(self, image: Size, size: Size) -> list[View]:
        resize = outside(image, size)
        return [View(resize, size, (-((resize[0] - size[0]) // 2), -((resize[1] - size[1]) // 2)))]


def inside(image: Size, size: Size) -> Size:
    """The largest size with the image's aspect ratio that lies within `size`; never below one pixel."""
    height, width = image
    if height * size[1] > width * size[0]:  # taller than the canvas: the height decides
        return size[0], max(1, round(width * size[0] / height))
    return max(1, round(height * size[1] / width)), size[1]


def outside(image: Size, size: Size) -> Size:
    """The smallest size with the image's aspect ratio that covers `size`.

    The longer side is rounded down, as torchvision and Hugging Face do, so that the same pixels come out.
    """
    height, width = image
    if height * size[1] > width * size[0]:  # taller than the canvas: the width decides
        return max(size[0], height * size[1] // width), size[1]
    return size[0], max(size[1], width * size[0] // height)
