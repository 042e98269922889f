"""Connectors with attention against the modules of transformers, every parameter perturbed, masks included."""

from types import SimpleNamespace as Fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AriaConfig,
    Blip2QFormerConfig,
    Idefics2Config,
    Idefics3VisionConfig,
    InstructBlipQFormerConfig,
)
from transformers.models.aria.modeling_aria import AriaProjector
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.deepseek_vl_hybrid.modeling_deepseek_vl_hybrid import (
    DeepseekVLHybridAligner,
    DeepseekVLSamVisionProj,
)
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.modeling_idefics2 import Idefics2Connector
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel
from transformers.models.kosmos2.modeling_kosmos2 import Kosmos2ImageToTextProjection
from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig
from transformers.models.ovis2.modeling_ovis2 import Ovis2VisionModel, Ovis2VisualEmbeddingTable

from vlm.connectors.merge import ChannelMerge
from vlm.features import Features, Shape

from .chains import Reference, Source, both, chain, same, stacked, third, tokens

W, OUT = 16, 24
SHAPE = Shape(12, W, (3, 4))


def masked(features: Features) -> Features:
    """The last tokens of the second view are not real."""
    mask = torch.ones(features.tokens.shape[:2], dtype=torch.bool)
    mask[1, 7:] = False
    return features.with_tokens(features.tokens, mask=mask)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_idefics2(attention: str) -> None:
    """SwiGLU to the text's width, then a perceiver with RMS norms and shared key heads; padding is not seen."""
    config = Idefics2Config(
        vision_config={"hidden_size": W, "num_attention_heads": 2, "num_hidden_layers": 1},
        text_config={"model_type": "mistral", "hidden_size": OUT, "intermediate_size": 20, "rms_norm_eps": 1e-4},
        perceiver_config={
            "hidden_size": OUT,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-4,
        },
    )
    config.perceiver_config._attn_implementation = attention
    reference = Reference(Idefics2Connector(config))
    ops = [
        {"name": "mlp", "out_width": OUT, "hidden": 20, "glu": "first", "activation": "silu", "bias": False},
        {
            "name": "resampler",
            "latents": 5,
            "depth": 2,
            "mutual": True,
            "positions": "none",
            "attention": {"heads": 4, "kv_heads": 2, "head_width": 8},
            "norm": {"kind": "rms", "eps": 1e-4},
            "mlp": {"activation": "silu", "glu": "first", "bias": False},
        },
    ]
    down, old = "modality_projection", "perceiver_resampler"
    names: dict[str, Source] = {
        "ops.0.layers.0.weight": stacked(f"{down}.gate_proj.weight", f"{down}.up_proj.weight"),
        "ops.0.layers.1.weight": f"{down}.down_proj.weight",
        "ops.1.latents": f"{old}.latents",
        "ops.1.norm.weight": f"{old}.norm.weight",
    }
    for number in range(2):
        block, layer = f"ops.1.blocks.{number}", f"{old}.layers.{number}"
        names |= {
            f"{block}.norm_tokens.weight": f"{layer}.input_context_norm.weight",
            f"{block}.norm_latents.weight": f"{layer}.input_latents_norm.weight",
            f"{block}.attention.q.weight": f"{layer}.self_attn.q_proj.weight",
            f"{block}.attention.k.weight": f"{layer}.self_attn.k_proj.weight",
            f"{block}.attention.v.weight": f"{layer}.self_attn.v_proj.weight",
            f"{block}.attention.out.weight": f"{layer}.self_attn.o_proj.weight",
            f"{block}.mlp.norm.weight": f"{layer}.post_attention_layernorm.weight",
            f"{block}.mlp.up.weight": stacked(f"{layer}.mlp.gate_proj.weight", f"{layer}.mlp.up_proj.weight"),
            f"{block}.mlp.down.weight": f"{layer}.mlp.down_proj.weight",
        }
    own = reference.fill(chain(ops, SHAPE, OUT), names)
    features = masked(tokens((3, 4), W))
    same(own(features).tokens, reference.module(features.tokens, features.mask))


