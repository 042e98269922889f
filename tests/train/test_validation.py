"""Held-out losses and scores during training: right, written beside the loss, and without a trace in the training."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

import vlm
from tests.conftest import LLAMA, picture, toy_recipe
from vlm import running
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.recipe import DataSpec
from vlm.sample import Batch
from vlm.train import validation
from vlm.train.mixture import open_sources
from vlm.train.objectives import LanguageModelling, Loss
from vlm.train.run import train


def rows(folder: Path) -> Path:
    """Held-out samples: two with an image, one of text, one that cannot be used."""
    picture(7).save(folder / "held.png")
    found = [
        {"image": "held.png", "question": "What?", "answer": "This one."},
        {"question": "Who?", "answer": "You"},
        {"image": "gone.png", "question": "Where?", "answer": "Nowhere"},
        {"image": "held.png", "question": "When?", "answer": "Now, and for a while"},
    ]
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, found)))
    return folder / "held.jsonl"


class Drawing(LanguageModelling):
    """Draws from every generator each time, and takes notice of it in training."""

    def forward(self, model: VLM, batch: Batch) -> Loss:
        loss = super().forward(model, batch)
        noise = float(torch.rand(())) + float(np.random.rand()) + random.random()
        return Loss(loss.total * (1 + 0.1 * noise), loss.count) if torch.is_grad_enabled() else loss


def recipe(held: Path | None, **spec: Any) -> dict[str, Any]:
    """Dropout in the LLM, so that a random state that moved would show."""
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "attention_dropout": 0.3}, "attention": "eager"}
    stage = {"name": "s", "train": {"connector": 1e-2, "llm": 1e-2}, "data": [{"name": "handwriting"}], "steps": 5}
    stage |= {"batch_size": 4, "micro_batch_size": 2, "precision": "32-true", "checkpoint_every": 3}
    stage["objective"] = f"{__name__}:Drawing"
    looks = {} if held is None else {"validation": {"every": 2, "data": str(held), **spec}}
    return {**toy_recipe(llm=llm), "stages": [{**stage, **looks}]}


def table(run: Path) -> list[dict[str, str]]:
    with (run / "stages/01-s/metrics.csv").open() as file:
        return list(csv.DictReader(file))


def run(spec: dict[str, Any], out: Path) -> Path:
    folder: Path = running.train(running.check(spec), out=out, console=Console(quiet=True))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(None), out=tmp_path_factory.mktemp("run") / "plain")


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    held = rows(folder)
    with pytest.warns(UserWarning, match="leaves a sample out each time.*gone.png"):
        return run(recipe(held, tasks=[f"mine={held}", "handwriting"], limit=4), folder / "looked")


def test_training_is_the_same_to_the_bit(plain: Path, looked: Path) -> None:
    wanted, found = table(plain), table(looked)
    assert [{name: row[name] for name in wanted[0]} for row in found] == wanted
    one, two = vlm.load(plain).state_dict(), vlm.load(looked).state_dict()
    assert all(torch.equal(two[name], weight) for name, weight in one.items())


def test_figures_stand_beside_the_loss_of_their_step(looked: Path) -> None:
    found = table(looked)
    for name in ("val_loss", "val_mine", "val_handwriting"):
        assert [bool(row[name]) for row in found] == [False, True, False, True, True], "steps 2 and 4, and the last"
    assert len({row["val_loss"] for row in found}) == 4, "it moves as the model does"
    answers = looked / "stages/01-s/validation/step=4/mine/samples.jsonl"
    assert len(answers.read_text().splitlines()) == 4


def test_the_last_loss_is_that_of_the_saved_model(looked: Path) -> None:
    """By transformers' logits at every position, a sample at a time."""
    model = vlm.load(looked).eval()
    (source,) = open_sources([DataSpec.model_validate({"path": str(looked.parent / "held.jsonl")})])
    total, count = 0.0, 0
    for index in (0, 1, 3):
        batch = model.processor.collate([model.processor.encode(source[index])])
        with torch.no_grad():
            logits = model(batch).logits[0, :-1]
        total += float(F.cross_entropy(logits, batch.labels[0, 1:], reduction="sum"))
        count += int((batch.labels[0, 1:] != -100).sum())
    assert float(table(looked)[-1]["val_loss"]) == pytest.approx(total / count, rel=1e-5)


def test_a_run_taken_up_again_looks_the_same(looked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held, spec = looked.parent / "held.jsonl", {"tasks": ["handwriting"], "limit": 4}
    look: Callable[..., Any] = validation.Validation._look

    def cut(self: Any, trainer: Any, module: Any, step: int) -> Any:
        if step == 4:
            raise KeyError("power cut")
        return look(self, trainer, module, step)

    monkeypatch.setattr(validation.Validation, "_look", cut)
    with pytest.raises(KeyError, match="power cut"):
        run(recipe(held, **spec), tmp_path / "run")
    monkeypatch.setattr(validation.Validation, "_look", look)
    found = table(run(recipe(held, **spec), tmp_path / "run"))
    columns = ("step", "loss", "lr", "val_loss", "val_handwriting")
    assert [[row[name] for name in columns] for row in found] == [
        [row[name] for name in columns] for row in table(looked)
    ]


def test_mistakes_are_found_with_the_rest(tmp_path: Path) -> None:
    spec = recipe(tmp_path / "gone.jsonl", tasks=["mien", "mine"], evry=3)
    with pytest.raises(ConfigError) as caught:
        run(spec, tmp_path / "run")
    assert {problem.place for problem in caught.value.problems} == {"stages.0.validation.evry"}
    del spec["stages"][0]["validation"]["evry"]
    with pytest.raises(ConfigError) as caught:
        run(spec, tmp_path / "run")
    places = {problem.place for problem in caught.value.problems}
    for place in ("stages.0.validation.tasks.0", "stages.0.validation.tasks.1", "stages.0.validation.data.0"):
        assert any(one.startswith(place) for one in places), place
    assert not (tmp_path / "run").exists()


def test_tasks_without_anybody_to_ask_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"validation\.tasks"):
        train(recipe(rows(tmp_path), tasks=["handwriting"]), out=tmp_path / "run")
