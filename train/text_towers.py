"""Captions -> one vector each, for objectives that compare them with images."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vlm import llm as llms
from vlm.attention import MultiHead, default_heads
from vlm.errors import ConfigError, Problem
from vlm.layers import FeedForward
from vlm.model import VLM
from vlm.weights import is_planning, transformers_config, transformers_model


class TextOptions(BaseModel):
    """A text tower of the objective's own: a transformer at the given size over the LLM's tokens, or a text model of
    transformers."""

    model_config = ConfigDict(extra="forbid")
    width: PositiveInt = 512
    depth: PositiveInt = 12
    heads: PositiveInt | None = None
    length: PositiveInt = 512
    """Most tokens of a caption."""
    weights: str | None = None
    """Hub id or folder of a text model of transformers, with its own tokenizer."""
    config: dict[str, Any] | None = None
    """Config of such a model with random weights, over the LLM's tokens."""
    pool: Literal["mean", "pooler"] = "mean"
    """Of a model of transformers: the mean over its last hidden states, or what its own pooler makes of them."""


class TextTower(nn.Module, ABC):
    """Vectors of captions."""

    width: int
    """C of the vectors."""

    @abstractmethod
    def forward(self, model: VLM, captions: list[Tensor]) -> Tensor:
        """Token ids of the LLM's tokenizer, long [T] a caption -> [B, C]."""


def text_tower(kind: str, options: TextOptions, *, llm_width: int, tokenizer: Any) -> TextTower:
    """The text tower of that kind.

    Raises:
        ConfigError: its weights or sizes are wrong.
    """
    if kind in ("embeddings", "last"):
        return LlmText(llm_width, read=kind == "last")
    if options.weights is not None or options.config is not None:
        return Pretrained(options, tokenizer)
    return Transformer(options, vocabulary=len(tokenizer))


class Transformer(TextTower):
    """Pre-norm blocks in which every token sees the whole caption, and the mean of what they make.

    Args:
        options: sizes.
        vocabulary: of the tokenizer.
    """

    def __init__(self, options: TextOptions, *, vocabulary: int) -> None:
        super().__init__()
        self.width, self.length = options.width, options.length
        heads = options.heads or default_heads(self.width)
        self.embedding = nn.Embedding(vocabulary, self.width)
        self.positions = nn.Parameter(torch.randn(self.length, self.width) * 0.01)
        self.blocks = nn.ModuleList(Block(self.width, heads) for _ in range(options.depth))
        self.norm = nn.LayerNorm(self.width)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, model: VLM, captions: list[Tensor]) -> Tensor:
        ids, real = padded(captions, self.length)
        tokens = self.embedding(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            tokens = block(tokens, real)
        return masked_mean(self.norm(tokens), real)


class Block(nn.Module):
    """Attention and a feed-forward layer, each with a norm in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHead(width, heads=heads, bias=True)
        self.forth = FeedForward(width, 4 * width, norm=nn.LayerNorm(width))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """[B, T, C] and which of them are real, [B, T] -> [B, T, C]."""
        normed = self.norm(tokens)
        tokens = tokens + self.attention(normed, normed, real[:, None, None])
        return tokens + self.forth(tokens)  # type: ignore[no-any-return]


class Pretrained(TextTower):
    """A text model of transformers.

    Args:
        options: its weights or config.
        tokenizer: the LLM's; what it wrote is read again with the model's own where there are weights.
    """

    def __init__(self, options: TextOptions, tokenizer: Any) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        fields = None if options.config is None else {"vocab_size": len(tokenizer), **options.config}
        if fields is not None and options.weights is not None:
            raise ConfigError(Problem("tower.config", "stands beside `weights`, which bring their own; give one"))
        try:
            config = transformers_config(options.weights, fields)
            self.text = transformers_model(AutoModel, config, options.weights)
        except ConfigError as error:
            raise error.under("tower") from error
        self.width = int(config.get_text_config().hidden_size)
        self.length, self.pool = options.length, options.pool
        self._read, self._own = tokenizer, None
        if options.weights is not None and not is_planning():
            self._own = AutoTokenizer.from_pretrained(options.weights)

    def forward(self, model: VLM, captions: list[Tensor]) -> Tensor:
        if self._own is not None:
            texts = [self._read.decode(ids.tolist(), skip_special_tokens=True) for ids in captions]
            captions = [torch.tensor(self._own(text)["input_ids"], device=captions[0].device) for text in texts]
        ids, real = padded(captions, self.length)
        output = self.text(input_ids=ids, attention_mask=real.long())
        return output.pooler_output if self.pool == "pooler" else masked_mean(output.last_hidden_state, real)  # type: ignore[no-any-return]


class LlmText(TextTower):
    """What the LLM has for captions: the mean of its input embeddings, or its last hidden state at a caption's end,
    which is the one that has seen all of it.

    Args:
        width: of the LLM's embeddings.
        read: let the LLM read the caption.
    """

    def __init__(self, width: int, *, read: bool) -> None:
        super().__init__()
        self.width, self.read = width, read

    def forward(self, model: VLM, captions: list[Tensor]) -> Tensor:
        ids, real = padded(captions, None)
        tokens = llms.embedding(model.llm)(ids)
        if not self.read:
            return masked_mean(tokens, real)
        hidden = llms.hidden_states(model.llm, inputs_embeds=tokens, attention_mask=real.long())
        last = real.sum(1) - 1
        return hidden[torch.arange(len(ids), device=ids.device), last]


def padded(captions: list[Tensor], length: int | None) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and which of them are real, bool [B, T].

    Raises:
        ConfigError: a caption is longer than `length`; nothing is cut off.
    """
    longest = max(len(ids) for ids in captions)
    if length is not None and longest > length:
        raise ConfigError(Problem("objective.tower.length", f"`{length}`, but a caption has {longest} tokens"))
    real = pad_sequence([torch.ones_like(ids, dtype=torch.bool) for ids in captions], batch_first=True)
    return pad_sequence(captions, batch_first=True), real


def masked_mean(tokens: Tensor, real: Tensor) -> Tensor:
    """[B, T, C] over the real ones of T -> [B, C]."""
    weights = real[..., None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)
