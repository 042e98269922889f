"""Stages that show the encoders other sizes or other views than the model's own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vlm
from tests.conftest import picture, toy_recipe
from vlm.assembly import blueprint
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.planning.plan import plan
from vlm.planning.tables import tables
from vlm.sample import Batch
from vlm.train.objectives import LanguageModelling
from vlm.train.run import train

STAGE = {"train": {"connector": 1e-3}, "data": [{"name": "handwriting"}], "batch_size": 2, "precision": "32-true"}


def recipe(*stages: dict[str, Any], **model: Any) -> dict[str, Any]:
    """The toy encoder's own size is 32 x 32 at patches of 8."""
    named = [{**STAGE, "name": f"s{number}", "steps": 1, **stage} for number, stage in enumerate(stages)]
    return {**toy_recipe(**model), "stages": named}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[tuple[int, ...]], str]]:
    """(sizes of the pixels, view policy) of each training batch."""
    found: list[tuple[list[tuple[int, ...]], str]] = []
    forward = LanguageModelling.forward

    def watch(self: Any, model: VLM, batch: Batch) -> Any:
        sizes = [tuple(pixels.shape[-2:]) for group in batch.groups for pixels in group.pixels]
        found.append((sizes, type(model.views).__name__))
        return forward(self, model, batch)

    monkeypatch.setattr(LanguageModelling, "forward", watch)
    return found


def test_each_stage_sees_its_own_and_the_model_keeps_the_last(tmp_path: Path, seen: Any) -> None:
    stages = recipe({"size": 16}, {}, {"size": [16, 48], "views": "pad"})
    folder = train(stages, out=tmp_path / "run")
    assert seen == [([(16, 16)], "Squash"), ([(32, 32)], "Squash"), ([(16, 48)], "Pad")]
    model = vlm.load(folder)
    assert model.encoders[0].image.size == (16, 48)
    assert type(model.views).__name__ == "Pad"
    assert model.processor.tokens(100, 100) == 2 * 6
    with torch.no_grad():
        assert model.ask(picture(), "What?", max_new_tokens=1) is not None
    middle = vlm.load(folder / "stages" / "02-s1" / "model")
    assert (middle.encoders[0].image.size, type(middle.views).__name__) == ((32, 32), "Squash")


def test_interrupted_run_goes_on_with_the_models_own(tmp_path: Path, seen: Any) -> None:
    """What the stage before left behind is not what a stage without a size gets."""
    stages = recipe({"size": 16, "views": "pad"}, {}, {"size": 16})
    whole = vlm.load(train(stages, out=tmp_path / "whole"))
    folder = train(stages, out=tmp_path / "run")
    for later in ("02-s1", "03-s2"):
        (folder / "stages" / later / "done.json").unlink()
    seen.clear()
    again = vlm.load(train(stages, out=folder))
    assert seen == [([(32, 32)], "Squash"), ([(16, 16)], "Squash")]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


def test_backbones_that_resample_once_train_save_and_load(tmp_path: Path, seen: Any) -> None:
    encoder = {"name": "timm", "model": "vit_tiny_patch16_224", "size": 32}
    encoder["config"] = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    stages = recipe({"size": 64, "train": {"encoders": 1e-2}}, {}, {"size": 64}, encoders=encoder)
    folder = train(stages, out=tmp_path / "run")
    assert [sizes for sizes, _ in seen] == [[(64, 64)], [(32, 32)], [(64, 64)]]
    assert vlm.load(folder).encoders[0].model.pos_embed.shape[1] == 4 * 4 + 1
    assert vlm.load(folder / "stages" / "02-s1" / "model").encoders[0].model.pos_embed.shape[1] == 2 * 2 + 1


def test_sizes_by_encoder(tmp_path: Path, seen: Any) -> None:
    encoders = [toy_recipe()["model"]["encoders"]] * 2
    shown = [{"encoders.1": [16, 64]}, 16, {"encoders": 16, "encoders.0": 24}]
    train(recipe(*({"size": size} for size in shown), encoders=encoders, merge="sequence"), out=tmp_path / "run")
    assert [sizes for sizes, _ in seen] == [[(32, 32), (16, 64)], [(16, 16), (16, 16)], [(24, 24), (16, 16)]]


def problems(found: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        blueprint(found)
    return {problem.place: problem.message for problem in caught.value.problems}


@pytest.mark.parametrize(
    ("stage", "place", "words"),
    [
        ({"size": 20}, "stages.1.size", ["encoder 0", "height 20", "step of 8"]),
        ({"size": [32, 20]}, "stages.1.size", ["encoder 0", "width 20"]),
        ({"size": {"encoders.3": 32}}, "stages.1.size.encoders.3", ["no such encoder", "encoders.0"]),
        ({"size": 0}, "stages.1.size", ["0"]),
        ({"size": {"encoders.0": -8}}, "stages.1.size.encoders.0", ["-8"]),
        ({"views": "sqash"}, "stages.1.views", ["did you mean `squash`"]),
        ({"views": {"name": "pad", "middle": True}}, "stages.1.views.middle", ["unknown option of Pad"]),
        ({"size": "big"}, "stages.1.size", ["big", "[height, width]"]),
    ],
)
def test_what_a_model_cannot_see_is_an_error_at_the_stage(stage: dict[str, Any], place: str, words: list[str]) -> None:
    found = problems(recipe({}, stage))
    assert set(found) == {place}, found
    assert all(word in found[place] for word in words), found[place]


class OnlySquares(vlm.connector.Connector):  # type: ignore[name-defined, misc]
    """An op that takes square grids alone."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.map = torch.nn.Linear(in_width, out_width)

    def forward(self, features: Any) -> Any:
        return features.with_tokens(self.map(features.tokens))

    def shape(self, shape: Any) -> Any:
        if shape.grid[0] != shape.grid[1]:
            raise ConfigError(f"a grid of {shape.grid} is no square")
        return type(shape)(shape.tokens, self.map.out_features, shape.grid)


def test_connector_that_cannot_take_the_grid_is_an_error_at_the_stage() -> None:
    connector = f"{__name__}:OnlySquares"
    found = problems(recipe({"size": 64}, {"size": [32, 64]}, connector=connector))
    assert found == {"stages.1.size": "a grid of (4, 8) is no square"}


def test_plan_counts_the_trained_model_and_the_stages_that_differ() -> None:
    found = plan(recipe({"size": 16}, {"size": 64}, {"size": 64}))
    assert found.tokens == {"64x64": 64}
    assert found.earlier == {"s0": {"64x64": 4}}
    table = tables(found)[1]
    assert [column.header for column in table.columns][5:] == ["tokens in s0"]
    assert json.loads(json.dumps(found.to_dict()))["earlier"] == found.earlier
    assert plan(recipe({}, {})).earlier == {}
    assert plan(recipe({"size": 16}, {})).tokens == {"32x32": 16}


def test_recipe_is_written_and_read_with_what_its_stages_show(tmp_path: Path) -> None:
    spec = recipe({"size": {"encoders.0": [16, 32]}, "views": {"name": "pad", "centre": False}}, {"size": 16})
    checked = blueprint(spec)[0]
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(checked.dump()), encoding="utf8")
    assert blueprint(str(file))[0] == checked
