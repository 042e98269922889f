"""Raw patches: no encoder at all."""

from typing import Any, Literal

from torch import Tensor

from vlm.encoder import Encoder
from vlm.errors import ConfigError, positive
from vlm.features import Features, Grid
from vlm.views import ImageSpec, Interpolation, Size

from .common import HALF, as_size, flat_patches, saved_spec, whole_patches


class Patches(Encoder):
    """Pixels cut into patches, each flattened to one token: Fuyu's input, for a linear connector. No parameters.

    Any size that patches fill goes through; the LLM sees where a token lies by the text around it alone.

    Args:
        patch: (height, width) of a patch in pixels; one number is a square.
        size: (height, width) of the image in pixels, for views that need one.
        mean: per channel, of pixels in 0-1.
        std: per channel.
        interpolation: how views resample.
        order: of the numbers in a token: `hwc` is rows of pixels with their channels (Fuyu, Molmo), `chw` is one plane
            after the other, as a convolution's weights lie.
    """

    def __init__(
        self,
        *,
        patch: int | tuple[int, int] = 30,
        size: int | tuple[int, int] = (1080, 1920),
        mean: tuple[float, float, float] = HALF,
        std: tuple[float, float, float] = HALF,
        interpolation: Interpolation = "bilinear",
        order: Literal["hwc", "chw"] = "hwc",
    ) -> None:
        super().__init__()
        self._patch = as_size(patch)
        if problems := positive(patch=min(self._patch)):
            raise ConfigError(problems)
        self._order = order
        self.width, self.layers, self.prefix = 3 * self._patch[0] * self._patch[1], (0,), 0
        self.image = ImageSpec(as_size(size), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), interpolation)
        self.grid(self.image.size)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, 3 h w]."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        tokens = flat_patches(pixels, self._patch)  # [N, T, h * w * 3]
        if self._order == "chw":
            tokens = tokens.unflatten(-1, (-1, 3)).transpose(-1, -2).flatten(-2)
        return Features(tokens, grid)

    def grid(self, size: Size) -> Grid:
        return whole_patches(size, self._patch)

    def resolved(self) -> dict[str, Any]:
        return {"patch": list(self._patch), "order": self._order, **saved_spec(self.image)}
