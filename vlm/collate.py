"""Encoded samples -> a batch: rows of tensors, one sample each or several packed one behind the other."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm.features import Features
from vlm.packer import ImagePlan
from vlm.sample import Batch, ViewGroup


class Look:
    """One image as a model sees it. No dataclass: it is told apart from others by being itself, not by its pixels.

    Args:
        plan: how it is shown.
        pixels: per view one [3, H, W] per encoder.
        features: in place of pixels what the encoders make of them, per view one of a single view per encoder.
    """

    def __init__(
        self, plan: ImagePlan, pixels: list[list[Tensor]], features: list[list[Features]] | None = None
    ) -> None:
        self.plan = plan
        self.pixels = pixels
        self.features = features


@dataclass
class Example:
    """One encoded sample. Letters: T positions, N views over all its images."""

    input_ids: Tensor
    """long [T]."""
    labels: Tensor
    """long [T], -100 where nothing is learned."""
    owner: Tensor
    """long [T]: number of the sample's image that a placeholder stands for, -1 for text."""
    seen: Tensor
    """long [T]: number of the sample's last image so far, -1 before the first."""
    looks: list[Look]
    """Its images."""
    question: Tensor | None = None
    """long [L]: what is asked, for connectors that read it."""
    id: str = ""
    targets: dict[str, list[int]] = field(default_factory=dict)
    rejected: "Example | None" = None
    """The same sample with the answer that was rejected; its images are the same objects."""

    def key(self) -> str:
        """A digest of all that a model is shown of the sample."""
        digest = hashlib.blake2b(digest_size=16)
        for text in (self, self.rejected or self):
            for part in (text.input_ids, text.labels, text.owner, text.seen):
                digest.update(repr(part.tolist()).encode())
        for look in self.looks:
            for seen in [one for view in look.features or look.pixels for one in view]:
                tensor = seen.tokens.float() if isinstance(seen, Features) else seen
                digest.update(repr(tensor.shape).encode())
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()


def collate(
    examples: Sequence[Example],
    *,
    pad_id: int,
    side: Literal["left", "right"] = "right",
    pixels: bool = True,
    packs: Sequence[int] | None = None,
) -> Batch:
    """Encoded samples -> one batch, padded on `side`; image numbers become flat over the batch.

    Args:
        examples: the samples.
        pad_id: the token that stands where there is none.
        side: where shorter rows are padded.
        pixels: put the views in; without them the visual tokens must be at hand already.
        packs: how many of the samples, in order, each row takes; one each if absent.
    """
    if not examples:
        return _nothing()
    first = [0, *accumulate(len(example.looks) for example in examples)][: len(examples)]
    owner = [_shifted(example.owner, start) for example, start in zip(examples, first, strict=True)]
    seen = [_shifted(example.seen, start) for example, start in zip(examples, first, strict=True)]
    since = [torch.full_like(example.owner, start) for example, start in zip(examples, first, strict=True)]
    ids = [example.input_ids for example in examples]
    labels = [example.labels if packs is None else _not_first(example.labels) for example in examples]
    counts = [1] * len(examples) if packs is None else list(packs)
    row_of = [row for row, count in enumerate(counts) for _ in range(count)]

    def rows(parts: Sequence[Tensor], value: int) -> Tensor:
        return _pad([torch.cat(list(row)) for row in _cut(parts, counts)], value, side)

    return Batch(
        input_ids=rows(ids, pad_id),
        attention_mask=rows([torch.ones_like(one) for one in ids], 0),
        owner=rows(owner, -1),
        seen=rows(seen, -1),
        since=rows(since, 0),
        rows=torch.tensor(
            [row for row, example in zip(row_of, examples, strict=True) for _ in example.looks], dtype=torch.long
        ),
        images=[look.plan for example in examples for look in example.looks],
        groups=grouped(
            [look for example in examples for look in example.looks],
            [example.question for example in examples for _ in example.looks],
        )
        if pixels
        else [],
        labels=rows(labels, -100),
        segments=None
        if packs is None
        else rows([torch.full_like(one, number) for row in _cut(ids, counts) for number, one in enumerate(row)], -1),
        ids=[example.id for example in examples],
        targets=_stack_targets(examples),
        **_rejected(examples, pad_id=pad_id, side=side, packs=packs),
    )


