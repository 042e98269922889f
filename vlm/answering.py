"""Many questions: each image is encoded once, and questions of like length are answered together."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlm.collate import Example, Look, grouped
from vlm.data import DataError
from vlm.features import VisionTokens
from vlm.images import ImageError, ImageLike
from vlm.parts import evaluating
from vlm.processor import SampleError
from vlm.sample import Sample

if TYPE_CHECKING:
    from vlm.model import VLM

WINDOW = 4
"""Batches whose questions are sorted by length and may share images: few enough to hold in memory."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one sample, or why it could not."""

    id: str
    text: str
    error: str | None = None
    """Why there is no answer; `text` is then empty and must not be scored as one."""
    truncated: bool = False
    """The answer was cut at the token limit."""
    tokens: int = 0
    """Generated tokens."""


def replies(
    model: "VLM", samples: Iterable[Sample], *, max_new_tokens: int, batch_size: int
) -> Iterator[tuple[int, Answer]]:
    """(number of the sample, its answer) for every sample, as soon as its batch is done.

    The samples are read as they are needed, so they may be many. Those that show one image should stand side by side:
    it is then opened and encoded once. Whatever goes wrong with a sample is its own answer's `error`.

    Args:
        model: what answers.
        samples: what is asked.
        max_new_tokens: where an answer is cut.
        batch_size: samples per forward pass.
    """
    todo = enumerate(samples)
    while window := list(islice(todo, batch_size * WINDOW)):
        yield from _Window(model, max_new_tokens, batch_size).replies(window)


def in_order(numbered: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """The answers in the order of the samples, each as soon as those before it are there."""
    waiting: dict[int, Answer] = {}
    due = 0
    for number, answer in numbered:
        waiting[number] = answer
        while due in waiting:
            yield waiting.pop(due)
            due += 1


class _Window:
    """A few batches and the images that they share."""

    def __init__(self, model: "VLM", max_new_tokens: int, batch_size: int) -> None:
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.looks: dict[tuple[str | bytes | int, int], Look | ImageError] = {}
        self.encoded: dict[_Seen, Tensor] = {}
        self.uses: Counter[_Seen] = Counter()

    def replies(self, window: Sequence[tuple[int, Sample]]) -> Iterator[tuple[int, Answer]]:
        examples: dict[int, Example] = {}
        for number, sample in window:
            one = self._prepare(sample)
            if isinstance(one, Answer):
                yield number, one
            else:
                examples[number] = one
        self.looks.clear()  # the examples hold what is still needed
        self.uses.update(seen for example in examples.values() for seen in _shown(example))
        for numbers in self._batches(examples):
            yield from zip(numbers, self._answers([examples.pop(number) for number in numbers]), strict=True)

    def _prepare(self, sample: Sample) -> Example | Answer:
        try:
            example = self.model.processor.encode(sample.question(), self._look)
            room(self.model, example)
            return example
        except (ImageError, SampleError, DataError) as error:
            return Answer(sample.id, "", error=str(error))
        except Exception as error:
            return _failed(sample.id, error)

    def _look(self, image: ImageLike, images: int) -> Look:
        """Each image once, by its path or its file's content; one that cannot be used is not tried again either."""
        key = (image if isinstance(image, str | bytes) else id(image), images)
        if key not in self.looks:
            try:
                self.looks[key] = self.model.processor.look(image, images)
            except ImageError as error:
                self.looks[key] = error
        found = self.looks[key]
        if isinstance(found, ImageError):
            raise found
        return found

    def _batches(self, examples: dict[int, Example]) -> Iterator[list[int]]:
        """Numbers of the samples of each batch, the longest first. A sample near the end of the context stands with
        its like alone: how long its answer may be must not depend on its neighbours.
        """
        groups: dict[int, list[int]] = {}
        for number, example in sorted(examples.items(), key=lambda item: len(item[1].input_ids), reverse=True):
            groups.setdefault(min(room(self.model, example), self.max_new_tokens), []).append(number)
        for length in sorted(groups):
            numbers = iter(groups[length])
            while batch := list(islice(numbers, self.batch_size)):
                yield batch

    def _answers(self, examples: Sequence[Example]) -> list[Answer]:
        """One answer each. If a batch fails, its samples are tried one by one: none costs another its answer."""
        try:
            return self._generate(examples)
        except Exception as error:
            if len(examples) == 1:
                return [_failed(examples[0].id, error)]
        return [answer for example in examples for answer in self._answers([example])]

    def _generate(self, examples: Sequence[Example]) -> list[Answer]:
        model = self.model
        batch = model.processor.collate(examples, side="left", pixels=False).to(model.device)
        limit = min(self.max_new_tokens, *(room(model, example) for example in examples))
        rows = model.generate(
            batch, max_new_tokens=limit, vision=self._vision(examples), groups=_groups(examples)
        ).tolist()
        return [read(model, name, row) for name, row in zip(batch.ids, rows, strict=True)]

    def _vision(self, examples: Sequence[Example]) -> VisionTokens | None:
        """The visual tokens of the samples' images, each encoded when it is first needed and kept while it is."""
        shown = [seen for example in examples for seen in _shown(example)]
        new = [seen for seen in dict.fromkeys(shown) if seen not in self.encoded]
        if new:
            self.encoded |= zip(new, _encode(self.model, new), strict=True)
        tokens = [self.encoded[seen] for seen in shown]
        self.uses.subtract(shown)
        for seen in set(shown):
            if self.uses[seen] <= 0:
                del self.encoded[seen]
        return VisionTokens(torch.cat(tokens), tuple(map(len, tokens))) if tokens else None


@dataclass(frozen=True)
class _Seen:
    """An image, and what is asked about it where the connector reads that."""

    look: Look
    question: tuple[int, ...] | None


def _shown(example: Example) -> list[_Seen]:
    question = None if example.question is None else tuple(example.question.tolist())
    return [_Seen(look, question) for look in example.looks]


def _groups(examples: Sequence[Example]) -> list[int]:
    """Samples that show the same are of one group."""
    numbers: dict[tuple[_Seen, ...], int] = {}
    return [numbers.setdefault(tuple(_shown(example)), len(numbers)) for example in examples]


def _encode(model: "VLM", images: Sequence[_Seen]) -> list[Tensor]:
    """Visual tokens [t, C] of each image."""
    questions = [None if seen.question is None else torch.tensor(seen.question) for seen in images]
    groups = [group.to(model.device) for group in grouped([seen.look for seen in images], questions)]
    with torch.no_grad(), evaluating(model):
        vision = model.visual(groups, [seen.look.plan for seen in images])
    return list(vision.tokens.split(list(vision.counts)))


def room(model: "VLM", example: Example) -> int:
    """Tokens that the LLM's context leaves for the answer.

    Raises:
        SampleError: none.
    """
    left = model.processor.max_length - len(example.input_ids)
    if left < 1:
        raise SampleError(f"sample {example.id}: the question fills the LLM's context, no room for an answer")
    return left


def read(model: "VLM", name: str, row: list[int]) -> Answer:
    """The answer that generated ids are: up to the first token that ends one."""
    stops = model.processor.chat.stop_ids
    end = next((position for position, token in enumerate(row) if token in stops), None)
    said = row if end is None else row[:end]
    return Answer(name, model.processor.chat.decode(said), truncated=end is None, tokens=len(said))


def _failed(name: str, error: Exception) -> Answer:
    return Answer(name, "", error=f"{type(error).__name__}: {error}")
