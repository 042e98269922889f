"""Samples as a model takes them: how long they are, what is learned, what is wrong with them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlm.collate import Example
from vlm.data import DataError, Source
from vlm.errors import ConfigError
from vlm.images import ImageError
from vlm.processor import Processor, SampleError
from vlm.sample import PLACEHOLDER, Sample

REFUSED = "refused"
"""Cause of a fault with which a sample cannot be trained on."""


@dataclass
class Seen:
    """One sample, or why there is none."""

    index: int
    sample: Sample | None = None
    example: Example | None = None
    error: str = ""
    """Why it cannot be trained on."""
    cause: str = ""
    """The error's kind, for counts."""
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return (self.sample.id if self.sample else "") or f"sample {self.index + 1}"

    @property
    def faulty(self) -> bool:
        return bool(self.error or self.warnings)


def look(source: Source, index: int, processor: Processor) -> Seen:
    """A sample of a source as the processor's model takes it."""
    try:
        sample = source[index]
    except DataError as error:
        return Seen(index, error=str(error), cause="rows that are no sample")
    try:
        example = processor.encode(sample)
    except ImageError as error:
        return Seen(index, sample, error=str(error), cause="images that cannot be opened")
    except (SampleError, ConfigError) as error:
        return Seen(index, sample, error=str(error), cause="samples that the model cannot take")
    return Seen(index, sample, example, warnings=warnings(sample, example, processor))


def warnings(sample: Sample, example: Example, processor: Processor) -> list[str]:
    """What is odd about a sample that can be trained on all the same."""
    found, tokenizer = [], processor.chat.tokenizer
    if not bool((example.labels[1:] >= 0).any()):
        found.append("nothing is learned from it: it has no answer")
    if any(turn.role == "assistant" and not turn.text.strip() for turn in sample.turns):
        found.append("an answer is empty")
    said = " ".join(turn.text for turn in sample.turns)
    tokens = [token for token in tokenizer.all_special_tokens if token in said and token != PLACEHOLDER]
    found += [f"`{token}` in its text is read as a special token" for token in tokens]
    unknown = tokenizer.unk_token_id
    if unknown is not None and (count := int((example.input_ids == unknown).sum())):
        found.append(f"{count} of its tokens are unknown to the tokenizer")
    return found


def spread(total: int, count: int) -> list[int]:
    """`count` of `total` numbers, evenly, in order; all if there are no more."""
    return sorted({int(number) for number in np.linspace(0, total - 1, min(count, total))})


@dataclass
class Totals:
    """Counts over the samples that were looked at."""

    samples: int
    """That there are."""
    context: int
    """Positions that the LLM has."""
    lengths: list[int] = field(default_factory=list)
    """Positions of each sample that can be trained on."""
    visual: int = 0
    learned: int = 0
    images: int = 0
    text_only: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """Of samples that cannot be trained on."""
    oddities: Counter[str] = field(default_factory=Counter)

    @property
    def looked_at(self) -> int:
        return len(self.lengths) + self.causes.total()

    @property
    def positions(self) -> int:
        return sum(self.lengths)

    def add(self, seen: Seen) -> None:
        """Count one more."""
        self.oddities.update(set(seen.warnings))
        if seen.example is None:
            self.causes[seen.cause] += 1
            return
        self.lengths.append(len(seen.example.input_ids))
        self.visual += int((seen.example.owner >= 0).sum())
        self.learned += int((seen.example.labels[1:] >= 0).sum())
        self.images += len(seen.example.looks)
        self.text_only += not seen.example.looks

    def shares(self) -> dict[str, float]:
        """Which part of all positions is what."""
        total = max(1, self.positions)
        visual, learned = self.visual / total, self.learned / total
        return {"visual": visual, "read": max(0.0, 1 - visual - learned), "learned": learned}

    def histogram(self, most: int = 24) -> list[tuple[int, int, int]]:
        """(least length, greatest length, samples) of each bin, all equally wide."""
        return histogram(self.lengths, most)


def histogram(lengths: Sequence[int], most: int) -> list[tuple[int, int, int]]:
    """Counts in at most so many bins, whose ends are round numbers."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = next(width for width in _widths() if high // width - low // width < most)
    counts = Counter(length // width for length in lengths)
    return [(bin * width, (bin + 1) * width - 1, counts[bin]) for bin in range(low // width, high // width + 1)]


def _widths() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10
