"""Toy configs of every family in the table of facts, and the library's own answers for them."""

from importlib import import_module

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
VIT |= {"image_size": 32, "patch_size": 8}
BARE = {name: value for name, value in VIT.items() if name != "intermediate_size"}
CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "image_size": 64}
SWIN = {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 4], "window_size": 4, "image_size": 64}
DAVIT = {
    "embed_dim": [8, 16, 24], "depths": [1, 1, 2], "num_heads": [1, 2, 4], "num_groups": [1, 2, 4], "window_size": 4,
    "patch_size": [7, 3, 3], "patch_stride": [4, 2, 2], "patch_padding": [3, 1, 1],
    "patch_prenorm": [False, True, True],
}  # fmt: skip
HIERA_DET = {
    "hidden_size": 8, "image_size": [64, 64], "num_attention_heads": 1, "mlp_ratio": 2.0,
    "blocks_per_stage": [1, 2, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64], "window_size_per_stage": [4, 2, 2, 2],
    "num_attention_heads_per_stage": [1, 1, 2, 2], "global_attention_blocks": [4],
    "window_positional_embedding_background_size": [3, 3],
}  # fmt: skip
QWEN = {"depth": 3, "num_heads": 4, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
QWEN3 = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 24, "num_position_embeddings": 16}
QWEN3 |= {"deepstack_visual_indexes": [0, 1]}
LLAMA4 = {"intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}

CONFIGS = {
    "aimv2_vision_model": VIT,
    "blip_2_vision_model": VIT,
    "clip_vision_model": VIT,
    "convnext": CONV | {"layer_scale_init_value": 0.5},
    "convnextv2": CONV,
    "dinov2": BARE | {"mlp_ratio": 2},
    "dinov2_with_registers": BARE | {"mlp_ratio": 2},
    "dinov3_convnext": CONV | {"layer_scale_init_value": 0.5},
    "dinov3_vit": VIT | {"num_register_tokens": 2},
    "florence_vision": DAVIT,
    "hiera": {
        "embed_dim": 8,
        "image_size": [64, 64],
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratio": 2.0,
    },
    "idefics2_vision": VIT,
    "idefics3_vision": VIT,
    "instructblip_vision_model": VIT,
    "internvl_vision": VIT | {"image_size": [32, 32], "patch_size": [8, 8], "use_mean_pooling": False},
    "janus_vision_model": BARE | {"mlp_ratio": 2.0},
    "kosmos_2_vision_model": VIT,
    "llama4_vision_model": VIT | LLAMA4,
    "metaclip_2_vision_model": VIT,
    "mlcd_vision_model": VIT,
    "molmo2_vision": VIT
    | {"image_size": [32, 32], "num_key_value_heads": 4, "head_dim": 8, "num_position_embeddings": 16},
    "ovis2_vision": VIT | {"vocab_size": 40, "hidden_stride": 2},
    "pixtral": VIT,
    "qwen2_5_vl_vision": QWEN
    | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 24,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    },
    "qwen2_vl_vision": QWEN | {"embed_dim": 32, "hidden_size": 24, "mlp_ratio": 2},
    "qwen3_vl_moe_vision": QWEN | QWEN3,
    "qwen3_vl_vision": QWEN | QWEN3,
    "radio": BARE | {"mlp_ratio": 2.0, "max_img_size": 64},
    "sam2_hiera_det_model": HIERA_DET,
    "sam2_vision_model": {
        "backbone_config": {"model_type": "sam2_hiera_det_model", **HIERA_DET},
        "backbone_channel_list": [64, 32, 16, 8],
        "fpn_hidden_size": 16,
    },
    "siglip2_vision_model": {name: value for name, value in VIT.items() if name != "image_size"} | {"num_patches": 16},
    "siglip_vision_model": VIT,
    "smolvlm_vision": VIT,
    "swin": SWIN,
    "swinv2": SWIN,
}
ABSENT = {kind for kind in CONFIGS if kind not in CONFIG_MAPPING}
"""Families that an older transformers (5.17) does not know, or not by a name of their own."""
SIZES = dict.fromkeys(("convnext", "convnextv2", "dinov3_convnext", "florence_vision", "hiera", "swin", "swinv2"), 64)
SIZES |= {"sam2_hiera_det_model": 64, "sam2_vision_model": 64}
"""Side of the native size where it is not 32."""
PREFIX = {"dinov2_with_registers": 5, "dinov3_vit": 3, "radio": 10, "llama4_vision_model": 1, "internvl_vision": 1}
PREFIX |= dict.fromkeys(("blip_2_vision_model", "clip_vision_model", "dinov2", "instructblip_vision_model"), 1)
PREFIX |= dict.fromkeys(("kosmos_2_vision_model", "metaclip_2_vision_model", "mlcd_vision_model"), 1)
"""CLS and registers, by the papers and configs."""
FIXED = {"aimv2_vision_model", "llama4_vision_model", "molmo2_vision", "ovis2_vision"}
"""Families whose library takes no size but its own."""
ONLY_IN_VLMS = {
    "blip_2_vision_model": "blip_2:Blip2VisionModel",
    "florence_vision": "florence2:Florence2VisionBackbone",
    "idefics2_vision": "idefics2:Idefics2VisionTransformer",
    "instructblip_vision_model": "instructblip:InstructBlipVisionModel",
    "janus_vision_model": "janus:JanusVisionModel",
    "kosmos_2_vision_model": "kosmos2:Kosmos2VisionModel",
    "llama4_vision_model": "llama4:Llama4VisionModel",
    "metaclip_2_vision_model": "metaclip_2:MetaClip2VisionModel",
    "molmo2_vision": "molmo2:Molmo2VisionModel",
    "ovis2_vision": "ovis2:Ovis2VisionModel",
    "qwen2_5_vl_vision": "qwen2_5_vl:Qwen2_5_VisionTransformerPretrainedModel",
    "qwen2_vl_vision": "qwen2_vl:Qwen2VisionTransformerPretrainedModel",
}
"""The classes that the VLMs build."""


