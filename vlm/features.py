"""What an encoder yields, and the same thing before any tensor exists: its shape."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

Grid = tuple[int, int]
"""Rows and columns of tokens, (h, w)."""


@dataclass(frozen=True)
class Shape:
    """The shape of one view's features: what planning and checking need, with no tensor at hand."""

    tokens: int
    width: int
    grid: Grid | None = None
    """Rows and columns when the tokens lie on a grid in raster order; None when they do not (latents, sequences)."""


@dataclass(frozen=True)
class Features:
    """Visual tokens with what is known of them, so that nobody guesses a square root.

    Letters: N views, T tokens, C width, E prefix tokens, H W grid.
    """

    tokens: Tensor
    """[N, T, C]; on a grid T = H * W in raster order."""
    grid: Grid | None = None
    """(H, W), or None when the tokens do not lie on a grid."""
    mask: Tensor | None = None
    """bool [N, T], True where a token is real; None when all are. A ragged batch is padded and masked."""
    extra: Tensor | None = None
    """[N, E, C]: the encoder's CLS and register tokens; None where it has none or an op has consumed them."""
    question: Tensor | None = None
    """long [N, L]: ids of the text asked about each view, -1 where padded, for ops that read it (InstructBLIP)."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 3:
            raise RuntimeError(f"features are [N, T, C]; got {tuple(self.tokens.shape)}")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens.shape[1]:
            raise RuntimeError(f"a grid of {self.grid} does not hold {self.tokens.shape[1]} tokens")

    @property
    def width(self) -> int:
        return self.tokens.shape[-1]

    def with_tokens(self, tokens: Tensor, **changes: object) -> "Features":
        """The same features with other tokens; `changes` are further fields to replace."""
        return replace(self, tokens=tokens, **changes)  # type: ignore[arg-type]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The same features with every tensor changed."""
        return replace(
            self,
            tokens=change(self.tokens),
            mask=None if self.mask is None else change(self.mask),
            extra=None if self.extra is None else change(self.extra),
            question=None if self.question is None else change(self.question),
        )

    def rows(self) -> list[Tensor]:
        """The real tokens of each view, N tensors [t, C]."""
        if self.mask is None:
            return list(self.tokens.unbind(0))
        return [tokens[real] for tokens, real in zip(self.tokens, self.mask, strict=True)]


@dataclass(frozen=True)
class VisionTokens:
    """All visual tokens of a batch, one image after the other: what a route takes. Images may differ in length."""

    tokens: Tensor
    """[K, C], in the LLM's width."""
    counts: tuple[int, ...]
    """Tokens of each image; they add up to K."""

    def __post_init__(self) -> None:
        if self.tokens.ndim != 2 or sum(self.counts) != len(self.tokens):
            raise RuntimeError(f"visual tokens {tuple(self.tokens.shape)} for images with {list(self.counts)} tokens")
