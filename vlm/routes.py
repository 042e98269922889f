"""Where visual tokens go: the route from a connector into the LLM.

A route answers two questions, one for the processor (how many placeholders stand for an image in the text) and one
for the model (what the LLM is called with), so that neither asks what kind of connector there is.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.features import VisionTokens


class Route(ABC):
    """Letters: B samples, T text positions, C the LLM's width, I images of the batch."""

    in_sequence: bool = True
    """Whether all that the LLM knows of an image stands in its sequence."""

    @abstractmethod
    def placeholders(self, tokens: int) -> int:
        """Positions that `tokens` visual tokens take in the text."""

    @abstractmethod
    def apply(self, embeds: Tensor, vision: VisionTokens, places: "Places") -> tuple[Tensor, dict[str, Any]]:
        """Text embeddings [B, T, C] and visual tokens -> embeddings [B, T, C] and keywords for the LLM's forward."""


@dataclass(frozen=True)
class Places:
    """Which image each position of a batch belongs to."""

    owner: Tensor
    """long [B, T]: the flat index (over the batch) of the image that a placeholder stands for; -1 for text."""
    seen: Tensor
    """long [B, T]: the flat index of the last image at or before a position; -1 before the sample's first."""
    since: Tensor
    """long [B, T]: the flat index of the first image of a position's sample."""
    rows: Tensor
    """long [I]: the row of the batch that each image belongs to."""


class SequenceRoute(Route):
    """Visual tokens take the places of the placeholders in the sequence (LLaVA and most others)."""

    def placeholders(self, tokens: int) -> int:
        return tokens

    def apply(self, embeds: Tensor, vision: VisionTokens, places: Places) -> tuple[Tensor, dict[str, Any]]:
        """Scatter all tokens at the placeholders.

        Raises:
            RuntimeError: the two counts differ for an image.
        """
        where = places.owner >= 0
        wanted = torch.bincount(places.owner[where], minlength=len(places.rows)).tolist()
        if wanted != list(vision.counts):
            raise RuntimeError(
                f"placeholders and visual tokens differ: {wanted} placeholders for images with "
                f"{list(vision.counts)} tokens; make the batch with this model's own processor"
            )
        return embeds.masked_scatter(where[..., None], vision.tokens.to(embeds.dtype)), {}


@dataclass
class VisionStream:
    """What cross-attention blocks inside the LLM read. Reaches each block as the keyword `vision`.

    Letters: K visual tokens of a row, over all its images, padded to the longest.
    """

    tokens: Tensor
    """[B, K, C_v]."""
    image: Tensor
    """long [B, K]: flat index of the image a token belongs to; -1 is padding."""
    seen: Tensor
    """long [B, T]: the last image at or before each position; see `Places.seen`."""
    since: Tensor
    """long [B, T]: the first image of each position's sample; see `Places.since`."""
    cache: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values by block, filled while generating: an image's are the same at each step."""

    def visible(self, length: int, sees: Literal["latest", "all"]) -> tuple[Tensor, Tensor]:
        """What the last `length` positions may look at: (bool [B, 1, length, K], bool [B, length]: anything at all).

        Positions generated since the prompt see what its last one saw. A position that may look at nothing gets
        a mask that allows everything, since softmax over nothing is not a number: its result must be discarded.
        """
        seen, since = (
            part if length == part.shape[1] else part[:, -1:].expand(-1, length) for part in (self.seen, self.since)
        )
        own, last, first = self.image[:, None, :], seen[:, :, None], since[:, :, None]
        mask = (own >= 0) & (own == last if sees == "latest" else (own >= first) & (own <= last))
        some = mask.any(-1)
        return (mask | ~some[..., None])[:, None], some

    def repeat(self, times: int) -> "VisionStream":
        """Each sample `times` times in a row, as beam search lays its batch out."""
        parts = (self.tokens, self.image, self.seen, self.since)
        tokens, image, seen, since = (part.repeat_interleave(times, 0) for part in parts)
        return VisionStream(tokens, image, seen, since)


class AttentionRoute(Route):
    """Visual tokens stay outside the sequence; cross-attention blocks inside the LLM read them (Flamingo)."""

    in_sequence = False

    def placeholders(self, tokens: int) -> int:
        return 0

    def apply(self, embeds: Tensor, vision: VisionTokens, places: Places) -> tuple[Tensor, dict[str, Any]]:
        """The embeddings as they are, and the stream for the blocks: all tokens of a sample side by side."""
        counts = torch.tensor(vision.counts, device=embeds.device)
        owners = torch.arange(len(counts), device=embeds.device).repeat_interleave(counts)  # [K]
        rows = places.rows[owners]
        mine = [rows == row for row in range(len(embeds))]
        padded = pad_sequence([vision.tokens[own] for own in mine], batch_first=True)
        image = pad_sequence([owners[own] for own in mine], batch_first=True, padding_value=-1)
        return embeds, {"vision": VisionStream(padded, image, places.seen, places.since)}
