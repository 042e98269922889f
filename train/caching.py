"""Fills a store of features before a stage begins."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader, Dataset

from vlm.collate import Look, grouped
from vlm.data import DataError
from vlm.errors import ConfigError
from vlm.features import Features
from vlm.images import ImageError
from vlm.model import VLM

from .batches import Batches, numbers_of
from .features import FeatureStore, key_of
from .reader import Reader

VIEWS = 64
"""Views that are encoded at a time."""


class FillCache(pl.Callback):
    """Computes the features of all images of a stage that the store has not yet, when the model is where it trains.

    Args:
        store: where they go.
        reader: of the stage's samples.
        batches: says which samples these are.
        workers: processes that open images.
        console: for the progress.
    """

    def __init__(
        self, store: FeatureStore, reader: Reader, batches: Callable[[], Batches], *, workers: int, console: Console
    ) -> None:
        self._store, self._reader, self._batches = store, reader, batches
        self._workers, self._console = workers, console

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        missing = self._missing()[trainer.global_rank :: trainer.world_size]
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            fill(pl_module.vlm, self._store, self._shown(missing), total=len(missing), console=self._console)
        trainer.strategy.barrier("features are computed")

    def _missing(self) -> list[int]:
        """A sample for each row that the stage will draw."""
        mixture = self._reader.mixture
        steps = self._batches().steps()
        drawn = (number for step in steps for number in numbers_of(step))
        return list({mixture.place(number): number for number in drawn}.values())

    def _shown(self, numbers: Sequence[int]) -> Iterator[list[tuple[str, Look]]]:
        """The images of each sample that the store has not."""
        loader = DataLoader(
            _Images(self._reader, self._store, numbers),
            batch_size=None,
            num_workers=self._workers,
            generator=torch.Generator().manual_seed(0),
        )
        yield from loader


class _Images(Dataset[list[tuple[str, Look]]]):
    def __init__(self, reader: Reader, store: FeatureStore, numbers: Sequence[int]) -> None:
        self._reader, self._store, self._numbers = reader, store, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> list[tuple[str, Look]]:
        found = []
        try:
            images = self._reader.mixture[self._numbers[index]].images
            for image in images:
                key = key_of(image, len(images))
                if key is not None and not self._store.has(key):
                    found.append((key, self._reader.processor.look(image, len(images))))
        except (DataError, ImageError, ConfigError):
            pass  # training leaves the sample out and says so
        return found


def fill(
    model: VLM, store: FeatureStore, shown: Iterable[list[tuple[str, Look]]], *, total: int, console: Console
) -> None:
    """Encode images and keep their features.

    Args:
        model: whose encoders.
        store: where features go.
        shown: images with their keys, in groups.
        total: of the groups, for the progress.
        console: where it is shown.

    Raises:
        ConfigError: the disk has no room for them.
    """
    columns = (TextColumn("features    "), BarColumn(bar_width=32), MofNCompleteColumn(), TimeRemainingColumn())
    waiting: dict[str, Look] = {}
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("features", total=total)
        for done, group in enumerate(shown, 1):
            waiting |= {key: look for key, look in group if not store.has(key)}
            if sum(len(look.pixels) for look in waiting.values()) >= VIEWS or done == total:
                _encode(model, store, waiting)
                _check_room(store, done / total)
                waiting = {}
            bar.update(task, completed=done)


def _encode(model: VLM, store: FeatureStore, looks: dict[str, Look]) -> None:
    views: dict[int, list[Features]] = {}
    for group in grouped(list(looks.values()), [None] * len(looks)):
        found = model.features(group.to(model.device))
        for place, number in enumerate(group.index.tolist()):
            views[number] = [one.map(lambda tensor, at=place: tensor[at : at + 1]) for one in found]  # type: ignore[misc]
    first = 0
    for key, look in looks.items():
        store.put(key, look, [views[first + number] for number in range(len(look.pixels))])
        first += len(look.pixels)


def _check_room(store: FeatureStore, done: float) -> None:
    """
    Raises:
        ConfigError: at this size what is still to come does not go onto the disk.
    """
    if not store.folder.is_dir():
        return
    written = sum(path.stat().st_size for path in store.folder.glob("features-*.bin"))
    needed, free = written / done - written, shutil.disk_usage(store.folder).free
    if needed > free:
        sizes = f"some {needed / 2**30:.1f} GiB more are needed, {free / 2**30:.1f} are free"
        raise ConfigError(f"cache: features do not fit on the disk of {store.folder}: {sizes}; choose another `folder`")
