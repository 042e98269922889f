"""Gradient checkpointing: the same to the bit, for less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from tests.vlm_core.twins import peak_bytes
from vlm.errors import ConfigError
from vlm.sample import Sample, Turn
from vlm.train.objectives import LanguageModelling
from vlm.train.plots import read_metrics
from vlm.train.recompute import recomputed
from vlm.train.run import train

TALK = [Turn("user", "Why?"), Turn("assistant", "Because of that. " * 12)]
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "llm": (["llm"], {}),
    "encoders": (["encoders"], {}),
    "all": (
        ["encoders.0", "connector", "llm"],
        {"connector": [{"name": "resampler", "latents": 6, "depth": 2}, "mlp"]},
    ),
    "cross_attention": (["llm"], {"connector": {"name": "cross_attention", "every": 2}}),
}


def dropping(**model: Any) -> Any:
    """With dropout in the LLM, so that other random numbers would show."""
    config = {**LLAMA, "attention_dropout": 0.3}
    recipe = toy_recipe(**{"llm": {"tokenizer": "bytes", "config": config, "attention": "eager"}, **model})
    return perturb(vlm.assemble(recipe)).train()


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_same_to_the_bit(name: str) -> None:
    parts, changes = CASES[name]
    model = dropping(**changes)
    batch = model.processor([Sample(TALK, [picture(1)]), Sample(TALK[:2], [])])

    def run() -> list[Any]:
        torch.manual_seed(1)
        total = LanguageModelling()(model, batch).total
        return [total.detach(), *torch.autograd.grad(total, list(model.parameters()), allow_unused=True)]

    wanted = run()
    with recomputed(model, parts):
        found = run()
    assert any(one is not None and one.abs().sum() > 0 for one in wanted[1:])
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    again = run()
    assert torch.equal(again[0], wanted[0]), "the model is as it was"
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_it_takes_less_memory() -> None:
    model = vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": {**LLAMA, "num_hidden_layers": 12}}))
    batch = model.processor([Sample(TALK, [picture(1)])] * 8)

    def run() -> None:
        LanguageModelling()(model, batch).total.backward()

    plain = peak_bytes(run)
    with recomputed(model, ["llm"]):
        assert peak_bytes(run) < 0.6 * plain


def test_a_stage_with_it_is_one_without(tmp_path: Path) -> None:
    stage = {"name": "s", "train": {"llm": 1e-3, "connector": 1e-3}, "data": [{"name": "handwriting"}], "steps": 3}
    common = {"batch_size": 4, "precision": "32-true"}
    runs = [
        train({**toy_recipe(), "stages": [{**stage, **common, **more}]}, out=tmp_path / str(number))
        for number, more in enumerate(({}, {"gradient_checkpointing": True}, {"gradient_checkpointing": "llm"}))
    ]
    losses = [read_metrics(run / "stages/01-s/metrics.csv")["loss"] for run in runs]
    assert losses[0] == losses[1] == losses[2]
    wrong = {"gradient_checkpointing": ["lmm", "connector"]}
    with pytest.raises(ConfigError) as caught:
        train({**toy_recipe(), "stages": [{**stage, **common, **wrong}]}, out=tmp_path / "wrong")
    said = {problem.place: problem.message for problem in caught.value.problems}
    assert "unknown part `lmm`; did you mean `llm`" in said["stages.0.gradient_checkpointing.0"]
    assert said["stages.0.gradient_checkpointing.1"] == "`connector` has no list of blocks"
