"""Training from any source is the same training: same samples, same losses to the bit, whatever the workers."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from torch.utils.data import DataLoader

from tests.conftest import picture, toy_recipe
from vlm.data import JsonSource
from vlm.images import open_image
from vlm.train.converters.writers import Lines, Shards
from vlm.train.run import train
from vlm.train.sources.data_sets import Datasets
from vlm.train.sources.tars import Tars


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The same ten samples in each form, as a stage names them."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = []
    with Lines(tmp_path / "rows.jsonl") as lines, Shards(tmp_path / "s.tar", 4) as shards:
        for number in range(10):
            path = tmp_path / f"{number}.png"
            picture(number).save(path)
            row = {"id": f"n{number}", "question": f"Which number? {number}", "answer": str(number * 7)}
            lines.write(row, str(path))
            shards.write(row, str(path))
            rows.append({**row, "image": {"bytes": path.read_bytes(), "path": None}})
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    listed = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    (tmp_path / "rows.json").write_text(json.dumps(listed))
    return {
        "jsonl": {"path": str(tmp_path / "rows.jsonl")},
        "json": {"path": str(tmp_path / "rows.json")},
        "tar": {"name": "tar", "path": str(tmp_path / "s-{000000..000002}.tar")},
        "parquet": {"name": "datasets", "path": str(tmp_path / "rows.parquet")},
    }


def losses(spec: dict[str, Any], out: Path, workers: int) -> list[str]:
    stage = {"name": "s", "train": {"connector": 1e-2}, "steps": 4, "batch_size": 3, "precision": "32-true"}
    train({**toy_recipe(), "stages": [{**stage, "data": [spec], "workers": workers}]}, out=out)
    with (out / "stages/01-s/metrics.csv").open() as file:
        return [row["loss"] for row in csv.DictReader(file)]


def test_same_losses_from_every_form(data: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    wanted = losses(data["jsonl"], tmp_path / "run-jsonl", 0)
    assert len(set(wanted)) == 4
    for name, workers in (("json", 0), ("tar", 2), ("parquet", 2)):
        assert losses(data[name], tmp_path / f"run-{name}", workers) == wanted, name


def _first(batch: list[Any]) -> Any:
    return batch[0]


def test_sources_go_to_workers(data: dict[str, dict[str, Any]]) -> None:
    """Each worker sees all of a source: of a stream, the `datasets` library would give each a part of its files."""
    tar = Tars(path=data["tar"]["path"])
    rows = Datasets(path=data["parquet"]["path"])
    stream = Datasets(path=data["parquet"]["path"], streaming=True)
    plain = JsonSource(path=data["jsonl"]["path"])
    for source in (tar, rows, stream, plain):
        found = list(DataLoader(source, num_workers=2, collate_fn=_first))  # type: ignore[arg-type]
        assert [sample.turns for sample in found] == [plain[index].turns for index in range(10)]
        pictures = [open_image(sample.images[0]).tobytes() for sample in found]
        assert pictures == [picture(number).tobytes() for number in range(10)]


def test_pictures_are_the_files_bytes(data: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    stream = io.BytesIO()
    picture(3).save(stream, "PNG")
    assert Tars(path=data["tar"]["path"])[3].images == [stream.getvalue()]
    assert Datasets(path=data["parquet"]["path"])[3].images == [(tmp_path / "3.png").read_bytes()]
