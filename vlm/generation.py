"""Generation by transformers' own `generate`, with the visual tokens in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vlm.model import VLM
    from vlm.sample import Batch


def generate(model: VLM, batch: Batch, *, max_new_tokens: int, **options: Any) -> Tensor:
    """New token ids [B, at most max_new_tokens]; see `VLM.generate`."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            inputs = model.inputs(batch)
            embeds, mask = inputs.pop("inputs_embeds"), inputs.pop("attention_mask")
            settings = _settings(model, max_new_tokens)
            with _given(model.llm, inputs):
                return model.llm.generate(  # type: ignore[no-any-return, operator]
                    inputs_embeds=embeds, attention_mask=mask, generation_config=settings, **options
                )
    finally:
        model.train(was_training)


def _settings(model: VLM, max_new_tokens: int) -> Any:
    """Greedy, whatever sampling the weights' own generation config asks for: answers must be repeatable."""
    from transformers import GenerationConfig

    chat = model.processor.chat
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens)
    settings.eos_token_id = list(chat.stop_ids)
    settings.pad_token_id = chat.pad_id
    settings.bos_token_id = model.tokenizer.bos_token_id
    return copy.deepcopy(settings)


@contextmanager
def _given(llm: nn.Module, keywords: dict[str, Any]) -> Iterator[None]:
    """Each forward of the LLM gets `keywords`: `generate` itself refuses those that it does not know."""

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        rows = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs["input_ids"]
        return args, {**kwargs, **{name: _spread(value, len(rows)) for name, value in keywords.items()}}

    spread: dict[int, Any] = {}

    def _spread(stream: Any, rows: int) -> Any:
        """Beam search repeats each sample; the stream follows, once, so that its cache is kept."""
        times = rows // len(stream.tokens)
        if times == 1:
            return stream
        key = id(stream)
        if key not in spread:
            spread[key] = stream.repeat(times)
        return spread[key]

    handle = llm.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
