"""Runs that meet something odd: text alone, nothing to learn, a loss that is no number, a crash at the very end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import vlm
from tests.conftest import LLAMA, picture, toy_recipe
from vlm import running
from vlm.errors import ConfigError
from vlm.train import run as runs
from vlm.train.module import TrainingError
from vlm.train.objectives import LanguageModelling, Loss
from vlm.train.plots import read_metrics
from vlm.train.run import train


def recipe(rows: list[Any], folder: Path, **stage: Any) -> dict[str, Any]:
    picture(1).save(folder / "a.png")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = {"name": "s", "train": {"connector": 1e-2}, "data": str(folder / "rows.jsonl"), "precision": "32-true"}
    return {**toy_recipe(), "stages": [{**values, "steps": 2, "batch_size": 2, **stage}]}


IMAGE = {"image": "a.png", "question": "What?", "answer": "This."}
TEXT = {"question": "What?", "answer": "That."}
SILENT = {"image": "a.png", "question": "What?"}


@pytest.mark.parametrize("micro", [1, 2])
def test_text_alone_trains_a_connector_by_nothing(tmp_path: Path, micro: int) -> None:
    spec = recipe([TEXT, TEXT], tmp_path, micro_batch_size=micro)
    before = vlm.assemble(spec).state_dict()
    after = vlm.load(train(spec, out=tmp_path / "run")).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_rows_without_an_answer_are_the_same_however_the_batch_is_cut(tmp_path: Path) -> None:
    rows = [IMAGE, SILENT, TEXT, SILENT]
    losses = []
    for micro in (1, 4):
        spec = recipe(rows, tmp_path, micro_batch_size=micro, batch_size=4)
        run = train(spec, out=tmp_path / f"run{micro}")
        losses.append(read_metrics(run / "stages/01-s/metrics.csv")["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_nothing_to_learn_stops_and_shows_the_sample(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"nothing to learn: all its samples were left out: .*rows\.jsonl:\d"):
        train(recipe([SILENT, SILENT], tmp_path), out=tmp_path / "run")


def test_loss_that_is_no_number_stops_and_shows_the_sample(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the loss is nan at step \d+.*rows\.jsonl"):
        train(recipe([IMAGE, IMAGE], tmp_path, train={"connector": 1e30}, steps=20, clip=0), out=tmp_path / "run")
    assert not (tmp_path / "run/model").exists()


class Faulty(LanguageModelling):
    """At step 3: the loss of one sample is no number, or its gradient alone is not finite."""

    what = ""
    seen = 0

    def forward(self, model: Any, batch: Any) -> Loss:
        loss = super().forward(model, batch)
        Faulty.seen += "rows.jsonl:2" in batch.ids[0]
        if Faulty.seen == 3 and "rows.jsonl:2" in batch.ids[0]:
            if Faulty.what == "loss":
                return Loss(loss.total * float("nan"), loss.count)
            if Faulty.what == "gradient":
                return Loss(loss.total + (loss.total * 0).abs().sqrt(), loss.count)
        return loss


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("clip", [0, 1.0])
def test_bad_step_is_not_taken_and_the_last_good_checkpoint_is_named(
    what: str, clip: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three micro-batches is bad; taken up again without the fault, it is as if there were none."""
    spec = recipe([IMAGE, IMAGE, TEXT], tmp_path, steps=5, batch_size=3, micro_batch_size=1, checkpoint_every=1)
    spec["stages"][0].update(objective=f"{__name__}:Faulty", clip=clip)
    wanted = vlm.load(train(spec, out=tmp_path / "whole")).state_dict()
    monkeypatch.setattr(Faulty, "what", what)
    monkeypatch.setattr(Faulty, "seen", 0)
    with pytest.raises(TrainingError) as caught:
        train(spec, out=tmp_path / "run")
    said, last = str(caught.value), tmp_path / "run/stages/01-s/checkpoints/step=2.ckpt"
    assert f"the last good checkpoint is {last}" in said
    assert "rows.jsonl:2" in said
    assert ("rows.jsonl:1" in said) == (what == "gradient"), "of a gradient it cannot be said whose it is"
    assert {path.name for path in last.parent.iterdir()} == {"step=1.ckpt", "step=2.ckpt"}
    monkeypatch.setattr(Faulty, "what", "")
    found = vlm.load(train(spec, out=tmp_path / "run")).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_crash_between_the_last_checkpoint_and_the_end_is_no_dead_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe([IMAGE, TEXT], tmp_path, steps=4, checkpoint_every=2)
    wanted = vlm.load(train(spec, out=tmp_path / "whole")).state_dict()
    finish = runs._finish
    monkeypatch.setattr(runs, "_finish", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(spec, out=tmp_path / "run")
    monkeypatch.setattr(runs, "_finish", finish)
    found = vlm.load(train(spec, out=tmp_path / "run")).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    metrics = [read_metrics(tmp_path / name / "stages/01-s/metrics.csv") for name in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_a_run_that_left_nothing_may_be_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(recipe([SILENT, SILENT], tmp_path), out=tmp_path / "run")
    train(recipe([IMAGE, IMAGE], tmp_path, steps=1, precision="bf16-true"), out=tmp_path / "run")
    stage = tmp_path / "run/stages/01-s"
    assert json.loads((stage / "device.json").read_text())["precision"] == "bf16-true", "not the first attempt's"
    assert len(list((stage / "logs").iterdir())) == 1
    with pytest.raises(ConfigError, match=r"different: stages\.0\.steps"):
        train(recipe([IMAGE, IMAGE], tmp_path, steps=3, precision="bf16-true"), out=tmp_path / "run")


def test_mistakes_of_all_kinds_come_together(tmp_path: Path) -> None:
    """Words, parts that do not fit, keys that match nothing, data that does not open, batches that do not divide."""
    spec = recipe([IMAGE], tmp_path, train={"conector": 1e-3}, micro_batch_size=3, batch_size=4)
    spec["stages"].append({**spec["stages"][0], "data": "gone.json", "objective": {"name": "read_slots", "fields": {}}})
    spec["stages"].append({**spec["stages"][0], "steps": 0, "name": "t"})
    spec["model"]["views"] = {"name": "pad", "center": True}
    spec["evaluate"] = []
    with pytest.raises(ConfigError) as caught:
        train(spec, out=tmp_path / "run")
    assert {problem.place for problem in caught.value.problems} == {
        "stages.0.train.conector",
        "stages.0.batch_size",
        "stages.1.train.conector",
        "stages.1.batch_size",
        "stages.1.data.0.path",
        "stages.2.steps",
        "stages",
        "model.views.center",
        "evaluate",
    }


def test_attention_is_left_alone_where_the_family_has_no_choice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs.devices, "fastest_attention", lambda *_, **__: "sdpa")
    spec = recipe([IMAGE, TEXT], tmp_path)
    spec["model"]["llm"] = {"tokenizer": "bytes", "config": {**LLAMA, "model_type": "gemma2", "head_dim": 8}}
    folder = train(spec, out=tmp_path / "run")
    settings = json.loads((folder / "stages/01-s/device.json").read_text())
    assert (
        settings["attention"]
        == vlm.load(folder).attention
        == ("sdpa" if vlm.load(folder).llm._supports_sdpa else "eager")
    )


def test_tasks_of_a_recipe_are_checked_with_the_rest(tmp_path: Path) -> None:
    spec = {**recipe([IMAGE], tmp_path, bach_size=3), "eval": ["handwritin"]}
    with pytest.raises(ConfigError) as caught:
        running.run(spec, [], out=tmp_path / "run", console=Console(quiet=True))
    assert {problem.place for problem in caught.value.problems} == {"stages.0.bach_size", "eval.0"}
    assert "did you mean `handwriting`" in str(caught.value)
    assert not (tmp_path / "run").exists()