@pytest.mark.parametrize("qk_norm", [False, True])
@torch.no_grad()
def test_flamingo_perceiver_of_idefics(qk_norm: bool) -> None:
    config = Fields(perceiver_config=Fields(qk_layer_norms_perceiver=qk_norm), vision_config=Fields(embed_dim=W))
    reference = Reference(IdeficsPerceiverResampler(config, W, depth=2, n_heads=3, head_dim=5, n_latents=6))
    ops = [
        {
            "name": "resampler",
            "latents": 6,
            "depth": 2,
            "mutual": True,
            "positions": "none",
            "attention": {"heads": 3, "head_width": 5, "qk_norm": "layer" if qk_norm else "none"},
            "norm": {"eps": 1e-5},
            "mlp": {"activation": "relu", "bias": False},
        }
    ]
    names: dict[str, Source] = {"ops.0.latents": "latents", **both("ops.0.norm", "layer_norm")}
    for number in range(2):
        block, layer = f"ops.0.blocks.{number}", f"blocks.{number}.0"
        names |= both(f"{block}.norm_tokens", f"{layer}.context_layer_norm")
        names |= both(f"{block}.norm_latents", f"{layer}.latents_layer_norm")
        names |= {f"{block}.attention.{one}.weight": f"{layer}.{one}_proj.weight" for one in "qkv"}
        names |= {f"{block}.attention.out.weight": f"{layer}.output_proj.weight"}
        if qk_norm:
            names |= both(f"{block}.attention.norm_q", f"{layer}.q_layer_norm")
            names |= both(f"{block}.attention.norm_k", f"{layer}.k_layer_norm")
        names |= both(f"{block}.mlp.norm", f"blocks.{number}.1.ln")
        names |= {f"{block}.mlp.up.weight": f"blocks.{number}.1.fc.weight"}
        names |= {f"{block}.mlp.down.weight": f"blocks.{number}.1.c_proj.weight"}
    own = reference.fill(chain(ops, SHAPE, W), names)
    features = tokens((3, 4), W)
    same(own(features).tokens, reference.module(features.tokens))


@torch.no_grad()
def test_aria() -> None:
    """The number of queries follows from the number of patches; each projection is two; nothing is added back."""
    config = AriaConfig(
        vision_config=Idefics3VisionConfig(hidden_size=W, num_attention_heads=2, num_hidden_layers=1),
        text_config={"model_type": "aria_text", "hidden_size": OUT, "num_attention_heads": 2},
        projector_patch_to_query_dict={12: 3, 6: 2},
    )
    reference = Reference(AriaProjector(config))
    ops = [
        {
            "name": "resampler",
            "latents": {12: 3, 6: 2},
            "positions": "none",
            "residual": False,
            "attention": {"heads": 2, "bias": True, "double": True},
            "norm": {"eps": 1e-5},
        },
        {"name": "mlp", "activation": "gelu_new", "bias": False},
    ]
    block, old = "ops.0.blocks.0", "cross_attn"
    names: dict[str, Source] = {"ops.0.latents": "query"}
    names |= both(f"{block}.norm_latents", f"{old}.layer_norm") | both(f"{block}.norm_tokens", f"{old}.layer_norm_kv")
    for number, one in enumerate("qkv"):
        names[f"{block}.attention.{one}.0.weight"] = f"{old}.{one}_proj.weight"
        for kind in ("weight", "bias"):
            names[f"{block}.attention.{one}.1.{kind}"] = third(f"{old}.multihead_attn.in_proj_{kind}", number)
    names |= both(f"{block}.attention.out.0", f"{old}.multihead_attn.out_proj")
    names |= both(f"{block}.attention.out.1", f"{old}.linear") | both("ops.0.norm", "layer_norm")
    names |= {"ops.1.layers.0.weight": "feed_forward.linear_in.weight"}
    names |= {"ops.1.layers.1.weight": "feed_forward.linear_out.weight"}
    own = reference.fill(chain(ops, SHAPE, OUT), names)
    few = tokens((2, 3), W)
    same(own(few).tokens, reference.module(few.tokens))
    features = masked(tokens((3, 4), W))
    same(own(features).tokens, reference.module(features.tokens, ~features.mask))


