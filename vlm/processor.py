"""Samples -> a batch. Made from a model, so that sizes, statistics and placeholder counts are computed, never typed."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vlm.chat import ChatFormat
from vlm.connector import Chain
from vlm.encoder import Encoder
from vlm.images import ImageLike, open_image
from vlm.sample import Batch, Sample
from vlm.views import View, Views


class SampleError(ValueError):
    """A sample that this model cannot take; the message names it."""


@dataclass
class Example:
    """One encoded sample. Letters: T positions, I its images, N its views."""

    input_ids: Tensor
    """long [T]."""
    labels: Tensor
    """long [T], -100 where nothing is learned."""
    owner: Tensor
    """long [T]: number of the sample's image that a placeholder stands for, -1 for text."""
    seen: Tensor
    """long [T]: number of the sample's last image so far, -1 before the first."""
    pixels: list[Tensor]
    """[N, 3, H, W] per encoder."""
    views: list[int]
    """Views of each image."""
    id: str = ""
    targets: dict[str, list[int]] = field(default_factory=dict)


def skeleton(module: nn.Module) -> Any:
    """A copy of `module` without storage (meta tensors), made without copying a weight: for counts and shapes."""
    tensors = [*module.parameters(), *module.buffers()]
    memo = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    return copy.deepcopy(module, memo)


class Processor:
    """Makes batches for one model. Holds no weights, so it can be sent to worker processes.

    Args:
        encoders: the model's encoders; only what they say of sizes is used.
        connector: the model's connector; only its token arithmetic is used.
        views: the model's view policy.
        chat: how turns become token ids.
        max_length: the LLM's context in positions.
    """

    def __init__(
        self, encoders: Sequence[Encoder], connector: Chain, *, views: Views, chat: ChatFormat, max_length: int
    ) -> None:
        self._encoders: list[Encoder] = [skeleton(encoder) for encoder in encoders]
        self._connector: Chain = skeleton(connector)
        self.views = views
        self.chat = chat
        self.max_length = max_length

    def __call__(self, samples: Sequence[Sample], *, side: Literal["left", "right"] = "right") -> Batch:
        """Samples -> one batch; `side` is where shorter ones are padded (left to be continued)."""
        return self.collate([self.encode(sample) for sample in samples], side=side)

    def plan(self, height: int, width: int) -> list[list[View]]:
        """Per encoder the views of an image of that size in pixels."""
        return [self.views.plan((height, width), encoder.image.size) for encoder in self._encoders]

    def seen(self, image: ImageLike) -> list[list[Image.Image]]:
        """Per encoder the views of an image as that encoder sees them, in colours again."""
        opened = open_image(image)
        plans = self.plan(opened.height, opened.width)
        return [
            [encoder.image.denormalise(view.render(opened, encoder.image)) for view in plan]
            for encoder, plan in zip(self._encoders, plans, strict=True)
        ]

    def tokens(self, height: int, width: int) -> int:
        """Visual tokens of an image of that size."""
        return self._count(self.plan(height, width))

    def encode(self, sample: Sample) -> Example:
        """One sample as tensors.

        Raises:
            ImageError: an image cannot be opened.
            SampleError: marks and images differ in number, or the sample is longer than the LLM's context.
        """
        images = [open_image(image) for image in sample.images]
        plans = [self.plan(image.height, image.width) for image in images]
        tokens = [self._connector.route().placeholders(self._count(plan)) for plan in plans]
        try:
            text = self.chat.encode(sample.turns, tokens)
        except ValueError as error:
            raise SampleError(f"sample {sample.id or '(no id)'}: {error}") from error
        if len(text.input_ids) > self.max_length:
            long = f"{len(text.input_ids)} positions ({sum(tokens)} for {len(images)} images)"
            raise SampleError(f"sample {sample.id or '(no id)'}: {long}, but the LLM's context is {self.max_length}")
        pixels = [
            torch.stack(
                [
                    view.render(image, encoder.image)
                    for image, plan in zip(images, plans, strict=True)
                    for view in plan[n]
                ]
            )
            if images
            else torch.empty(0, 3, *encoder.image.size)
            for n, encoder in enumerate(self._encoders)
        ]
        views = [len(plan[0]) for plan in plans]
        return Example(text.input_ids, text.labels, text.owner, text.seen, pixels, views, sample.id, sample.targets)

    def collate(self, examples: Sequence[Example], *, side: Literal["left", "right"] = "right") -> Batch:
        """Encoded samples -> one batch, padded on `side`; image numbers become flat over the batch."""
        first = [0]
        for example in examples:
            first.append(first[-1] + len(example.views))
        owner = [_shifted(example.owner, start) for example, start in zip(examples, first, strict=False)]
        seen = [_shifted(example.seen, start) for example, start in zip(examples, first, strict=False)]
        ids = [example.input_ids for example in examples]
        return Batch(
            input_ids=_pad(ids, self.chat.pad_id, side),
            attention_mask=_pad([torch.ones_like(one) for one in ids], 0, side),
            owner=_pad(owner, -1, side),
            seen=_pad(seen, -1, side),
            views=torch.tensor([count for example in examples for count in example.views], dtype=torch.long),
            rows=torch.tensor([row for row, example in enumerate(examples) for _ in example.views], dtype=torch.long),
            pixels=[torch.cat([example.pixels[n] for example in examples]) for n in range(len(self._encoders))],
            labels=_pad([example.labels for example in examples], -100, side),
            ids=[example.id for example in examples],
            targets=_stack_targets(examples),
        )

    def _count(self, plan: list[list[View]]) -> int:
        counts = {len(views) for views in plan}
        if len(counts) != 1:
            raise SampleError(f"encoders of different sizes get {sorted(counts)} views of one image; they must agree")
        shapes = [
            [encoder.shape(view.size) for view in views] for encoder, views in zip(self._encoders, plan, strict=True)
        ]
        return self._connector.tokens_per_image(list(zip(*shapes, strict=True)))


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
