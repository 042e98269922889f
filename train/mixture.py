"""Which sample comes when: a fixed, endless order over several weighted sources."""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vlm import registry
from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem, join
from vlm.recipe import DataSpec, PartSpec
from vlm.sample import Sample
from vlm.schema import construct

LOOKED_AT = 16
"""Samples by which a source is told to be text alone."""
BLOCK = 1 << 14
"""Samples whose sources are drawn at a time."""
Array = NDArray[Any]


class Mixture(Dataset[Sample]):
    """Samples drawn from weighted sources in an order that depends on the seed alone, so that it is the same for any
    number of workers and devices, and can be continued anywhere.

    Each source is gone through in full, in a new random order each time, before a sample of it comes again. What is
    held in memory grows with the sources' sizes (8 bytes a row) and not with the number of samples drawn.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], *, seed: int) -> None:
        self.sources = list(sources)
        shares = np.cumsum(np.asarray(weights, dtype=np.float64) / sum(weights))
        self._ends = shares / shares[-1]
        self._seed = seed
        self._before: list[Array] = [np.zeros(len(sources), dtype=np.int64)]  # samples of each source before each block
        self._blocks: OrderedDict[int, tuple[Array, Array]] = OrderedDict()
        self._orders: dict[tuple[int, int], Array] = {}

    def __getitem__(self, index: int) -> Sample:
        number, row = self.place(index)
        return self.sources[number][row]

    def place(self, index: int) -> tuple[int, int]:
        """The source of sample `index` >= 0, and the row in it."""
        number, visit = self._drawn(index)
        source = self.sources[number]
        epoch, place = divmod(visit, len(source))
        return number, place if source.ordered else int(self._order(number, epoch)[place])

    def epoch(self, index: int) -> float:
        """How often the sources have been gone through before sample `index`: the mean of all, by their sizes."""
        numbers = self._block(index // BLOCK)[0]
        counts = self._before[index // BLOCK] + np.bincount(numbers[: index % BLOCK], minlength=len(self.sources))
        return float(counts.sum() / sum(map(len, self.sources)))

    def _drawn(self, index: int) -> tuple[int, int]:
        """The source of a sample, and how many came from that source before."""
        numbers, visits = self._block(index // BLOCK)
        return int(numbers[index % BLOCK]), int(visits[index % BLOCK])

    def _block(self, block: int) -> tuple[Array, Array]:
        """Sources [BLOCK] of a block's samples, and how many came from the same source before each."""
        if block not in self._blocks:
            while len(self._before) <= block:
                counts = np.bincount(self._sources(len(self._before) - 1), minlength=len(self.sources))
                self._before.append(self._before[-1] + counts)
            numbers = self._sources(block)
            visits = np.empty(BLOCK, dtype=np.int64)
            for number in range(len(self.sources)):
                mine = numbers == number
                visits[mine] = self._before[block][number] + np.arange(mine.sum())
            self._blocks[block] = numbers, visits
            if len(self._blocks) > 4:  # workers and windows are not far from each other
                self._blocks.popitem(last=False)
        return self._blocks[block]

    def _sources(self, block: int) -> Array:
        """[BLOCK]: one draw a sample from a stream of random numbers that may be entered anywhere."""
        stream = np.random.PCG64(np.random.SeedSequence([self._seed, 0])).advance(block * BLOCK)
        return self._ends.searchsorted(np.random.Generator(stream).random(BLOCK), side="right")  # type: ignore[arg-type, no-any-return]

    def _order(self, number: int, epoch: int) -> Array:
        """The order of one pass through a source; only the latest of each is kept."""
        if (number, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != number}
            rng = np.random.default_rng([self._seed, 1, number, epoch])
            self._orders[number, epoch] = rng.permutation(len(self.sources[number]))
        return self._orders[number, epoch]


def mixture(data: Sequence[DataSpec], *, seed: int, text_share: float | None = None) -> Mixture:
    """The samples of a stage.

    Args:
        data: the sources and their weights.
        seed: of their order.
        text_share: of the samples that come from sources without images, whatever the weights say (MM1, arXiv
            2403.09611, found that such a share keeps an LLM's abilities).

    Raises:
        ConfigError: a source cannot be opened, or the share cannot be had.
    """
    sources, weights = open_sources(data), [spec.weight for spec in data]
    return Mixture(sources, weights if text_share is None else shared(sources, weights, text_share), seed=seed)


def shared(sources: Sequence[Source], weights: Sequence[float], text_share: float) -> list[float]:
    """The weights, so changed that sources without images have `text_share` of them all.

    Raises:
        ConfigError: all sources have images, or none has.
    """
    text = [_is_text(source) for source in sources]
    pairs = list(zip(weights, text, strict=True))
    sums = {kind: sum(weight for weight, one in pairs if one is kind) for kind in (True, False)}
    if not (sums[True] and sums[False]):
        which = "all sources are text alone" if sums[True] else "no source is text alone"
        raise ConfigError(Problem("text_share", f"`{text_share}`: {which}, by their first {LOOKED_AT} samples"))
    shares = {True: text_share / sums[True], False: (1 - text_share) / sums[False]}
    return [weight * shares[kind] for weight, kind in pairs]


def _is_text(source: Source) -> bool:
    found = []
    for index in range(min(LOOKED_AT, len(source))):
        with suppress(DataError):  # it is said where the sample is to be used
            found.append(bool(source[index].images))
    return not any(found)


def open_sources(data: Sequence[DataSpec], place: str = "data") -> list[Source]:
    """The sources of a stage.

    Raises:
        ConfigError: all that cannot be opened, each with its place.
    """
    sources, problems = [], []
    for number, spec in enumerate(data):
        try:
            sources.append(construct(registry.sources, PartSpec(name=spec.name, **spec.options), {}))
            if not len(sources[-1]):
                raise ConfigError("holds no sample")
        except ConfigError as error:
            problems += error.under(join(place, number)).problems
    if problems:
        raise ConfigError(problems)
    return sources
