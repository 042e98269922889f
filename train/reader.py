"""Samples of a mixture as a model takes them; what cannot be used is left out and said, never replaced."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from torch import Tensor

from vlm.collate import Example, Look
from vlm.data import DataError
from vlm.errors import ConfigError, Problem
from vlm.images import ImageError, ImageLike
from vlm.processor import Processor, SampleError, TooLong
from vlm.sample import IMAGE_MARK, Batch, Sample, Skipped

from .features import FeatureStore
from .losses import IGNORED
from .mixture import Mixture

T = TypeVar("T")
Row = tuple[int, ...]
"""Numbers of samples in the mixture that share a row of a batch."""


class NoAnswer(SampleError):
    """A sample with nothing to learn."""


@dataclass(frozen=True)
class Extent:
    """What a sample takes of a model."""

    positions: int
    """In the LLM's sequence."""
    views: int
    """For the encoders."""


class Reader:
    """Reads samples; goes to worker processes as it is.

    Args:
        mixture: the samples.
        processor: of the model.
        limit: positions that a sample may have; the LLM's context if absent.
        too_long: what is done with a longer one.
        answers: whether a sample without anything to learn from its text is left out.
        store: features of images in place of their pixels, where it has them.
    """

    def __init__(
        self,
        mixture: Mixture,
        processor: Processor,
        *,
        limit: int | None = None,
        too_long: Literal["drop", "shorten"] = "drop",
        answers: bool = True,
        store: FeatureStore | None = None,
    ) -> None:
        self.mixture = mixture
        self.processor = processor
        self.limit = min(limit or processor.max_length, processor.max_length)
        self.too_long = too_long
        self.answers = answers
        self.store = store
        self._extents: dict[tuple[int, int], Extent | Skipped] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_extents": {}}  # worker processes do not measure

    def read(self, number: int) -> Example | Skipped:
        """Sample `number` of the mixture, with its pixels."""
        return self._tried(number, self._example)

    def measure(self, number: int) -> Extent | Skipped:
        """The extent of a sample; no pixel is read, and a row of a source is measured once."""
        place = self.mixture.place(number)
        if place not in self._extents:
            self._extents[place] = self._tried(number, self._extent)
        found = self._extents[place]
        return found._replace(number=number) if isinstance(found, Skipped) else found

    def first(self) -> Extent:
        """The extent of the first sample that can be used.

        Raises:
            ConfigError: there is none among the first hundred.
        """
        why: dict[str, None] = {}
        for number in range(100):
            found = self.measure(number)
            if isinstance(found, Extent):
                return found
            why[found.why] = None
        raise ConfigError(Problem("data", f"none of the first 100 samples can be used: {'; '.join([*why][:3])}"))

    def batch(self, rows: Sequence[Sequence[Example | Skipped]], packed: bool) -> Batch:
        """What was read for the rows of a batch -> the batch, without what was left out."""
        kept = [[one for one in row if isinstance(one, Example)] for row in rows]
        kept = [row for row in kept if row]
        batch = self.processor.collate(
            [one for row in kept for one in row], packs=[len(row) for row in kept] if packed else None
        )
        batch.skipped = [one for row in rows for one in row if isinstance(one, Skipped)]
        return batch

    def _tried(self, number: int, use: Callable[[Sample], T]) -> T | Skipped:
        try:
            return self._fitted(self.mixture[number], use)
        except DataError as error:
            return Skipped(number, error.id, "no sample", str(error))
        except (ImageError, SampleError) as error:
            return Skipped(number, self.mixture[number].id, _cause(error), str(error))

    def _fitted(self, sample: Sample, use: Callable[[Sample], T]) -> T:
        """`use(sample)`, or that of a shorter one."""
        while True:
            try:
                return use(sample)
            except TooLong:
                shorter = shortened(sample) if self.too_long == "shorten" else None
                if shorter is None:
                    raise
                sample = shorter

    def _example(self, sample: Sample) -> Example:
        example = self.processor.encode(sample, self._look)
        for one in (example, example.rejected or example):
            self._check(sample, one.input_ids, one.labels)
        return example

    def _look(self, image: ImageLike, images: int) -> Look:
        found = None if self.store is None else self.store.find(image, images)
        if found is None:
            return self.processor.look(image, images)
        return Look(self.processor.plan(*found.size, images=images), [], found.views)

    def _extent(self, sample: Sample) -> Extent:
        text, plans = self.processor.measure(sample)
        self._check(sample, text.input_ids, text.labels)
        return Extent(len(text.input_ids), sum(len(views) for plan in plans for views in plan.views))

    def _check(self, sample: Sample, ids: Tensor, labels: Tensor) -> None:
        """
        Raises:
            TooLong, NoAnswer: the sample cannot be used.
        """
        if len(ids) > self.limit:
            raise TooLong(f"sample {sample.id or '(no id)'}: {len(ids)} positions; allowed: {self.limit}")
        if self.answers and not bool((labels[1:] != IGNORED).any()):
            raise NoAnswer(f"sample {sample.id or '(no id)'}: nothing in it is the assistant's to say")


def shortened(sample: Sample) -> Sample | None:
    """The sample without its last answer and what belongs to it; images that are shown there go as a whole. None where
    nothing would be left to learn."""
    spoken = [number for number, turn in enumerate(sample.turns) if turn.role == "assistant"]
    if len(spoken) < 2 or sample.rejected is not None:  # the last turn is what a preference is about
        return None
    turns = sample.turns[: spoken[-2] + 1]
    marks = [sum(turn.text.count(IMAGE_MARK) for turn in part) for part in (sample.turns, turns)]
    images = sample.images[: marks[1]] if marks[0] else sample.images  # without marks all stand before the first turn
    return replace(sample, turns=turns, images=images)


_CAUSES = {ImageError: "broken image", TooLong: "too long", NoAnswer: "no answer", SampleError: "does not fit"}
"""The first class that an error is of."""


def _cause(error: Exception) -> str:
    return next(cause for kind, cause in _CAUSES.items() if isinstance(error, kind))
