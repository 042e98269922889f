"""Recipes: every mistake at once, each with its place, the value, what is allowed and the nearest word."""

import pickle
from pathlib import Path
from typing import Any

import pytest

import vlm
from tests.conftest import LLAMA, SIGLIP, toy_recipe
from vlm.assembly import blueprint
from vlm.errors import ConfigError, Problem
from vlm.recipe import read_recipe, read_yaml, shipped_recipes

STAGE = {"name": "s", "train": {"connector": 1e-3}, "data": [{"name": "handwriting"}], "steps": 1, "batch_size": 2}


def problems(recipe: Any, *overrides: str) -> dict[str, str]:
    """Place -> message of everything wrong with a recipe."""
    with pytest.raises(ConfigError) as caught:
        blueprint(recipe, overrides)
    return {problem.place: problem.message for problem in caught.value.problems}


def test_several_mistakes_are_one_error() -> None:
    found = problems(
        {
            "model": {
                "encoders": [{"name": "cilp", "config": SIGLIP}, {"name": "siglip", "config": SIGLIP, "layrs": [-2]}],
                "merge": "chanel",
                "connector": [{"name": "perceiver", "latents": "many"}, "mpl"],
                "llm": {"config": LLAMA, "tokeniser": "bytes", "attention": "flash"},
            },
            "stages": [{**STAGE, "steps": 0, "lr": 1e-3, "data": [{"name": "handwriting", "splt": "train"}]}],
            "evaluate": [],
        }
    )
    wanted = {
        "model.encoders.0": "unknown encoder `cilp`; did you mean `clip`?",
        "model.encoders.1.layrs": "unknown option of Siglip `layrs`; did you mean `layers`?",
        "model.merge": "unknown merge `chanel`; did you mean `channel`?",
        "model.connector.0.latents": "`many` is wrong: Input should be a valid integer",
        "model.connector.1": "unknown connector `mpl`; did you mean `mlp`?",
        "model.llm.tokeniser": "unknown key `tokeniser`; did you mean `tokenizer`?",
        "model.llm.attention": "`flash` is not allowed;",
        "stages.0.steps": "`0` is wrong: Input should be greater than 0",
        "stages.0.lr": "unknown key `lr`;",
        "stages.0.data.0.splt": "unknown option of Handwriting `splt`; did you mean `split`?",
        "evaluate": "unknown key `evaluate`; did you mean `eval`?",
    }
    assert found.keys() == wanted.keys()
    for place, start in wanted.items():
        assert found[place].startswith(start), found[place]
    assert "cross_attention, layer_mix, linear, merge_tokens, mlp, norm, perceiver" in found["model.connector.1"]


def test_options_and_sizes_are_wrong_in_one_error() -> None:
    """What can be seen from words and what can only be seen by building come together."""
    recipe = toy_recipe({"name": "perceiver", "heads": 5}, views={"name": "pad", "center": True})
    found = problems({**recipe, "stages": [{**STAGE, "train": {"conector": 1e-3}}]})
    assert "`5` does not divide the width 32" in found["model.connector.heads"]
    assert "did you mean `centre`?" in found["model.views.center"]


@pytest.mark.parametrize(
    ("views", "places"),
    [
        ({"name": "pad", "fill": [1]}, ["fill.1", "fill.2"]),
        ({"name": "overlapping_crops", "margins": ["a"]}, ["margins.0", "margins.1"]),
        ({"name": "pad", "fill": [1, 2, 3, 4]}, ["fill"]),
        ({"name": "native", "max_aspect": float("inf")}, ["max_aspect"]),
    ],
)
def test_lists_of_a_wrong_length_and_numbers_without_end(views: dict[str, Any], places: list[str]) -> None:
    found = problems(toy_recipe(views=views))
    assert list(found) == [f"model.views.{place}" for place in places]
    assert "keys here" not in str(found)


def test_globs_that_match_nothing() -> None:
    found = problems({**toy_recipe(), "stages": [{**STAGE, "train": {"conector": 1e-3, "llm.*.99.*": 1e-3}}]})
    assert (
        "did you mean `connector`? allowed: encoders, encoders.0, connector, llm, objective"
        in found["stages.0.train.conector"]
    )
    assert "stages.0.train.llm.*.99.*" in found


@pytest.mark.parametrize(
    ("change", "place", "words"),
    [
        ({"connector": ["mlp", {"name": "space", "factor": 2}]}, "model.connector.1", ["space"]),
        ({"connector": ["cross_attention", "mlp"]}, "model.connector.0", ["must be the last"]),
        ({"connector": {"name": "linear", "out_width": 7}}, "model.connector", ["width 7", "32"]),
        (
            {"connector": [{"name": "linear", "out_width": -3}, "mlp"]},
            "model.connector.0.out_width",
            ["-3", "1 or more"],
        ),
        ({"connector": [{"name": "mlp", "out_width": "abc"}, "mlp"]}, "model.connector.0.out_width", ["abc"]),
        ({"merge": "channel"}, "model.merge", ["two or more"]),
        ({"llm": {"config": LLAMA}}, "model.llm.tokenizer", ["missing", "bytes"]),
        ({"llm": {"tokenizer": "bytes"}}, "model.llm", ["weights", "config"]),
        (
            {"llm": {"tokenizer": "bytes", "config": {**LLAMA, "hiden_size": 8}}},
            "model.llm.config.hiden_size",
            ["hidden_size"],
        ),
        (
            {"llm": {"tokenizer": "bytes", "config": {**LLAMA, "model_type": "lama"}}},
            "model.llm.config.model_type",
            ["llama"],
        ),
        (
            {"llm": {"tokenizer": "bytes", "config": {**LLAMA, "vocab_size": 9}}},
            "model.llm.config.vocab_size",
            ["9", "262"],
        ),
        ({"llm": {"tokenizer": "byte", "config": LLAMA}}, "model.llm.tokenizer", ["byte", "bytes"]),
        ({"llm": {"weights": "/nowhere/at/all"}}, "model.llm.tokenizer", ["/nowhere/at/all"]),
        (
            {"encoders": {"name": "siglip", "config": {**SIGLIP, "hidden_size": 30}}},
            "model.encoders.config",
            ["divisible by num_heads", "30"],
        ),
        ({"llm": {"tokenizer": "bytes", "config": {**LLAMA, "hidden_size": 33}}}, "model.llm.config", ["33"]),
        ({"encoders": {"name": "siglip", "config": SIGLIP, "size": 33}}, "model.encoders.size", ["33", "8"]),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], place: str, words: list[str]) -> None:
    found = problems(toy_recipe(**change) if "connector" not in change else toy_recipe(change["connector"]))
    matching = [message for where, message in found.items() if where.startswith(place)]
    assert matching, found
    assert all(word in " ".join([*found, *matching]) for word in words), found