@torch.no_grad()
def test_kosmos2() -> None:
    text = Fields(embed_dim=OUT, attention_heads=3, attention_dropout=0.0, _attn_implementation="eager")
    config = Fields(vision_config=Fields(hidden_size=W), text_config=text, latent_query_num=5)
    reference = Reference(Kosmos2ImageToTextProjection(config))
    ops = [
        {"name": "linear", "out_width": OUT},
        {
            "name": "resampler",
            "latents": 5,
            "mutual": True,
            "residual": False,
            "positions": "none",
            "attention": {"heads": 3, "bias": True},
            "norm": {"kind": "none"},
        },
    ]
    names: dict[str, Source] = {"ops.1.latents": "latent_query", **both("ops.0.projection", "dense")}
    for one in ("q", "k", "v", "out"):
        names |= both(f"ops.1.blocks.0.attention.{one}", f"x_attn.{one}_proj")
    own = reference.fill(chain(ops, SHAPE, OUT), names)
    features = tokens((3, 4), W)
    same(own(features).tokens, reference.module(features.tokens)[0])


SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "encoder_hidden_size": W,
    "cross_attention_frequency": 2,
    "vocab_size": 11,
    "max_position_embeddings": 8,
}
QFORMER = {"name": "qformer", "latents": 5, "depth": 3, "width": 24, "heads": 4, "mlp_ratio": 20 / 24}


class WithProjection(nn.Module):
    """A Q-Former with the queries and the projection that its model owns."""

    def __init__(self, qformer: nn.Module) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.zeros(1, 5, 24))
        self.qformer = qformer
        self.language_projection = nn.Linear(24, OUT)

    def forward(self, image: Tensor, **options: Any) -> Tensor:
        queries = self.query_tokens.expand(len(image), -1, -1)
        states = self.qformer(query_embeds=queries, encoder_hidden_states=image, **options)[0]
        return self.language_projection(states[:, :5])


def qformer_names(text: bool) -> dict[str, Source]:
    names: dict[str, Source] = {"ops.0.latents": lambda weights: weights["query_tokens"][0]}
    names |= both("ops.0.projection", "language_projection")
    for number in range(3):
        own, other = f"ops.0.layers.{number}", f"qformer.encoder.layer.{number}"
        pairs = {"attention": "attention", "image_attention": "crossattention"}
        norms = {"attention": "norm_attended", "image_attention": "norm_image"}
        for mine, theirs in pairs.items():
            if mine == "attention" or number % 2 == 0:
                for short, word in (("q", "query"), ("k", "key"), ("v", "value")):
                    names |= both(f"{own}.{mine}.{short}", f"{other}.{theirs}.attention.{word}")
                names |= both(f"{own}.{mine}.out", f"{other}.{theirs}.output.dense")
                names |= both(f"{own}.{norms[mine]}", f"{other}.{theirs}.output.LayerNorm")
        parts = [("mlp", "norm_out", "_query")] + ([("text_mlp", "text_norm_out", "")] if text and number < 2 else [])
        for mlp, norm, tail in parts:
            names |= both(f"{own}.{mlp}.up", f"{other}.intermediate{tail}.dense")
            names |= both(f"{own}.{mlp}.down", f"{other}.output{tail}.dense")
            names |= both(f"{own}.{norm}", f"{other}.output{tail}.LayerNorm")
    return names


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_blip2_qformer(attention: str) -> None:
    config = Blip2QFormerConfig(**SIZES, attn_implementation=attention)
    reference = Reference(WithProjection(Blip2QFormerModel(config)))
    names = qformer_names(text=False) | both("ops.0.norm", "qformer.layernorm")
    own = reference.fill(chain([QFORMER], SHAPE, OUT), names)
    features = tokens((3, 4), W)
    same(own(features).tokens, reference.module(features.tokens))
    features = masked(features)
    same(own(features).tokens, reference.module(features.tokens, encoder_attention_mask=features.mask))


