"""The decoder LLM: any Hugging Face causal LM as it is."""

from typing import Any

import torch
from torch import Tensor, nn

from vlm.cards import tokenizer_length
from vlm.errors import ConfigError, Problem
from vlm.parts import evaluating
from vlm.recipe import LlmSpec
from vlm.tokenizers import load_tokenizer
from vlm.weights import is_planning, transformers_config, transformers_model


def build_tokenizer(spec: LlmSpec) -> Any:
    """The LLM's tokenizer, with the spec's own tokens. Under `planning()` a hub id with a card gets the embedded one in
    its place: its own words are not needed there, only their number.

    Raises:
        ConfigError: none is named and there are no weights to take it from (see also `load_tokenizer`).
    """
    name = _tokenizer_name(spec)
    if name is None:
        raise ConfigError(Problem("tokenizer", "is missing; with `config` give `bytes`, a hub id or a folder"))
    return load_tokenizer(name if _told(spec) is None else "bytes", spec.chat_template, spec.tokens)


def _tokenizer_name(spec: LlmSpec) -> str | None:
    return spec.tokenizer or spec.weights


def _told(spec: LlmSpec) -> int | None:
    """Tokens of the spec's tokenizer by its card, where the embedded one stands in for it; else None."""
    name = _tokenizer_name(spec)
    length = tokenizer_length(name) if name is not None and is_planning() else None
    return None if length is None else length + len(spec.tokens)


def build_llm(spec: LlmSpec, tokenizer: Any) -> Any:
    """The causal LM with random or pretrained weights; its vocabulary must hold the tokenizer's.

    With `config`, sizes that follow from the tokenizer (`vocab_size`, special ids) are filled in where absent. Weights
    that have no rows left for the spec's own tokens get some, drawn as transformers does: about the mean of the others.

    Raises:
        ConfigError: an unknown field or model type, missing weights, or a vocabulary smaller than the tokenizer's.
    """
    from transformers import AutoModelForCausalLM

    if spec.weights is not None and spec.config is not None:
        raise ConfigError(Problem("config", "stands beside `weights`, which bring their own; give one of the two"))
    fields = None if spec.config is None else {**_token_fields(tokenizer, _told(spec) or len(tokenizer)), **spec.config}
    config = transformers_config(spec.weights if fields is None else None, fields)
    attention: dict[str, Any] = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    llm = transformers_model(AutoModelForCausalLM, config, spec.weights, alone=True, dtype=_dtype(spec), **attention)
    _add_rows(llm, spec, tokenizer)
    _check_vocabulary(llm, tokenizer)
    return llm


def _add_rows(llm: Any, spec: LlmSpec, tokenizer: Any) -> None:
    """Rows of the embedding and the head for the spec's own tokens; a head that is tied stays so."""
    if not spec.tokens or spec.weights is None:
        return
    needed = _told(spec) or 1 + max(tokenizer.convert_tokens_to_ids(spec.tokens))
    if needed > embedding(llm).num_embeddings:
        llm.resize_token_embeddings(needed, mean_resizing=not is_planning())  # there is no mean of what has no values


def _token_fields(tokenizer: Any, length: int) -> dict[str, int]:
    return {
        "vocab_size": length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }


def _dtype(spec: LlmSpec) -> Any:
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    return "auto" if spec.weights else torch.float32


def _check_vocabulary(llm: nn.Module, tokenizer: Any) -> None:
    """`PLACEHOLDER` may lie beyond the embedding, since it is never looked up; nothing else may."""
    from vlm.sample import PLACEHOLDER

    rows = embedding(llm).num_embeddings
    beyond = [word for word, number in tokenizer.get_vocab().items() if number >= rows and word != PLACEHOLDER]
    if beyond:
        problem = (
            f"{rows} rows are fewer than the tokenizer's {len(tokenizer)} tokens (first without a row: {beyond[0]!r})"
        )
        raise ConfigError(Problem("config.vocab_size", problem))


def embedding(llm: nn.Module) -> nn.Embedding:
    """The LLM's input embedding [V, C]; it applies the model's own scale where there is one (Gemma)."""
    return llm.get_input_embeddings()  # type: ignore[operator, no-any-return]


def width(llm: nn.Module) -> int:
    """Width of the residual stream, which blocks inside the LLM read and write."""
    return int(llm.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]


