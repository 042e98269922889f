"""Which samples make which batch: the same for any number of workers and devices, and from any step on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vlm.collate import Example
from vlm.errors import ConfigError, Problem
from vlm.recipe import StageSpec
from vlm.sample import Batch, Skipped

from .packing import pack, share
from .reader import Extent, Reader, Row

WINDOW = 1024
"""Samples that are measured at a time, to be packed or put beside others of their length; more if a step needs more."""
STEPS = 4
"""Steps that a window is good for at least."""

Step = list[list[list[Row]]]
"""Rows by device and micro-batch."""


@dataclass(frozen=True)
class Position:
    """Where the order of samples stands: all that is needed to go on from there."""

    step: int = 0
    """The optimiser step that comes next."""
    first: int = 0
    """The first sample that no batch has had yet."""
    carried: tuple[int, ...] = ()
    """Earlier samples that went into no batch yet, since they did not fill one."""


class Batches(Sampler[list[Row]]):
    """The rows of each micro-batch of one device, step by step.

    A step takes `batch_size` rows, whatever the number of devices. Where rows are packed or grouped by length, a window
    of samples is measured and laid out at a time; what does not fill a step is carried into the next window, so that
    every sample comes once, as often as the mixture has it.

    Args:
        stage: the stage.
        reader: measures samples.
        rank: of this device.
        world: the number of devices.
        seed: of the order of steps within a window.
        work: what a sample costs, in any unit, by which rows are shared out among devices.
        skipped: told of samples that a window leaves out.
    """

    def __init__(
        self,
        stage: StageSpec,
        reader: Reader,
        *,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        work: Callable[[Extent], float] = lambda extent: float(extent.positions),
        skipped: Callable[[Sequence[Skipped]], None] = lambda _: None,
    ) -> None:
        self.stage, self._reader, self._rank, self.world, self._seed = stage, reader, rank, world, seed
        self._work, self._skipped = work, skipped
        self.size = micro_batch(stage, world)
        self.accumulate = accumulated(stage, world)
        self._windows = [Position()]
        self._next = 0

    def __len__(self) -> int:
        """Of the whole stage: Lightning counts on from a checkpoint's batches to this number."""
        return self.stage.steps * self.accumulate

    def __iter__(self) -> Iterator[list[Row]]:
        for step in self.steps():
            yield from step[self._rank]

    def position(self, step: int) -> Position:
        """The beginning of the latest window that step `step` does not come before."""
        return [window for window in self._windows if window.step <= step][-1]

    def go_on(self, step: int, position: Position) -> None:
        """Begin with step `step`, whose window is found from `position` (see there)."""
        self._next, self._windows = step, [position]

    def steps(self) -> Iterator[Step]:
        """The rows of each step, for all devices."""
        windowed = self.stage.pack or self.stage.group_by_length
        return self._windowed() if windowed else map(self._plain, range(self._next, self.stage.steps))

    def _plain(self, step: int) -> Step:
        """Samples as they come: micro-batch m of device r takes a slice of the step's."""
        numbers = range(step * self.stage.batch_size, (step + 1) * self.stage.batch_size)
        slices: list[list[Row]] = [
            [(number,) for number in numbers[at : at + self.size]] for at in range(0, len(numbers), self.size)
        ]
        return [slices[rank :: self.world] for rank in range(self.world)]

    def _windowed(self) -> Iterator[Step]:
        position = self._windows[0]
        while position.step < self.stage.steps:
            steps, after = self._window(position)
            for number, step in enumerate(steps, position.step):
                if self._next <= number < self.stage.steps:
                    yield step
            position = after
            self._windows.append(position)

    def _window(self, position: Position) -> tuple[list[Step], Position]:
        """The steps of the window that begins at `position`, and where the next one begins."""
        extents, after = self._measured(position)
        rows = self._rows(extents)
        work = {row: sum(self._work(extents[number]) for number in row) for row in rows}
        count = len(rows) // self.stage.batch_size
        whole = sorted(rows[: count * self.stage.batch_size], key=lambda row: (work[row], row))
        steps = [whole[at : at + self.stage.batch_size] for at in range(0, len(whole), self.stage.batch_size)]
        order = np.random.default_rng([self._seed, 2, position.step]).permutation(count)
        carried = tuple(sorted(number for row in rows[len(whole) :] for number in row))
        laid = [self._laid(steps[number], work) for number in order]
        return laid, Position(position.step + count, after, carried)

    def _measured(self, position: Position) -> tuple[dict[int, Extent], int]:
        """Samples that are enough for a window, and the number of the first that is not among them."""
        extents: dict[int, Extent] = {}
        numbers, after = position.carried, position.first
        while True:
            found = {number: self._reader.measure(number) for number in numbers}
            extents |= {number: one for number, one in found.items() if isinstance(one, Extent)}
            self._skipped([one for one in found.values() if isinstance(one, Skipped)])
            positions = sum(one.positions for one in extents.values())
            rows = positions // self.stage.pack if self.stage.pack else len(extents)
            if rows >= STEPS * self.stage.batch_size:
                return extents, after
            if not extents and after - position.first > 100 * WINDOW:
                raise ConfigError(Problem("data", f"none of {after - position.first:,} samples can be used"))
            numbers, after = tuple(range(after, after + WINDOW)), after + WINDOW

    def _rows(self, extents: dict[int, Extent]) -> list[Row]:
        """Samples in rows; those that are least full come last."""
        numbers = sorted(extents)
        if self.stage.pack is None:
            return [(number,) for number in numbers]
        rows = pack([extents[number].positions for number in numbers], self.stage.pack)
        named = [tuple(numbers[place] for place in row) for row in rows]
        return sorted(named, key=lambda row: (-sum(extents[number].positions for number in row), row))

    def _laid(self, rows: list[Row], work: dict[Row, float]) -> Step:
        """The rows of one step, by device and micro-batch; rows of like work side by side."""
        shares = share([work[row] for row in rows], self.world)
        mine = [sorted((rows[place] for place in places), key=lambda row: (work[row], row)) for places in shares]
        return [[part[at : at + self.size] for at in range(0, len(part), self.size)] for part in mine]


