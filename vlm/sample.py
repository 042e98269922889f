"""What goes in: a sample of images and turns of talk, and a batch of tensors made from several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vlm.features import Features
from vlm.images import ImageLike
from vlm.packer import ImagePlan
from vlm.routes import Places

IMAGE_MARK = "<image>"
"""Stands for one image in a turn's text; a sample whose turns have none gets its images in front of the first one."""

PLACEHOLDER = "<|image_token|>"
"""The token that stands for visual tokens in the text; one of each tokenizer's that the kit loads, never looked up."""

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """One turn of talk; `text` may hold `<image>` marks."""

    role: Role
    text: str


@dataclass(frozen=True)
class Sample:
    """Images and turns. For training the last turn is the assistant's; to be answered, the last is the user's."""

    turns: Sequence[Turn]
    images: Sequence[ImageLike] = ()
    id: str = ""
    """Named in errors and reports."""
    answers: Sequence[str] = ()
    """Accepted answers, for evaluation."""
    category: str = ""
    """Scores are also reported by category."""
    targets: dict[str, list[int]] = field(default_factory=dict)
    """Class indices by field, for objectives that classify."""
    choices: Sequence[str] = ()
    """The texts of the options A, B, C, ... of a question with choices; `answers` are then letters."""
    group: str = ""
    """Samples of one group are scored together where a metric does so (an image's two questions in MME)."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Further texts by name that a task's prompt may use: OCR tokens, a hint."""
    rejected: str | None = None
    """An answer that is worse than the last turn, for objectives that compare two; then of the turns only the last is
    learned, since those before it are the same for both."""

    def question(self) -> "Sample":
        """The sample without its final answer: what is asked at evaluation."""
        answered = self.turns and self.turns[-1].role == "assistant"
        return replace(self, turns=self.turns[:-1], rejected=None) if answered else self


def ask(text: str, images: Sequence[ImageLike] = (), **fields: Any) -> Sample:
    """A sample that asks one question."""
    return Sample([Turn("user", text)], images, **fields)


class Skipped(NamedTuple):
    """A sample that was left out of a batch."""

    number: int
    """Its place in the order of samples."""
    id: str
    cause: str
    """In a word or two, to be counted by."""
    why: str


@dataclass
class ViewGroup:
    """Views of one size, which are encoded in one call. Letters: n views of the group."""

    index: Tensor
    """long [n]: which of the batch's views they are."""
    pixels: list[Tensor]
    """One float32 [n, 3, H, W] per encoder, each in that encoder's own size and normalisation."""
    question: Tensor | None = None
    """long [n, L]; see `Features.question`."""
    features: list[Features] | None = None
    """What the encoders have made of the pixels, which are then not here: one of n views per encoder."""

    def to(self, device: torch.device | str) -> "ViewGroup":
        """The views on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> "ViewGroup":
        """The views with every tensor changed."""
        question = None if self.question is None else change(self.question)
        features = None if self.features is None else [one.map(change) for one in self.features]
        return ViewGroup(change(self.index), [change(pixels) for pixels in self.pixels], question, features)


@dataclass
class Batch:
    """Tensors of B rows, T positions, I images, N views (over all images); made by `Processor`. A row is one sample, or
    several one behind the other that know nothing of each other (packed)."""

    input_ids: Tensor
    """long [B, T]; at placeholders the id of `PLACEHOLDER`, which is never looked up."""
    attention_mask: Tensor
    """long [B, T]: 1 where a position is real."""
    owner: Tensor
    """long [B, T]; see `Places`."""
    seen: Tensor
    """long [B, T]; see `Places`."""
    since: Tensor
    """long [B, T]; see `Places`."""
    rows: Tensor
    """long [I]; see `Places`."""
    images: list[ImagePlan]
    """How each of the I images is shown."""
    groups: list[ViewGroup]
    """The N views, those of one size together."""
    labels: Tensor | None = None
    """long [B, T]: the id where the assistant speaks, -100 elsewhere (not shifted)."""
    segments: Tensor | None = None
    """long [B, T]: number of a position's sample in its row, -1 for padding; None where each row is one sample."""
    ids: list[str] = field(default_factory=list)
    """Of the samples."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """long [B, slots] by field."""
    skipped: list[Skipped] = field(default_factory=list)
    """Samples that should have been here."""
    rejected: "Batch | None" = None
    """The same samples with the answers that were rejected, without views: the images are this batch's. None unless
    every sample has one."""
    keys: list[str] = field(default_factory=list)
    """Of the samples with a rejected answer: a digest of all that the model is shown, by which what was found out about
    a sample before is found again."""

    @property
    def places(self) -> Places:
        return Places(self.owner, self.seen, self.since, self.rows)

    @property
    def positions(self) -> Tensor:
        """long [B, T]: the number of each position in its sample."""
        if self.segments is None:
            return (self.attention_mask.cumsum(1) - 1).clamp(min=0)
        here = torch.arange(self.segments.shape[1], device=self.segments.device).expand_as(self.segments)
        begins = torch.ones_like(self.segments, dtype=torch.bool)
        begins[:, 1:] = self.segments[:, 1:] != self.segments[:, :-1]
        return here - torch.where(begins, here, 0).cummax(1).values

    @property
    def supervised(self) -> int:
        """Number of positions with a label that a causal model predicts (the first position never is)."""
        return 0 if self.labels is None else int((self.labels[:, 1:] != -100).sum())

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Called by a DataLoader that pins memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Any) -> "Batch":
        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Batch):
                return value._map(change)
            if isinstance(value, ViewGroup):
                return value.map(change)
            if isinstance(value, dict):
                return {key: moved(item) for key, item in value.items()}
            return [moved(item) for item in value] if isinstance(value, list) else value  # a Skipped stays

        return Batch(**{item.name: moved(getattr(self, item.name)) for item in fields(self)})
