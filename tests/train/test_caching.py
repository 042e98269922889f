"""Features on disk: training with them is training without them, and they are never another model's."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.conftest import SIGLIP, perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.features import Features
from vlm.identity import sight_identity
from vlm.train import caching
from vlm.train.features import FeatureStore, key_of
from vlm.train.plots import read_metrics
from vlm.train.run import train

CLIP = {"name": "clip", "config": {**SIGLIP, "image_size": 32}}
MODELS: dict[str, dict[str, Any]] = {
    "one": {},
    "two encoders": {"encoders": [{"name": "siglip", "config": SIGLIP}, CLIP], "merge": "sequence"},
    "tiles": {"views": {"name": "tiles", "max_tiles": 4}},
    "native": {"encoders": {"name": "patches", "patch": 8}, "views": {"name": "native", "multiple": 8}},
}


def recipe(folder: Path, *, model: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """Two stages over twelve rows: pictures of several sizes, two shown twice, one text alone, one broken."""
    for number in range(1, 10):
        picture(number, (40 + 8 * number, 96 - 8 * number)).save(folder / f"{number}.png")
    (folder / "10.png").write_bytes(b"no picture")
    rows: list[dict[str, Any]] = [
        {"id": str(n), "image": f"{n}.png", "question": "Why?", "answer": "x" * n} for n in range(1, 11)
    ]
    rows += [{"question": "Text?", "answer": "yes"}, {"images": ["1.png", "2.png"], "question": "?", "answer": "two"}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {"data": str(folder / "rows.jsonl"), "batch_size": 4, "precision": "32-true", "most_skipped": 0.5}
    stages = [
        {**common, "name": "align", "train": {"connector": 1e-2}, "steps": 5, **options},
        {**common, "name": "instruct", "train": {"connector": 1e-3, "llm": 1e-3}, "steps": 6, **options},
    ]
    return {**toy_recipe(**(model or {})), "stages": stages}


def losses(run: Path) -> list[float]:
    found = [read_metrics(run / f"stages/{name}/metrics.csv")["loss"] for name in ("01-align", "02-instruct")]
    return [loss for stage in found for loss in stage]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that were encoded, call by call."""
    found: list[int] = []
    encode = caching._encode

    def counted(model: Any, store: Any, looks: dict[str, Any]) -> None:
        found.append(len(looks))
        encode(model, store, looks)

    monkeypatch.setattr(caching, "_encode", counted)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_cached_training_is_uncached_training(name: str, tmp_path: Path, encoded: list[int]) -> None:
    plain = train(recipe(tmp_path, model=MODELS[name]), out=tmp_path / "plain")
    assert not encoded
    workers = 2 if name == "tiles" else 0
    cached = recipe(tmp_path, model=MODELS[name], cache={"dtype": "float32"}, workers=workers)
    run = train(cached, out=tmp_path / "cached")
    torch.testing.assert_close(losses(run), losses(plain), rtol=1e-6, atol=1e-6)
    one, other = vlm.load(run).state_dict(), vlm.load(plain).state_dict()
    for key, value in other.items():
        torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-5)
    (folder,) = (run / "features").iterdir()
    assert sum(encoded) == len(FeatureStore(folder, torch.float32)) == 11, "nine pictures, and two of them in a pair"
    assert set(json.loads((run / "stages/02-instruct/done.json").read_text())["skipped"]) == {"broken image"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_it_is_so_to_its_tolerance(dtype: str, tmp_path: Path) -> None:
    plain = train(recipe(tmp_path), out=tmp_path / "plain")
    run = train(recipe(tmp_path, cache={"dtype": dtype}), out=tmp_path / "cached")
    assert losses(run) != losses(plain)
    torch.testing.assert_close(losses(run), losses(plain), rtol=1e-2, atol=1e-2)


def test_no_encoder_runs_once_all_is_there(tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {"folder": str(tmp_path / "shared"), "dtype": "float32"}
    first = train(recipe(tmp_path, cache=shared), out=tmp_path / "first")
    before = sum(encoded)
    monkeypatch.setattr(caching.VLM, "features", lambda *_: pytest.fail("an encoder would run"))
    with pytest.raises(pytest.fail.Exception, match="an encoder would run"):
        train(recipe(tmp_path), out=tmp_path / "without")
    monkeypatch.undo()
    run = train(recipe(tmp_path, cache=shared), out=tmp_path / "second")
    assert sum(encoded) == before
    assert losses(run) == losses(first)


def test_any_change_of_weights_views_or_layers_is_another_identity() -> None:
    model = perturb(vlm.assemble(toy_recipe()))
    known = {sight_identity(model)}
    with torch.no_grad():
        next(model.connector.parameters()).add_(1)
        next(model.llm.parameters()).add_(1)
    assert {sight_identity(model)} == known, "the connector and the LLM do not matter"
    with torch.no_grad():
        next(model.encoders[0].parameters()).view(-1)[0] += 1e-3
    known.add(sight_identity(model))
    for other in ({"views": "pad"}, {"encoders": {"name": "siglip", "config": SIGLIP, "layers": [1]}}):
        known.add(sight_identity(perturb(vlm.assemble(toy_recipe(**other)))))
    assert len(known) == 4


def features(seed: int = 0) -> list[list[Features]]:
    generator = torch.Generator().manual_seed(seed)
    tokens, extra = torch.randn(1, 6, 4, generator=generator), torch.randn(1, 2, 4, generator=generator)
    return [[Features(tokens, (2, 3), extra=extra), Features(tokens[:, :5])], [Features(tokens + 1, (3, 2))] * 2]


def test_what_is_kept_is_what_is_found(tmp_path: Path) -> None:
    image = picture(1)
    look = vlm.assemble(toy_recipe()).processor.look(image)
    store, reader = FeatureStore(tmp_path, torch.float32), FeatureStore(tmp_path, torch.float32, rank=1)
    assert reader.find(image, 1) is None
    key, other = key_of(image, 1), key_of(picture(2), 1)
    assert key is not None
    assert other is not None
    store.put(key, look, features())
    for one in (store, reader):
        found = one.find(image, 1)
        assert found is not None
        assert found.size == (40, 48)
        for view, wanted in zip(found.views, features(), strict=True):
            for mine, truth in zip(view, wanted, strict=True):
                assert torch.equal(mine.tokens, truth.tokens)
                assert mine.grid == truth.grid
                assert (mine.extra is None) == (truth.extra is None)
    assert reader.find(image, 2) is None, "in a sample of two images its views may be others"
    assert reader.find(picture(2), 1) is None
    assert reader.find("nowhere.png", 1) is None
    reader.put(other, look, features(1))
    assert store.find(picture(2), 1) is not None, "another process's"
    assert len(store) == 2


def test_what_a_killed_process_left_is_not_there(tmp_path: Path) -> None:
    image, look = picture(1), vlm.assemble(toy_recipe()).processor.look(picture(1))
    store, key = FeatureStore(tmp_path, torch.float32), key_of(image, 1)
    assert key is not None
    with (tmp_path / "features-0.bin").open("wb") as file:
        file.write(b"half of what was to be written")
    with (tmp_path / "index-0.txt").open("w") as index:
        index.write(f"{key} 0 5")
    assert store.find(image, 1) is None
    store = FeatureStore(tmp_path, torch.float32)
    store.put(key, look, features())
    for one in (store, FeatureStore(tmp_path, torch.float32)):
        found = one.find(image, 1)
        assert found is not None
        assert torch.equal(found.views[0][0].tokens, features()[0][0].tokens)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = recipe(tmp_path, cache=True)
    spec["stages"][1]["train"]["encoders"] = 1e-5
    with pytest.raises(ConfigError, match=r"stages\.1\.cache: the encoders must be frozen, and `train` names enc"):
        train(spec, out=tmp_path / "run")
    slots = {"name": "read_slots", "fields": {"x": [1, 2]}}
    spec = recipe(tmp_path, cache=True)
    spec["stages"][0] |= {"objective": slots, "train": {"objective": 1e-3}}
    with pytest.raises(ConfigError, match=r"stages\.0\.cache: read_slots needs the pixels themselves"):
        train(spec, out=tmp_path / "run")
    monkeypatch.setattr(caching.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    monkeypatch.setattr(caching, "VIEWS", 2)
    with pytest.raises(ConfigError, match=r"cache: features do not fit on the disk of .*; choose another `folder`"):
        train(recipe(tmp_path, cache=True), out=tmp_path / "run")