@torch.no_grad()
def test_instructblip_qformer() -> None:
    """The question takes part in self-attention; what the last layer makes of its words leads nowhere."""
    config = InstructBlipQFormerConfig(**SIZES, pad_token_id=0)
    last = "qformer.encoder.layer.2"
    dead = [*both("", f"{last}.intermediate.dense").values(), *both("", f"{last}.output.dense").values()]
    dead += [*both("", f"{last}.output.LayerNorm").values()]
    reference = Reference(WithProjection(InstructBlipQFormerModel(config)), unused=[str(name) for name in dead])
    names = qformer_names(text=True) | both("ops.0.norm", "qformer.embeddings.layernorm")
    names |= {"ops.0.words.weight": "qformer.embeddings.word_embeddings.weight"}
    names |= {"ops.0.places.weight": "qformer.embeddings.position_embeddings.weight"}
    text = {"tokenizer": "bytes", "vocabulary": 11, "length": 8}
    own = reference.fill(chain([{**QFORMER, "text": text}], SHAPE, OUT), names)
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, -1, -1]])
    features = masked(tokens((3, 4), W))
    features = features.with_tokens(features.tokens, question=ids)
    wanted = reference.module(
        features.tokens,
        input_ids=ids.clamp(min=0),
        attention_mask=torch.cat([torch.ones(2, 5), ids >= 0], dim=1).long(),
        encoder_attention_mask=features.mask,
    )
    same(own(features).tokens, wanted)
    other = features.with_tokens(features.tokens, question=torch.tensor([[3, 4, 5, 9], [7, 8, -1, -1]]))
    change = (own(other).tokens - own(features).tokens).abs().amax((1, 2))
    assert change[0] > 1e-3, "the question is not read"
    assert change[1] == 0, "padding or another sample's question is read"


class HighResolution(nn.Module):
    """DeepSeek-VL's hybrid: two states of the fine encoder, each through the same convolutions, the second weighted."""

    def __init__(self) -> None:
        super().__init__()
        fine, text = Fields(output_channels=6), Fields(hidden_size=OUT)
        self.proj = DeepseekVLSamVisionProj(fine, output_size=4)
        self.alpha = nn.Parameter(torch.zeros(1))
        self.aligner = DeepseekVLHybridAligner(
            Fields(vision_config=Fields(hidden_size=W), high_res_vision_config=fine, text_config=text)
        )

    def forward(self, coarse: Tensor, last: Tensor, early: Tensor) -> Tensor:
        mixed = self.proj(last) + self.proj(early) * self.alpha
        return self.aligner(coarse, mixed.flatten(2).transpose(1, 2))


