"""What trains and what does not, and that the loss is a mean over the global batch."""

import copy
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import functional as F

import vlm
import vlm.data
from tests.conftest import perturb, toy_recipe
from tests.train.batching import loader_of, reader_of
from vlm.errors import ConfigError
from vlm.parts import learning_rates, set_modes, set_trainable
from vlm.recipe import StageSpec
from vlm.train.batches import Batches, Position, accumulated
from vlm.train.groups import parameter_groups
from vlm.train.mixture import Mixture
from vlm.train.module import StageModule, TrainingError
from vlm.train.objectives import LanguageModelling, Loss, ReadSlots
from vlm.train.run import train
from vlm.train.schedule import schedule


def stage(**changes: Any) -> StageSpec:
    values = {"name": "s", "train": {"connector": 1e-2}, "data": ["handwriting"], "steps": 2, "batch_size": 8}
    values = {**values, "data": [{"name": "handwriting"}], "precision": "32-true", **changes}
    return StageSpec.model_validate(values)


def names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_last_matching_key_wins_and_zero_freezes(toy: Callable[..., Any]) -> None:
    model = toy()
    keys = {"llm": 1e-3, "llm.model.layers.[01].*": 1e-4, "llm.*norm*": 0.0, "connector": 1e-2}
    rates = learning_rates(names(model), keys)
    for name in names(model):
        wanted = None
        if name.startswith("connector."):
            wanted = 1e-2
        elif name.startswith("llm.") and "norm" not in name:
            wanted = 1e-4 if name.startswith(("llm.model.layers.0.", "llm.model.layers.1.")) else 1e-3
        assert rates.get(name) == wanted, name


def test_key_that_matches_nothing_names_the_nearest_part(toy: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="conector: matches no parameter; did you mean `connector`"):
        learning_rates(names(toy()), {"conector": 1e-3})


def test_partition_into_parts_is_total_and_disjoint(toy: Callable[..., Any]) -> None:
    model = toy(
        ["mlp", {"name": "cross_attention", "every": 2}],
        encoders=[toy_recipe()["model"]["encoders"]] * 2,
        merge="sequence",
    )
    seen = [id(p) for part in model.parts().values() for p in part.parameters()]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())


def test_frozen_modules_stay_in_eval_mode_whatever_is_called(toy: Callable[..., Any]) -> None:
    model = toy()
    model.llm.model.layers[0].extra = torch.nn.Dropout(0.5)
    model.encoders[0].extra = torch.nn.Dropout(0.5)
    module = StageModule(model, LanguageModelling(), stage=stage(train={"llm.model.layers.0": 1e-3}), accumulate=1)
    for _ in range(2):
        module.train()
        assert not any(part.training for part in model.encoders.modules())
        assert not any(part.training for part in model.connector.modules())
        assert model.llm.model.layers[0].training
        assert model.llm.model.layers[0].extra.training, "a dropout follows the trainable block that holds it"
        assert not any(part.training for part in model.llm.model.layers[1].modules())
        module.eval()
        assert not any(part.training for part in module.modules())


def test_only_what_is_named_moves(tmp_path: Path) -> None:
    recipe = {
        **toy_recipe({"name": "perceiver", "latents": 4}),
        "stages": [
            {**stage(train={"connector": 1e-2}).model_dump(exclude_defaults=True), "name": "align"},
            {**stage(train={"llm": 1e-2, "llm.*norm*": 0}).model_dump(exclude_defaults=True), "name": "instruct"},
        ],
    }
    before = vlm.assemble(recipe).state_dict()
    run = train(recipe, out=tmp_path / "run")
    middle = vlm.load(run / "stages" / "01-align" / "model").state_dict()
    after = vlm.load(run).state_dict()
    for name in before:
        assert torch.equal(before[name], middle[name]) != name.startswith("connector."), name
        moves = name.startswith("llm.") and "norm" not in name
        assert torch.equal(middle[name], after[name]) != moves, name


def test_both_ways_and_idempotent(toy: Callable[..., Any]) -> None:
    model = toy()
    for part in ("connector", "llm", "connector"):
        set_trainable(model, learning_rates(names(model), {part: 1e-3}))
        trainable = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
        assert trainable == {part}
    set_modes(model)
    assert model.connector.training
    assert not model.llm.training


class _Recorder(pl.Callback):
    """Gradients as the optimiser used them at each step."""

    def __init__(self) -> None:
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.gradients):
            self.gradients.append({n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None})


def fit(model: Any, spec: StageSpec, objective: Any = None) -> _Recorder:
    accumulate = accumulated(spec, 1)
    module = StageModule(model, objective or LanguageModelling(), stage=spec, accumulate=accumulate)
    recorder = _Recorder()
    trainer = pl.Trainer(
        max_steps=spec.steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[recorder],
        accelerator="cpu",
    )
    trainer.fit(module, loader_of(spec, model.processor))
    return recorder


