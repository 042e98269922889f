"""Which sample comes when: a fixed order over several weighted sources."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlm import registry
from vlm.collate import Example
from vlm.data import Source
from vlm.errors import ConfigError, Problem, join
from vlm.processor import Processor
from vlm.recipe import DataSpec, PartSpec, StageSpec
from vlm.sample import Batch, Sample
from vlm.schema import construct


class Mixture(Dataset[Sample]):
    """`total` samples drawn from weighted sources in an order that depends on the seed alone, so that it is the same
    for any number of workers and devices, and can be continued anywhere.

    Each source is gone through in full, in a new random order each time, before a sample of it comes again.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], *, total: int, seed: int) -> None:
        self.sources = list(sources)
        rng = np.random.default_rng([seed, 0])
        share = np.asarray(weights, dtype=np.float64) / sum(weights)
        self._source = rng.choice(len(sources), size=total, p=share).astype(np.int16)
        self._visit = np.empty(total, dtype=np.int64)
        for number in range(len(sources)):
            mine = self._source == number
            self._visit[mine] = np.arange(mine.sum())
        self._seed = seed
        self._orders: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._source[index])
        source = self.sources[number]
        epoch, place = divmod(int(self._visit[index]), len(source))
        return source[place if source.ordered else int(self._order(number, epoch)[place])]

    def _order(self, number: int, epoch: int) -> Any:
        """The order of one pass through a source; only the latest of each is kept."""
        if (number, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != number}
            rng = np.random.default_rng([self._seed, 1, number, epoch])
            self._orders[number, epoch] = rng.permutation(len(self.sources[number]))
        return self._orders[number, epoch]


class _Encoded(Dataset[Example]):
    def __init__(self, samples: Dataset[Sample], encode: Callable[[Sample], Example]) -> None:
        self._samples = samples
        self._encode = encode

    def __getitem__(self, index: int) -> Example:
        return self._encode(self._samples[index])


class Positions(Sampler[list[int]]):
    """The indices of each micro-batch of one device, from step `start` on.

    The global batch of step s is the samples s * B ... (s + 1) * B - 1; micro-batch m of rank r takes a slice of it.
    """

    def __init__(self, stage: StageSpec, *, start: int, rank: int, world: int) -> None:
        self._stage = stage
        self._start = start
        self._rank = rank
        self._world = world
        self.size = micro_batch(stage, world)
        self.accumulate = stage.batch_size // (self.size * world)

    def __len__(self) -> int:
        """Of the whole stage: Lightning counts on from a checkpoint's batches to this number."""
        return self._stage.steps * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self._start, self._stage.steps):
            for micro in range(self.accumulate):
                first = step * self._stage.batch_size + (micro * self._world + self._rank) * self.size
                yield list(range(first, first + self.size))


def micro_batch(stage: StageSpec, world: int) -> int:
    """Samples of one forward pass on one of `world` devices.

    Raises:
        ConfigError: the batch does not divide into micro-batches.
    """
    size = stage.micro_batch_size or max(1, stage.batch_size // world)
    if stage.batch_size % (size * world):
        problem = f"`{stage.batch_size}` does not divide by {world} devices x micro_batch_size {size}"
        raise ConfigError(Problem("batch_size", problem))
    return size


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


def loader(
    stage: StageSpec, processor: Processor, *, seed: int, start: int = 0, rank: int = 0, world: int = 1
) -> DataLoader[Batch]:
    """Batches of one stage for one device, from step `start` on."""
    mixture = Mixture(
        open_sources(stage.data),
        [spec.weight for spec in stage.data],
        total=stage.steps * stage.batch_size,
        seed=seed,
    )
    return DataLoader(
        _Encoded(mixture, processor.encode),  # type: ignore[arg-type]
        batch_sampler=Positions(stage, start=start, rank=rank, world=world),
        collate_fn=processor.collate,
        num_workers=stage.workers,
        generator=torch.Generator().manual_seed(
            seed
        ),  # else it draws from the global one, and dropout shifts on resume
        pin_memory=torch.cuda.is_available(),
    )
