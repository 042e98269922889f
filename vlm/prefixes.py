"""Questions about one image begin alike: the LLM reads what they share once, and each question goes on from there."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

WORTH = 0.8
"""Sharing is used where the LLM then reads at most this share of the positions."""


def shared_cache(
    llm: Any, embeds: Tensor, mask: Tensor, prompts: Sequence[Tensor], groups: Sequence[int]
) -> Any | None:
    """The keys and values of the positions in front of a batch's last S, as a cache for `generate`; None where it
    would save little, or where the LLM's cache is not simply one key and value a position (sliding windows, states).

    S is the longest part of a sample that is its own, so what is left stands in one block without padding inside:
    the answers are those of a batch that shares nothing.

    Letters: B samples, T positions, C width; G groups, P the longest shared beginning.

    Args:
        llm: a Hugging Face causal LM.
        embeds: [B, T, C], padded on the left.
        mask: long [B, T], 1 where a position is real.
        prompts: long [t] per sample: what tells whether two positions are the same.
        groups: per sample the number of what it shows; only samples of one group may begin alike.
    """
    lengths = [len(prompt) for prompt in prompts]
    shared = _shared(prompts, groups)
    own = max(length - shared[group] for length, group in zip(lengths, groups, strict=True))
    total = embeds.shape[1]
    read = len(shared) * max(shared.values()) + len(prompts) * own
    if own >= total or read > WORTH * len(prompts) * total:
        return None
    first = {group: row for row, group in reversed(list(enumerate(groups)))}  # one sample stands for its group
    cache = _read(llm, [embeds[row, total - lengths[row] :][: shared[group]] for group, row in first.items()])
    if cache is None:
        return None
    places = {group: place for place, group in enumerate(first)}
    return _laid_out(cache, [places[group] for group in groups], mask[:, : total - own])


def _shared(prompts: Sequence[Tensor], groups: Sequence[int]) -> dict[int, int]:
    """How many positions all samples of a group have in common at their beginning; each keeps one of its own."""
    shared: dict[int, int] = {}
    firsts: dict[int, Tensor] = {}
    for prompt, group in zip(prompts, groups, strict=True):
        first = firsts.setdefault(group, prompt)
        length = min(len(first), len(prompt))
        same = int((first[:length] == prompt[:length]).long().cumprod(0).sum())
        shared[group] = min(shared.get(group, length), same, length - 1)
    return shared


def _read(llm: Any, beginnings: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]] | None:
    """Keys and values [G, heads, P, head width] of each layer for G beginnings [p, C], padded on the right."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    longest = max(map(len, beginnings))
    embeds = torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one in beginnings])
    places = torch.arange(longest, device=embeds.device)
    mask = (places < torch.tensor([[len(one)] for one in beginnings], device=embeds.device)).long()
    positions = places.expand(len(beginnings), -1)
    cache = llm(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    ).get("past_key_values")
    layers: list[Any] = cache.layers if isinstance(cache, DynamicCache) else []
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    return [(layer.keys, layer.values) for layer in layers]


def _laid_out(cache: Sequence[tuple[Tensor, Tensor]], groups: Sequence[int], mask: Tensor) -> Any:
    """A cache in which each sample has its group's keys and values where its mask [B, K] begins."""
    from transformers import DynamicCache

    device = mask.device
    rows = torch.tensor(groups, device=device)[:, None]
    places = (mask.cumsum(1) - 1).clamp(min=0)  # at padding anything: the mask hides it
    laid_out = DynamicCache()
    for number, layer in enumerate(cache):
        keys, values = (part.transpose(1, 2)[rows, places].transpose(1, 2) for part in layer)
        laid_out.update(keys, values, number)
    return laid_out
