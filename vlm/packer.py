"""The packer: the tokens of an image's views -> one sequence an image, with learned separators where there are any."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

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


class Packer(nn.Module, ABC):
    """Positional `__init__` parameters are given by the kit by name: `width`, the LLM's; keyword-only ones are options.

    Letters: V views of the image, t tokens of a view, T tokens of the image, C the LLM's width.
    """

    @abstractmethod
    def forward(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], image: ImagePlan) -> Tensor:
        """V tensors [t, C] and their shapes -> [T, C]."""

    @abstractmethod
    def count(self, shapes: Sequence[Shape], image: ImagePlan) -> int:
        """T, by the same arithmetic with no tensor."""
