"""Connectors without attention against the modules of transformers, every parameter perturbed."""

from collections.abc import Callable
from types import SimpleNamespace as Fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.aya_vision.modeling_aya_vision import AyaVisionMultiModalProjector
from transformers.models.cohere2_vision.modeling_cohere2_vision import Cohere2VisionMultiModalProjector
from transformers.models.deepseek_vl.modeling_deepseek_vl import DeepseekVLAligner
from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector
from transformers.models.glm4v.modeling_glm4v import Glm4vVisionPatchMerger
from transformers.models.got_ocr2.modeling_got_ocr2 import GotOcr2MultiModalProjector
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector
from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP
from transformers.models.llama4.modeling_llama4 import Llama4MultiModalProjector, Llama4VisionPixelShuffleMLP
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector
from transformers.models.paligemma.modeling_paligemma import PaliGemmaMultiModalProjector
from transformers.models.perception_lm.modeling_perception_lm import PerceptionLMMultiModalProjector
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLPatchMerger
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger
from transformers.models.vipllava.modeling_vipllava import VipLlavaMultiModalProjector

from vlm.features import Features, Grid, Shape

from .chains import Reference, Source, both, chain, same, stacked, tokens

W, OUT = 12, 16
"""Widths of the encoder and of the LLM."""
TEXT = Fields(hidden_size=OUT, rms_norm_eps=1e-4)
VISION = Fields(hidden_size=W)


def two(op: int, kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, Source]:
    """Names of an mlp of depth 2 as transformers mostly has them."""
    return both(f"ops.{op}.layers.0", "linear_1", kinds) | both(f"ops.{op}.layers.1", "linear_2", kinds)


def on_square(module: nn.Module) -> Callable[[Features], Tensor]:
    """Called with [N, H, W, C]."""
    return lambda features: module(features.tokens.unflatten(1, features.grid)).flatten(1, 2)


def plain(module: nn.Module) -> Callable[[Features], Tensor]:
    """Called with [N, T, C]."""
    return lambda features: module(features.tokens)


def on_maps(module: nn.Module) -> Callable[[Features], Tensor]:
    """Called with [N, C, H, W]."""
    return lambda features: module(features.tokens.transpose(1, 2).unflatten(-1, features.grid))


def llava(act: str, bias: bool) -> Any:
    config = Fields(
        vision_feature_layer=-2,
        vision_config=VISION,
        text_config=TEXT,
        multimodal_projector_bias=bias,
        projector_hidden_act=act,
    )
    kinds = ("weight", "bias") if bias else ("weight",)
    return LlavaMultiModalProjector(config), plain, [{"name": "mlp", "activation": act, "bias": bias}], two(0, kinds)


