"""SAM's image encoder from transformers."""

from copy import deepcopy
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlm.attention import Implementation
from vlm.encoder import Encoder
from vlm.features import Features, Grid
from vlm.views import Size

from .common import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    as_size,
    layer_indices,
    saved_spec,
    select,
    whole_patches,
)
from .hub import Statistics, image_of, model_class, saved_config, vision_config, without_weights
from .weights import load_tower

TRUNKS = {"sam_vision_model": "vision_encoder", "got_ocr2_vision": ""}
"""Config's `model_type` -> the module inside the model that holds patch embedding, blocks and neck."""


class Sam(Encoder):
    """The ViT of Segment Anything: windowed and global attention at high resolution (arXiv 2304.02643). No CLS.

    DeepSeek-VL (arXiv 2403.05525), Vary (arXiv 2312.06109) and GOT-OCR (arXiv 2409.01704) read text with it, through
    its neck: the default. DeepSeek-VL's hybrid takes the first global block too, through a neck of its own:
    `layers: [-1, 3], neck: each`.

    Args:
        weights: hub id or local folder (of the whole SAM, of its vision part, or of a VLM with one).
        config: fields of a `SamVisionConfig` instead: random weights at these sizes.
        layers: hidden states to yield (see `Encoder.layers`).
        neck: each selected layer through SAM's own convolutional neck, `output_channels` (256) wide; `each` gives all
            layers but the last a further neck of that form, which starts as a copy and is called `necks.LAYER`; False
            yields the blocks' output, `hidden_size` wide.
        size: (height, width) in pixels, if not the weights' own 1024; position embeddings are interpolated.
        image: fields of a saved `ImageSpec`; overrides `size` and the weights' own.
    """

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        neck: bool | Literal["each"] = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._config, composite = vision_config(weights, config, tuple(TRUNKS))
        self._patch = as_size(self._config.patch_size)
        depth = self._config.num_hidden_layers
        self._take = layer_indices(layers, depth)
        self.layers = tuple(layers)
        self.prefix = 0
        self.neck = neck
        own = Statistics(IMAGENET_MEAN, IMAGENET_STD, "bilinear")
        self.image = image_of(weights, as_size(self._config.image_size), own, size=size, image=image)
        self.width = (self._config.output_channels if neck else self._config.hidden_size) * len(layers)
        self.grid(self.image.size)  # raises now what would else fail at the first image
        made_by = model_class(self._config)
        names = without_weights(made_by, self._config).state_dict().keys() if composite else ()
        self.model = load_tower(made_by, self._config, weights, part=names)
        further = sorted(set(self._take) - {depth}) if neck == "each" else []
        self.necks = nn.ModuleDict({str(layer): deepcopy(self._trunk.neck) for layer in further})

    def forward(self, pixels: Tensor) -> Features:
        """pixels [N, 3, H, W] -> tokens [N, T, C * layers]. Blocks beyond the deepest selected layer do not run."""
        grid = self.grid((pixels.shape[-2], pixels.shape[-1]))
        hidden = self._embed(pixels, grid)  # channels last: [N, h, w, C]
        states = {0: hidden}
        for index, block in enumerate(self._trunk.layers[: max(self._take)], start=1):
            hidden = block(hidden)
            if index in self._take:
                states[index] = hidden
        return select([self._tokens(states[index], index) for index in self._take], grid, count=0, keep=False)

    def set_attention(self, how: Implementation) -> None:
        """Choose how attention is computed: transformers has a class for each way and takes one when it is built, so
        the blocks get new attention modules. The parameters in them stay the same objects; hooks on the old are lost.
        GOT-OCR's copy of SAM has one way only.
        """
        if not self.model._supports_sdpa:
            return
        from transformers.models.sam.modeling_sam import SAM_VISION_ATTENTION_CLASSES as CLASSES

        self.model.set_attn_implementation(how)
        for block in self._trunk.layers:
            with torch.device("meta"):  # what it holds is replaced
                attention = CLASSES[how](self.model.config, block.window_size)
            block.attn = _moved(block.attn, attention)

    def grid(self, size: Size) -> Grid:
        return whole_patches(size, self._patch)

    def resolved(self) -> dict[str, Any]:
        return {
            "config": saved_config(self._config, self.model),
            "layers": list(self.layers),
            "neck": self.neck,
            "image": saved_spec(self.image),
        }

    @property
    def _trunk(self) -> Any:
        return self.model.get_submodule(TRUNKS[self._config.model_type])

    def _embed(self, pixels: Tensor, grid: Grid) -> Tensor:
        """Patch and position embeddings, [N, h, w, C]; the library itself refuses any size but the weights' own."""
        encoder = self._trunk
        projection = encoder.patch_embed.projection
        hidden: Tensor = projection(pixels.to(projection.weight.dtype)).permute(0, 2, 3, 1)
        if self._config.use_abs_pos:
            hidden = hidden + resampled(encoder.pos_embed, grid)
        return hidden

    def _tokens(self, hidden: Tensor, layer: int) -> Tensor:
        """[N, h, w, C] -> [N, h * w, C], through its neck if asked for."""
        if not self.neck:
            return hidden.flatten(1, 2)
        own = str(layer) not in self.necks
        neck = self._trunk.neck if own else self.necks[str(layer)]
        maps: Tensor = neck(hidden)
        return maps.flatten(2).transpose(1, 2)


def _moved(source: nn.Module, target: nn.Module) -> nn.Module:
    """`target` with the layers and parameters of `source` in place of its own of the same names."""
    for name, child in source.named_children():
        target.register_module(name, child)
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    return target.train(source.training)


def resampled(positions: Tensor, grid: Grid) -> Tensor:
    """Position embeddings [1, h, w, C] at another grid: bicubic with antialiasing in float32, as timm does for SAM."""
    if positions.shape[1:3] == grid:
        return positions
    maps = positions.float().permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=grid, mode="bicubic", antialias=True)
    return maps.permute(0, 2, 3, 1).to(positions.dtype)
