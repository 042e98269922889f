"""The kit's logits against transformers' `LlavaForConditionalGeneration`, every parameter perturbed, real pixels."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, picture
from vlm.sample import ask

CLIP = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 16}
QWEN = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}
CASES = {
    "llava-1.5": (CLIP, LLAMA, {"layers": [-2]}, -2, "default"),
    "siglip-qwen2": (
        {**SIGLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        QWEN,
        {"norm": False},
        -1,
        "full",
    ),
}


def build(name: str) -> tuple[Any, Any]:
    """(reference, kit's model with the reference's weights)."""
    vision, text, options, layer, strategy = CASES[name]
    sizes = {"vocab_size": 270, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config=AutoConfig.for_model(**vision),
        text_config=AutoConfig.for_model(**text, **sizes),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_token_index=5,
    )
    reference = perturb(LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")).eval()
    own = {key: value for key, value in vision.items() if key != "vision_use_head"}  # the kit's has none anyway
    encoder = {"name": vision["model_type"].split("_")[0], "config": own, **options}
    model = vlm.assemble(
        {
            "model": {
                "encoders": encoder,
                "connector": "mlp",
                "llm": {"tokenizer": "bytes", "config": {**text, **sizes}, "attention": "eager"},
            }
        }
    ).eval()
    model.load_state_dict({_kit_name(key): value for key, value in reference.state_dict().items()}, strict=True)
    return reference, model


def _kit_name(name: str) -> str:
    renames = {
        "model.vision_tower.": "encoders.0.model.",
        "model.multi_modal_projector.linear_1.": "connector.ops.0.layers.0.",
        "model.multi_modal_projector.linear_2.": "connector.ops.0.layers.1.",
        "model.language_model.": "llm.model.",
        "lm_head.": "llm.lm_head.",
    }
    old = next(old for old in renames if name.startswith(old))
    return renames[old] + name.removeprefix(old)


def reference_logits(reference: Any, batch: Any) -> torch.Tensor:
    """The reference with the same ids (its image token at the placeholders) and the same pixels."""
    ids = batch.input_ids.masked_fill(batch.owner >= 0, 5)
    return reference(input_ids=ids, attention_mask=batch.attention_mask, pixel_values=batch.groups[0].pixels[0]).logits


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_equal_the_reference(name: str) -> None:
    reference, model = build(name)
    samples = [ask("What is it?", [picture(1)]), ask("And this one, which is longer?", [picture(2)])]
    batch = model.processor(samples)
    wanted, found = reference_logits(reference, batch), model(batch).logits
    real = batch.attention_mask.bool()
    assert (found[real] - wanted[real]).abs().max() <= 1e-4
    batch.groups = model.processor([ask("x", [picture(7)]), ask("x", [picture(8)])]).groups
    assert (model(batch).logits[real] - found[real]).abs().max() > 1e-2, "the image is ignored"


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_greedy_generation_equals_the_reference(name: str) -> None:
    reference, model = build(name)
    batch = model.processor([ask("What is it?", [picture(1)]), ask("Hm?", [picture(2)])], side="left")
    ids = batch.input_ids.masked_fill(batch.owner >= 0, 5)
    wanted = reference.generate(
        input_ids=ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.groups[0].pixels[0],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=model.processor.chat.stop_ids,
        pad_token_id=0,
    )
    found = model.generate(batch, max_new_tokens=8)
    assert torch.equal(found, wanted[:, ids.shape[1] :])
