"""Plain vision transformers from transformers: CLIP, SigLIP, DINOv2."""

from abc import abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from vlm.attention import Implementation
from vlm.encoder import Encoder
from vlm.features import Features, Grid
from vlm.views import Size
from vlm.weights import transformers_model

from .common import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_size,
    check_prefix,
    layer_indices,
    saved_spec,
    select,
    whole_patches,
)
from .hub import Statistics, final_spec, read_spec, saved_config, vision_config


class HubViT(Encoder):
    """What the three families share. Subclasses say where their embeddings, blocks and final norm are.

    Its own loop over the library's blocks ends at the deepest selected layer: what comes after is never computed, nor
    are the layers between kept in memory, while the parameters stay all there under the library's names.

    Args:
        weights: hub id or local folder; of a composite model (CLIP with its text tower) the vision part is read.
        config: fields of the transformers config instead: random weights at these sizes.
        layers: hidden states to yield (see `Encoder.layers`).
        prefix: `drop` puts CLS and registers into `Features.extra`, `keep` leaves them in front of the tokens.
        norm: the model's own final norm on each selected layer.
        size: (height, width) in pixels, if not the weights' own; position embeddings are interpolated by the library.
        image: fields of a saved `ImageSpec`; overrides `size` and the weights' own.
    """

    model_types: ClassVar[tuple[str, ...]]
    statistics: ClassVar[Statistics]

    def __init__(
        self,
        *,
        weights: str | None,
        config: dict[str, Any] | None,
        layers: tuple[int, ...],
        prefix: Literal["drop", "keep"],
        norm: bool,
        size: int | tuple[int, int] | None,
        image: dict[str, Any] | None,
    ) -> None:
        super().__init__()
        self._config = self._adapt(vision_config(weights, config, self.model_types))
        self._patch = as_size(self._config.patch_size)
        self._count = self._prefix_tokens()
        self._take = layer_indices(layers, self._config.num_hidden_layers)
        self.layers = tuple(layers)
        self.prefix = check_prefix(prefix, self._count)
        self.norm = norm
        self.image = final_spec(read_spec(weights, as_size(self._config.image_size), self.statistics), size, image)
        self.width = self._config.hidden_size * len(layers)
        self.grid(self.image.size)  # raises now what would else fail at the first image
        self.model = transformers_model(self._model_class(), self._config, weights)

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, C * layers]."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        hidden = self._embed(pixels)  # [N, E + T, C]
        states = {0: hidden}
        for index, block in enumerate(self._blocks()[: max(self._take)], start=1):
            hidden = self._run(block, hidden)
            if index in self._take:
                states[index] = hidden
        chosen = [self._norm()(states[index]) if self.norm else states[index] for index in self._take]
        return select(chosen, grid, count=self._count, keep=self.prefix > 0)

    def set_attention(self, how: Implementation) -> None:
        self.model.set_attn_implementation(how)

    def grid(self, size: Size) -> Grid:
        return whole_patches(size, self._patch, as_size(self._config.image_size))

    def resolved(self) -> dict[str, Any]:
        return {
            "config": saved_config(self._config, self.model),
            "layers": list(self.layers),
            "prefix": "keep" if self.prefix else "drop",
            "norm": self.norm,
            "image": saved_spec(self.image),
        }

    def _adapt(self, config: Any) -> Any:
        """The config as the encoder needs it."""
        return config

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        out: Tensor = block(hidden, None)  # no attention mask: every patch sees every patch
        return out

    @abstractmethod
    def _model_class(self) -> Any:
        """The transformers class for the config."""

    @abstractmethod
    def _prefix_tokens(self) -> int:
        """Number of CLS and register tokens in front of the patches."""

    @abstractmethod
    def _embed(self, pixels: Tensor) -> Tensor:
        """pixels -> the input of block 0, [N, E + T, C]."""

    @abstractmethod
    def _blocks(self) -> nn.ModuleList:
        """The transformer blocks in order."""

    @abstractmethod
    def _norm(self) -> nn.Module:
        """The final norm."""