def library(kind, state_dict, how=None, **config):
    """The library's own tower with the weights of an encoder, made without it."""
    from transformers import AutoConfig, AutoModel

    built = AutoConfig.for_model(kind, **CONFIGS[kind] | config)
    if kind in ONLY_IN_VLMS:
        module, _, name = ONLY_IN_VLMS[kind].partition(":")
        model = getattr(import_module(f"transformers.models.{module}.modeling_{module}"), name)._from_config(built)
    else:
        model = AutoModel.from_config(built)
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state_dict.items()})
    if how:
        model.set_attn_implementation(how)
    return model.eval()


def cut(images, side):
    """[N, 3, H, W] -> [N, T, side * side * 3], patch by patch and pixel by pixel."""
    rows, columns = images.shape[2] // side, images.shape[3] // side
    return torch.stack(
        [
            torch.stack(
                [image[:, y, x] for y in range(r * side, r * side + side) for x in range(c * side, c * side + side)]
            )
            for image in images
            for r in range(rows)
            for c in range(columns)
        ]
    ).reshape(len(images), rows * columns, -1)


def outputs(kind, model, images):
    """The library's own output for images of one size, with hidden states."""
    grid = [images.shape[2] // 8, images.shape[3] // 8]
    inputs = {"pixel_values": images}
    if kind == "siglip2_vision_model":
        inputs = {"pixel_values": cut(images, 8), "spatial_shapes": torch.tensor([grid] * len(images))}
        inputs["pixel_attention_mask"] = torch.ones(len(images), grid[0] * grid[1])
    elif kind == "molmo2_vision":
        inputs = {"pixel_values": cut(images, 8)}
    elif kind == "florence_vision":
        inputs = {"hidden_states": images}
    elif kind in INTERPOLATE:
        inputs["interpolate_pos_encoding"] = True
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True)


INTERPOLATE = {"blip_2_vision_model", "clip_vision_model", "hiera", "instructblip_vision_model", "janus_vision_model"}
INTERPOLATE |= {"kosmos_2_vision_model", "metaclip_2_vision_model", "siglip_vision_model", "swin", "swinv2"}


def flat(kind, state, count):
    """A hidden state of the library as [N, prefix + T, C]."""
    if state.ndim == 4:
        return (state if kind.startswith("sam2") else state.permute(0, 2, 3, 1)).flatten(1, 2)
    if kind == "llama4_vision_model":  # CLS is the last
        return torch.cat([state[:, -1:], state[:, :-1]], dim=1)
    return state.reshape(count, -1, state.shape[-1])  # Pixtral packs all images into one
