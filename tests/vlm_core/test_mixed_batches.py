"""One image, several images and none in one batch, of sizes that differ, through every op, merge and packer: what the
batch gives is what each sample gives alone, and a sample sees its own images only.
"""

from typing import Any

import pytest
import torch

import vlm
from tests.conftest import SIGLIP, perturb, picture, toy_recipe
from vlm import registry
from vlm.model import VLM
from vlm.sample import Sample, Turn, ask

NATIVE = {"views": {"name": "native", "multiple": 16, "min_pixels": 256}}
"""Views whose grids differ from image to image: sides are even, so that all that halves a grid can."""
TILES = {"views": {"name": "anyres", "grids": 2}}
LAYERS = {"encoders": {"name": "siglip", "config": SIGLIP, "layers": [-1, -2], "norm": False}}
RESAMPLER = {"name": "resampler", "latents": 4, "out_width": 32, "attention": {"heads": 2, "kv_heads": 1}}

OPS: dict[str, Any] = {
    "linear": "linear",
    "mlp": {"name": "mlp", "glu": "first", "norm": "rms"},
    "norm": ["norm", "linear"],
    "activation": ["linear", "activation", "linear"],
    "layer_mix": ["layer_mix", "linear"],
    "positions": [{"name": "positions", "kind": "learned"}, "linear"],
    "space_to_depth": ["space_to_depth", "mlp"],
    "pool": [{"name": "pool", "factor": 2}, "linear"],
    "resize": [{"name": "resize", "grid": [3, 3]}, "linear"],
    "conv": [{"name": "conv", "stride": 2}, "linear"],
    "attention_pool": ["attention_pool", "linear"],
    "abstractor": {"name": "abstractor", "grid": [2, 2], "width": 8, "depth": 1},
    "resampler": [RESAMPLER, "linear"],
    "perceiver": {"name": "perceiver", "latents": 5},
    "qformer": {"name": "qformer", "latents": 3, "depth": 3, "width": 16, "heads": 2},
    "qformer-text": {
        **{"name": "qformer", "latents": 3, "depth": 2, "width": 16, "heads": 2},
        "text": {"tokenizer": "bytes", "vocabulary": 262, "length": 64},
    },
    "soft_vocabulary": {"name": "soft_vocabulary", "size": 12},
    "merge_tokens": [{"name": "merge_tokens", "budget": 3}, "linear"],
    "cross_attention": {"name": "cross_attention", "every": 2},
}
TWO = [{"name": "siglip", "config": SIGLIP}, {"name": "siglip", "config": {**SIGLIP, "hidden_size": 16}}]
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (op, {**NATIVE, **(LAYERS if name == "layer_mix" else {})}) for name, op in OPS.items()},
    **{f"merge-{name}": ("mlp", {**NATIVE, "encoders": TWO, "merge": name}) for name in registry.merges},
    **{f"packer-{name}": ("mlp", {**TILES, "packer": name}) for name in registry.packers},
    "tiles": (["space_to_depth", "mlp"], {"views": {"name": "tiles", "max_tiles": 4}}),
    "tiles-cross_attention": ({"name": "cross_attention", "every": 2}, TILES),
}
MIXED = [
    ask("What is it?", [picture(1)], id="one"),
    ask("Hello, no image here", id="none"),
    Sample([Turn("user", "a <image> and <image>, which?")], [picture(2, (30, 61)), picture(3, (90, 20))], id="two"),
]


def build(name: str) -> VLM:
    connector, parts = MODELS[name]
    model = vlm.assemble(toy_recipe(connector, **parts)).eval()
    for seed in range(4):  # far enough from the initial values for an image to be seen behind any op
        perturb(model, seed)
    return model


def test_every_op_merge_and_packer_is_here() -> None:
    assert {name.partition("-")[0] for name in OPS} == set(registry.connectors)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_mixed_batch_is_its_samples_alone(name: str) -> None:
    model = build(name)
    alone = [model(model.processor([sample])).logits[0] for sample in MIXED]
    for side in ("right", "left"):
        batch = model.processor(MIXED, side=side)
        assert torch.bincount(batch.rows, minlength=3).tolist() == [1, 0, 2]
        logits = model(batch).logits
        for row, wanted in enumerate(alone):
            assert torch.allclose(logits[row][batch.attention_mask[row].bool()], wanted, atol=1e-5), (side, row)
    changed = [MIXED[0], MIXED[1], Sample(MIXED[2].turns, [MIXED[2].images[0], picture(9, (90, 20))], id="two")]
    moved = (model(model.processor(changed, side="left")).logits - logits).abs().amax((1, 2))
    assert moved[0] == moved[1] == 0
    assert moved[2] > 1e-3
