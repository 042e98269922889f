"""The vision encoder: pixels -> Features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from vlm.attention import Implementation, set_attention
from vlm.errors import ConfigError, Problem
from vlm.features import Features, Grid, Shape
from vlm.views import ImageSpec, Size


@dataclass(frozen=True)
class Stack:
    """The blocks of a part, for what goes by depth."""

    blocks: tuple[nn.Module, ...]
    """All of them, in order."""
    running: int
    """How many of them run; those above learn nothing."""
    after: tuple[nn.Module, ...] = ()
    """Modules that are known to be used after the last block, wherever the part lists them."""


class Encoder(nn.Module, ABC):
    """What the rest of the kit relies on. Subclasses set the four attributes in `__init__`.

    A subclass's keyword-only `__init__` parameters are its options in a recipe.
    """

    width: int
    """C of the features it yields (the sum over the selected layers)."""
    image: ImageSpec
    """How its pixels must look."""
    layers: tuple[int, ...]
    """Which hidden states it yields, concatenated on channels: 0 is the input of block 0, i the output of block i - 1
    (so -1 is the last block's output, without any final norm unless asked for)."""
    prefix: int
    """Number of prefix tokens (CLS, registers) that stand in front of `Features.tokens`, which then lie on no grid;
    0 when they are dropped (they are still in `Features.extra`) or absent."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W], normalised by `self.image` -> Features of N views."""

    @abstractmethod
    def grid(self, size: Size) -> Grid:
        """Rows and columns of tokens for pixels of `size` = (height, width)."""

    @abstractmethod
    def resolved(self) -> dict[str, Any]:
        """The options that build this encoder again without its weights: what a saved model's config holds."""

    def resize(self, size: Size) -> None:
        """Take views of another size from now on. Encoders that do not interpolate position embeddings as they go do so
        here, which may give them new parameters.

        Raises:
            ConfigError: it cannot take the size.
        """
        if min(size) < 1:
            raise ConfigError(Problem("size", f"`{list(size)}`; allowed: 1 x 1 or larger"))
        self.grid(size)
        self.image = replace(self.image, size=size)

    def stack(self, blocks: Sequence[nn.Module]) -> Stack:
        """Its blocks, given what its lists of modules look like; those above the highest of `layers` do not run."""
        numbers = [layer if layer >= 0 else len(blocks) + 1 + layer for layer in self.layers]
        return Stack(tuple(blocks), max(numbers, default=0))

    def set_attention(self, how: Implementation) -> None:
        """Choose how attention is computed; by default in the kit's own modules, of which it is made."""
        set_attention(self, how)

    def shape(self, size: Size | None = None) -> Shape:
        """The shape of one view's features, at the encoder's own size unless told otherwise."""
        grid = self.grid(size or self.image.size)
        tokens = grid[0] * grid[1] + self.prefix
        return Shape(tokens, self.width, None if self.prefix else grid)
