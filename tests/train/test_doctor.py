"""`vlm doctor`: what is equal is found equal, and what differs is found to differ."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import vlm
from tests.conftest import perturb, picture, toy_recipe
from vlm import cli
from vlm.adapters import AdapterSpec
from vlm.data import JsonSource
from vlm.errors import ConfigError
from vlm.train import doctor


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    picture(1).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": "What?", "answer": "x" * n} for n in range(1, 6)]
    lines += [{"question": "Why?", "answer": "so"}, {"image": "gone.png", "question": "What?", "answer": "x"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "rows.jsonl"


def findings(model: Any, rows: Path) -> dict[str, doctor.Finding]:
    return {one.name: one for one in doctor.examine(model, JsonSource(path=str(rows)), samples=6)}


@pytest.mark.parametrize("connector", ["mlp", {"name": "cross_attention", "every": 2}])
def test_a_sound_model_passes(connector: Any, rows: Path) -> None:
    model = perturb(vlm.assemble(toy_recipe(connector)))
    model.adapt("llm", AdapterSpec(rank=2))
    perturb(model, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = findings(model, rows)
    assert set(found) == {
        "batch = single",
        "packed = unpacked",
        "cached = uncached",
        "reload = original",
        "merged = adapter",
    }
    assert all(one.fine and one.difference is not None for one in found.values()), found
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_differs_is_found(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturb(vlm.assemble(toy_recipe()))
    monkeypatch.setattr(doctor, "isolates_packed", lambda llm: True)
    leaking = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
    bloom = perturb(vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": leaking})))
    assert not findings(bloom, rows)["packed = unpacked"].fine
    real = doctor.load

    def other(folder: Any, device: str) -> Any:
        loaded = real(folder, device)
        with torch.no_grad():
            next(loaded.llm.parameters()).add_(0.01)
        return loaded

    monkeypatch.setattr(doctor, "load", other)
    found = findings(model, rows)
    assert not found["reload = original"].fine
    assert found["batch = single"].fine
    assert found["merged = adapter"].difference is None
    rows.write_text(json.dumps({"image": "gone.png", "question": "?", "answer": "x"}))
    with pytest.raises(ConfigError, match=r"only \d+ of 1000 samples can be used; the first fault: .*gone.png"):
        findings(model, rows)


def test_the_command(rows: Path, tmp_path: Path) -> None:
    folder = perturb(vlm.assemble(toy_recipe())).save(tmp_path / "model")
    result = CliRunner().invoke(cli.app, ["doctor", str(folder), "--data", str(rows)])
    assert result.exit_code == 0, result.output
    assert result.output.count("equal") >= 4
    assert "no adapters" in result.output.replace("\n", " ")
