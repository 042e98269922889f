"""Any vision tower of transformers as an encoder."""

import inspect
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlm.attention import Implementation
from vlm.encoder import Encoder, Stack
from vlm.errors import ConfigError, Problem
from vlm.features import Features, Grid
from vlm.views import Size
from vlm.weights import field_names, is_planning

from .anatomy import Anatomy, Dims, anatomy, channels_last, hidden_states, without_data
from .common import as_size, lattice, layer_indices, saved_spec, select, whole_patches
from .families import FAMILIES, Family
from .hub import image_of, model_class, saved_config, vision_config, without_weights
from .weights import load_tower

_EXPLORED: dict[tuple[str, Size], Anatomy] = {}


class Tower(Encoder):
    """A vision model of transformers by its config, also one that only stands inside a VLM (Idefics, InternVL, BLIP-2).

    The library's own forward runs, up to the deepest layer that is selected; its parameters stay all there under its
    names. Where blocks, final norm and head are is found by one run without data (see `anatomy`); what no run can tell
    stands in `families.FAMILIES`. In a pyramid (ConvNeXt, Swin, Hiera) layers are stages, each with its own grid.

    Args:
        weights: hub id or local folder; of a composite model (CLIP, a VLM) the vision part is read.
        config: fields of a transformers config with their `model_type` instead: random weights at these sizes.
        layers: hidden states to yield (see `Encoder.layers`).
        prefix: `drop` puts CLS and registers into `Features.extra`, `keep` leaves them in front of the tokens.
        norm: the model's own final norm on each layer; by default where its `last_hidden_state` has it.
        head: parameters behind the final norm that no token depends on (poolers; also what the kit has as a connector,
            like Llama 4's `vision_adapter`) are kept, so that nothing is lost on the way back; False leaves them out.
        size: (height, width) in pixels, if not the weights' own; position embeddings are interpolated by the library.
        image: fields of a saved `ImageSpec`; overrides `size` and the weights' own.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    """What a config's `model_type` may be, the first being understood where a config has none; any if empty."""

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool | None = None,
        head: bool = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._config, composite = vision_config(weights, config, self.model_types)
        self._family = FAMILIES.get(self._config.model_type, Family())
        if self._family.refused:
            raise ConfigError(f"{self._name} cannot be an encoder here: {self._family.refused}")
        own = self._family.size(self._config)
        self.image = image_of(weights, own, self._family.statistics, size=size, image=image)
        made_by = model_class(self._config)
        self.model: Any = without_weights(made_by, self._config)
        self._anatomy = self._explored()
        self._channels_last = channels_last(self._anatomy.states, self.image.size)
        self._read_options(layers, norm)
        grid, self._count = self._place([self._anatomy.states[number] for number in self._take], self.image.size)
        self._grids = {self.image.size: grid}
        self._flexible = False
        self._keep = prefix == "keep"
        self.prefix = self._count if self._keep else 0
        self.head = head and bool(self._anatomy.heads)
        self._load(made_by, weights, composite=composite)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, C * layers]."""
        size = (pixels.shape[-2], pixels.shape[-1])
        grid = self.grid(size)
        found = self._states(pixels, self._take)
        tokens = [self._tokens(found[number], size) for number in self._take]
        return select(tokens, grid, count=self._count, keep=self._keep and self._count > 0)

    def set_attention(self, how: Implementation) -> None:
        if how == "eager" or self.model._supports_sdpa:  # a few families have one way only
            self.model.set_attn_implementation(how)

    def stack(self, blocks: Sequence[nn.Module]) -> Stack:
        own = tuple(self.model.get_submodule(name) for name in self._anatomy.blocks)
        norm = () if self._anatomy.norm is None else (self._anatomy.norm,)
        after = tuple(self.model.get_submodule(name) for name in (*norm, *self._anatomy.heads))
        return Stack(own, max(self._take), after)

    def grid(self, size: Size) -> Grid:
        if size not in self._grids:
            self._grids[size] = self._grid(size)
        return self._grids[size]

    def resolved(self) -> dict[str, Any]:
        config = saved_config(self._config, self.model)
        known = field_names(type(self._config))
        off = {name: value for name, value in self._family.headless.items() if name in known}
        taken_off = bool(self._anatomy.heads) and not self.head
        return {
            "config": config | off if taken_off else config,
            "layers": list(self.layers),
            "prefix": "keep" if self._keep else "drop",
            "norm": self.norm,
            "head": not taken_off or bool(off),
            "image": saved_spec(self.image),
        }

    def _explored(self) -> Anatomy:
        """Blocks, norm and head of the model, which has no data yet; each config is run once."""
        size = self.image.size
        if self._family.anatomy is not None:
            return self._family.anatomy(self._config, size)
        key = (json.dumps(self._config.to_dict(), sort_keys=True, default=str), size)
        if key not in _EXPLORED:
            _EXPLORED[key] = self._explore(size)
        return _EXPLORED[key]

    def _explore(self, size: Size) -> Anatomy:
        try:
            found = without_data(self.model, lambda: anatomy(self.model, lambda: self._call(self._blank(size))))
        except ConfigError:
            raise
        except Exception as error:  # a library's refusal is of any class
            raise self._refusal(size, error) from error
        if found is None or not {len(dims) for dims in found.states} <= {3, 4}:
            raise ConfigError(f"{self._name}: its hidden states cannot be told, so it cannot be an encoder here")
        return found

    def _read_options(self, layers: Sequence[int], norm: bool | None) -> None:
        """Which hidden states are yielded, with the final norm or without."""
        found = self._anatomy
        points = found.layers
        self._take = tuple(points[index] for index in layer_indices(layers, len(points) - 1))
        self.layers = tuple(layers)
        channels = -1 if self._channels_last else 1
        widths = [found.states[number][channels] for number in self._take]
        fits = set(widths) == {found.states[-1][channels]}
        if norm and found.norm is None:
            raise ConfigError(Problem("norm", f"{self._name} has no final norm; use `norm: false`"))
        if norm and not fits:
            raise ConfigError(Problem("norm", "the final norm is for the last stage's width; use `norm: false`"))
        self.norm = (fits and found.norm_rank > 2) if norm is None else norm
        self.width = sum(widths)

    def _load(self, made_by: Any, weights: str | None, *, composite: bool) -> None:
        """Weights into the model, random or pretrained, and its heads off if they are not wanted."""
        optional = () if self.head else self._anatomy.heads
        if not is_planning():
            names = self.model.state_dict().keys() if composite else ()
            try:
                self.model = load_tower(made_by, self._config, weights, part=names, optional=optional)
            except ConfigError as error:
                named = [name for name in self._anatomy.heads if name in str(error)]  # a classifier has no pooler
                hint = [Problem("head", f"`false` builds it without `{name}`, which no token needs") for name in named]
                raise ConfigError([*error.problems, *hint]) from error
        for name in optional:
            parent, _, own = name.rpartition(".")
            setattr(self.model.get_submodule(parent), own, nn.Identity())

    def _call(self, pixels: Tensor) -> Any:
        """The library's forward, with position embeddings interpolated where it offers that."""
        inputs = self._family.inputs(self._config, pixels)
        asked = inspect.signature(self.model.forward).parameters
        if "interpolate_pos_encoding" in asked:
            inputs["interpolate_pos_encoding"] = True  # changes nothing at the weights' own size
        needed = [name for name, item in asked.items() if item.default is item.empty and item.kind < item.VAR_KEYWORD]
        lacking = [name for name in needed if name not in inputs]
        if lacking:
            message = f"{self._name} asks for {', '.join(lacking)}, which the kit does not make"
            raise ConfigError(f"{message}; it cannot be an encoder here")
        return self.model(**inputs)

    def _states(self, pixels: Tensor, numbers: Sequence[int]) -> dict[int, Tensor]:
        """Hidden states as the model has them, the batch in front."""
        after = self._anatomy.after[max(numbers)]
        blocks = [self.model.get_submodule(name) for name in self._anatomy.blocks[: max(1, *numbers)]]
        stop = None if after is None else self.model.get_submodule(after)
        if not self._family.singly:
            states = hidden_states(partial(self._call, pixels), blocks, numbers, stop)
            return {number: _batched(state, len(pixels)) for number, state in states.items()}
        found = [hidden_states(partial(self._call, one), blocks, numbers, stop) for one in pixels.split(1)]
        return {number: torch.cat([states[number] for states in found]) for number in numbers}

    def _tokens(self, state: Tensor, size: Size) -> Tensor:
        """A hidden state -> tokens [N, E + T, C], prefix in front and T in raster order; normed if asked for."""
        norm = self.model.get_submodule(self._anatomy.norm) if self.norm else nn.Identity()
        if self._anatomy.norm_rank == 4:
            state, norm = norm(state), nn.Identity()
        if state.ndim == 4:
            state = (state if self._channels_last else state.permute(0, 2, 3, 1)).flatten(1, 2)
        elif self._family.raster is not None:
            state = self._family.raster(self._config, state, size)
        elif self._family.prefix_last:
            state = state.roll(self._count, dims=1)
        tokens: Tensor = norm(state)
        return tokens

    def _grid(self, size: Size) -> Grid:
        """The grid at a size; one that the library refuses is refused here."""
        if self._family.anatomy is not None:
            return self._place(self._family.anatomy(self._config, size).states[:1], size)[0]
        # once any size but its own has gone through a ViT, one block shows whether the next one does
        numbers = (min(1, max(self._take)),) if self._flexible else self._take
        try:
            found = without_data(self.model, lambda: self._states(self._blank(size), numbers))
        except Exception as error:  # a library's refusal is of any class
            raise self._refusal(size, error) from error
        grid, count = self._place([tuple(found[number].shape) for number in numbers], size)
        self._flexible = self._anatomy.plain
        if count != self._count:
            raise self._refusal(size, ValueError(f"{count} prefix tokens in place of {self._count}"))
        return grid

    def _place(self, states: Sequence[Dims], size: Size) -> tuple[Grid, int]:
        """The grid that hidden states of these shapes have, and their number of prefix tokens."""
        if self._anatomy.plain:
            self._check_size(size)
        if len(states[0]) == 4:
            grids = [dims[1:3] if self._channels_last else dims[2:] for dims in states]
        else:
            grids = [lattice(dims[1], size, self._patch if self._anatomy.plain else None) for dims in states]
        if len(set(grids)) > 1:
            shown = ", ".join(f"layer {layer}: {h}x{w}" for layer, (h, w) in zip(self.layers, grids, strict=True))
            raise ConfigError(Problem("layers", f"only layers of one grid can be concatenated; {shown}"))
        height, width = grids[0]
        return (height, width), 0 if len(states[0]) == 4 else states[0][1] - height * width

    def _blank(self, size: Size) -> Tensor:
        """Pixels for a run without data; two images, for batch norm in training."""
        return torch.empty(1 if self._family.singly else 2, 3, *size, dtype=next(self.model.parameters()).dtype)

    @property
    def _name(self) -> str:
        return f"a `{self._config.model_type}`"

    @property
    def _patch(self) -> Size | None:
        """Height and width of its patches; None where a config has one for each stage, or none."""
        found = vars(self._config).get("patch_size")
        return as_size(found) if isinstance(found, int) or (found and len(found) == 2) else None

    def _check_size(self, size: Size) -> None:
        if self._patch and not self._family.floors:
            group = self._family.group(self._config)
            own = self._family.size(self._config)
            whole_patches(size, (self._patch[0] * group, self._patch[1] * group), own)

    def _refusal(self, size: Size, error: Exception) -> ConfigError:
        self._check_size(size)  # the likelier reason, and the clearer one
        text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return ConfigError(Problem("size", f"{self._name} cannot take {size[0]}x{size[1]} pixels ({text})"))


def _batched(state: Tensor, count: int) -> Tensor:
    """A hidden state with the images in front, of a model that makes one sequence [N * T, C] of them."""
    if state.ndim > 2:
        return state
    tokens: Tensor = state.unflatten(0, (count, -1))  # type: ignore[no-untyped-call]
    return tokens
