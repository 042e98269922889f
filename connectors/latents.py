"""The block of all resamplers: learned latents look at visual tokens."""

from functools import partial
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vlm.attention import DoubleMultiHead, MultiHead, default_heads
from vlm.errors import ConfigError, Problem
from vlm.layers import Activation, FeedForward, Glu, NormKind, make_norm

Count = Field(default=None, ge=1)


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AttentionOptions(_Options):
    """The attention of a block."""

    heads: int | None = Count
    """As many of width 64 as fit if absent."""
    kv_heads: int | None = Count
    """Heads of keys and values, shared by as many query heads each; `heads` if absent."""
    head_width: int | None = Count
    """Width / heads if absent."""
    bias: bool = False
    qk_norm: NormKind = "none"
    """Over the queries and keys of each head."""
    double: bool = False
    """Two linear maps in a row in place of each (Aria)."""


class NormOptions(_Options):
    """The norms of a block."""

    kind: NormKind = "layer"
    eps: float = Field(default=1e-6, gt=0)
    place: Literal["pre", "post"] = "pre"
    """`pre`: over what goes into attention and feed-forward, and once at the end; `post`: over what comes out."""


class MlpOptions(_Options):
    """The feed-forward part of a block."""

    ratio: float = Field(default=4.0, gt=0)
    """Width between its maps, relative to the block's."""
    activation: Activation = "gelu"
    glu: Glu = "none"
    bias: bool = True


class LatentBlock(nn.Module):
    """Attention of latents over tokens (and latents, if they look at each other), then an optional feed-forward part.

    Args:
        width: C of latents and tokens.
        attention: built for that width.
        mlp: the feed-forward part, with a norm of its own in front if norms are `pre`.
        norm: kind and place of the norms.
        residual: what attention finds is added to the latents, rather than taking their place.
        mutual: latents look at each other too.
    """

    def __init__(
        self,
        width: int,
        *,
        attention: MultiHead,
        mlp: FeedForward | None,
        norm: NormOptions,
        residual: bool = True,
        mutual: bool = False,
    ) -> None:
        super().__init__()
        before: NormKind = norm.kind if norm.place == "pre" else "none"
        after: NormKind = norm.kind if norm.place == "post" else "none"
        self.residual, self.mutual = residual, mutual
        self.norm_tokens = make_norm(before, width, norm.eps)
        self.norm_latents = make_norm(before, width, norm.eps)
        self.attention = attention
        self.norm_attended = make_norm(after, width, norm.eps)
        self.mlp = mlp
        self.norm_out = make_norm("none" if mlp is None else after, width, norm.eps)

    def forward(
        self,
        latents: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        places: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
    ) -> Tensor:
        """One block.

        Args:
            latents: [N, L, C].
            tokens: [N, T, C].
            mask: bool [N, T], True where a token is real.
            places: position embeddings of latents [L, C] and tokens [T, C], for queries and keys.

        Returns:
            [N, L, C].
        """
        normed = self.norm_latents(latents)
        queries, values = normed + places[0], self.norm_tokens(tokens)
        keys = values + places[1]
        if self.mutual:
            keys, values = torch.cat([keys, queries], dim=1), torch.cat([values, normed], dim=1)
        k, v = self.attention.keys_values(keys, values)
        found = self.attention.look(queries, k, v, mask=self._visible(mask, latents))
        latents = self.norm_attended(latents + found if self.residual else found)
        return latents if self.mlp is None else self.norm_out(latents + self.mlp(latents))  # type: ignore[no-any-return]

    def _visible(self, mask: Tensor | None, latents: Tensor) -> Tensor | None:
        """Which keys are looked at, bool [N, 1, 1, T (+ L)]; a view with no real token sees all of its padding."""
        if mask is None:
            return None
        if self.mutual:
            mask = torch.cat([mask, torch.ones_like(latents[..., 0], dtype=torch.bool)], dim=1)
        return (mask | ~mask.any(1, keepdim=True))[:, None, None]


def make_attention(width: int, options: AttentionOptions) -> MultiHead:
    """The attention that the options describe.

    Raises:
        ConfigError: heads do not divide the width.
    """
    kind = DoubleMultiHead if options.double else MultiHead
    return kind(
        width,
        heads=default_heads(width) if options.heads is None else options.heads,
        kv_heads=options.kv_heads,
        head_width=options.head_width,
        bias=options.bias,
        qk_norm=partial(make_norm, options.qk_norm),
    )


def make_mlp(width: int, options: MlpOptions, norm: NormOptions) -> FeedForward:
    """The feed-forward part that the options describe, with a norm in front if norms are `pre`.

    Raises:
        ConfigError: nothing is left of the width.
    """
    hidden = int(width * options.ratio)
    if hidden < 1:
        raise ConfigError(Problem("ratio", f"`{options.ratio}` leaves nothing of a width of {width}"))
    own = make_norm(norm.kind if norm.place == "pre" else "none", width, norm.eps)
    return FeedForward(width, hidden, norm=own, activation=options.activation, glu=options.glu, bias=options.bias)