def test_places_are_those_of_the_file() -> None:
    """A glob is not taken for pydantic's name of a type; a single part is not numbered."""
    glob = "encoders.0.*layers.[01]*"
    wrong = {**STAGE, "train": {glob: "fast"}, "betas": [0.9, "x"]}
    del wrong["steps"]
    found = problems({**toy_recipe(encoders={"config": SIGLIP}), "stages": [wrong]})
    assert set(found) == {"model.encoders.name", f"stages.0.train.{glob}", "stages.0.betas.1", "stages.0.steps"}
    assert found["model.encoders.name"].startswith("is missing")


def test_two_encoders_need_a_merge() -> None:
    found = problems(toy_recipe(encoders=[{"name": "siglip", "config": SIGLIP}] * 2))
    assert found == {"model.merge": "is missing with 2 encoders; allowed: channel, gated, interleave, sequence"}


def test_error_prints_a_list_with_its_source() -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe({"model": {"encoders": "clip", "connector": "mpl", "llm": {"a": 1}}})
    text = str(caught.value)
    assert text.startswith("2 mistakes in recipe:\n  - model.llm.a: ")
    assert text.count("\n  - ") == 2


def test_overrides_reach_into_lists_and_bare_words() -> None:
    recipe = read_recipe(
        {**toy_recipe(), "stages": [STAGE]},
        ["model.connector=perceiver", "model.connector.latents=3", "stages.0.train.connector=1e-2"],
    )
    assert recipe.model.connector[0].to_dict() == {"name": "perceiver", "latents": 3}
    assert recipe.stages[0].train == {"connector": 0.01}
    for wrong in ("model.connector", "stages.4.steps=1", "stages.0.steps.x=1"):
        with pytest.raises(ConfigError):
            read_recipe({**toy_recipe(), "stages": [STAGE]}, [wrong])


def test_yaml_numbers_and_doubled_keys(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("a: 1e-3\nb: 2E5\nc: -1.5e+2\nd: 1e\n")
    assert read_yaml(file) == {"a": 1e-3, "b": 2e5, "c": -150.0, "d": "1e"}
    file.write_text("a: 1\nb:\n  c: 1\n  c: 2\n")
    with pytest.raises(ConfigError, match=r"key `c` stands twice(.|\n)*line 3"):
        read_yaml(file)
    for text in ("- 1\n", "a: [1\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"r\.yaml"):
            read_yaml(file)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown recipe `dmo`; did you mean `demo`"):
        vlm.assemble("dmo")


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_read_back_as_themselves(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.description
    assert read_recipe(recipe.dump()) == recipe


MINE = """
from torch import nn
from vlm.connector import Connector
from vlm.features import Shape

class MyConnector(Connector):
    '''Averages everything, then maps.'''

    def __init__(self, in_width: int, out_width: int, *, scale: float = 1.0):
        super().__init__()
        self.map, self.scale, self.out_width = nn.Linear(in_width, out_width), scale, out_width

    def forward(self, features):
        mean = features.tokens.mean(1, keepdim=True)
        return features.with_tokens(self.map(mean) * self.scale, grid=None, extra=None)

    def shape(self, shape):
        return Shape(1, self.out_width)

class NotOne:
    pass
"""


def test_connector_from_outside_needs_no_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_pkg"
    package.mkdir()
    (package / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)  # beside the recipe, not installed
    recipe = toy_recipe({"name": "my_pkg.mine:MyConnector", "scale": 2})
    model = vlm.assemble(recipe)
    assert model.processor.tokens(32, 32) == 1
    model.save(tmp_path / "model")
    assert type(vlm.load(tmp_path / "model").connector.ops[0]).__name__ == "MyConnector"
    assert (
        "did you mean `scale`?"
        in problems(toy_recipe({"name": "my_pkg.mine:MyConnector", "scal": 2}))["model.connector.scal"]
    )
    assert (
        "must be a subclass of vlm.connector:Connector" in problems(toy_recipe("my_pkg.mine:NotOne"))["model.connector"]
    )
    assert (
        "unknown name in my_pkg.mine `MyConector`; did you mean `MyConnector`"
        in problems(toy_recipe("my_pkg.mine:MyConector"))["model.connector"]
    )
    assert "No module named 'their_pkg'" in problems(toy_recipe("their_pkg.x:Y"))["model.connector"]


def test_an_error_survives_the_way_between_processes() -> None:
    error = ConfigError([Problem("a.b", "wrong"), Problem("c", "too")], source="mine.yaml")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)
