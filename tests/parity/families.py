"""The references: every architecture of transformers that the kit imports, at toy size, every parameter perturbed.

For each family: a config, and how the pixels of the kit's batch are given to the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.conftest import LLAMA, SIGLIP, perturb
from vlm.sample import Batch

SIZES = {"vocab_size": 270, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**LLAMA, **SIZES, "num_hidden_layers": 2}
IMAGE = 5
"""The image token; the embedded tokenizer's placeholder."""
CLIP = {**SIGLIP, "model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 16}
HEADLESS = {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False}


def text(model_type: str, **changes: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": model_type, **changes}


@dataclass(frozen=True)
class Family:
    """One reference."""

    config: dict[str, Any]
    inputs: Callable[[Any, Batch], dict[str, Any]]
    """(reference, the kit's batch) -> its keywords for the pixels."""
    preprocessor: dict[str, Any]
    """What stands in its preprocessor's file, where it matters for the views."""
    ids: Callable[[Batch], Tensor] = lambda batch: batch.input_ids.masked_fill(batch.owner >= 0, IMAGE)
    attentions: tuple[str, ...] = ("eager", "sdpa")
    """What the reference has."""
    images: tuple[tuple[int, int], ...] = ((48, 40), (30, 61), (64, 32))
    """(width, height) of the test's images."""


def reference(name: str, attention: str = "eager") -> Any:
    """The transformers model with every parameter moved away from its initial value."""
    family = FAMILIES[name]
    config = AutoConfig.for_model(**family.config)
    model_class = AutoModelForImageTextToText._model_mapping[type(config)]
    return perturb(model_class._from_config(config, attn_implementation=attention)).eval()


def views(batch: Batch, encoder: int = 0) -> list[Tensor]:
    """The batch's views in order, [3, H, W] each."""
    found: dict[int, Tensor] = {}
    for group in batch.groups:
        found |= zip(group.index.tolist(), group.pixels[encoder], strict=True)
    return [found[number] for number in sorted(found)]


def by_image(batch: Batch) -> list[list[Tensor]]:
    """The views of each image."""
    todo = iter(views(batch))
    return [[next(todo) for _ in range(image.count)] for image in batch.images]


def flat(_: Any, batch: Batch) -> dict[str, Any]:
    """All views in one tensor [N, 3, H, W]."""
    return {"pixel_values": torch.stack(views(batch))}


def tiled(_: Any, batch: Batch) -> dict[str, Any]:
    """Per image its views, zeros behind, and the images' sizes; several images of a sample are not tiled."""
    images = [torch.stack(own) for own in by_image(batch)]
    most = max(len(image) for image in images)
    pixels = torch.stack([torch.cat([image, image.new_zeros(most - len(image), *image.shape[1:])]) for image in images])
    return {"pixel_values": pixels, "image_sizes": torch.tensor([image.size for image in batch.images])}


def onevision(model: Any, batch: Batch) -> dict[str, Any]:
    counts = torch.bincount(batch.rows, minlength=len(batch))
    return {**tiled(model, batch), "batch_num_images": counts[counts > 0]}


def padded(_: Any, batch: Batch) -> dict[str, Any]:
    """Per sample its views, each with zeros to the right and below and a mask of what is real (Idefics)."""
    rows: list[list[Tensor]] = [[] for _ in range(len(batch))]
    for row, own in zip(batch.rows.tolist(), by_image(batch), strict=True):
        rows[row] += own
    most = max(len(row) for row in rows)
    height, width = (max(view.shape[side] for row in rows for view in row) for side in (1, 2))
    pixels, mask = torch.zeros(len(rows), most, 3, height, width), torch.zeros(len(rows), most, height, width)
    for number, row in enumerate(rows):
        for place, view in enumerate(row):
            pixels[number, place, :, : view.shape[1], : view.shape[2]] = view
            mask[number, place, : view.shape[1], : view.shape[2]] = 1
    return {"pixel_values": pixels, "pixel_attention_mask": mask.bool()}


def masked(_: Any, batch: Batch) -> dict[str, Any]:
    """Views one by one, padded with black to a square, each with a mask of the pixels that show the image (Aria)."""
    side = ARIA["max_image_size"]
    black = -torch.tensor(ARIA["image_mean"]) / torch.tensor(ARIA["image_std"])
    found, planned = views(batch), [image.views[0][0] for image in batch.images]
    pixels = black[None, :, None, None].repeat(len(found), 1, side, side)
    mask = torch.zeros(len(found), side, side, dtype=torch.bool)
    for number, (view, plan) in enumerate(zip(found, planned, strict=True)):
        pixels[number, :, : view.shape[1], : view.shape[2]] = view
        mask[number, : plan.resize[0], : plan.resize[1]] = True
    return {"pixel_values": pixels, "pixel_mask": mask}


def asked(model: Any, batch: Batch) -> dict[str, Any]:
    """InstructBLIP: the question's ids beside each image."""
    (group,) = batch.groups
    assert group.question is not None
    ids, mask = group.question.clamp(min=0), (group.question >= 0).long()
    return {**flat(model, batch), "qformer_input_ids": ids, "qformer_attention_mask": mask}


def two_sizes(_: Any, batch: Batch) -> dict[str, Any]:
    """DeepSeek-VL's hybrid: the kit has SAM first."""
    return {"high_res_pixel_values": torch.stack(views(batch, 0)), "pixel_values": torch.stack(views(batch, 1))}


def patches(model: Any, batch: Batch) -> dict[str, Any]:
    """Fuyu: all patches of a batch, a row each, pixels of a patch in the order (h, w, c)."""
    side = model.config.patch_size
    rows = []
    for view in views(batch):
        cut = view.unfold(1, side, side).unfold(2, side, side)  # [3, H, W, s, s]
        rows.append(cut.permute(1, 2, 3, 4, 0).flatten(0, 1).flatten(1))
    return {"pixel_values": torch.cat(rows)[None]}


def sized(_: Any, batch: Batch) -> dict[str, Any]:
    """Views padded to the largest, and their sizes (Pixtral)."""
    found = views(batch)
    height, width = (max(view.shape[side] for view in found) for side in (1, 2))
    pixels = torch.zeros(len(found), 3, height, width)
    for number, view in enumerate(found):
        pixels[number, :, : view.shape[1], : view.shape[2]] = view
    return {"pixel_values": pixels, "image_sizes": torch.tensor([view.shape[1:] for view in found])}


def indicators(batch: Batch) -> Tensor:
    """Ovis2: the first and last token of an image, and those around its views, are tokens of their own."""
    ids = batch.input_ids.masked_fill(batch.owner >= 0, IMAGE)
    for number, image in enumerate(batch.images):
        where = (batch.owner == number).nonzero()
        start, grid, column, row, end = OVIS_INDICATORS
        tiles = [view.cell for view in image.views[0] if view.cell is not None]
        per_view = (len(where) - 3 - max(0, len(tiles) - 1)) // image.count
        marks = [start, *[IMAGE] * per_view, grid]
        for cell, following in zip(tiles, [*tiles[1:], None], strict=True):
            marks += [IMAGE] * per_view
            if following is not None:
                marks.append(column if following[0] == cell[0] else row)
        marks.append(end)
        for (sample, position), mark in zip(where.tolist(), marks, strict=True):
            ids[sample, position] = mark
    return ids


ARIA: dict[str, Any] = {
    "max_image_size": 64,
    "min_image_size": 24,
    "image_mean": [0.5, 0.4, 0.6],
    "image_std": [0.5, 0.3, 0.2],
}
PIXTRAL = {**SIGLIP, "model_type": "pixtral", "image_size": 64, "head_dim": 8}
SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "output_channels": 8,
    "mlp_dim": 48,
    "window_size": 3,
    "global_attn_indexes": [0, 2],
}
OVIS_INDICATORS = [261, 262, 263, 264, 265]
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]

