"""Parts that begin with another model's weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, toy_recipe
from vlm.errors import ConfigError
from vlm.train.run import train

STAGE = {"name": "s", "train": {"connector": 1e-2}, "data": [{"name": "handwriting"}], "steps": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perturb(vlm.assemble(toy_recipe())).save(tmp_path_factory.mktemp("saved") / "model")


def test_named_parts_are_the_saved_ones_and_the_others_are_as_without(saved: Path) -> None:
    other, plain = vlm.load(saved).state_dict(), vlm.assemble(toy_recipe("linear")).state_dict()
    found = vlm.assemble({**toy_recipe("linear"), "start": {"encoders.0": str(saved), "llm": str(saved)}}).state_dict()
    for name, tensor in found.items():
        wanted = plain if name.startswith("connector") else other
        assert torch.equal(tensor, wanted[name]), name
    assert not torch.equal(
        plain["encoders.0.model.post_layernorm.weight"], other["encoders.0.model.post_layernorm.weight"]
    )


def test_weights_come_in_the_precision_of_the_new_model(saved: Path) -> None:
    llm = {"tokenizer": "bytes", "config": LLAMA, "dtype": "bfloat16"}
    model = vlm.assemble({**toy_recipe(llm=llm), "start": {"llm": str(saved)}})
    wanted = vlm.load(saved).llm.state_dict()
    assert all(torch.equal(tensor, wanted[name].bfloat16()) for name, tensor in model.llm.state_dict().items())


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": True}}
    other = perturb(vlm.assemble(toy_recipe(llm=llm)))
    model: Any = vlm.assemble({**toy_recipe(llm=llm), "start": {"llm": str(other.save(tmp_path / "tied"))}})  # type: ignore[operator]
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(model.llm.lm_head.weight, other.llm.lm_head.weight)  # type: ignore[union-attr]


def test_training_starts_there_and_resumes(saved: Path, tmp_path: Path) -> None:
    recipe = {**toy_recipe(), "stages": [STAGE], "start": {"encoders": str(saved)}}
    run = train(recipe, out=tmp_path / "run")
    found, wanted = vlm.load(run).state_dict(), vlm.load(saved).state_dict()
    frozen = [name for name in found if name.startswith("encoders.")]
    assert frozen
    assert all(torch.equal(found[name], wanted[name]) for name in frozen)
    assert train(recipe, out=run) == run
    again = vlm.assemble({**recipe, "start": {"connector": str(run)}})  # the folder of a run will do
    assert all(torch.equal(tensor, found[f"connector.{name}"]) for name, tensor in again.connector.state_dict().items())


@pytest.mark.parametrize(
    ("change", "start", "message"),
    [
        ({}, {"encoder": "SAVED"}, r"start.encoder: no such part; did you mean `encoders`\?"),
        ({}, {"encoders": "nowhere"}, r"start.encoders: `nowhere` holds no model"),
        (
            {"connector": "linear"},
            {"connector": "SAVED"},
            "start.connector: `.*` does not fit: it lacks connector.ops.0.*besides",
        ),
        ({"encoders": {"name": "siglip", "config": {**SIGLIP, "hidden_size": 16}}}, {"encoders": "SAVED"}, "of shape"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_built(
    change: dict[str, Any], start: dict[str, str], message: str, saved: Path
) -> None:
    start = {part: folder.replace("SAVED", str(saved)) for part, folder in start.items()}
    with pytest.raises(ConfigError, match=message):
        vlm.assemble({**toy_recipe(**change), "start": start})
