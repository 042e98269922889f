"""Generation by transformers' own `generate`, with the visual tokens in place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vlm.chat import ChatFormat


def generate(llm: Any, inputs: dict[str, Any], chat: ChatFormat, max_new_tokens: int, **options: Any) -> Tensor:
    """New token ids [B, at most max_new_tokens], padded on the right.

    Greedy, whatever sampling the weights' own generation config asks for: answers must be repeatable.

    Args:
        llm: the causal LM.
        inputs: keywords for its forward, of a batch padded on the left (see `VLM.inputs`).
        chat: says which tokens end an answer.
        max_new_tokens: where an answer is cut.
        options: further keywords of transformers' `generate`.
    """
    from transformers import GenerationConfig

    inputs = dict(inputs)
    own = {name: inputs.pop(name) for name in ("inputs_embeds", "attention_mask")}
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(chat.stop_ids), pad_token_id=chat.pad_id
    )
    with _given(llm, inputs):
        return llm.generate(**own, generation_config=settings, **options)  # type: ignore[no-any-return]


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
