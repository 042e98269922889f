"""What a run leaves on disk, and that every number of a stage reaches the optimiser."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vlm
import vlm.train.run
from tests.conftest import toy_recipe
from vlm.train.run import train
from vlm.train.schedule import schedule

STAGES = {"01-align": 4, "02-instruct": 12}
RATES = {"01-align": 1e-2, "02-instruct": 2e-3}


def recipe(**second: Any) -> dict[str, Any]:
    """Two stages with accumulation and checkpoints; the second has a warm-up, two learning rates and a linear fall."""
    common = {
        "data": [{"name": "handwriting"}],
        "batch_size": 4,
        "micro_batch_size": 2,
        "precision": "32-true",
        "checkpoint_every": 3,
    }
    instruct = {"train": {"llm": 1e-3, "connector": 2e-3}, "steps": 12, "warmup": 0.3, "schedule": "linear"}
    return {
        **toy_recipe(),
        "stages": [
            {**common, "name": "align", "train": {"connector": 1e-2}, "steps": 4},
            {**common, "name": "instruct", **instruct, "final_lr": 0.1, **second},
        ],
    }


class Spy(pl.Callback):
    """What a stage did: samples by micro-batch; gradients and weights as the optimiser used and left them."""

    def __init__(self) -> None:
        self.ids: list[list[str]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.optimiser: Any = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.optimiser = trainer.optimizers[0]
        self.weights.append({name: p.detach().clone() for name, p in module.named_parameters()})

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.ids.append(batch.ids)

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.gradients):
            named = list(module.named_parameters())
            self.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
            self.weights.append({name: p.detach().clone() for name, p in named})

    def norm(self, step: int) -> float:
        return float(torch.stack([gradient.square().sum() for gradient in self.gradients[step].values()]).sum().sqrt())


Spying = Callable[[dict[str, Any], Path], list[Spy]]


@pytest.fixture
def spying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spying]:
    """`spying(recipe, out)` trains as `train` does, and returns a spy for each stage."""
    spies: list[Spy] = []
    plain = vlm.train.run._trainer

    def watched(stage: Any, folder: Path, precision: str, callbacks: list[pl.Callback]) -> pl.Trainer:
        spies.append(Spy())
        trainer: pl.Trainer = plain(stage, folder, precision, [*callbacks, spies[-1]])
        return trainer

    def run(spec: dict[str, Any], out: Path) -> list[Spy]:
        spies.clear()
        train(spec, out=out)
        return list(spies)

    monkeypatch.setattr(vlm.train.run, "_trainer", watched)
    return run  # type: ignore[return-value]


def metrics(run: Path, stage: str) -> list[dict[str, float]]:
    with (run / "stages" / stage / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = train(recipe(), out=tmp_path_factory.mktemp("run") / "toy")
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_tensorboard_holds_what_metrics_csv_holds(stage: str, finished: Path) -> None:
    rows = metrics(finished, stage)
    assert [row["step"] for row in rows] == list(range(STAGES[stage]))
    assert len(list((finished / "stages" / stage / "tensorboard").glob("events.out.tfevents*"))) == 1
    events = EventAccumulator(str(finished / "stages" / stage / "tensorboard")).Reload()
    for name in ("loss", "lr"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(range(STAGES[stage])), name
        assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in rows], rel=1e-6), name
    assert rows[0]["loss"] > 1, "bytes by chance: ln(256) and more"


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_leaves(stage: str, finished: Path) -> None:
    folder = finished / "stages" / stage
    assert json.loads((folder / "done.json").read_text()) == {
        "steps": STAGES[stage],
        "loss": pytest.approx(metrics(finished, stage)[-1]["loss"], rel=1e-6),
        "skipped": {},
    }
    assert Image.open(folder / "loss.png").size[0] > 300
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.parametrize("stage", STAGES)
def test_learning_rate_of_each_step_is_that_of_the_schedule(stage: str, finished: Path) -> None:
    spec = {"01-align": ("cosine", 4, 0.03, 0.0), "02-instruct": ("linear", 12, 0.3, 0.1)}[stage]
    factor = schedule(spec[0], spec[1], warmup=spec[2], final=spec[3])
    wanted = [RATES[stage] * factor(step) for step in range(STAGES[stage])]
    assert len(set(wanted)) == len(wanted), "another one at each step"
    assert max(wanted) == RATES[stage]
    assert [row["lr"] for row in metrics(finished, stage)] == pytest.approx(wanted, rel=1e-9)


def test_gradients_are_clipped_to_the_norm_asked_for(spying: Spying, tmp_path: Path) -> None:
    clipped, free = (spying(recipe(clip=clip), tmp_path / str(clip))[1] for clip in (0.05, 0))
    norms, whole = ([spy.norm(step) for step in range(12)] for spy in (clipped, free))
    assert max(norms) <= 0.05 * (1 + 1e-4)
    assert min(whole) > 1.5, "nor is there a default that holds when none is asked for"
    assert norms == pytest.approx([0.05] * 12, rel=1e-3), "cut to the norm, not below it"
    for name, gradient in free.gradients[0].items():  # both stages begin with the same weights and data
        torch.testing.assert_close(clipped.gradients[0][name], gradient * 0.05 / whole[0], rtol=1e-3, atol=1e-8)


def test_steps_are_adamw_with_the_stage_s_numbers(spying: Spying, tmp_path: Path) -> None:
    """Every weight after every step, from the gradients, by the formula of Loshchilov and Hutter (2019)."""
    betas, decay = (0.7, 0.85), 0.3
    spy = spying(recipe(betas=betas, weight_decay=decay), tmp_path / "run")[1]
    for group in spy.optimiser.param_groups:
        assert tuple(group["betas"]) == betas
    assert {group["weight_decay"] for group in spy.optimiser.param_groups} == {0.0, decay}
    factor = schedule("linear", 12, warmup=0.3, final=0.1)
    frozen = [name for name in spy.weights[0] if name not in spy.gradients[0]]
    assert frozen
    assert all(name.startswith("vlm.encoders.") for name in frozen)
    for name, weight in spy.weights[0].items():
        first, second = torch.zeros_like(weight), torch.zeros_like(weight)
        for step, gradients in enumerate(spy.gradients):
            if name in gradients:
                rate = factor(step) * (2e-3 if name.startswith("vlm.connector.") else 1e-3)
                first = betas[0] * first + (1 - betas[0]) * gradients[name]
                second = betas[1] * second + (1 - betas[1]) * gradients[name] ** 2
                scale = (second / (1 - betas[1] ** (step + 1))).sqrt() + 1e-8
                shrink = rate * decay if weight.ndim > 1 else 0.0
                weight = weight * (1 - shrink) - rate * first / (1 - betas[0] ** (step + 1)) / scale
            torch.testing.assert_close(spy.weights[step + 1][name], weight, rtol=1e-4, atol=1e-6, msg=f"{name} {step}")


def numbered_rows(folder: Path, count: int = 64) -> dict[str, Any]:
    """A json source whose samples are told apart by their ids."""
    Image.new("RGB", (32, 32), "navy").save(folder / "one.png")
    rows = [{"id": f"{n:02d}", "image": "one.png", "question": "Which?", "answer": str(n)} for n in range(count)]
    (folder / "rows.json").write_text(json.dumps(rows))
    return {"path": str(folder / "rows.json")}


def orders(spec: dict[str, Any], spies: list[Spy]) -> list[list[str]]:
    assert len(spies) == len(spec["stages"])
    return [[name for batch in spy.ids for name in batch] for spy in spies]


def test_each_stage_goes_through_the_same_data_in_another_order(spying: Spying, tmp_path: Path) -> None:
    spec = recipe()
    for stage in spec["stages"]:
        stage.update(data=[numbered_rows(tmp_path)], steps=8, batch_size=8, micro_batch_size=4)
    found = orders(spec, spying(spec, tmp_path / "run"))
    everything = [f"{n:02d}" for n in range(64)]
    for order in found:
        assert sorted(order) == everything, "each once"
        assert order != everything, "shuffled"
    same = sum(a == b for a, b in zip(*found, strict=True))
    assert same < 16, f"{same} of 64 places are the same in both stages"
    other = {**spec, "seed": 10}
    moved = orders(other, spying(other, tmp_path / "other"))
    assert all(order not in found for order in moved), "the recipe's seed decides"
    assert orders(spec, spying(spec, tmp_path / "again")) == found, "and nothing else does"
