"""How fast each parameter trains: by key, by depth, by warm-up; what a mistake says, and what a run shows of it."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import param_groups_layer_decay

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, toy_recipe
from tests.vlm_core.twins import ENCODERS
from vlm.assembly import blueprint
from vlm.blocks import stack_of
from vlm.errors import ConfigError
from vlm.planning.plan import plan
from vlm.rates import settings
from vlm.ratespec import RateSpec
from vlm.recipe import StageSpec, read_recipe
from vlm.train.groups import kinds
from vlm.train.module import StageModule
from vlm.train.objectives import LanguageModelling, ReadSlots
from vlm.train.run import check, train
from vlm.train.schedule import schedule

STAGE = {"name": "s", "data": [{"name": "handwriting"}], "steps": 6, "batch_size": 4, "precision": "32-true"}


def stage(**changes: Any) -> StageSpec:
    return StageSpec.model_validate({**STAGE, **changes})


def rates(model: Any, **train: Any) -> dict[str, float]:
    found = settings(model, stage(train={key.replace("__", "."): rate for key, rate in train.items()}))
    return {name: setting.lr for name, setting in found.items()}


def with_encoder(name: str, **options: Any) -> Any:
    return vlm.assemble(toy_recipe(encoders={"name": name, **options}))


def test_layer_decay_is_that_of_timm() -> None:
    """timm counts layers by its own model's matcher, an independent account of the same recipe (BEiT's).

    It takes the norm for a piece of the last block, and the top of what there is for the top: without a classifier, all
    of its scales are one block higher. In BEiT and MAE, the norm has the full rate.
    """
    size = {"depth": 4, "embed_dim": 24, "num_heads": 3}
    model = with_encoder("timm", model="vit_tiny_patch16_224", config=size, size=32)
    inner = model.encoders[0].model
    wanted: dict[str, float] = {}
    names = {id(p): name for name, p in model.named_parameters()}
    for group in param_groups_layer_decay(inner, layer_decay=0.7):
        wanted |= {names[id(p)]: 1e-3 * group["lr_scale"] * 0.7 for p in group["params"]}
    assert wanted["encoders.0.model.norm.weight"] == wanted["encoders.0.model.blocks.3.norm2.weight"]
    wanted |= {f"encoders.0.model.norm.{own}": 1e-3 for own in ("weight", "bias")}
    found = rates(model, encoders={"lr": 1e-3, "layer_decay": 0.7})
    assert found == pytest.approx(wanted, rel=1e-9)
    assert len(set(wanted.values())) == 6, "patches and positions, four blocks, the norm"


@pytest.mark.parametrize("tied", [False, True])
def test_layer_decay_of_an_llm_by_the_slow_obvious_loop(tied: bool) -> None:
    config = {**LLAMA, "tie_word_embeddings": tied}
    model = vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": config}))
    found = rates(model, connector=1e-2, llm={"lr": 1e-3, "layer_decay": 0.5})
    for name, _ in model.named_parameters():
        wanted = {"connector": 1e-2}.get(name.split(".")[0])
        if name.startswith("llm.model.embed_tokens"):
            wanted = 1e-3 * 0.5**5
        for block in range(4):
            if name.startswith(f"llm.model.layers.{block}."):
                wanted = 1e-3 * 0.5 ** (4 - block)
        if name.startswith(("llm.model.norm", "llm.lm_head")):
            wanted = 1e-3
        assert found.get(name) == wanted, name
    assert ("llm.lm_head.weight" in found) == (not tied)


def test_each_encoder_counts_its_own_blocks() -> None:
    deep = {"name": "siglip", "config": {**SIGLIP, "num_hidden_layers": 4}}
    model = vlm.assemble(toy_recipe(encoders=[{"name": "siglip", "config": SIGLIP}, deep], merge="channel"))
    found = rates(model, encoders={"lr": 1.0, "layer_decay": 0.5})
    for encoder, depth in ((0, 2), (1, 4)):
        name = f"encoders.{encoder}.model.embeddings.patch_embedding.weight"
        assert found[name] == 0.5 ** (depth + 1)
        assert found[f"encoders.{encoder}.model.encoder.layers.{depth - 1}.mlp.fc1.weight"] == 0.5
    assert found["encoders.1.model.post_layernorm.weight"] == 1.0
    assert not any(name.startswith(("llm", "connector")) for name in found)


def test_last_blocks_and_what_follows_them() -> None:
    model = vlm.assemble(toy_recipe())
    found = rates(model, llm={"lr": 1e-3, "last": 1})
    top = {name for name, _ in model.named_parameters() if name.startswith("llm.model.layers.3.")}
    assert found == dict.fromkeys([*top, "llm.model.norm.weight", "llm.lm_head.weight"], 1e-3)
    both = rates(model, llm={"lr": 1e-3, "last": 2, "layer_decay": 0.1})
    assert set(both) - set(found) == {n for n, _ in model.named_parameters() if n.startswith("llm.model.layers.2.")}
    assert {both[name] for name in set(both) - set(found)} == {1e-3 * 0.1**2}


@pytest.mark.parametrize("name", [*ENCODERS, "siglip -2", "timm -2", "open_clip -2"])
def test_of_the_last_block_every_parameter_learns(name: str) -> None:
    """Blocks above the selected layer never run: counted from the top of the list, `last: 1` would train nothing."""
    vit = {"model": "vit_tiny_patch16_224", "config": {"depth": 3, "embed_dim": 24, "num_heads": 3}, "size": 32}
    others = {
        "siglip -2": {"name": "siglip", "config": {**SIGLIP, "num_hidden_layers": 3}, "layers": [-2]},
        "timm -2": {"name": "timm", **vit, "layers": [-2], "norm": False},
        "open_clip -2": {**ENCODERS["vit"], "layers": [-2], "norm": False},
    }
    model = vlm.assemble(toy_recipe(encoders={**ENCODERS, **others}[name]))
    encoder = perturb(model).encoders[0]
    found = rates(model, encoders={"lr": 1.0, "last": 1})
    stack = stack_of("encoders.0", encoder)
    first = stack.blocks[stack.running - 1]
    inside = {f"encoders.0.{n}" for n, p in encoder.named_parameters() if any(p is q for q in first.parameters())}
    assert inside
    assert inside <= set(found)
    images = torch.rand(2, 3, *encoder.image.size)
    tokens = encoder(images).tokens
    (tokens * torch.randn(tokens.shape)).sum().backward()  # a plain sum would vanish behind a norm
    named = dict(model.named_parameters())
    for parameter in sorted(inside):
        gradient = named[parameter].grad
        assert gradient is not None, parameter
        if not parameter.endswith("k_proj.bias"):  # attention does not feel it
            assert gradient.abs().max() > 0, parameter
    frozen = [n for n, p in named.items() if n.startswith("encoders.") and n not in found]
    for own in found:
        assert own in inside or "norm" in own or "ln_" in own or "neck" in own, (
            f"{own} neither is nor follows that block"
        )
    assert any(named[n].grad is not None for n in frozen), "what is frozen would have learnt something"


def test_a_stage_with_last_blocks_moves_those_alone(tmp_path: Path) -> None:
    recipe = {**toy_recipe(), "stages": [{**STAGE, "steps": 2, "train": {"llm": {"lr": 1e-2, "last": 1}}}]}
    before = vlm.assemble(recipe).state_dict()
    after = vlm.load(train(recipe, out=tmp_path / "run")).state_dict()
    top = ("llm.model.layers.3.", "llm.model.norm", "llm.lm_head")
    assert {n for n in before if not torch.equal(before[n], after[n])} == {n for n in before if n.startswith(top)}


def test_the_last_key_wins_with_mappings_too() -> None:
    model = vlm.assemble(toy_recipe())
    spec = {"llm": {"lr": 1e-3, "weight_decay": 0.2}, "llm.*norm*": 1e-4, "llm.model.layers.0": {"lr": 0.0}}
    found = settings(model, stage(train=spec, weight_decay=0.1, warmup=0.5))
    assert found["llm.lm_head.weight"].weight_decay == 0.2
    assert (found["llm.model.norm.weight"].lr, found["llm.model.norm.weight"].weight_decay) == (1e-4, 0.1)
    assert found["llm.model.norm.weight"].warmup == 0.5
    assert not any(name.startswith("llm.model.layers.0.") for name in found)
    frozen = settings(model, stage(train={"llm": 1e-3, "llm.model": {"lr": 1e-4, "last": 1}}))
    assert "llm.model.embed_tokens.weight" not in frozen, "the last match freezes what it does not train"
    assert frozen["llm.lm_head.weight"].lr == 1e-3


MISTAKES = {
    "last": ({"lr": 1e-3, "last": 5}, "llm", r"train\.llm\.last: `5`; allowed: 1 to 4, the blocks of `llm` that run"),
    "none": ({"lr": 1e-3, "last": 0}, "llm", r"train\.llm\.last: `0` is wrong"),
    "no blocks": (
        {"lr": 1e-3, "layer_decay": 0.9},
        "connector",
        r"train\.connector\.layer_decay: `connector` has no list of blocks",
    ),
    "objective": (
        {"lr": 1e-3, "layer_decay": 0.9},
        "objective",
        r"train\.objective\.layer_decay: `objective` has no list",
    ),
    "too high": ({"lr": 1e-3, "layer_decay": 1.5}, "llm", r"train\.llm\.layer_decay: `1\.5` is wrong"),
    "warmup": ({"lr": 1e-3, "warmup": 1}, "llm", r"train\.llm\.warmup: `1` is wrong"),
    "no rate": ({"warmup": 0.1}, "llm", r"train\.llm\.lr: is missing; keys here: lr, weight_decay, warmup"),
    "unknown": (
        {"lr": 1e-3, "layer_decya": 0.9},
        "llm",
        r"train\.llm\.layer_decya: unknown .* did you mean `layer_decay`",
    ),
    "text": ("fast", "llm", r"train\.llm: `fast` is wrong: Input should be a valid number"),
    "list": ([1e-3], "llm", r"train\.llm: .* is wrong"),
    "idle": ({"lr": 1e-3}, "lm", r"train\.lm: matches no parameter; did you mean `llm`"),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("command", [plan, lambda source: check(source, [])], ids=["plan", "train"])
def test_mistakes_have_their_dotted_place(kind: str, command: Callable[[Any], Any]) -> None:
    rate, key, message = MISTAKES[kind]
    good = {**STAGE, "name": "good", "train": {"connector": 1e-3}}
    with pytest.raises(ConfigError, match=rf"stages\.1\.{message}"):
        command({**toy_recipe(), "stages": [good, {**STAGE, "train": {key: rate}}]})


def test_a_recipe_reads_back_as_itself() -> None:
    train = {"llm": {"lr": 1e-3, "layer_decay": 0.9}, "connector": 1e-2}
    recipe = read_recipe(
        {**toy_recipe(), "stages": [{**STAGE, "train": train, "optimiser": {"name": "galore", "rank": 4}}]}
    )
    assert recipe.dump()["stages"][0]["train"] == train, "a bare number stays one"
    assert read_recipe(recipe.dump()) == recipe
    assert recipe.stages[0].train["llm"] == RateSpec(lr=1e-3, layer_decay=0.9)


def test_plan_counts_what_trains() -> None:
    spec = {"encoders": {"lr": 1e-4, "last": 1}, "llm": {"lr": 1e-5, "layer_decay": 0.9}}
    recipe = {**toy_recipe(), "stages": [{**STAGE, "train": spec}]}
    model = vlm.assemble(recipe)
    module = StageModule(model, LanguageModelling(), stage=read_recipe(recipe).stages[0], accumulate=1)
    trained = {part: sum(p.numel() for p in one.parameters() if p.requires_grad) for part, one in model.parts().items()}
    found = plan(recipe)
    assert found.stages["s"] == trained
    assert 0 < trained["encoders.0"] < found.parameters["encoders.0"]
    moments = 2 * 4 * sum(trained.values())
    assert found.training["s"].memory.optimiser == moments, "no state for what is frozen"
    assert module.rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}


class _Spy:
    """The groups that a stage's optimiser gets."""

    def __init__(self, model: Any, spec: StageSpec, objective: Any = None) -> None:
        self.module = StageModule(model, objective or LanguageModelling(), stage=spec, accumulate=1)
        self.optimizer = self.module.configure_optimizers()["optimizer"]
        names = {id(p): name.removeprefix("vlm.") for name, p in self.module.named_parameters()}
        self.groups = {names[id(p)]: group for group in self.optimizer.param_groups for p in group["params"]}


