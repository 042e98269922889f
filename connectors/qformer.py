"""Q-Former: a BERT of learned queries that look at the image in every few layers."""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vlm.attention import MultiHead
from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape
from vlm.layers import Activation, FeedForward
from vlm.tokenizers import question_tokenizer


class TextOptions(BaseModel):
    """The question goes into the Q-Former beside its queries."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    tokenizer: str
    """`bytes`, a hub id or a folder: how the question becomes ids."""
    vocabulary: int = Field(ge=1)
    """Rows of the embedding, not fewer than the tokenizer has tokens."""
    length: int = Field(default=512, ge=1)
    """Longest text in tokens."""


class QFormer(Connector):
    """Queries in a post-norm BERT, with attention to the image in every `every`-th layer (BLIP-2, arXiv 2301.12597).

    A linear map to the LLM's width ends it. There is no dropout.

    Args:
        latents: number of queries, which is the number of tokens per view.
        depth: number of layers.
        width: of the layers.
        heads: of attention.
        every: attention to the image in each `every`-th layer, the first included.
        mlp_ratio: width of the feed-forward part relative to the layers'.
        activation: of the feed-forward part.
        eps: of the norms.
        text: `{tokenizer, vocabulary, length}`: the question's ids (`Features.question`) are embedded and take part in
            the queries' self-attention (InstructBLIP, arXiv 2305.06500).
    """

    def __init__(
        self,
        in_width: int,
        out_width: int,
        *,
        latents: int = 32,
        depth: int = 12,
        width: int = 768,
        heads: int = 12,
        every: int = 2,
        mlp_ratio: float = 4.0,
        activation: Activation = "gelu",
        eps: float = 1e-12,
        text: TextOptions | None = None,
    ) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        if problems := positive(latents=latents, depth=depth, width=width, heads=heads, every=every, mlp_ratio=hidden):
            raise ConfigError(problems)
        self.out_width = out_width
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.02)
        self._tokenizer = None if text is None else question_tokenizer(text.tokenizer)
        self._length = 0 if text is None else text.length
        self.words = None if text is None else nn.Embedding(text.vocabulary, width)
        self.places = None if text is None else nn.Embedding(text.length, width)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            QFormerLayer(
                width,
                in_width if number % every == 0 else None,
                heads=heads,
                hidden=hidden,
                activation=activation,
                eps=eps,
                text=text is not None and number < depth - 1,
            )
            for number in range(depth)
        )
        self.projection = nn.Linear(width, out_width)

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> [N, latents, out_width], on no grid; masked tokens are not looked at.

        Raises:
            RuntimeError: there is no question, or one longer than the Q-Former can take.
        """
        states = self.latents.expand(len(features.tokens), -1, -1)
        words, among = self._text(features)
        if words is not None:
            states = torch.cat([states, words], dim=1)
        states = self.norm(states)
        image = None if features.mask is None else (features.mask | ~features.mask.any(1, keepdim=True))[:, None, None]
        for layer in self.layers:
            states = layer(states, features.tokens, len(self.latents), among=among, image=image)
        tokens = self.projection(states[:, : len(self.latents)])
        return features.with_tokens(tokens, grid=None, mask=None, extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(len(self.latents), self.out_width)

    def question(self, text: str) -> list[int] | None:
        """The question as ids of its own tokenizer, cut at the longest that it takes."""
        if self._tokenizer is None:
            return None
        ids: list[int] = self._tokenizer(text, truncation=True, max_length=self._length)["input_ids"]
        return ids

    def tokenizer(self) -> Any:
        return self._tokenizer

    def _text(self, features: Features) -> tuple[Tensor | None, Tensor | None]:
        """The question's embeddings [N, L, C], and which of [queries; question] are real, bool [N, 1, 1, Q + L]."""
        if self.words is None or self.places is None:
            return None, None
        if features.question is None:
            raise RuntimeError("this Q-Former reads the question (`text`), and these features come without one")
        ids = features.question
        if ids.shape[1] > self.places.num_embeddings:
            raise RuntimeError(f"a question of {ids.shape[1]} tokens; this Q-Former takes {self.places.num_embeddings}")
        words = self.words(ids.clamp(min=0)) + self.places.weight[: ids.shape[1]]
        queries = torch.ones(len(ids), len(self.latents), dtype=torch.bool, device=ids.device)
        return words, torch.cat([queries, ids >= 0], dim=1)[:, None, None]


class QFormerLayer(nn.Module):
    """Self-attention, attention of the queries to the image, feed-forward: after each the sum is normed.

    Args:
        width: of the layer.
        image_width: of the image's tokens; this layer does not look at them if absent.
        heads: of attention.
        hidden: width of the feed-forward part.
        activation: of the feed-forward part.
        eps: of the norms.
        text: the words get a feed-forward part of their own (the last layer's would lead nowhere).
    """

    def __init__(
        self,
        width: int,
        image_width: int | None,
        *,
        heads: int,
        hidden: int,
        activation: Activation,
        eps: float,
        text: bool,
    ) -> None:
        super().__init__()
        self.attention = MultiHead(width, heads=heads, bias=True)
        self.norm_attended = nn.LayerNorm(width, eps=eps)
        self.image_attention = None if image_width is None else MultiHead(width, image_width, heads=heads, bias=True)
        self.norm_image = None if image_width is None else nn.LayerNorm(width, eps=eps)
        self.mlp = FeedForward(width, hidden, activation=activation)
        self.norm_out = nn.LayerNorm(width, eps=eps)
        self.text_mlp = FeedForward(width, hidden, activation=activation) if text else None
        self.text_norm_out = nn.LayerNorm(width, eps=eps) if text else None

    def forward(
        self, states: Tensor, tokens: Tensor, count: int, *, among: Tensor | None, image: Tensor | None
    ) -> Tensor:
        """One layer.

        Args:
            states: [N, Q + L, width]: queries, then words.
            tokens: [N, T, image_width].
            count: Q.
            among: which states are real, as `vlm.attention.attend` takes it.
            image: which tokens are real, likewise.

        Returns:
            [N, Q + L, width]; of the last layer the queries alone count.
        """
        states = self.norm_attended(states + self.attention(states, states, among))
        queries, words = states[:, :count], states[:, count:]
        if self.image_attention is not None and self.norm_image is not None:
            queries = self.norm_image(queries + self.image_attention(queries, tokens, image))
        queries = self.norm_out(queries + self.mlp(queries))
        if self.text_mlp is None or self.text_norm_out is None:
            return queries  # type: ignore[no-any-return]
        return torch.cat([queries, self.text_norm_out(words + self.text_mlp(words))], dim=1)
