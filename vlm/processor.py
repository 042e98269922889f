"""Samples -> a batch. Made from a model, so that sizes, statistics and placeholder counts are computed, never typed."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from PIL import Image
from torch import nn

from vlm.chat import ChatFormat, Encoded
from vlm.collate import Example, Look, collate
from vlm.connector import Chain
from vlm.encoder import Encoder
from vlm.features import Shape
from vlm.images import ImageError, ImageLike, image_size, open_image
from vlm.layout import Layout, Piece
from vlm.packer import ImagePlan
from vlm.sample import IMAGE_MARK, Batch, Sample, Turn
from vlm.views import Size, View, Views, render


class SampleError(ValueError):
    """A sample that this model cannot take; the message names it."""


class TooLong(SampleError):
    """A sample that is longer than the LLM's context."""


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
        layout: what stands around an image's tokens.
        chat: how turns become token ids.
        max_length: the LLM's context in positions.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        connector: Chain,
        *,
        views: Views,
        layout: Layout,
        chat: ChatFormat,
        max_length: int,
    ) -> None:
        self._encoders: list[Encoder] = [skeleton(encoder) for encoder in encoders]
        self._connector: Chain = skeleton(connector)
        self.views = views
        self.layout = layout
        self.chat = chat
        self.max_length = max_length

    def __call__(self, samples: Sequence[Sample], *, side: Literal["left", "right"] = "right") -> Batch:
        """Samples -> one batch; `side` is where shorter ones are padded (left to be continued)."""
        return self.collate([self.encode(sample) for sample in samples], side=side)

    def plan(self, height: int, width: int, *, images: int = 1) -> ImagePlan:
        """The views of an image of that size in pixels, in a sample of so many `images`.

        Raises:
            ConfigError: the view policy refuses the size.
        """
        policy = self.views.among(images)
        sizes = [encoder.image.size for encoder in self._encoders]
        first = tuple(policy.plan((height, width), sizes[0]))
        views = tuple(
            first if size == sizes[0] else self._others(policy, (height, width), size, first) for size in sizes
        )
        return ImagePlan((height, width), views)

    @staticmethod
    def _others(policy: Views, image: Size, size: Size, first: tuple[View, ...]) -> tuple[View, ...]:
        """The views of an encoder of another size than the first one's. Tiles are the first one's, at its own size:
        planned anew they could be of another grid.
        """
        if any(view.cell is not None for view in first):
            return tuple(view.on(size) for view in first)
        own = tuple(policy.plan(image, size))
        return own if len(own) == len(first) else tuple(view.on(size) for view in first)

    def shapes(self, image: ImagePlan) -> list[Shape]:
        """The shape of each view's tokens in the LLM."""
        pairs = zip(*image.views, strict=True)
        return [
            self._connector.shape(
                [encoder.shape(view.size) for encoder, view in zip(self._encoders, views, strict=True)]
            )
            for views in pairs
        ]

    def render(self, image: ImagePlan, number: int = 0) -> tuple[Piece, ...]:
        """The image in the text: tags, and runs of as many placeholders as the route gives them."""
        runs = self._connector.runs(self.shapes(image), image)
        route = self._connector.route()
        pieces = self.layout.render(number, image.size, runs)
        return tuple(piece if isinstance(piece, str) else route.placeholders(piece) for piece in pieces)

    def seen(self, image: ImageLike) -> list[list[Image.Image]]:
        """Per encoder the views of an image as that encoder sees them, in colours again."""
        return self.shown(self.look(image))

    def shown(self, look: Look) -> list[list[Image.Image]]:
        """The same for an image that was looked at."""
        return [
            [encoder.image.denormalise(pixels[number]) for pixels in look.pixels]
            for number, encoder in enumerate(self._encoders)
        ]

    def tokens(self, height: int, width: int, *, images: int = 1) -> int:
        """Visual tokens of an image of that size, in a sample of so many `images`."""
        image = self.plan(height, width, images=images)
        return sum(run.shape.tokens for run in self._connector.runs(self.shapes(image), image))

    def positions(self, height: int, width: int, *, images: int = 1) -> int:
        """Placeholders that an image of that size takes in the LLM's sequence, in a sample of so many `images`."""
        image = self.plan(height, width, images=images)
        return sum(piece for piece in self.render(image) if isinstance(piece, int))

    def look(self, image: ImageLike, images: int = 1) -> Look:
        """An image in a sample of so many `images`, opened, cut into views and normalised for each encoder.

        Raises:
            ImageError: it cannot be opened.
            ConfigError: the view policy refuses its size.
        """
        opened = open_image(image)
        plan = self.plan(opened.height, opened.width, images=images)
        rendered = [
            render(views, opened, encoder.image) for encoder, views in zip(self._encoders, plan.views, strict=True)
        ]
        return Look(plan, [list(views) for views in zip(*rendered, strict=True)])

    def encode(self, sample: Sample, look: Callable[[ImageLike, int], Look] | None = None) -> Example:
        """One sample as tensors.

        Args:
            sample: what is encoded.
            look: takes the place of `self.look`, to keep what several samples show.

        Raises:
            ImageError: an image cannot be opened.
            SampleError: marks and images differ in number, an image has a size that the view policy refuses, or the
                sample is longer than the LLM's context (`TooLong`). It is refused whole: nothing is cut off.
        """
        look = look or self.look
        with _named(sample):
            looks = [look(image, len(sample.images)) for image in sample.images]
        example = self._example(sample, looks)
        return example if sample.rejected is None else replace(example, rejected=self._example(_worse(sample), looks))

    def _example(self, sample: Sample, looks: list[Look]) -> Example:
        text = self._text(sample, [one.plan for one in looks])
        question = self._connector.question(_asked(sample))
        return Example(
            text.input_ids,
            text.labels,
            text.owner,
            text.seen,
            looks,
            question=None if question is None else torch.tensor(question, dtype=torch.long),
            id=sample.id,
            targets=sample.targets,
        )

    def measure(self, sample: Sample) -> tuple[Encoded, list[ImagePlan]]:
        """The text of a sample and how its images are shown, from their headers alone: no pixel is read.

        Raises:
            ImageError, SampleError: as `encode`, but for damage that only shows when pixels are read.
        """
        with _named(sample):
            plans = [self.plan(*_size(image), images=len(sample.images)) for image in sample.images]
        text = self._text(sample, plans)
        if sample.rejected is not None:  # the longer one of both answers counts
            text = max(text, self._text(_worse(sample), plans), key=lambda one: len(one.input_ids))
        return text, plans

    def _text(self, sample: Sample, plans: Sequence[ImagePlan]) -> Encoded:
        with _named(sample):
            shown = [self.render(plan, number) for number, plan in enumerate(plans)]
            text = self.chat.encode(sample.turns, shown, last=sample.rejected is not None)
        if len(text.input_ids) > self.max_length:
            visual = int((text.owner >= 0).sum())
            long = f"{len(text.input_ids)} positions ({visual} for {len(plans)} images)"
            raise TooLong(f"sample {sample.id or '(no id)'}: {long}, but the LLM's context is {self.max_length}")
        return text

    def collate(
        self,
        examples: Sequence[Example],
        *,
        side: Literal["left", "right"] = "right",
        pixels: bool = True,
        packs: Sequence[int] | None = None,
    ) -> Batch:
        """Encoded samples -> one batch; see `vlm.collate`."""
        return collate(examples, pad_id=self.chat.pad_id, side=side, pixels=pixels, packs=packs)


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """What is wrong with a sample comes out under its name."""
    try:
        yield
    except ImageError:
        raise
    except ValueError as error:
        raise SampleError(f"sample {sample.id or '(no id)'}: {error}") from error


def _size(image: ImageLike) -> Size:
    opened = isinstance(image, Image.Image)
    return (image.height, image.width) if opened else image_size(image)  # type: ignore[union-attr, arg-type]


def _worse(sample: Sample) -> Sample:
    """The sample with the answer that was rejected.

    Raises:
        SampleError: there is no other that it would be worse than.
    """
    if sample.rejected is None or not sample.turns or sample.turns[-1].role != "assistant":
        raise SampleError(f"sample {sample.id or '(no id)'}: it has a rejected answer and no other")
    return replace(sample, turns=[*sample.turns[:-1], Turn("assistant", sample.rejected)])


def _asked(sample: Sample) -> str:
    """The last question of a sample, without image marks."""
    said = [turn.text for turn in sample.turns if turn.role == "user"]
    return said[-1].replace(IMAGE_MARK, "").strip() if said else ""
