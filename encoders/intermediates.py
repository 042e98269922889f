"""Encoders that read a library's uniform door to features, `forward_intermediates` (timm, open_clip)."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from vlm.attention import Implementation
from vlm.encoder import Encoder, Stack
from vlm.errors import ConfigError, Problem, unknown
from vlm.features import Features, Grid
from vlm.views import ImageSpec, Size

from .anatomy import without_data
from .common import Prefix, image_spec, layer_indices, select, whole_patches

Maps = list[tuple[Tensor, Tensor | None]]
"""Per layer a map [N, C, H, W] and its prefix tokens [N, E, C]."""


class Intermediates(Encoder):
    """Layers of any backbone, as maps [N, C, H, W] with prefix tokens aside.

    Layer i is the output of block i - 1 (of stage i - 1 in a pyramid) and -1 the last; the library does not give the
    input of block 0, so layer 0 does not exist here. Widths and grids come from the backbone itself, run once without
    data on the meta device: one formula for plain ViTs, windows, and convolutions with any padding.
    """

    _name: str
    """The library's name of the model."""

    def _setup(self, layers: Sequence[int], depth: int, prefix: Prefix, *, norm: bool, patch: int | None) -> None:
        """Called last in a subclass's `__init__`, when `image` and the backbone are there.

        Args:
            layers: as the user wrote them.
            depth: number of blocks or stages.
            prefix: what becomes of prefix tokens.
            norm: the library's final norm on the layers that it can be applied to.
            patch: pixels per token where the backbone is fixed to multiples of it; None where it takes any size.
        """
        self._take = tuple(layer - 1 for layer in layer_indices(layers, depth, first=1))
        self.layers = tuple(layers)
        self._depth = depth
        self.norm = norm
        self._patch = patch
        self._grids: dict[Size, Grid] = {}
        maps = self._probe(self.image.size)
        prefixes = maps[0][1]
        self._count = 0 if prefixes is None else prefixes.shape[1]
        self.prefix = self._count if prefix == "keep" else 0
        self.width = sum(features.shape[1] for features, _ in maps)
        self.grid(self.image.size)

    @abstractmethod
    def _maps(self, pixels: Tensor, indices: list[int]) -> Maps:
        """Maps of the given blocks or stages, in ascending order as `indices`."""

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, C * layers]."""
        maps = self._selected(pixels)
        height, width = maps[0][0].shape[-2:]
        states = [
            tokens if prefix is None else torch.cat([prefix, tokens], dim=1)  # [N, E + T, C]
            for tokens, prefix in ((features.flatten(2).transpose(1, 2), prefix) for features, prefix in maps)
        ]
        return select(states, (height, width), count=self._count, keep=self.prefix > 0)

    def set_attention(self, how: Implementation) -> None:
        """Choose the route of every timm attention that has two; all others keep their only one.

        timm declares its switch in the class (`fused_attn: Final[bool]`). open_clip's own ViT stays fused: torch's
        `nn.MultiheadAttention` has no switch, and the other route of its blocks with options (`qk_norm`) fails.
        """
        for part in self.modules():
            if any("fused_attn" in inspect.get_annotations(kind) for kind in type(part).__mro__):
                part.fused_attn = how == "sdpa"  # type: ignore[assignment]

    def stack(self, blocks: Sequence[nn.Module]) -> Stack:
        """A stage of a pyramid may be a list of blocks itself; then all of them count as running."""
        return super().stack(blocks) if len(blocks) == self._depth else Stack(tuple(blocks), len(blocks))

    def grid(self, size: Size) -> Grid:
        if size not in self._grids:
            self._grids[size] = self._one_grid(self._probe(size))
        return self._grids[size]

    def resize(self, size: Size) -> None:
        before = self.image.size
        try:
            self._resize_backbone(size)
            self._grids.clear()
            super().resize(size)
        except ConfigError:
            self._resize_backbone(before)
            raise

    @abstractmethod
    def _resize_backbone(self, size: Size) -> None:
        """Make the backbone fit for pixels of `size`, where it does not take any.

        Raises:
            ConfigError: it stays at its own size.
        """

    def _selected(self, pixels: Tensor) -> Maps:
        """Maps in the order the user gave: the library sorts them and leaves out doubles."""
        indices = sorted(set(self._take))
        found = dict(zip(indices, self._maps(pixels, indices), strict=True))
        return [found[index] for index in self._take]

    def _probe(self, size: Size) -> Maps:
        """What the backbone yields for pixels of `size`, on the meta device: shapes, no work and no memory.

        Raises:
            ConfigError: the backbone cannot take it.
        """
        if self._patch is not None:
            whole_patches(size, (self._patch, self._patch))
        try:
            return self._without_data(size)
        except ConfigError:
            raise
        except Exception as error:  # timm states its demands as assertions, and a library's own bug is of any class
            raise self._refusal(size, error) from error

    def _without_data(self, size: Size) -> Maps:
        dtype = next(self.parameters()).dtype
        # two images, for batch norm in training mode
        return without_data(self, lambda: self._selected(torch.empty(2, 3, *size, dtype=dtype)))

    def _refusal(self, size: Size, error: Exception) -> ConfigError:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        if "meta tensor" in text:
            message = f"`{self._name}` reads values of its input to tell its grid, which the kit asks for without data"
            return ConfigError(Problem("model", f"{message}; it cannot be an encoder here ({text})"))
        if self.norm and self._runs_without_norm(size):
            return ConfigError(Problem("norm", f"`{self._name}` cannot apply one here; use `norm: false` ({text})"))
        wanted = f"layers {list(self.layers)} with norm={self.norm} for {size[0]}x{size[1]} pixels"
        return ConfigError(f"the backbone `{self._name}` cannot yield {wanted} ({text})")

    def _runs_without_norm(self, size: Size) -> bool:
        self.norm = False
        try:
            self._without_data(size)
        except Exception:  # then the norm is not, or not alone, what is wrong
            return False
        finally:
            self.norm = True
        return True

    def _one_grid(self, maps: Maps) -> Grid:
        grids = [(int(features.shape[-2]), int(features.shape[-1])) for features, _ in maps]
        if len(set(grids)) > 1:
            shown = ", ".join(f"layer {layer}: {h}x{w}" for layer, (h, w) in zip(self.layers, grids, strict=True))
            raise ConfigError(Problem("layers", f"only layers of one grid can be concatenated; {shown}"))
        return grids[0]


def has_prefix(model: Any) -> bool:
    """Whether a timm model has prefix tokens to give; some of those without fail when asked for them (Eva, relpos)."""
    asked = inspect.signature(model.forward_intermediates).parameters
    return "return_prefix_tokens" in asked and model.num_prefix_tokens > 0


def described_spec(data: Mapping[str, Any], size: Size) -> ImageSpec:
    """`size` with mean, std and interpolation from timm's or open_clip's description of some weights.

    `random` there means that training drew bilinear or bicubic for each image; bicubic is taken.
    """
    interpolation = "bicubic" if data["interpolation"] == "random" else data["interpolation"]
    return image_spec({"size": size, "mean": data["mean"], "std": data["std"], "interpolation": interpolation})


def fixed_patch(model: Any) -> int | None:
    """Pixels per token of a plain timm ViT, which would cut off what does not fill a patch; None for all others."""
    cfg = model.pretrained_cfg
    steps = {info["reduction"] for info in model.feature_info}
    step = int(min(steps))
    own = cfg.get("input_size", (3, 0, 0))[1:]
    plain = len(steps) == 1 and cfg.get("fixed_input_size", False) and not any(length % step for length in own)
    return step if plain else None


def without_head(model: Any) -> Any:
    """A timm model without its classifier and pooling head; all blocks and the final norm stay."""
    model.prune_intermediate_layers(list(range(len(model.feature_info))), prune_norm=False, prune_head=True)
    return model


def split_pairs(found: Sequence[Any]) -> Maps:
    """timm gives (map, prefix) pairs from backbones that have prefix tokens and bare maps from all others."""
    return [pair if isinstance(pair, tuple) else (pair, None) for pair in found]


def unknown_model(library: str, name: str, known: Sequence[str]) -> ConfigError:
    """The error for a model's name that the library does not have: the nearest ones of its many."""
    near = get_close_matches(name, known, n=10, cutoff=0.3) or list(known[:10])
    message = f"{unknown(f'{library} model', name, near)} and {len(known) - len(near)} more"
    return ConfigError(Problem("model", message))
