"""What a grid says, the cells it makes, and the steps that a budget gives them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import vlm
from tests.conftest import toy_recipe
from vlm.compare.budgets import CellPlan, StageUse, plan_cell, scaled
from vlm.compare.cells import expand
from vlm.compare.grid import read_grid, shipped_studies
from vlm.compare.study import study
from vlm.errors import ConfigError
from vlm.listing import listing
from vlm.planning.plan import plan
from vlm.recipe import changed, read_recipe, read_yaml
from vlm.sample import Batch

OUT = Path("out")
STAGE = {"name": "s", "train": {"connector": 1e-3}, "data": [{"name": "handwriting"}], "steps": 6, "batch_size": 4}
TWO = [STAGE, {**STAGE, "name": "t", "train": {"connector": 1e-3, "llm": 1e-3}, "steps": 20}]
TOY = {**toy_recipe(), "stages": TWO, "eval": ["handwriting"]}
PERCEIVER = {"model.connector": {"name": "perceiver", "latents": "$latents"}}


def grid(**keys: Any) -> dict[str, Any]:
    axes = {"connector": {"mlp": {}, "linear": {"model.connector": "linear"}}, "seed": [0, 1]}
    return {"recipe": TOY, "axes": axes, **keys}


def test_every_combination_is_a_cell_with_a_recipe_of_its_own() -> None:
    axes = {"connector": {"mlp": {}, "perceiver": PERCEIVER}, "latents": [4, 8], "seed": [0, 1]}
    found = expand(read_grid(grid(axes=axes, skip=[{"connector": "mlp", "latents": 8}])), OUT)
    assert [cell.name for cell in found.cells] == [
        "mlp-latents4-seed0",
        "mlp-latents4-seed1",
        "perceiver-latents4-seed0",
        "perceiver-latents4-seed1",
        "perceiver-latents8-seed0",
        "perceiver-latents8-seed1",
    ]
    last = found.cells[-1]
    assert last.recipe == {
        **TOY,
        "model": {**TOY["model"], "connector": {"name": "perceiver", "latents": 8}},
        "seed": 1,
    }
    assert (last.group, last.folder) == ("perceiver, latents 8", OUT / "cells/perceiver-latents8-seed1")
    assert [len(group) for group in found.groups().values()] == [2, 2, 2]


def test_baseline_of_a_cell_has_its_labels_on_all_other_axes() -> None:
    axes = {"connector": {"mlp": {}, "perceiver": PERCEIVER}, "latents": [4, 8], "seed": [0, 1]}
    found = expand(read_grid(grid(axes=axes, baseline={"connector": "mlp"})), OUT)
    assert found.baselines == {("perceiver", "4"): ("mlp", "4"), ("perceiver", "8"): ("mlp", "8")}
    whole = expand(read_grid(grid(axes=axes, baseline={"connector": "mlp", "latents": 4})), OUT)
    assert set(whole.baselines.values()) == {("mlp", "4")}
    assert set(whole.baselines) == {("mlp", "8"), ("perceiver", "4"), ("perceiver", "8")}


def test_a_list_sets_the_place_it_is_named_after() -> None:
    found = expand(read_grid(grid(axes={"stages.0.steps": [3, 5], "seed": [7]})), OUT)
    assert [cell.recipe["stages"][0]["steps"] for cell in found.cells] == [3, 5]
    assert [cell.name for cell in found.cells] == ["steps3-seed7", "steps5-seed7"]
    assert {cell.recipe["seed"] for cell in found.cells} == {7}


def test_a_label_may_say_what_is_written_elsewhere() -> None:
    tokens = {"few": {"$grid": [1, 2]}, "many": {"$grid": [4, 4]}}
    pool = {"model.connector": [{"name": "pool", "kind": "adaptive", "grid": "$grid"}, "mlp"]}
    found = expand(read_grid(grid(axes={"connector": {"pool": pool}, "tokens": tokens})), OUT)
    assert [cell.recipe["model"]["connector"][0]["grid"] for cell in found.cells] == [[1, 2], [4, 4]]
    assert [plan_cell(cell.recipe).tokens for cell in found.cells] == [2, 16]


def test_names_of_values_that_are_no_file_names() -> None:
    axes = {"model.llm.weights": ["org/a-1B", "org/b:2"]}
    found = expand(read_grid({"recipe": "demo", "axes": axes}), OUT)
    assert [cell.name for cell in found.cells] == ["org-a-1B", "org-b2"]
    assert [cell.group for cell in found.cells] == ["org/a-1B", "org/b:2"]


def test_prepared_models_are_one_for_each_value_that_they_depend_on() -> None:
    prepare = {"warm": {"stages.0.train": {"encoders": 1e-3}}, "own": {"seed": "$seed", "start.llm": "$warm"}}
    found = expand(read_grid(grid(prepare=prepare, change={"start.encoders": "$own", "stages.1.steps": 9})), OUT)
    assert list(found.prepared) == ["warm", "own-seed0", "own-seed1"]
    assert found.prepared["own-seed1"].needs == ("warm",)
    assert found.prepared["own-seed1"].recipe["start"] == {"llm": str(OUT / "prepared/warm")}
    assert found.prepared["warm"].recipe["eval"] == []
    assert found.prepared["warm"].recipe["stages"][1]["steps"] == 9, "changes that all share hold for it too"
    cell = found.cells[1]
    assert (cell.recipe["start"], cell.needs) == ({"encoders": str(OUT / "prepared/own-seed1")}, ("own-seed1",))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"axes": {}}, "axes"),
        ({"axes": {"a": [1]}}, r"axes.a: changes nothing: no place in a recipe has this name, and `\$a` is written"),
        ({"axes": {"a": {"x": {"seed": 1}}, "b": {"y": {"seed": 2}}}}, "axes.b: sets `seed`, and `axes.a` sets `seed`"),
        ({"axes": {"a": {"x": {"model.llm.config": {}}}, "b": {"y": {"model.llm": {}}}}}, "sets `model.llm`"),
        ({"axes": {"a": {"x": {"$n": 1, "seed": "$n"}, "y": {}}}}, r"`\$n` has no value for some of its labels"),
        ({"change": {"model.connector": "$conector"}}, r"`\$conector` is no axis.*did you mean `connector`"),
        ({"baseline": {"conector": "mlp"}}, "baseline.conector: no such axis; did you mean `connector`"),
        ({"baseline": {"connector": "mpl"}}, "baseline.connector: `mpl`; did you mean `mlp`"),
        ({"baseline": {"seed": 0}}, "runs with other seeds are pooled"),
        ({"skip": [{"connector": "x"}]}, "skip.0.connector: `x`"),
        ({"skip": [{"connector": "mlp"}, {"connector": "linear"}]}, "leaves no cell"),
        ({"skip": [{"connector": "mlp"}], "baseline": {"connector": "mlp"}}, "baseline: is no cell"),
        ({"budget": "flop"}, "give one of steps, tokens, flops"),
        ({"budget": {"flops": 1, "steps": 2}}, "give one of steps, tokens, flops"),
        ({"budget": {"flops": -1}}, "a number above 0"),
        ({"budget": "flops"}, "there is no `baseline`"),
        ({"buget": "flops"}, "did you mean `budget`"),
        ({"recipe": "dem"}, "unknown recipe `dem`; did you mean `demo`"),
        ({"change": {"stages.7.steps": 1}}, "mlp-seed0.stages.7.steps: `7` is no index"),
        ({"axes": {"connector": {"a/b": {}, "a-b": {"seed": 1}}}}, "two runs are called `a-b`"),
        (
            {"axes": {"connector": {"warm": {}, "x": {"seed": 1}}}, "prepare": {"warm": {}}},
            "two runs are called `warm`",
        ),
        ({"prepare": {"seed": {}}}, r"axes.seed: `\$seed` is a model of `prepare` too"),
        (
            {"prepare": {"a": {"start.llm": "$b"}, "b": {}}, "change": {"start.llm": "$b"}},
            "prepared later than it is used",
        ),
    ],
)
def test_mistakes_in_a_grid_are_named(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(read_grid(grid(**keys)), OUT)


def test_a_grid_is_read_from_a_file_and_an_unknown_study_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(grid()))
    assert list(read_grid(str(file)).axes) == ["connector", "seed"]
    with pytest.raises(ConfigError, match="unknown study `conectors`; did you mean `connectors`"):
        read_grid("conectors")


def test_studies_are_listed() -> None:
    assert set(listing("studies")["studies"]) == {"nvlm", "connectors", "freezing"}


def test_all_mistakes_of_all_recipes_come_at_once_under_their_cells(tmp_path: Path) -> None:
    axes = {"connector": {"mlp": {}, "bad": {"model.connector": "mpl"}, "worse": {"stages.0.train": {"conector": 1}}}}
    with pytest.raises(ConfigError) as caught:
        study(grid(axes=axes, tasks=["handwritin"]), tmp_path)
    text = str(caught.value)
    for words in ("bad.model.connector", "worse.stages.0.train.conector", "tasks: unknown task `handwritin`"):
        assert words in text
    assert text.count("handwritin`") == 1, "tasks are the same in all cells"
    assert "mlp." not in text


def test_a_prepared_part_that_does_not_fit_is_found_before_anything_is_trained(tmp_path: Path) -> None:
    keys = {"prepare": {"warm": {"model.connector": "linear"}}, "change": {"start.connector": "$warm"}}
    with pytest.raises(ConfigError, match=r"mlp-seed0.start.connector: `warm` does not fit"):
        study(grid(**keys), tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_task_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tasks: there is no task"):
        study(grid(tasks=[]), tmp_path)


def real_positions(recipe: dict[str, Any], stage: int, steps: int) -> tuple[int, float]:
    """Positions of the samples that training really reads, by batching them; and of one sample on average."""
    from tests.train.batching import loader_of

    spec = read_recipe(recipe).stages[stage].model_copy(update={"steps": steps})
    batches: list[Batch] = list(loader_of(spec, vlm.assemble(recipe).processor))
    count = sum(int(batch.attention_mask.sum()) for batch in batches)
    return count, count / (steps * spec.batch_size)


def test_a_plan_counts_what_training_reads() -> None:
    found = plan_cell(TOY)
    _, mean = real_positions(TOY, 1, 40)
    assert found.positions == pytest.approx(mean, rel=0.03)
    assert found.stages[1].tokens == pytest.approx(4 * mean, rel=0.03)
    assert found.tokens == 16
    model = vlm.assemble(TOY)
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.trained == sum(p.numel() for part in (model.connector, model.llm) for p in part.parameters())
    assert found.steps == (6, 20)


def test_a_plan_has_the_flops_that_vlm_plan_has_for_a_sample_of_that_length() -> None:
    """Where all text is supervised the two are the same; here the questions are not, so less logits are computed."""
    found, mean = plan_cell(TOY), plan_cell(TOY).positions
    text = round(mean - 16 - (real_frame() - 16))
    planned = plan(TOY, images=["96x32"], text=text).training["t"]
    assert found.stages[1].flops == pytest.approx(planned.sample_flops * planned.batch, rel=0.15)
    assert found.stages[1].flops is not None
    assert found.stages[1].flops < planned.sample_flops * planned.batch * 1.02


def real_frame() -> int:
    """Positions of a sample with an image and no text of its own."""
    from vlm.planning.shadow_batch import shadow_batch

    model = vlm.assemble(TOY)
    return int(shadow_batch(model, [model.processor.plan(32, 96)], text=0).input_ids.shape[1])


def test_text_alone_is_counted_by_its_share() -> None:
    words = {"name": "handwriting", "described": True, "weight": 3.0}
    mixed = changed(TOY, [("stages.1.data", [{"name": "handwriting"}, words])])
    alone = changed(TOY, [("stages.1.data", [words])])
    pictures, both, text = (plan_cell(one).stages[1] for one in (TOY, mixed, alone))
    assert pictures.flops is not None
    assert text.flops is not None
    assert both.flops == pytest.approx(0.25 * pictures.flops + 0.75 * text.flops)
    assert both.tokens == pytest.approx(0.25 * pictures.tokens + 0.75 * text.tokens)
    assert plan_cell(mixed).tokens == 16, "of an image, not of a sample"


@pytest.mark.parametrize("kind", ["steps", "tokens", "flops"])
@pytest.mark.parametrize("amount", [0.3, 1.0, 7.7])
def test_every_cell_keeps_its_budget_within_half_a_step(kind: Any, amount: float) -> None:
    wanted = amount * (plan_cell(TOY).total(kind) or 0)
    for connector in ("mlp", {"name": "perceiver", "latents": 2}, {"name": "cross_attention", "every": 1}):
        found = plan_cell(changed(TOY, [("model.connector", connector)]))
        steps = scaled(found, kind, wanted)
        longest = max(found.stages, key=lambda stage: steps[found.stages.index(stage)] * (stage.use(kind) or 0))
        assert abs((found.total(kind, steps) or 0) - wanted) <= 0.5 * (longest.use(kind) or 0) * (1 + 1e-9)
        assert abs(steps[1] - steps[0] * 20 / 6) <= 20 / 6, "stages grow together, but for whole steps"


def test_a_budget_too_small_for_a_step_and_one_that_is_not_known() -> None:
    found = plan_cell(TOY)
    assert scaled(found, "steps", 1) == [1, 1]
    blind = CellPlan(1, 1, 1, 1, (StageUse("s", 4, None, 3.0),), ("stage s does not run without values",))
    assert scaled(blind, "tokens", 30) == [10]
    with pytest.raises(ConfigError, match="flops is not known: stage s does not run"):
        scaled(blind, "flops", 30)


def test_a_study_gives_each_cell_the_baselines_budget(tmp_path: Path) -> None:
    axes = {
        "connector": {"mlp": {}, "cross": {"model.connector": {"name": "cross_attention", "every": 1}}},
        "seed": [0, 1],
    }
    found = study(grid(axes=axes, baseline={"connector": "mlp"}, budget="tokens"), tmp_path)
    assert found.steps[("mlp",)] == (6, 20)
    assert sum(found.steps[("cross",)]) > 26, "without placeholders a sample is shorter"
    recipes = {one.name: one.recipe for one in found.jobs}
    assert tuple(stage["steps"] for stage in recipes["cross-seed1"]["stages"]) == found.steps[("cross",)]
    assert recipes["cross-seed1"]["seed"] == 1
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_are_sound(name: str, tmp_path: Path) -> None:
    assert read_yaml(shipped_studies()[name])["description"]
    found = study(name, tmp_path)
    assert found.cells.baselines
    kind = read_grid(name).budget
    assert kind is not None
    for key, group in found.cells.groups().items():
        assert len(group) >= 3, "seeds"
        baseline = found.cells.baselines.get(key, key)
        wanted = found.plans[baseline].total(kind.kind) or 0
        step = max(stage.use(kind.kind) or 0 for stage in found.plans[key].stages)
        assert abs((found.plans[key].total(kind.kind, found.steps[key]) or 0) - wanted) <= step
