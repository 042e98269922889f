"""What all tests share: few threads, no network, toy parts with every parameter perturbed."""

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

torch.set_num_threads(1)

SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def toy_recipe(connector: Any = "mlp", **model: Any) -> dict[str, Any]:
    """A recipe of about 0.1 M random parameters."""
    parts = {"encoders": {"name": "siglip", "config": SIGLIP}, "connector": connector}
    return {"model": {**parts, "llm": {"tokenizer": "bytes", "config": LLAMA}, **model}}


def perturb(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter away from its initial value: zero gates and unit norms would make parity vacuous."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module


def picture(seed: int = 0, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A smooth random RGB image of (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def toy() -> Callable[..., Any]:
    """`toy(connector="mlp", **model)` -> a perturbed toy VLM in eval mode."""

    def make(connector: Any = "mlp", **model: Any) -> Any:
        import vlm

        return perturb(vlm.assemble(toy_recipe(connector, **model))).eval()

    return make
