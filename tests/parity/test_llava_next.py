"""Tiles, stitched, through the whole model: logits against transformers' LLaVA-NeXT and LLaVA-OneVision."""

import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlavaNextConfig, LlavaOnevisionConfig
from transformers import LlavaNextForConditionalGeneration as Next
from transformers import LlavaOnevisionForConditionalGeneration as Onevision

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, picture
from tests.parity.test_llava import CLIP, QWEN
from vlm.sample import IMAGE_MARK, Turn, ask
from vlm.sample import Sample as Talk
from vlm.views import Size, View, Views

SIDE = 32
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 32]]


class AnyRes(Views):
    """LLaVA-NeXT's geometry: the best of the canvases, the image in the middle of it, and a thumbnail first.

    Args:
        several: whether samples of several images get tiles too.
    """

    def __init__(self, *, several: bool = True) -> None:
        self.several = several

    def plan(self, image: Size, size: Size) -> list[View]:
        from transformers.image_processing_utils import select_best_resolution

        height, width = select_best_resolution(list(image), PINPOINTS)
        scale = min(height / image[0], width / image[1])
        resize = min(math.ceil(image[0] * scale), height), min(math.ceil(image[1] * scale), width)
        top, left = (height - resize[0]) // 2, (width - resize[1]) // 2
        cells = [(row, column) for row in range(height // SIDE) for column in range(width // SIDE)]
        cut = [View(resize, size, (top - SIDE * row, left - SIDE * column), (row, column)) for row, column in cells]
        return [View(size, size), *cut]

    def among(self, images: int) -> Views:
        return self if self.several or images == 1 else Whole()


class Whole(Views):
    def plan(self, image: Size, size: Size) -> list[View]:
        return [View(size, size)]


def build(kind: str) -> tuple[Any, Any]:
    """(reference, kit's model with the reference's weights)."""
    sizes = {"vocab_size": 270, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shared: dict[str, Any] = {"image_token_index": 5, "image_grid_pinpoints": PINPOINTS, "tie_word_embeddings": False}
    if kind == "next":
        vision, text, encoder = CLIP, LLAMA, {"name": "clip", "config": CLIP, "layers": [-2]}
        parts = {"vision_config": AutoConfig.for_model(**vision), "text_config": AutoConfig.for_model(**text, **sizes)}
        config: Any = LlavaNextConfig(
            **parts, **shared, vision_feature_layer=-2, vision_feature_select_strategy="default"
        )
    else:
        vision, text = {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False}, dict(QWEN)
        encoder = {"name": "siglip", "config": SIGLIP, "norm": False}
        parts = {"vision_config": AutoConfig.for_model(**vision), "text_config": AutoConfig.for_model(**text, **sizes)}
        shared |= {"tie_word_embeddings": True, "video_token_index": 6, "vision_aspect_ratio": "anyres_max_2"}
        config = LlavaOnevisionConfig(**parts, **shared, vision_feature_layer=-1, vision_feature_select_strategy="full")
    reference = perturb((Next if kind == "next" else Onevision)._from_config(config, attn_implementation="eager"))
    recipe = {
        "encoders": encoder,
        "views": {"name": f"{__name__}:AnyRes", "several": kind == "next"},
        "connector": "mlp",
        "packer": "stitch" if kind == "next" else {"name": "stitch", "max_tiles": 2},
        "llm": {"tokenizer": "bytes", "config": {**text, **sizes}, "attention": "eager"},
    }
    model = vlm.assemble({"model": recipe}).eval()
    model.load_state_dict({_kit_name(key): value for key, value in reference.state_dict().items()}, strict=True)
    return reference.eval(), model


def _kit_name(name: str) -> str:
    renames = {
        "model.vision_tower.": "encoders.0.model.",
        "model.multi_modal_projector.linear_1.": "connector.ops.0.layers.0.",
        "model.multi_modal_projector.linear_2.": "connector.ops.0.layers.1.",
        "model.image_newline": "connector.packer.newline",
        "model.language_model.": "llm.model.",
        "lm_head.": "llm.lm_head.",
    }
    old = next(old for old in renames if name.startswith(old))
    return renames[old] + name.removeprefix(old)


def padded(batch: Any) -> torch.Tensor:
    """The kit's pixels as the reference wants them: [images, most views, 3, H, W], zeros behind."""
    views = list(batch.groups[0].pixels[0])
    pixels = torch.zeros(len(batch.images), max(image.count for image in batch.images), *views[0].shape)
    for own, image in zip(pixels, batch.images, strict=True):
        for place in range(image.count):
            own[place] = views.pop(0)
    return pixels


@pytest.mark.parametrize("kind", ["next", "onevision"])
@torch.no_grad()
def test_logits_equal_the_reference(kind: str) -> None:
    reference, model = build(kind)
    two = [Turn("user", f"{IMAGE_MARK} or {IMAGE_MARK}?")]
    samples = [
        ask("What is it?", [picture(1, (100, 30))]),
        Talk(two, [picture(2, (50, 50)), picture(3, (20, 70))]),
        ask("And this one?", [picture(4, (30, 30))]),
        ask("And that?", [picture(5, (200, 190))]),
    ]
    batch = model.processor(samples)
    counts = [int((batch.owner == image).sum()) for image in range(len(batch.images))]
    assert len(set(counts)) > 3 - (kind == "onevision")
    extra = {} if kind == "next" else {"batch_num_images": torch.tensor([1, 2, 1, 1])}
    wanted = reference(
        input_ids=batch.input_ids.masked_fill(batch.owner >= 0, 5),
        attention_mask=batch.attention_mask,
        pixel_values=padded(batch),
        image_sizes=torch.tensor([image.size for image in batch.images]),
        **extra,
    ).logits
    real = batch.attention_mask.bool()
    found = model(batch).logits
    assert (found[real] - wanted[real]).abs().max() <= 1e-4
    model.connector.packer.newline.add_(1.0)
    assert (model(batch).logits[real] - found[real]).abs().max() > 1e-2, "the newline is ignored"
