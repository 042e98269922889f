"""What a stage minimises."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm import llm as llms
from vlm.attention import MultiHead, default_heads
from vlm.errors import ConfigError, Problem
from vlm.model import VLM
from vlm.sample import Batch

from .losses import IGNORED, cross_entropy


@dataclass(frozen=True)
class Loss:
    """A sum and the number of terms in it: means are taken over the global batch, not over its pieces."""

    total: Tensor
    """Sum of the loss over its terms."""
    count: int
    """Number of terms, e.g. supervised tokens."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Further sums over the same terms, by the names in `Objective.figures`; their means are logged beside the loss."""


@dataclass(frozen=True)
class Beginning:
    """What an objective is given before the first step."""

    folder: Path
    """Of the stage; what is written there stays with the run."""
    again: bool
    """The stage goes on from a checkpoint."""
    batches: Callable[[], Iterable[Batch]]
    """Every sample of the stage once, over all devices: this one's share, on this device, and the same batches whenever
    and on however many devices they are made."""
    wait: Callable[[], None]
    """Until all devices have come here."""


class Objective(nn.Module, ABC):
    """What a stage minimises. Positional `__init__` parameters are given by the kit: `widths`, one an encoder.

    `learns_answers`: whether it learns from what the assistant says, so that samples without an answer are left out;
    `reads_pixels`: whether it needs the pixels themselves, so that features on disk are of no use to it.

    Parameters of its own train under the key `objective` and are thrown away after the stage.
    """

    learns_answers = False
    reads_pixels = False

    compares: bool = False
    """It compares two answers to each question: batches need `rejected`."""
    whole: bool = False
    """Its terms belong to the whole batch of a device, which therefore must not be cut into micro-batches."""
    begins: bool = False
    """It has something to do in `begin`."""
    figures: tuple[str, ...] = ()
    """Names of the figures that its losses bring, known also where a device has no sample to compute them of."""

    def begin(self, model: VLM, start: Beginning) -> None:
        """Called before the first step, with the model as it was when the stage began, also when the stage goes on from
        a checkpoint; in eval mode, without gradients and in the stage's precision."""

    @abstractmethod
    def forward(self, model: VLM, batch: Batch) -> Loss: ...


class LanguageModelling(Objective):
    """Cross-entropy of the assistant's tokens (the default).

    Args:
        label_smoothing: share of the target spread over the vocabulary.
    """

    learns_answers = True

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: VLM, batch: Batch) -> Loss:
        """Position t predicts t + 1; logits are computed for positions with a label only, a piece at a time."""
        if batch.labels is None:
            raise RuntimeError("language modelling needs labels; the batch has none")
        targets = batch.labels[:, 1:]
        learned = targets != IGNORED
        total = cross_entropy(
            model.hidden(batch)[:, :-1][learned],
            targets[learned],
            partial(llms.logits, model.llm),
            parameters=llms.head_parameters(model.llm),
            vocabulary=llms.vocabulary(model.llm),
            label_smoothing=self.label_smoothing,
        )
        return Loss(total, batch.supervised)


class ReadSlots(Objective):
    """Encoder warm-up: learned queries over an encoder's tokens, one a slot, each classified by a linear head.

    It trains an encoder from scratch on what a picture shows (the characters of a line, a colour) before a decoder
    depends on it, as Pixtral and Llama 3.2 trained theirs first.

    Args:
        fields: name of a target -> [slots, classes]; samples carry class indices under that name, -100 for unknown.
        encoder: number of the encoder that is warmed up.
        label_smoothing: share of the target spread over the classes.
    """

    reads_pixels = True

    def __init__(
        self,
        widths: Sequence[int],
        *,
        fields: dict[str, tuple[int, int]],
        encoder: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= encoder < len(widths):
            raise ConfigError(Problem("encoder", f"`{encoder}`; allowed: 0 to {len(widths) - 1}"))
        if not fields:
            raise ConfigError(Problem("fields", "is empty; e.g. {digits: [5, 11]}"))
        width = widths[encoder]
        self.encoder = encoder
        self.label_smoothing = label_smoothing
        self.slots = {name: slots for name, (slots, _) in fields.items()}
        self.queries = nn.Parameter(torch.randn(sum(self.slots.values()), width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.attention = MultiHead(width, heads=default_heads(width))
        self.norm_out = nn.LayerNorm(width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, (_, classes) in fields.items()})

    def forward(self, model: VLM, batch: Batch) -> Loss:
        """Sum of the cross-entropies of all slots with a known target."""
        logits = self.read(model, batch)
        total = torch.zeros((), device=batch.input_ids.device)
        count = 0
        for name, found in logits.items():
            targets = self._targets(batch, name)
            smooth = self.label_smoothing
            total = total + F.cross_entropy(
                found.flatten(0, 1).float(),
                targets.flatten(),
                ignore_index=-100,
                reduction="sum",
                label_smoothing=smooth,
            )
            count += int((targets != -100).sum())
        return Loss(total, count)

    def read(self, model: VLM, batch: Batch) -> dict[str, Tensor]:
        """Logits [N, slots, classes] by field."""
        if len(batch.groups) != 1:
            raise ConfigError("read_slots takes views of one size; choose a view policy that gives one")
        tokens = self.norm(model.encoders[self.encoder](batch.groups[0].pixels[self.encoder]).tokens)
        found = self.norm_out(self.attention(self.queries.expand(len(tokens), -1, -1), tokens))
        pieces = found.split(list(self.slots.values()), dim=1)
        return {name: self.heads[name](piece) for name, piece in zip(self.slots, pieces, strict=True)}

    def _targets(self, batch: Batch, name: str) -> Tensor:
        """
        Raises:
            ConfigError: the data carries no such target, or one of another length.
        """
        targets = batch.targets.get(name)
        if targets is None:
            have = sorted(batch.targets)
            raise ConfigError(Problem(f"objective.fields.{name}", f"the data carries no such target; it has: {have}"))
        if targets.shape[1] != self.slots[name]:
            problem = f"{self.slots[name]} slots, but the data's target has {targets.shape[1]}"
            raise ConfigError(Problem(f"objective.fields.{name}", problem))
        return targets


def facts(model: VLM) -> dict[str, Any]:
    """What the kit gives an objective's constructor."""
    encoders: Any = model.encoders
    return {
        "widths": [encoder.width for encoder in encoders],
        "llm_width": llms.embedding(model.llm).embedding_dim,
        "tokenizer": model.tokenizer,
    }