class Survey(Sampler[list[Row]]):
    """Every sample of a stage once: the share of one device, in batches that do not depend on how many there are.

    Args:
        batches: of the stage, from its beginning.
        reader: of its samples.
        rank: of this device.
    """

    def __init__(self, batches: Batches, reader: Reader, *, rank: int) -> None:
        stage, world = batches.stage, batches.world
        drawn = [number for step in batches.steps() for number in numbers_of(step)]
        firsts = sorted({reader.mixture.place(number): number for number in reversed(drawn)}.values())
        size = stage.micro_batch_size or min(stage.batch_size, 16)
        self._batches = [firsts[at : at + size] for at in range(rank * size, len(firsts), size * world)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Row]]:
        return ([(number,) for number in batch] for batch in self._batches)


def numbers_of(step: Step) -> Iterator[int]:
    """The samples of a step, over all devices."""
    return (number for device in step for micro in device for row in micro for number in row)


def accumulated(stage: StageSpec, world: int) -> int:
    """Micro-batches of an optimiser step on each of `world` devices."""
    return stage.batch_size // (micro_batch(stage, world) * world)


def micro_batch(stage: StageSpec, world: int) -> int:
    """Rows of one forward pass on one of `world` devices.

    Raises:
        ConfigError: the batch does not divide into micro-batches.
    """
    size = stage.micro_batch_size or max(1, stage.batch_size // world)
    if stage.batch_size % (size * world):
        problem = f"`{stage.batch_size}` does not divide by {world} devices x micro_batch_size {size}"
        raise ConfigError(Problem("batch_size", problem))
    return size


class _Rows(Dataset[list[Example | Skipped]]):
    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getitem__(self, row: Row) -> list[Example | Skipped]:
        return [self._reader.read(number) for number in row]


def loader(batches: Sampler[list[Row]], reader: Reader, *, stage: StageSpec, seed: int = 0) -> DataLoader[Batch]:
    """The batches of one device, made by the stage's worker processes.

    Args:
        batches: which samples they are of.
        reader: reads these.
        stage: the stage.
        seed: of the loader's own draws, which nothing depends on.
    """
    return DataLoader(
        _Rows(reader),  # type: ignore[arg-type]
        batch_sampler=batches,
        collate_fn=partial(reader.batch, packed=stage.pack is not None),
        num_workers=stage.workers,
        # without one of its own it draws from the global one, and dropout shifts on resume
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )
