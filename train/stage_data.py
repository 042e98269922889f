"""The data of a running stage, from the step that comes next on."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from vlm.identity import sight_identity
from vlm.model import VLM
from vlm.recipe import CacheSpec, StageSpec

from .batches import Batches, Position, Survey, loader
from .caching import FillCache
from .features import FeatureStore
from .mixture import mixture
from .preemption import Deaf
from .reader import Reader
from .skips import Skips
from .work import work_of


def feature_store(cache: CacheSpec, model: VLM, run: Path, *, precision: str) -> FeatureStore:
    """The features of the model's encoders as they are now; those of others lie beside them."""
    folder = Path(cache.folder) if cache.folder else run / "features"
    kind = f"{sight_identity(model)}-{precision}-{cache.dtype}"
    return FeatureStore(folder / kind, getattr(torch, cache.dtype), rank=int(getattr(rank_zero_only, "rank", 0)))


class StageData(pl.LightningDataModule):
    """Asked for its batches after a checkpoint has been read, so that they start at the step that comes next.

    Args:
        stage: the stage.
        model: which takes the samples.
        seed: of their order.
        answers: whether samples without an answer are left out.
        folder: of the stage.
        rank: of this process.
        world: the number of processes.
    """

    def __init__(
        self, stage: StageSpec, model: VLM, *, seed: int, answers: bool, folder: Path, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__()
        self.stage, self.seed = stage, seed
        self.reader = Reader(
            mixture(stage.data, seed=seed, text_share=stage.text_share),
            model.processor,
            limit=stage.pack,
            too_long=stage.too_long,
            answers=answers,
        )
        file = folder / (f"skipped-{rank}.jsonl" if rank else "skipped.jsonl")
        measured = stage.pack or stage.group_by_length  # by every process, all samples
        self.skips = Skips(file, most=stage.most_skipped, part=1.0 if measured else 1 / world)
        self._work = work_of(model, cached=stage.cache is not None)
        self._position = Position()
        self._batches: Batches

    def filling(self, store: FeatureStore, console: Console) -> FillCache:
        """Fills the store with what is still to come."""
        return FillCache(store, self.reader, self._ahead, workers=self.stage.workers, console=console)

    def _ahead(self) -> Batches:
        trainer: Any = self.trainer
        where = {"rank": trainer.global_rank, "world": trainer.world_size}
        batches = Batches(self.stage, self.reader, **where, seed=self.seed, work=self._work, skipped=self.skips)
        batches.go_on(trainer.global_step, self._position)
        return batches

    def train_dataloader(self) -> Any:
        self._batches = self._ahead()
        batches = loader(self._batches, self.reader, stage=self.stage, seed=self.seed)
        batches.worker_init_fn = Deaf(batches.worker_init_fn)
        return batches

    def state_dict(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        return asdict(self._batches.position(trainer.global_step))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._position = Position(**{**state_dict, "carried": tuple(state_dict["carried"])})

    def survey(self) -> Any:
        """Every sample of the stage once, the share of this device."""
        trainer: Any = self.trainer
        batches = Batches(self.stage, self.reader, world=trainer.world_size, seed=self.seed, skipped=self.skips)
        sampler = Survey(batches, self.reader, rank=trainer.global_rank)
        return loader(sampler, self.reader, stage=self.stage, seed=self.seed)