FAMILIES: dict[str, Family] = {
    "llava-clip": Family(
        {"model_type": "llava", "vision_config": CLIP, "text_config": TEXT, "image_token_index": IMAGE}, flat, {}
    ),
    "llava-siglip": Family(
        {
            "model_type": "llava",
            "vision_config": HEADLESS,
            "text_config": text("qwen2", tie_word_embeddings=True),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_token_index": IMAGE,
        },
        flat,
        {},
    ),
    "llava-next": Family(
        {
            "model_type": "llava_next",
            "vision_config": CLIP,
            "text_config": text("mistral"),
            "image_grid_pinpoints": PINPOINTS,
            "image_token_index": IMAGE,
        },
        tiled,
        {"image_grid_pinpoints": PINPOINTS},
    ),
    "llava-onevision": Family(
        {
            "model_type": "llava_onevision",
            "vision_config": HEADLESS,
            "text_config": text("qwen2"),
            "image_grid_pinpoints": [[32 * row, 32 * column] for row in range(1, 5) for column in range(1, 5)],
            "vision_aspect_ratio": "anyres_max_3",
            "image_token_index": IMAGE,
        },
        onevision,
        {"image_grid_pinpoints": [[32 * row, 32 * column] for row in range(1, 5) for column in range(1, 5)]},
        images=((150, 118), (30, 61), (48, 40)),  # one image alone is tiled, and this one is shrunk to the most
    ),
    "vipllava": Family(
        {
            "model_type": "vipllava",
            "vision_config": CLIP,
            "text_config": TEXT,
            "vision_feature_layer": [-2, -3, 1],
            "vision_feature_layers": [-2, -3, 1],  # its name in older releases
            "image_token_index": IMAGE,
        },
        flat,
        {},
    ),
    "idefics2": Family(
        {
            "model_type": "idefics2",
            "vision_config": {**SIGLIP, "model_type": "idefics2_vision", "image_size": 64},
            "text_config": text("mistral"),
            "perceiver_config": {
                "model_type": "idefics2_perceiver",
                "hidden_size": 32,
                "resampler_n_latents": 3,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 8,
                "num_key_value_heads": 2,
            },
            "image_token_id": IMAGE,
        },
        padded,
        {"size": {"shortest_edge": 24, "longest_edge": 60}, "do_image_splitting": True},
    ),
    "idefics3": Family(
        {
            "model_type": "idefics3",
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision"},
            "text_config": TEXT,
            "scale_factor": 2,
            "image_token_id": IMAGE,
        },
        padded,
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": True},
    ),
    "smolvlm": Family(
        {
            "model_type": "smolvlm",
            "vision_config": {**SIGLIP, "model_type": "smolvlm_vision"},
            "text_config": text("llama", tie_word_embeddings=True),
            "tie_word_embeddings": True,
            "scale_factor": 4,
            "image_token_id": IMAGE,
        },
        padded,
        {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": True},
    ),
    "deepseek-vl": Family(
        {
            "model_type": "deepseek_vl",
            "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
            "text_config": TEXT,
            "tie_word_embeddings": True,
            "image_token_id": IMAGE,
        },
        flat,
        {},
    ),
    "deepseek-vl-hybrid": Family(
        {
            "model_type": "deepseek_vl_hybrid",
            "vision_config": {**SIGLIP, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
            "high_res_vision_config": {**SAM, "model_type": "sam_vision_model"},
            "text_config": TEXT,
            "tie_word_embeddings": False,
            "image_token_id": IMAGE,
        },
        two_sizes,
        {"high_res_size": {"height": 64, "width": 64}},
    ),
    "janus": Family(
        {
            "model_type": "janus",
            "vision_config": {**SIGLIP, "model_type": "janus_vision_model", "projection_dim": 32, "mlp_ratio": 1.5},
            "text_config": TEXT,
            "vq_config": {
                "model_type": "janus_vqgan",
                "embed_dim": 4,
                "num_embeddings": 6,
                "latent_channels": 4,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 32,
            },
            "tie_word_embeddings": True,
            "image_token_id": IMAGE,
        },
        flat,
        {},
    ),
    "fuyu": Family(
        {
            "model_type": "fuyu",
            "text_config": text("persimmon", num_key_value_heads=None),
            "hidden_size": 32,  # older releases ask here
            "patch_size": 10,
            "image_token_id": IMAGE,
        },
        patches,
        {"size": {"height": 60, "width": 80}, "patch_size": {"height": 10, "width": 10}},
    ),
    "aria": Family(
        {
            "model_type": "aria",
            "vision_config": {**SIGLIP, "model_type": "idefics3_vision", "image_size": 64},
            "text_config": text(
                "aria_text",
                moe_num_experts=4,
                moe_topk=2,
                moe_num_shared_experts=1,
            ),
            "projector_patch_to_query_dict": {16: 3, 64: 5},
            "image_token_index": IMAGE,
        },
        masked,
        ARIA,
    ),
    "internvl": Family(
        {
            "model_type": "internvl",
            "vision_config": {
                **SIGLIP,
                "model_type": "internvl_vision",
                "image_size": [32, 32],
                "patch_size": [8, 8],
                "use_qk_norm": True,
            },
            "text_config": text("qwen2"),
            "tie_word_embeddings": False,
            "image_token_id": IMAGE,
        },
        flat,
        {"min_patches": 1, "max_patches": 6, "crop_to_patches": True},
    ),
    "blip-2": Family(
        {
            "model_type": "blip-2",
            "vision_config": {**SIGLIP, "model_type": "blip_2_vision_model"},
            "qformer_config": {
                "model_type": "blip_2_qformer",
                "hidden_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 24,
                "cross_attention_frequency": 2,
                "encoder_hidden_size": 32,
            },
            "text_config": {
                "model_type": "opt",
                "hidden_size": 32,
                "ffn_dim": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "word_embed_proj_dim": 32,
                "max_position_embeddings": 512,
                **SIZES,
            },
            "num_query_tokens": 5,
            "image_token_index": IMAGE,
        },
        flat,
        {},
    ),
    "instructblip": Family(
        {
            "model_type": "instructblip",
            "vision_config": {**SIGLIP, "model_type": "instructblip_vision_model"},
            "qformer_config": {
                "model_type": "instructblip_qformer",
                "hidden_size": 16,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "intermediate_size": 24,
                "cross_attention_frequency": 2,
                "encoder_hidden_size": 32,
                "vocab_size": 270,
                "max_position_embeddings": 64,
            },
            "text_config": TEXT,
            "num_query_tokens": 5,
            "image_token_index": IMAGE,
        },
        asked,
        {},
    ),
    "mistral3": Family(
        {
            "model_type": "mistral3",
            "vision_config": PIXTRAL,
            "text_config": text("mistral"),
            "tie_word_embeddings": False,
            "image_token_index": IMAGE,
        },
        sized,
        {"size": {"longest_edge": 64}, "patch_size": {"height": 16, "width": 16}},
    ),
    "pixtral": Family(
        {
            "model_type": "llava",
            "vision_config": PIXTRAL,
            "text_config": text("mistral"),
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "image_token_index": IMAGE,
        },
        sized,
        {"size": {"longest_edge": 64}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1], "resample": 3},
    ),
    "got-ocr2": Family(
        {
            "model_type": "got_ocr2",
            "vision_config": {**SAM, "model_type": "got_ocr2_vision"},
            "text_config": text("qwen2", tie_word_embeddings=True),
            "tie_word_embeddings": True,
            "image_token_index": IMAGE,
        },
        flat,
        {},
        attentions=("eager",),
    ),
    "cohere2-vision": Family(
        {
            "model_type": "cohere2_vision",
            "vision_config": HEADLESS,
            "text_config": text("cohere2"),
            "alignment_intermediate_size": 40,
            "tie_word_embeddings": False,
            "image_token_id": IMAGE,
        },
        flat,
        {"max_patches": 4},
    ),
    "ovis2": Family(
        {
            "model_type": "ovis2",
            "vision_config": {
                "model_type": "ovis2_vision",
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "image_size": 32,
                "patch_size": 8,
                "vocab_size": 40,
                "num_visual_indicator_tokens": 5,
            },
            "text_config": text("qwen2"),
            "hidden_size": 32,
            "vocab_size": 270,
            "tie_word_embeddings": False,
            "image_token_id": IMAGE,
            "visual_indicator_token_ids": OVIS_INDICATORS,
        },
        flat,
        {"size": {"height": 32, "width": 32}, "max_patches": 4, "crop_to_patches": True},
        ids=indicators,
    ),
}