@torch.no_grad()
def test_deepseek_hybrid() -> None:
    """Ops before the merge: the layers are mixed first, which is the same since resizing and convolution are linear."""
    reference = Reference(HighResolution())
    conv = {"name": "conv", "stride": 2, "bias": False}
    fine_ops = ["layer_mix", {"name": "resize", "grid": [16, 16]}, {**conv, "out_width": 12}, {**conv, "out_width": 24}]
    fine = chain([*fine_ops, {"name": "linear", "out_width": OUT // 2}], Shape(49, 12, (7, 7)), OUT)
    coarse = chain([{"name": "linear", "out_width": OUT // 2}], Shape(16, W, (4, 4)), OUT)
    merge = ChannelMerge([Shape(16, OUT // 2, (4, 4))] * 2)
    rest = chain(["activation", "linear"], Shape(16, OUT, (4, 4)), OUT)
    names: dict[str, Source] = {
        "0.ops.0.weights": "alpha",
        "0.ops.2.conv.weight": "proj.conv1.weight",
        "0.ops.3.conv.weight": "proj.conv2.weight",
    }
    names |= both("0.ops.4.projection", "aligner.high_res_vision_proj")
    names |= both("1.ops.0.projection", "aligner.vision_proj") | both("3.ops.1.projection", "aligner.proj")
    reference.fill(nn.ModuleList([fine, coarse, merge, rest]), names)
    last, early, low = tokens((7, 7), 6), tokens((7, 7), 6, seed=1), tokens((4, 4), W, seed=2)
    both_layers = last.with_tokens(torch.cat([last.tokens, early.tokens], dim=-1))
    maps = [one.tokens.transpose(1, 2).unflatten(-1, (7, 7)) for one in (last, early)]
    same(rest(merge([fine(both_layers), coarse(low)])).tokens, reference.module(low.tokens, *maps))


class Tower(nn.Module):
    """Yields what it is given in place of a tower's last hidden state."""

    def forward(self, features: Tensor, **options: Any) -> tuple[Tensor]:
        return (features,)


class Ovis(nn.Module):
    """Ovis2's own blocks of 3 x 3 and head, and its table, of which five rows are indicators.

    Its padding of other grids is not looked at: transformers pads the batch there in place of the rows.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        sizes = {"hidden_size": W, "hidden_stride": 3, "vocab_size": 15, "num_visual_indicator_tokens": 5}
        sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        self.tower = Ovis2VisionModel(Ovis2VisionConfig(**sizes, tokenize_function=kind))
        self.tower.transformer = Tower()
        self.table = Ovis2VisualEmbeddingTable(15, OUT)

    def forward(self, features: Tensor) -> Tensor:
        found = self.tower(features).pooler_output
        return self.table(torch.cat([found, torch.zeros(*found.shape[:2], 5)], dim=2))


@pytest.mark.parametrize(("kind", "theirs"), [("softmax", "softmax"), ("argmax", "st_argmax")])
@torch.no_grad()
def test_ovis2(kind: str, theirs: str) -> None:
    reference = Reference(Ovis(theirs))
    ops = [
        {"name": "space_to_depth", "factor": 3},
        {"name": "soft_vocabulary", "size": 10, "kind": kind},
    ]
    names: dict[str, Source] = {
        "ops.1.head.weight": "tower.head_linear.weight",
        "ops.1.table": lambda weights: weights["table.weight"][:10],
        **both("ops.1.norm", "tower.head_norm"),
    }
    own = reference.fill(chain(ops, Shape(36, W, (6, 6)), OUT), names)
    features = tokens((6, 6), W)
    same(own(features).tokens, reference.module(features.tokens))


@torch.no_grad()
def test_molmo2() -> None:
    """Blocks of 2 x 2 of an odd grid; the reference takes indices, -1 where there is no patch."""
    molmo2 = pytest.importorskip("transformers.models.molmo2", reason="this transformers has no Molmo2")
    from transformers.models.molmo2.modeling_molmo2 import Molmo2Adapter

    config = molmo2.Molmo2AdapterConfig(
        vision_feature_layer=[1, 0],
        hidden_size=W // 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=20,
        text_hidden_size=OUT,
    )
    module = Molmo2Adapter(config)
    reference = Reference(module)
    bias, mlp_bias = module.image_pooling_2d.q_proj.bias is not None, module.image_projector.gate_proj.bias is not None
    assert not mlp_bias
    ops = [
        {
            "name": "attention_pool",
            "out_width": W // 2,
            "heads": 4,
            "kv_heads": 2,
            "head_width": 6,
            "bias": bias,
            "uneven": "pad",
        },
        {"name": "mlp", "hidden": 20, "glu": "first", "activation": "silu", "bias": False},
    ]
    kinds = ("weight", "bias") if bias else ("weight",)
    names: dict[str, Source] = {
        "ops.1.layers.0.weight": stacked("image_projector.gate_proj.weight", "image_projector.up_proj.weight"),
        "ops.1.layers.1.weight": "image_projector.down_proj.weight",
    }
    for own, other in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        names |= both(f"ops.0.attention.{own}", f"image_pooling_2d.{other}", kinds)
    kit = reference.fill(chain(ops, Shape(15, W, (3, 5)), OUT), names)
    features = tokens((3, 5), W)
    index = torch.full((2, 4, 6), -1)
    index[:, :3, :5] = torch.arange(30).reshape(2, 3, 5)
    blocks = index.reshape(2, 2, 2, 3, 2).transpose(2, 3).reshape(-1, 4)
    same(kit(features).tokens.flatten(0, 1), module(features.tokens, blocks).last_hidden_state)
