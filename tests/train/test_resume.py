"""An interrupted run continues where it was: the same losses and weights to the bit as one that was not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import vlm
from tests.conftest import LLAMA, toy_recipe
from vlm.data import Source
from vlm.embedded import Handwriting
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.sample import Batch
from vlm.train import durable, rng
from vlm.train.objectives import LanguageModelling, Loss
from vlm.train.plots import read_metrics
from vlm.train.run import train


class Noisy(LanguageModelling):
    """A loss that depends on what numpy and Python draw."""

    def forward(self, model: VLM, batch: Batch) -> Loss:
        loss = super().forward(model, batch)
        return Loss(loss.total * (1 + 0.1 * float(np.random.rand()) + 0.1 * random.random()), loss.count)


def recipe(source: Any = None) -> dict[str, Any]:
    """Two stages, accumulation, dropout in the LLM and noise on the loss, so that a wrong random state would show."""
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "attention_dropout": 0.2}, "attention": "eager"}
    common = {
        "data": [source or {"name": "handwriting"}],
        "batch_size": 8,
        "micro_batch_size": 4,
        "precision": "32-true",
        "objective": f"{__name__}:Noisy",
    }
    return {
        **toy_recipe(llm=llm),
        "stages": [
            {**common, "name": "align", "train": {"connector": 1e-2}, "steps": 3},
            {
                **common,
                "name": "instruct",
                "train": {"llm": 1e-2, "connector": 1e-3},
                "steps": 9,
                "checkpoint_every": 2,
            },
        ],
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(), out=tmp_path_factory.mktemp("run") / "whole")


def assert_same(run: Path, other: Path) -> None:
    for name in ("01-align", "02-instruct"):
        found, wanted = (read_metrics(r / "stages" / name / "metrics.csv") for r in (run, other))
        assert found == wanted, name
    found, wanted = vlm.load(run).state_dict(), vlm.load(other).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


class PowerCut(RuntimeError):
    pass


class Failing(Handwriting):
    """Fails at a sample, once."""

    at = -1

    def __getitem__(self, index: int) -> Any:
        if index == Failing.at:
            raise PowerCut
        return super().__getitem__(index)


@pytest.mark.parametrize(("place", "stages_done"), [(13, 0), (33, 1), (69, 1)])
def test_continues_after_an_exception(
    place: int, stages_done: int, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a sample of the first stage (no checkpoint yet), and of the second, which has checkpoints at 2, 4, 6, 8."""
    source = {"name": f"{__name__}:Failing"}
    monkeypatch.setattr(Failing, "at", place)
    with pytest.raises(PowerCut):
        train(recipe(source), out=tmp_path / "run")
    assert (tmp_path / "run/stages/01-align/done.json").exists() == bool(stages_done)
    monkeypatch.setattr(Failing, "at", -1)
    assert_same(train(recipe(source), out=tmp_path / "run"), uninterrupted)


@pytest.mark.parametrize("workers", [0, 2])
def test_continues_after_sigkill(workers: int, uninterrupted: Path, tmp_path: Path) -> None:
    """At a step of the second stage drawn by chance, wherever in it the process is just then."""
    found, file, out = recipe(), tmp_path / "recipe.yaml", tmp_path / "run"
    found["stages"][1]["workers"] = workers
    file.write_text(yaml.safe_dump(found))
    command = [sys.executable, "-m", "vlm", "train", str(file), "--out", str(out)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=threads, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline, log = time.monotonic() + 120, out / "stages/02-instruct/logs/001/metrics.csv"
    step = random.SystemRandom().randint(0, 7)
    while not log.exists() or log.read_text().count("\n") < 2 + step:
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model").exists(), "it was killed before the end"
    assert_same(train(found, out=out), uninterrupted)


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    """Through a file that is read without running code."""

    def draws() -> list[float]:
        return [float(torch.rand(())), float(np.random.randn()), random.random(), random.gauss(0, 1)]

    draws()  # numpy and Python each keep the second of a pair of normal draws
    durable.write(rng.state(), tmp_path / "rng")
    wanted = draws()
    assert draws() != wanted
    rng.restore(torch.load(tmp_path / "rng", weights_only=True))
    assert draws() == wanted
    with rng.kept():
        kept = draws()
    assert draws() == kept


def test_finished_run_is_left_alone(uninterrupted: Path) -> None:
    before = (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(recipe(), out=uninterrupted) == uninterrupted
    assert (uninterrupted / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused(uninterrupted: Path) -> None:
    other = recipe()
    other["model"]["connector"] = "linear"
    other["seed"] = 3
    with pytest.raises(ConfigError, match=r"another recipe \(different: model.connector.0.name, seed\)"):
        train(other, out=uninterrupted)


def test_workers_change_nothing(uninterrupted: Path, tmp_path: Path) -> None:
    spec = recipe()
    for stage in spec["stages"]:
        stage["workers"] = 2
    assert_same(train(spec, out=tmp_path / "run"), uninterrupted)


def test_sources_are_deterministic_by_index() -> None:
    one, other = Handwriting(count=20), Handwriting(count=20)
    assert isinstance(one, Source)
    for index in (19, 3, 3):
        assert one[index].images[0].tobytes() == other[index].images[0].tobytes()  # type: ignore[union-attr]
        assert one[index].turns == other[index].turns
