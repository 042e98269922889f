"""The packer: the tokens of an image's views -> one sequence an image, with learned separators where there are any."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.features import Shape
from vlm.views import Size, View


class ImagePlan:
    """How one image is shown to the model. No dataclass: Lightning's precision plugins would walk into one.

    Args:
        size: of the image itself, (height, width) in pixels.
        views: per encoder the image's views; all encoders see the same parts, each in its own size.
    """

    def __init__(self, size: Size, views: tuple[tuple[View, ...], ...]) -> None:
        self.size = size
        self.views = views

    @property
    def count(self) -> int:
        """Number of views."""
        return len(self.views[0])


@dataclass(frozen=True)
class Run:
    """Visual tokens that stand side by side in the text, and what they show; between two runs a layout may write."""

    shape: Shape
    shows: Literal["whole", "tile", "tiles", "all"]
    """A view of the whole image, one tile, all tiles in one, or all views in one."""
    cell: tuple[int, int] | None = None
    """(row, column) of one tile."""


class Packer(nn.Module, ABC):
    """Positional `__init__` parameters are given by the kit by name: `width`, the LLM's; keyword-only ones are options.

    Letters: V views of the image, t tokens of a view, T tokens of the image, C the LLM's width.
    """

    @abstractmethod
    def forward(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], image: ImagePlan) -> Tensor:
        """V tensors [t, C] and their shapes -> [T, C], run after run."""

    @abstractmethod
    def runs(self, shapes: Sequence[Shape], image: ImagePlan) -> list[Run]:
        """The runs of the image's tokens in order, T tokens in all: the same arithmetic with no tensor.

        Raises:
            ConfigError: the views' tokens cannot be packed so.
        """


def separate(shapes: Sequence[Shape], image: ImagePlan) -> list[Run]:
    """Each view a run of its own: what an image comes to without a packer.

    Raises:
        ConfigError: the views overlap, so that what they see twice would stand twice in the sequence.
    """
    if any(view.keep is not None for view in image.views[0]):
        raise ConfigError("the tiles of these views overlap, so their tokens must be put together; allowed: stitch")
    return [
        Run(shape, "whole" if view.cell is None else "tile", view.cell)
        for shape, view in zip(shapes, image.views[0], strict=True)
    ]
