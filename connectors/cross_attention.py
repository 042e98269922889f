"""Gated cross-attention inside an unmodified Hugging Face LLM."""

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.attention import MultiHead, default_heads
from vlm.connector import Connector
from vlm.errors import ConfigError, positive
from vlm.features import Features, Shape
from vlm.llm import decoder_blocks, passes_keywords
from vlm.routes import AttentionRoute, Route, VisionStream


class CrossAttention(Connector):
    """Gated blocks before every k-th decoder block (Flamingo, arXiv 2204.14198): the text attends to visual tokens.

    The tanh gates start at zero, so the model starts as the plain LLM. The blocks belong to the connector and reach
    the LLM as pre-forward hooks, which read the keyword `vision` (a `VisionStream`) that the LLM's forward was given.

    Args:
        every: a block before each `every`-th decoder block, the first included.
        heads: attention heads; as many of width 64 as fit if absent.
        mlp_ratio: width of the feed-forward part relative to the LLM's.
        sees: `latest`: a position looks at the last image at or before it; `all`: at all of the sample's so far.
    """

    def __init__(
        self,
        in_width: int,
        llm_width: int,
        llm_layers: int,
        *,
        every: int = 4,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        sees: Literal["latest", "all"] = "latest",
    ) -> None:
        super().__init__()
        if problems := positive(every=every, mlp_ratio=int(llm_width * mlp_ratio)):
            raise ConfigError(problems)
        self.every = every
        self.in_width = in_width
        self.sees = sees
        self.norm = nn.LayerNorm(in_width)
        self.blocks = nn.ModuleList(
            GatedBlock(
                llm_width, in_width, heads=default_heads(llm_width) if heads is None else heads, mlp_ratio=mlp_ratio
            )
            for _ in range(0, llm_layers, every)
        )

    def forward(self, features: Features) -> Features:
        """[N, T, in_width] -> the same, normalised: the blocks project it themselves."""
        return features.with_tokens(self.norm(features.tokens), extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.in_width, shape.grid)

    def route(self) -> Route:
        return AttentionRoute()

    def attach(self, llm: nn.Module) -> None:
        """Hook a gated block before every k-th decoder block.

        Raises:
            ConfigError: this LLM family does not hand keywords on to its blocks, so the image would be ignored.
        """
        if not passes_keywords(llm):
            family = type(llm).__name__
            raise ConfigError(f"cross_attention needs an LLM that hands keywords to its blocks; {family} does not")
        for number, layer in enumerate(decoder_blocks(llm)):
            index = number // self.every if number % self.every == 0 else None
            layer.register_forward_pre_hook(partial(self._before, index), with_kwargs=True)

    def _before(self, index: int | None, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Runs before a decoder block: takes `vision` out of its keywords and, at a site, lets the text look."""
        stream = kwargs.pop("vision", None)
        if stream is None or index is None:
            return args, kwargs
        if args:
            return (self._look(index, args[0], stream), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._look(index, kwargs["hidden_states"], stream)}

    def _look(self, index: int, hidden: Tensor, stream: VisionStream) -> Tensor:
        """hidden [B, T, C] -> the same after the gated block; positions that see no image stay as they are."""
        block: GatedBlock = self.blocks[index]  # type: ignore[assignment]
        if torch.is_grad_enabled():
            k, v = block.attention.keys_values(stream.tokens)
        else:
            if index not in stream.cache:
                stream.cache[index] = block.attention.keys_values(stream.tokens)
            k, v = stream.cache[index]
        mask, some = stream.visible(hidden.shape[1], self.sees)
        return torch.where(some[..., None], block(hidden, k, v, mask), hidden)


class GatedBlock(nn.Module):
    """x + tanh(a) * attention(norm(x), image), then x + tanh(b) * mlp(norm(x)); both gates start at zero."""

    def __init__(self, width: int, context: int, *, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHead(width, context, heads=heads)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """hidden [B, T, C], k and v [B, H, K, D], mask bool [B, 1, T, K] -> [B, T, C]."""
        looked = self.attention.look(self.norm(hidden), k, v, mask=mask)
        hidden = hidden + self.attention_gate.tanh() * looked
        return hidden + self.mlp_gate.tanh() * self.mlp(hidden)  # type: ignore[no-any-return]