def vipllava() -> Any:
    config = Fields(
        vision_feature_layer=[-2, -5],
        vision_feature_layers=[-2, -5],  # its name in older releases
        vision_config=Fields(hidden_size=W // 2),
        text_config=TEXT,
        projector_layernorm_eps=1e-3,
        projector_hidden_act="gelu",
    )
    names = two(0) | both("ops.0.norm", "projector_layernorm")
    return VipLlavaMultiModalProjector(config), plain, [{"name": "mlp", "norm": "layer", "eps": 1e-3}], names


def idefics3() -> Any:
    module = Idefics3Connector(Fields(scale_factor=2, vision_config=VISION, text_config=TEXT))
    names = {"ops.1.projection.weight": "modality_projection.proj.weight"}
    return module, plain, ["space_to_depth", {"name": "linear", "bias": False}], names


def internvl() -> Any:
    config = Fields(vision_config=VISION, text_config=TEXT, downsample_ratio=0.5, projector_hidden_act="gelu")
    module = InternVLMultiModalProjector(config)

    def call(module: nn.Module) -> Callable[[Features], Tensor]:
        return lambda features: module(unshuffled(features))

    return module, call, ["space_to_depth", {"name": "mlp", "norm": "layer"}], two(1) | both("ops.1.norm", "layer_norm")


def unshuffled(features: Features) -> Tensor:
    """Blocks of 2 x 2 by plain loops: rows of a block from top to bottom, cells from left to right."""
    (height, width), x = features.grid, features.tokens
    return torch.stack(
        [
            torch.cat([x[:, (2 * row + r) * width + 2 * col + c] for r in (0, 1) for c in (0, 1)], dim=-1)
            for row in range(height // 2)
            for col in range(width // 2)
        ],
        dim=1,
    )


def mistral3() -> Any:
    config = Fields(
        vision_config=Fields(hidden_size=W, patch_size=14),
        text_config=TEXT,
        spatial_merge_size=2,
        vision_feature_layer=-1,
        multimodal_projector_bias=False,
        projector_hidden_act="gelu",
    )
    names: dict[str, Source] = {
        "ops.0.norm.weight": "norm.weight",
        "ops.2.projection.weight": "patch_merger.merging_layer.weight",
    }
    ops = [
        {"name": "norm", "kind": "rms", "eps": 1e-4},
        {"name": "space_to_depth", "order": "chw", "uneven": "drop"},
        {"name": "linear", "out_width": W, "bias": False},
        {"name": "mlp", "bias": False},
    ]

    def call(module: nn.Module) -> Callable[[Features], Tensor]:
        def run(features: Features) -> Tensor:
            size = torch.tensor([[side * 14 for side in features.grid]])
            return torch.stack([module(view, size) for view in features.tokens])

        return run

    return Mistral3MultiModalProjector(config), call, ops, names | two(3, ("weight",))


def aya() -> Any:
    config = Fields(
        downsample_factor=2,
        vision_config=VISION,
        text_config=TEXT,
        alignment_intermediate_size=20,
        adapter_layer_norm_eps=1e-4,
    )
    mlp = {"name": "mlp", "hidden": 10, "glu": "second", "activation": "silu", "norm": "layer", "eps": 1e-4}

    def call(module: nn.Module) -> Callable[[Features], Tensor]:
        return lambda features: module(features.tokens).flatten(1, 2)

    names = two(1) | both("ops.1.norm", "layernorm")
    return AyaVisionMultiModalProjector(config), call, ["space_to_depth", mlp], names


def cohere2() -> Any:
    config = Fields(downsample_factor=2, vision_config=VISION, text_config=TEXT, alignment_intermediate_size=20)
    mlp = {"name": "mlp", "hidden": 10, "glu": "second", "activation": "silu"}

    def call(module: nn.Module) -> Callable[[Features], Tensor]:
        return lambda features: module(features.tokens).flatten(1, 2)

    return Cohere2VisionMultiModalProjector(config), call, ["space_to_depth", mlp], two(1)


def deepseek() -> Any:
    names = both("ops.0.layers.0", "linear1") | both("ops.0.layers.1", "linear2")
    return DeepseekVLAligner(Fields(vision_config=VISION, text_config=TEXT)), plain, ["mlp"], names


def janus() -> Any:
    module = JanusVisionAlignerMLP(Fields(hidden_size=W, projection_dim=OUT, depth=3, hidden_act="gelu"))
    names = both("ops.0.layers.0", "fc1")
    names |= both("ops.0.layers.1", "hidden_layers.0") | both("ops.0.layers.2", "hidden_layers.1")
    return module, plain, [{"name": "mlp", "depth": 3}], names


def gemma3() -> Any:
    vision = Fields(hidden_size=W, image_size=84, patch_size=14, layer_norm_eps=1e-3)
    module = Gemma3MultiModalProjector(Fields(vision_config=vision, text_config=TEXT, mm_tokens_per_image=9))
    ops = [
        {"name": "pool", "grid": [3, 3]},
        {"name": "norm", "kind": "rms", "eps": 1e-3, "plus_one": True},
        {"name": "linear", "bias": False},
    ]
    names: dict[str, Source] = {
        "ops.1.norm.weight": "mm_soft_emb_norm.weight",
        "ops.2.projection.weight": lambda weights: weights["mm_input_projection_weight"].T,
    }
    return module, plain, ops, names


def got() -> Any:
    module = GotOcr2MultiModalProjector(Fields(vision_config=Fields(output_channels=W), text_config=TEXT))
    conv = {"name": "conv", "stride": 2, "bias": False}
    names: dict[str, Source] = {
        "ops.0.conv.weight": "conv_upsampler1.weight",
        "ops.1.conv.weight": "conv_upsampler2.weight",
    }
    names |= both("ops.2.projection", "multimodal_projector")
    return module, on_maps, [{**conv, "out_width": 2 * W}, {**conv, "out_width": OUT}, "linear"], names


def perception() -> Any:
    vision = Fields(model_args={"embed_dim": W})
    module = PerceptionLMMultiModalProjector(Fields(vision_config=vision, text_config=TEXT, projector_pooling_ratio=4))
    return module, plain, [{"name": "mlp", "out_width": OUT}, {"name": "pool", "kind": "adaptive", "factor": 4}], two(0)


def paligemma() -> Any:
    module = PaliGemmaMultiModalProjector(Fields(vision_config=Fields(hidden_size=W, projection_dim=OUT)))
    return module, plain, ["linear"], both("ops.0.projection", "linear")


class Llama4(nn.Module):
    """The adapter inside the tower and the projector behind it."""

    def __init__(self) -> None:
        super().__init__()
        vision = Fields(
            hidden_size=W,
            intermediate_size=4 * W,
            projector_input_dim=10,
            projector_output_dim=10,
            pixel_shuffle_ratio=0.5,
            projector_dropout=0.0,
            vision_output_dim=10,
        )
        self.adapter = Llama4VisionPixelShuffleMLP(vision)
        self.projector = Llama4MultiModalProjector(Fields(vision_config=vision, text_config=TEXT))

    def forward(self, features: Tensor) -> Tensor:
        return self.projector(self.adapter(features))


def llama4() -> Any:
    ops = ["space_to_depth", {"name": "mlp", "out_width": 10, "bias": False}, "activation"]
    names: dict[str, Source] = {
        "ops.1.layers.0.weight": "adapter.mlp.fc1.weight",
        "ops.1.layers.1.weight": "adapter.mlp.fc2.weight",
        "ops.3.projection.weight": "projector.linear_1.weight",
    }
    return Llama4(), plain, [*ops, {"name": "linear", "bias": False}], names


def qwen2_vl(rms: bool) -> Any:
    module = (Qwen2_5_VLPatchMerger if rms else PatchMerger)(OUT, W)
    ops = [
        {"name": "norm", "kind": "rms" if rms else "layer", "eps": 1e-6},
        "space_to_depth",
        {"name": "mlp", "hidden": 4 * W},
    ]

    def call(module: nn.Module) -> Callable[[Features], Tensor]:
        return lambda features: module(unshuffled(features).reshape(-1, W)).unflatten(0, (len(features.tokens), -1))

    names = both("ops.0.norm", "ln_q", ("weight",) if rms else ("weight", "bias"))
    names |= both("ops.2.layers.0", "mlp.0") | both("ops.2.layers.1", "mlp.2")
    return module, call, ops, names


def glm4v() -> Any:
    ops = [
        {"name": "linear", "bias": False},
        "norm",
        "activation",
        {"name": "mlp", "out_width": W, "hidden": 20, "glu": "first", "activation": "silu", "bias": False},
    ]
    names: dict[str, Source] = {
        "ops.0.projection.weight": "proj.weight",
        "ops.3.layers.0.weight": stacked("gate_proj.weight", "up_proj.weight"),
        "ops.3.layers.1.weight": "down_proj.weight",
    }
    return Glm4vVisionPatchMerger(W, 20, "silu"), plain, ops, names | both("ops.1.norm", "post_projection_norm")


CASES: dict[str, Callable[[], Any]] = {
    **{f"llava-{act}": lambda act=act: llava(act, True) for act in ("gelu", "gelu_pytorch_tanh", "gelu_new", "silu")},
    **{f"llava-{act}": lambda act=act: llava(act, False) for act in ("quick_gelu", "swish", "relu", "relu2")},
    "vipllava": vipllava,
    "idefics3": idefics3,
    "internvl": internvl,
    "mistral3": mistral3,
    "aya": aya,
    "cohere2": cohere2,
    "deepseek": deepseek,
    "janus": janus,
    "gemma3": gemma3,
    "got": got,
    "perception": perception,
    "paligemma": paligemma,
    "llama4": llama4,
    "qwen2-vl": lambda: qwen2_vl(False),
    "qwen2.5-vl": lambda: qwen2_vl(True),
    "glm4v": glm4v,
}
GRIDS: dict[str, list[Grid]] = {
    "mistral3": [(5, 7), (4, 6)],
    "perception": [(9, 9)],
    "qwen2-vl": [(4, 6)],
    "got": [(7, 5)],
}
"""Where the reference takes other than square even grids (Gemma 3's is fixed at 6 x 6)."""


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_features_equal_the_reference(name: str) -> None:
    module, call, ops, names = CASES[name]()
    reference = Reference(module)
    grids = GRIDS.get(name, [(6, 6)])
    own = reference.fill(chain(ops, Shape(grids[0][0] * grids[0][1], W, grids[0]), OUT), names)
    for seed, grid in enumerate(grids):
        features = tokens(grid, W, seed=seed)
        same(own(features).tokens, call(reference.module)(features))
