"""The batches of a stage, without a run around it."""

from typing import Any

from torch.utils.data import DataLoader

from vlm.processor import Processor
from vlm.recipe import StageSpec
from vlm.train.batches import Batches, loader
from vlm.train.mixture import mixture
from vlm.train.reader import Reader


def reader_of(stage: StageSpec, processor: Processor, *, seed: int = 0, answers: bool = True) -> Reader:
    samples = mixture(stage.data, seed=seed, text_share=stage.text_share)
    return Reader(samples, processor, limit=stage.pack, too_long=stage.too_long, answers=answers)


def loader_of(stage: StageSpec, processor: Processor, *, seed: int = 0, **options: Any) -> DataLoader[Any]:
    reader = reader_of(stage, processor, seed=seed)
    return loader(Batches(stage, reader, seed=seed, **options), reader, stage=stage, seed=seed)