def layer_count(llm: nn.Module) -> int:
    """Number of decoder blocks."""
    return int(llm.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr, operator]


def head_count(llm: nn.Module) -> int:
    """Number of attention heads of a decoder block."""
    return int(llm.config.get_text_config().num_attention_heads)  # type: ignore[union-attr, operator]


def vocabulary(llm: nn.Module) -> int:
    """Number of tokens that the head tells apart."""
    return int(llm.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]


def has_sdpa(llm: nn.Module) -> bool:
    """Whether transformers lets this family use torch's fused attention (Gemma 2's softcapping, say, rules it out)."""
    return bool(llm._supports_sdpa)


def decoder_blocks(llm: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the one outermost ModuleList of length `num_hidden_layers`.

    Raises:
        ConfigError: there is none.
    """
    count = layer_count(llm)
    for module in llm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"{type(llm).__name__} has no list of {count} decoder blocks to attach to")


def hidden_states(llm: nn.Module, **inputs: Any) -> Tensor:
    """The last hidden states [B, T, C] of the LLM's forward on `inputs`: what its head makes logits of.

    The LLM is called as always, so that whatever hangs on its forward happens; only its head sees a single position.
    """
    found: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        found.append(output[0])
        return _Hidden((output[0][:, :1],))

    handle = _base(llm).register_forward_hook(keep)
    try:
        llm(**inputs, use_cache=False)
    finally:
        handle.remove()
    return found[0]


def logits(llm: nn.Module, hidden: Tensor) -> Tensor:
    """hidden [S, C] -> logits [S, V]: the LLM's own head, with the scaling or capping that its family has there."""
    base = _base(llm)
    before = base.__dict__.get("forward")
    base.forward = lambda *args, **kwargs: _Hidden((hidden[None],))
    try:
        return llm(inputs_embeds=hidden[None], use_cache=False).logits[0]  # type: ignore[no-any-return]
    finally:
        if before is None:
            del base.forward
        else:
            base.forward = before


def head_parameters(llm: nn.Module) -> list[nn.Parameter]:
    """The parameters that `logits` depends on."""
    return list(llm.get_output_embeddings().parameters())  # type: ignore[operator]


def _base(llm: nn.Module) -> nn.Module:
    """The LLM without its head."""
    return llm.get_decoder()  # type: ignore[operator, no-any-return]


class _Hidden(tuple[Tensor]):
    """A decoder's output with hidden states alone; whatever else a family's output has is None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def isolates_packed(llm: nn.Module) -> bool:
    """Whether samples that stand in one row, each with positions from 0 on, know nothing of each other.

    Found out by trying: the second of two must come out the same whatever stands in the first. Recurrent families carry
    their state over, and some compute masks of their own.
    """
    weight = embedding(llm).weight
    if weight.is_meta:
        return True  # asked again when there are weights
    generator = torch.Generator().manual_seed(0)
    first, other, second = torch.randn(3, 1, 3, weight.shape[1], generator=generator).to(weight)
    positions = torch.arange(3, device=weight.device).repeat(2)[None]
    try:
        with torch.no_grad(), evaluating(llm):
            found = [
                hidden_states(llm, inputs_embeds=torch.cat([one, second], 1), position_ids=positions)[:, 3:]
                for one in (first, other)
            ]
    except TypeError:  # a family that takes no positions counts on through the row
        return False
    return torch.equal(*found)


class _Reached(Exception):
    """Raised by a probe in the first decoder block, so that nothing behind it is computed."""


def passes_keywords(llm: nn.Module) -> bool:
    """Whether an unknown keyword given to the LLM's forward reaches its blocks, as in nearly all transformers families.

    Found out by trying: some families' signatures accept any keyword and drop it.
    """
    seen: list[bool] = []

    def probe(_: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        seen.append("probe" in kwargs)
        raise _Reached

    weight = embedding(llm).weight
    handle = decoder_blocks(llm)[0].register_forward_pre_hook(probe, with_kwargs=True)
    try:
        with torch.no_grad():
            llm(inputs_embeds=weight.new_zeros(1, 1, weight.shape[1]), probe=True)
    except _Reached:
        pass
    except RuntimeError:  # some families look at values before their first block, and on the meta device there are none
        if not weight.is_meta:
            raise
        return True  # asked again when there are weights
    finally:
        handle.remove()
    return seen == [True]