def test_gradient_is_that_of_the_mean_over_all_supervised_tokens(toy: Callable[..., Any]) -> None:
    """Answers differ in length, so a mean of micro-batch means would be another number."""
    model = toy()
    spec = stage(steps=1, batch_size=8, micro_batch_size=2, train={"connector": 1e-3})
    reference = copy.deepcopy(model)
    mixture = reader_of(spec, model.processor).mixture
    batch = reference.processor([mixture[index] for index in range(8)])
    logits = reference(batch).logits
    total, count = torch.zeros(()), 0
    for row in range(8):  # the slow obvious loop
        for position in range(1, batch.labels.shape[1]):
            label = batch.labels[row, position]
            if label != -100:
                total = total - F.log_softmax(logits[row, position - 1], -1)[label]
                count += 1
    (total / count).backward()
    found = fit(model, spec).gradients[0]
    assert len({int(batch.labels[row].ne(-100).sum()) for row in range(8)}) > 1
    for name, parameter in reference.connector.named_parameters():
        assert torch.allclose(found[f"vlm.connector.{name}"], parameter.grad, atol=1e-6), name


def test_micro_batches_change_nothing(toy: Callable[..., Any]) -> None:
    model = toy()
    whole, pieces = (
        fit(copy.deepcopy(model), stage(steps=3, batch_size=8, micro_batch_size=size)).gradients for size in (8, 2)
    )
    assert len(whole) == len(pieces) == 3
    for one, other in zip(whole, pieces, strict=True):
        for name in one:
            assert torch.allclose(one[name], other[name], rtol=1e-3, atol=1e-6), name


def test_vectors_do_not_decay(toy: Callable[..., Any]) -> None:
    model = toy()
    spec = stage(train={"llm": 1e-3}, weight_decay=0.1)
    module = StageModule(model, LanguageModelling(), stage=spec, accumulate=1)
    for group in parameter_groups(dict(model.named_parameters()), module.settings, module.kinds):
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


class _Silent(LanguageModelling):
    def forward(self, model: Any, batch: Any) -> Loss:
        batch.labels = torch.full_like(batch.labels, -100)
        return super().forward(model, batch)


def test_batch_without_supervision_stops_and_shows_the_sample(toy: Callable[..., Any]) -> None:
    with pytest.raises(TrainingError, match=r"no supervised token.*train-0.*What is the number"):
        fit(toy(), stage(), _Silent())


def test_slots_teach_the_encoder_and_nothing_else() -> None:
    model = perturb(vlm.assemble(toy_recipe()))
    objective = ReadSlots([32], fields={"digits": (5, 11), "colour": (1, 7)})
    spec = stage(train={"encoders": 1e-3, "objective": 1e-3}, steps=30, batch_size=32, warmup=0.0)
    before = copy.deepcopy(model.state_dict())
    batch = next(iter(loader_of(spec, model.processor)))
    first = objective(model, batch)
    assert first.count == 32 * 6
    fit(model, spec, objective)
    assert objective(model, batch).total < first.total * 0.8
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("encoders."), name


def test_slots_without_targets_say_what_the_data_has() -> None:
    model = vlm.assemble(toy_recipe())
    spec = stage(train={"encoders": 1e-3})
    batch = next(iter(loader_of(spec, model.processor)))
    with pytest.raises(ConfigError, match=r"objective.fields.letters.*it has: \['colour', 'digits'\]"):
        ReadSlots([32], fields={"letters": (5, 11)})(model, batch)
    with pytest.raises(ConfigError, match="3 slots, but the data's target has 5"):
        ReadSlots([32], fields={"digits": (3, 11)})(model, batch)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_rises_and_falls(kind: str) -> None:
    factor = schedule(kind, 100, warmup=0.1, final=0.05)
    values = [factor(step) for step in range(101)]
    assert values[0] > 0
    assert values[9] < values[10] == 1.0
    assert all(a >= b for a, b in pairwise(values[10:]))
    assert values[100] == pytest.approx(1.0 if kind == "constant" else 0.05)


class _Numbers(vlm.data.Source):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return (self.count, index)


def test_mixture_follows_weights_and_covers_each_source() -> None:
    mixture = Mixture([_Numbers(10), _Numbers(7)], [3.0, 1.0], seed=1)
    seen = [mixture[index] for index in range(4000)]
    share = sum(count == 10 for count, _ in seen) / 4000
    assert share == pytest.approx(0.75, abs=0.03)
    for count in (10, 7):
        items = [item for size, item in seen if size == count]
        for start in range(0, len(items) - count, count):
            assert sorted(items[start : start + count]) == list(range(count)), "each pass covers the source once"
        assert items[:count] != items[count : 2 * count], "passes differ in order"
    again = Mixture([_Numbers(10), _Numbers(7)], [3.0, 1.0], seed=1)
    assert [again[index] for index in (3999, 5, 1234)] == [seen[3999], seen[5], seen[1234]], "any order of access"


def test_positions_cut_the_same_global_batch_for_any_world() -> None:
    spec = stage(batch_size=12, micro_batch_size=2, steps=3)
    whole = [[*range(12)], [*range(12, 24)], [*range(24, 36)]]
    reader = reader_of(spec, vlm.assemble(toy_recipe()).processor)
    for world in (1, 2, 3):
        ranks = [list(Batches(spec, reader, rank=rank, world=world)) for rank in range(world)]
        for step in range(3):
            per = 12 // (2 * world)
            found = [i for rank in ranks for micro in rank[step * per : (step + 1) * per] for (i,) in micro]
            assert sorted(found) == whole[step]
    later = Batches(spec, reader)
    later.go_on(2, Position())
    assert next(iter(later)) == [(24,), (25,)]
    with pytest.raises(ConfigError, match="`12` does not divide by 1 devices x micro_batch_size 5"):
        Batches(stage(batch_size=12, micro_batch_size=5), reader)