def test_every_key_reaches_its_own_parameters_and_no_other() -> None:
    """Seen elsewhere: an if/elif chain over parts, in which one rate switches the others off; rates that are read and
    never used; a frozen part with a state."""
    model = vlm.assemble(toy_recipe())
    train = {
        "encoders": {"lr": 1e-6, "weight_decay": 0.01, "warmup": 0.5},
        "connector": {"lr": 2e-4, "weight_decay": 0.02},
        "llm": {"lr": 3e-5, "warmup": 0.0},
        "llm.model.embed_tokens": 0,
        "objective": 4e-3,
    }
    heads = ReadSlots([32], fields={"digits": (5, 11)})
    spy = _Spy(model, stage(train=train, weight_decay=0.3, warmup=0.25), heads)
    wanted = {
        "encoders": (1e-6, 0.01, 0.5),
        "connector": (2e-4, 0.02, 0.25),
        "llm": (3e-5, 0.3, 0.0),
        "objective": (4e-3, 0.3, 0.25),
    }
    every = {name.removeprefix("vlm."): p for name, p in spy.module.named_parameters()}
    assert set(spy.groups) == set(every) - {"llm.model.embed_tokens.weight"}
    for name, group in spy.groups.items():
        rate, decay, warmup = wanted[name.split(".")[0]]
        assert group["initial_lr"] == rate, name
        assert group["warmup"] == warmup, name
        matrix = sum(size > 1 for size in every[name].shape) > 1
        assert group["weight_decay"] == (decay if matrix else 0.0), name
    assert any(spy.groups[name]["weight_decay"] == 0 for name in spy.groups if name.endswith("bias"))


