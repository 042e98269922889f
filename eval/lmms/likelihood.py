"""How likely a model finds an answer: what multiple choice by probability is scored with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm.model import VLM
from vlm.sample import Sample


@dataclass(frozen=True)
class Likelihood:
    """Of the text of a sample's last turn, given its images and the turns before."""

    value: float
    """Log-probability, natural and summed over the tokens; 0 for a text without any."""
    greedy: bool
    """Every token is the likeliest in its place: greedy decoding would say this text (and perhaps more)."""
    tokens: int


@torch.no_grad()
def likelihoods(model: VLM, samples: Sequence[Sample]) -> list[Likelihood]:
    """The likelihood of each sample's answer, in one forward pass.

    The token that ends the assistant's turn is not part of the text. Letters: B samples, T positions, n answer tokens
    of the batch, V vocabulary.

    Args:
        model: in eval mode.
        samples: each ends with the assistant's turn.

    Raises:
        ImageError, SampleError: a sample cannot be used.
    """
    batch = model.processor(samples).to(model.device)
    if batch.labels is None:
        raise RuntimeError("the batch has no labels")
    said = _without_end(batch.labels, model.processor.chat.stop_ids)[:, 1:]  # [B, T - 1]
    rows, places = said.ge(0).nonzero(as_tuple=True)  # [n]
    # Only the positions that are asked for become float32 probabilities: [B, T, V] of them would not fit.
    chances = model(batch, use_cache=False).logits[rows, places].float().log_softmax(-1)  # [n, V]
    wanted = said[rows, places]
    values = chances.gather(1, wanted[:, None])[:, 0].double()
    right = chances.argmax(1) == wanted
    return [
        Likelihood(float(values[rows == row].sum()), bool(right[rows == row].all()), int((rows == row).sum()))
        for row in range(len(samples))
    ]


def _without_end(labels: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """[B, T] labels, where that of each row's last token is taken away if it ends an answer."""
    labels = labels.clone()
    for row in labels:
        spoken = row.ge(0).nonzero()[:, 0].tolist()
        if spoken and int(row[spoken[-1]]) in stop_ids:
            row[spoken[-1]] = -100
    return labels
