"""Two processes train as one does: the same losses and weights, also with text alone in one of them, also taken up."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import vlm
from tests.conftest import LLAMA, picture, toy_recipe
from vlm import running
from vlm.data import Source
from vlm.errors import ConfigError
from vlm.machine import Machine
from vlm.sample import Sample, Turn
from vlm.train import strategies
from vlm.train.objectives import LanguageModelling, Loss
from vlm.train.plots import read_metrics
from vlm.train.run import train
from vlm.train.validation import read

KINDS = "ittitttttiittiiiiiit"
"""Image or text, in this order, four a step: both at once in the two processes, text alone in both, images in both."""


class Ordered(Source):
    """Samples of one image or none and answers of different lengths; where told, it asks its own process to stop."""

    ordered = True

    def __init__(self, *, stop: bool = False) -> None:
        self.stop = stop

    def __len__(self) -> int:
        return len(KINDS)

    def __getitem__(self, index: int) -> Sample:
        if self.stop and index == 9 and (told := os.environ.get("STOP")) is not None and not Path(told).exists():
            Path(told).touch()
            os.kill(os.getpid(), signal.SIGTERM)
        turns = [Turn("user", f"Number {index}?"), Turn("assistant", "word " * (index % 5 + 1))]
        return Sample(turns, [picture(index)] if KINDS[index] == "i" else [], id=str(index))


def recipe() -> dict[str, Any]:
    """Tied embeddings, accumulation, clipping, decay; every part trains."""
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": True}}
    common = {"batch_size": 4, "micro_batch_size": 1, "steps": 5, "precision": "32-true", "clip": 0.5}
    every = {"encoders": 1e-3, "connector": 2e-3, "llm": 1e-3}
    first = {**common, "name": "align", "train": {"connector": 1e-3}, "steps": 2}
    second = {**common, "name": "all", "train": every, "weight_decay": 0.1, "checkpoint_every": 3}
    first["data"], second["data"] = ({"name": f"{__name__}:Ordered", **stop} for stop in ({}, {"stop": True}))
    second["validation"] = {"every": 2, "data": first["data"], "tasks": ["handwriting"], "limit": 5}
    return {**toy_recipe(llm=llm), "stages": [first, second]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return by_one(tmp_path_factory.mktemp("run") / "alone")


def by_one(out: Path) -> Path:
    return running.train(running.check(recipe()), out=out, console=Console(quiet=True))


def pair(
    folder: Path, strategy: str, stop: str = "", spec: dict[str, Any] | None = None
) -> subprocess.CompletedProcess[str]:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(spec or recipe()))
    command = [sys.executable, "-m", "vlm", "train", str(folder / "recipe.yaml"), "--out", str(folder / "run")]
    spread = ["--devices", "2", "--accelerator", "cpu", "--strategy", strategy]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({"STOP": stop} if stop else {})}
    return subprocess.run([*command, *spread], env=environment, capture_output=True, text=True, timeout=180)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_equal_one_also_when_stopped_and_taken_up_by_two_or_one(
    strategy: str, alone: Path, tmp_path: Path
) -> None:
    stopped = pair(tmp_path, strategy, stop=str(tmp_path / "stopped"))
    assert stopped.returncode == 143, stopped.stdout + stopped.stderr
    assert stopped.stderr.count("stopped as asked") == 1, "one process speaks"
    left = [path.name for path in (tmp_path / "run/stages/02-all/checkpoints").iterdir()]
    assert len(left) == 1
    assert 0 < int(left[0].removeprefix("step=").removesuffix(".ckpt")) < 5
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    done = pair(tmp_path, strategy)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_alike(tmp_path / "run", alone)
    assert_alike(by_one(tmp_path / "other"), alone)


def assert_alike(run: Path, alone: Path) -> None:
    for name in ("01-align", "02-all"):
        one, two = (read_metrics(folder / "stages" / name / "metrics.csv") for folder in (alone, run))
        assert two["step"] == one["step"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    looks, others = (read(folder / "stages/02-all/validation.jsonl") for folder in (alone, run))
    assert others.keys() == looks.keys() == {1, 3, 4}
    for step, figures in looks.items():
        assert others[step] == pytest.approx(figures, rel=1e-5)
    begun = vlm.assemble(recipe()).state_dict()
    wanted, found = vlm.load(alone).state_dict(), vlm.load(run).state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert (found[name] - weight).abs().max() < 2e-5, name
    moved = [name for name, weight in wanted.items() if (weight - begun[name]).abs().max() > 1e-3]
    assert {name.split(".")[0] for name in moved} == {"encoders", "connector", "llm"}


class Faulty(LanguageModelling):
    """The loss of one sample is no number."""

    def forward(self, model: Any, batch: Any) -> Loss:
        loss = super().forward(model, batch)
        return Loss(loss.total * (float("nan") if "9" in batch.ids else 1.0), loss.count)


def test_a_loss_that_is_no_number_in_one_process_stops_both(tmp_path: Path) -> None:
    spec = recipe()
    spec["stages"] = [{**spec["stages"][1], "objective": f"{__name__}:Faulty", "checkpoint_every": 1}]
    del spec["stages"][0]["validation"]
    done = pair(tmp_path, "ddp", spec=spec)
    last = tmp_path / "run/stages/01-all/checkpoints/step=2.ckpt"
    assert done.returncode == 2, done.stdout + done.stderr
    said = "".join(done.stderr.split("\n"))
    assert said.count("the loss is nan at step 2: samples 9; the first (9) reads") == 1, "once, and no other sample"
    assert f"the last good checkpoint is {last}, after step 2" in said
    assert {path.name for path in last.parent.iterdir()} == {"step=1.ckpt", "step=2.ckpt"}


def test_what_a_machine_cannot_do_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--strategy: unknown strategy `dpp`; did you mean `ddp`\?"):
        train(recipe(), out=tmp_path / "run", machine=Machine(strategy="dpp"))
    with pytest.raises(ConfigError, match=r"`deepspeed_2`: deepspeed is not installed"):
        strategies.options(Machine(strategy="deepspeed_2"))
    spec = recipe()
    spec["stages"][1].update(precision="16-mixed", micro_batch_size=2)
    with pytest.raises(ConfigError) as caught:
        train(spec, out=tmp_path / "run", machine=Machine(devices=4, nodes=2, strategy="fsdp"))
    places = ["stages.0.batch_size", "stages.1.precision", "stages.1.batch_size"]
    assert [problem.place for problem in caught.value.problems] == places
    assert not (tmp_path / "run").exists()