@pytest.mark.parametrize("encoder", [*ENCODERS, "clip", "timm"])
def test_biases_norms_and_class_tokens_do_not_decay(encoder: str) -> None:
    """A CLS token [1, 1, C] is a vector, and so is a table's single row."""
    others = {
        "clip": {"name": "clip", "config": {**SIGLIP}},
        "timm": {"name": "timm", "model": "vit_tiny_patch16_224", "config": {"depth": 1, "embed_dim": 24}, "size": 32},
    }
    _, model = blueprint(toy_recipe(encoders={**ENCODERS, **others}[encoder]))
    found = kinds(model, LanguageModelling())
    modules = dict(model.named_modules())
    plain = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)
    for name, kind in found.items():
        owner, _, own = name.rpartition(".")
        if (
            own.endswith("bias")
            or "norm" in type(modules[owner]).__name__.lower()
            or own.endswith(("cls_token", "class_embedding"))
        ):
            assert not kind.decays, name
        elif isinstance(modules[owner], plain) and own == "weight":
            assert kind.decays == (sum(s > 1 for s in modules[owner].weight.shape) > 1), name
    assert sum(kind.decays for kind in found.values()) > 10


def test_each_key_rises_by_its_own_warm_up_and_is_logged(tmp_path: Path) -> None:
    train_keys = {"connector": 1e-2, "llm": {"lr": 1e-3, "warmup": 0.5, "layer_decay": 0.5}}
    recipe = {**toy_recipe(), "stages": [{**STAGE, "warmup": 0.0, "train": train_keys}]}
    run = train(recipe, out=tmp_path / "run")
    with (run / "stages/01-s/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for step, row in enumerate(rows):
        fast = 1e-2 * schedule("cosine", 6, warmup=0.0, final=0.0)(step)
        slow = 1e-3 * schedule("cosine", 6, warmup=0.5, final=0.0)(step)
        assert float(row["lr/connector"]) == pytest.approx(fast)
        assert float(row["lr/llm"]) == pytest.approx(slow), "the head's, which has the key's whole rate"
        assert float(row["lr"]) == pytest.approx(max(fast, slow))
    assert len(rows) == 6
    assert float(rows[0]["lr/llm"]) < float(rows[2]["lr/llm"]), "it still rises"
    assert float(rows[0]["lr/connector"]) > float(rows[2]["lr/connector"]), "it already falls"