def _nothing() -> Batch:
    none = torch.zeros(0, 0, dtype=torch.long)
    return Batch(none, none, none, none, none, torch.zeros(0, dtype=torch.long), [], [], labels=none)


def _rejected(examples: Sequence[Example], **options: Any) -> dict[str, Any]:
    """The batch of the rejected answers and the samples' keys, where every sample has one."""
    worse = [example.rejected for example in examples if example.rejected is not None]
    if not worse or len(worse) < len(examples):
        return {}
    return {"rejected": collate(worse, pixels=False, **options), "keys": [example.key() for example in examples]}


def grouped(looks: Sequence[Look], questions: Sequence[Tensor | None]) -> list[ViewGroup]:
    """The views of some images, those whose sizes are equal for all encoders in one group.

    Args:
        looks: the images.
        questions: what is asked about each (see `ViewGroup.question`).
    """
    views = [
        (view, question)
        for look, question in zip(looks, questions, strict=True)
        for view in look.features or look.pixels
    ]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (view, _) in enumerate(views):
        groups.setdefault(tuple(map(_kind, view)), []).append(number)
    return [
        _group(numbers, [views[number][0] for number in numbers], [views[number][1] for number in numbers])
        for numbers in groups.values()
    ]


def _kind(one: Tensor | Features) -> tuple[Any, ...]:
    """What views must have in common to be in one tensor."""
    if isinstance(one, Tensor):
        return tuple(one.shape)
    return ("features", *one.tokens.shape, one.grid, None if one.extra is None else one.extra.shape[1])


def _group(numbers: list[int], views: Sequence[Sequence[Any]], questions: Sequence[Tensor | None]) -> ViewGroup:
    by_encoder: list[Any] = list(zip(*views, strict=True))
    index, asked = torch.tensor(numbers), _padded_questions(questions)
    if isinstance(by_encoder[0][0], Features):
        return ViewGroup(index, [], asked, [_joined(same) for same in by_encoder])
    return ViewGroup(index, [torch.stack(same) for same in by_encoder], asked)


def _joined(views: Sequence[Features]) -> Features:
    extra = [view.extra for view in views if view.extra is not None]
    return Features(
        torch.cat([view.tokens for view in views]), views[0].grid, extra=torch.cat(extra) if extra else None
    )


def _padded_questions(questions: Sequence[Tensor | None]) -> Tensor | None:
    asked = [question for question in questions if question is not None]
    return _pad(asked, -1, "right") if asked else None


def _cut(parts: Sequence[Tensor], counts: Sequence[int]) -> list[Sequence[Tensor]]:
    """`parts` in groups of so many."""
    ends = list(accumulate(counts))
    return [parts[end - count : end] for count, end in zip(counts, ends, strict=True)]


def _not_first(labels: Tensor) -> Tensor:
    """Labels without that of the first position, which the sample before it in a row would have to predict."""
    labels = labels.clone()
    labels[:1] = -100
    return labels


def _shifted(numbers: Tensor, start: int) -> Tensor:
    return torch.where(numbers >= 0, numbers + start, numbers)


def _pad(rows: Sequence[Tensor], value: int, side: Literal["left", "right"]) -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def _stack_targets(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Fields that all samples have, padded with -100 to the longest."""
    shared = set.intersection(*(set(example.targets) for example in examples)) if examples else set()
    return {
        name: _pad([torch.tensor(example.targets[name]) for example in examples], -100, "right")
        for name in sorted(shared)
    }