class Clip(HubViT):
    """CLIP's vision tower (arXiv 2103.00020), with the options of `HubViT`.

    Defaults as in LLaVA-1.5 (arXiv 2310.03744): the last layer but one, because CLIP trains only CLS at the last, so
    its patch tokens there serve CLS alone; CLS dropped; no norm, since CLIP's `post_layernorm` was only ever trained
    on CLS.
    """

    model_types = ("clip_vision_model",)
    statistics = Statistics(CLIP_MEAN, CLIP_STD)

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-2,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = False,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            weights=weights, config=config, layers=layers, prefix=prefix, norm=norm, size=size, image=image
        )

    def _model_class(self) -> Any:
        from transformers import CLIPVisionModel

        return CLIPVisionModel

    def _prefix_tokens(self) -> int:
        return 1

    def _embed(self, pixels: Tensor) -> Tensor:
        hidden = self.model.embeddings(pixels, interpolate_pos_encoding=True)  # a no-op at the weights' own size
        out: Tensor = self.model.pre_layrnorm(hidden)
        return out

    def _blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.model.encoder.layers
        return blocks

    def _norm(self) -> nn.Module:
        norm: nn.Module = self.model.post_layernorm
        return norm


class Siglip(HubViT):
    """SigLIP's vision tower without its pooling head (arXiv 2303.15343), with the options of `HubViT`.

    Default: the last layer with the final norm, `last_hidden_state`: what PaliGemma (arXiv 2407.07726), Gemma 3 and
    DeepSeek-VL (arXiv 2403.05525) feed. LLaVA-OneVision (arXiv 2408.03326) takes the last layer with `norm: false`.
    It has no prefix tokens, so `prefix: keep` is an error.
    """

    model_types = ("siglip_vision_model",)
    statistics = Statistics(HALF, HALF)

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            weights=weights, config=config, layers=layers, prefix=prefix, norm=norm, size=size, image=image
        )

    def resolved(self) -> dict[str, Any]:
        options = super().resolved()
        options["config"].pop("vision_use_head", None)  # always off here, and no field of older transformers (5.17)
        return options

    def _adapt(self, config: Any) -> Any:
        config.vision_use_head = False  # the attention-pooling head reads the tokens, it does not change them
        return config

    def _model_class(self) -> Any:
        from transformers import SiglipVisionModel

        return SiglipVisionModel

    def _prefix_tokens(self) -> int:
        return 0

    def _embed(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.model.embeddings(pixels, interpolate_pos_encoding=True)
        return out

    def _blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.model.encoder.layers
        return blocks

    def _norm(self) -> nn.Module:
        norm: nn.Module = self.model.post_layernorm
        return norm


class Dinov2(HubViT):
    """DINOv2 (arXiv 2304.07193), also with registers (arXiv 2309.16588), with the options of `HubViT`.

    Default: patch tokens of the last layer with the final norm, as the paper reads them for dense tasks. Prismatic
    (arXiv 2402.07865) takes `layers: [-2], norm: false`.
    """

    model_types = ("dinov2", "dinov2_with_registers")
    statistics = Statistics(IMAGENET_MEAN, IMAGENET_STD)

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            weights=weights, config=config, layers=layers, prefix=prefix, norm=norm, size=size, image=image
        )

    def _model_class(self) -> Any:
        from transformers import Dinov2Model, Dinov2WithRegistersModel

        return Dinov2WithRegistersModel if self._registers() else Dinov2Model

    def _registers(self) -> bool:
        return bool(self._config.model_type == "dinov2_with_registers")

    def _prefix_tokens(self) -> int:
        return 1 + (int(self._config.num_register_tokens) if self._registers() else 0)

    def _embed(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.model.embeddings(pixels)  # interpolates by itself
        return out

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        out: Tensor = block(hidden)  # older transformers (5.17) have no mask argument here
        return out

    def _blocks(self) -> nn.ModuleList:
        blocks: nn.ModuleList = self.model.encoder.layer
        return blocks

    def _norm(self) -> nn.Module:
        norm: nn.Module = self.model.layernorm
        return norm
