"""What a sample costs a model, roughly: enough to share rows out among devices."""

from collections.abc import Callable
from typing import Any

from vlm.llm import embedding, layer_count, width
from vlm.model import VLM

from .reader import Extent


def work_of(model: VLM, *, cached: bool = False) -> Callable[[Extent], float]:
    """Multiplications of a forward pass, by a sample's extent: each of the LLM's matrices at each position, attention
    by the square of the positions, each of an encoder's matrices at each token of a view.

    Args:
        model: which of them.
        cached: whether the encoders' features are on disk.
    """
    llm = sum(parameter.numel() for parameter in model.llm.parameters()) - embedding(model.llm).weight.numel()
    attention = width(model.llm) * layer_count(model.llm)  # two products, of which a causal mask leaves half
    encoders: Any = model.encoders
    views = [sum(one.numel() for one in encoder.parameters()) * encoder.shape().tokens for encoder in encoders]
    view = 0.0 if cached else sum(views) / len(views)

    def work(extent: Extent) -> float:
        return llm * extent.positions + attention * extent.positions**2 + view * extent.views

    return work
