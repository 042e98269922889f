"""Adapters: as peft computes them, saved, loaded, merged, trained a second time, and nothing else moved by accident."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners import lora
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

import vlm
import vlm.train.run
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from tests.connectors.test_cross_attention import FAMILIES
from tests.train import test_resume as resume
from tests.vlm_core.toy_recipes import toy as toy_size
from vlm import llm as llms
from vlm.adapters import AdapterSpec, absorb, choose, chosen, insert, plain
from vlm.adapting import begin_stage
from vlm.cli import app
from vlm.compare.budgets import plan_cell
from vlm.encoders.timms import Timm
from vlm.errors import ConfigError
from vlm.identity import identity
from vlm.parts import learning_rates, set_modes, set_trainable
from vlm.planning.plan import plan
from vlm.recipe import StageSpec, read_yaml, shipped_recipes
from vlm.sample import Batch, ask
from vlm.saving import WeightsError, weights
from vlm.train.plots import read_metrics
from vlm.train.run import train

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
KINDS = [{}, {"dora": True}, {"rslora": True, "alpha": 3.0}, {"dora": True, "rslora": True}]


def spec(**changes: Any) -> AdapterSpec:
    return AdapterSpec(**{"rank": 3, **changes})


def stage(**changes: Any) -> StageSpec:
    values = {"name": "s", "train": {"connector": 1e-2}, "data": [{"name": "handwriting"}], "steps": 2, "batch_size": 4}
    return StageSpec.model_validate({**values, "precision": "32-true", **changes})


def batch(model: Any) -> Batch:
    made: Batch = model.processor([ask("What is it?", [picture(1)]), ask("And what is this here?", [picture(2)])])
    return made


def everywhere(model: Any, **changes: Any) -> Any:
    """Adapters on all three parts, every parameter moved: B is zero at first, and so would be all of its effects."""
    for part in model.parts():
        model.adapt(part, spec(**changes))
    return perturb(model, seed=1)


def ours_as_peft(part: nn.Module, modules: tuple[str, ...], adapted: AdapterSpec) -> nn.Module:
    """peft's own model of a part without adapters, to be given ours."""
    config = LoraConfig(
        r=adapted.rank,
        lora_alpha=adapted.scale,  # type: ignore[arg-type]
        lora_dropout=adapted.dropout,
        use_dora=adapted.dora,
        use_rslora=adapted.rslora,
        target_modules=list(modules),
    )
    return get_peft_model(part, config)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_llm_with_adapters_is_that_of_peft(toy: Callable[..., Any], config: Any, kind: Any) -> None:
    model = toy(llm={"tokenizer": "bytes", "config": config})
    bare = copy.deepcopy(model.llm)
    plain_logits = model(batch(model)).logits
    model.adapt("llm", spec(**kind))
    assert torch.allclose(model(batch(model)).logits, plain_logits, atol=1e-6), "an adapter begins with no update"
    perturb(model.llm, seed=1)
    adapted = model.adapters["llm"]
    reference = ours_as_peft(bare, adapted.modules, adapted.spec)
    missing, unexpected = reference.base_model.model.load_state_dict(model.llm.state_dict(), strict=True)
    assert not missing
    assert not unexpected
    reference.eval()
    inputs = {**model.inputs(batch(model)), "position_ids": batch(model).positions}
    found, wanted = model(batch(model)).logits, reference(**inputs).logits
    assert torch.equal(found, wanted)
    assert (found - plain_logits).abs().max() > 0.1


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
def test_encoder_with_adapters_is_that_of_peft(toy: Callable[..., Any], kind: Any) -> None:
    model = toy()
    encoder = model.encoders[0]
    bare = copy.deepcopy(encoder)
    model.adapt("encoders.0", spec(**kind))
    perturb(encoder, seed=1)
    adapted = model.adapters["encoders.0"]
    reference = ours_as_peft(bare, adapted.modules, adapted.spec)
    reference.base_model.model.load_state_dict(encoder.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder(pixels).tokens, reference.eval()(pixels).tokens)


@pytest.mark.parametrize("kind", [*KINDS, {"init": "pissa"}, {"init": "olora"}, {"init": "gaussian"}], ids=str)
def test_saved_model_loads_alone_and_merges(toy: Callable[..., Any], kind: Any, tmp_path: Path) -> None:
    model = everywhere(toy(), dropout=0.3, **kind)
    wanted = model(batch(model)).logits
    loaded = vlm.load(model.save(tmp_path / "model"))
    assert torch.equal(loaded(batch(loaded)).logits, wanted)
    assert loaded.adapters == model.adapters
    assert identity(loaded) == identity(model)
    loaded.merge()
    assert (loaded(batch(loaded)).logits - wanted).abs().max() < 2e-5
    assert not any("peft" in type(module).__module__ for module in loaded.modules())
    assert identity(loaded) != identity(model)


def test_merged_model_is_an_ordinary_one(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy()
    ordinary = model.save(tmp_path / "ordinary")
    everywhere(model, dora=True).merge()
    merged = model.save(tmp_path / "merged")
    names = [set(load_file(folder / "model.safetensors")) for folder in (ordinary, merged)]
    assert names[0] == names[1]
    configs = [json.loads((folder / "config.json").read_text()) for folder in (ordinary, merged)]
    assert configs[0] == configs[1]
    assert [name for name, _ in vlm.load(merged).named_parameters()] == [name for name, _ in model.named_parameters()]


def test_merging_rounds_once_to_the_weights_precision(toy: Callable[..., Any]) -> None:
    """Against float64: a sum of two bfloat16 numbers would be rounded twice."""
    model = toy().to(torch.bfloat16)
    model.adapt("llm", spec())
    perturb(model.llm, seed=1)
    assert {p.dtype for name, p in model.named_parameters() if "lora" in name} == {torch.float32}
    layer = model.llm.model.layers[0].mlp.up_proj
    update = layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double() * 2
    wanted = (layer.base_layer.weight.double() + update).to(torch.bfloat16)
    model.merge()
    found = model.llm.model.layers[0].mlp.up_proj.weight
    assert found.dtype == torch.bfloat16
    assert (found != wanted).float().mean() < 0.005  # float32 and float64 may round a tie apart


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_half_precision_begins_with_no_update_and_merges(toy: Callable[..., Any], config: Any, kind: Any) -> None:
    model = toy(llm={"tokenizer": "bytes", "config": config}).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    logits = model(batch(model)).logits
    model.adapt("llm", spec(**kind))
    layers = [module for module in model.modules() if isinstance(module, lora.Linear)]
    assert (model(batch(model)).logits - logits).abs().max() < 0.02 * logits.abs().max()
    for layer in layers:
        factor = layer.weight.float() / layer.base_layer.weight.float()
        assert torch.all(factor.sub(1).abs() < 1e-6)
    perturb(model.llm, seed=1)
    adapted = model(batch(model)).logits
    model.merge()
    merged = model(batch(model)).logits
    assert (merged - adapted).abs().max() < 0.05 * adapted.abs().max()
    assert {tensor.dtype for tensor in weights(model).values()} == {torch.bfloat16}
    assert weights(model).keys() == before.keys()


def test_saved_names_are_plain_and_misfits_are_refused_by_name(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy()
    before = set(weights(model))
    model.adapt("llm", spec(dora=True, targets="q_proj"))
    folder = model.save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    layers = [f"llm.model.layers.{number}.self_attn.q_proj" for number in range(4)]
    own = {f"{layer}.lora.{kind}" for layer in layers for kind in ("A", "B", "magnitude")}
    assert set(tensors) == before | own
    listed = json.loads((folder / "config.json").read_text())["adapters"]["llm"]
    assert listed["modules"] == [layer.removeprefix("llm.") for layer in layers]
    for changed, told in (
        ({name: value for name, value in tensors.items() if name != f"{layers[2]}.lora.B"}, "1 missing: .*2.*lora.B"),
        ({**tensors, f"{layers[0]}.lora.C": torch.ones(1)}, "1 unexpected: .*lora.C"),
        ({**tensors, f"{layers[0]}.lora.A": torch.ones(4, 32)}, r"of another shape: .*lora.A \(4, 32\) for \(3, 32\)"),
    ):
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(WeightsError, match=told):
            vlm.load(folder)


def test_config_and_weights_must_agree_on_the_adapters(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy()
    model.adapt("llm", spec(targets="q_proj"))
    folder = model.save(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key != "adapters"}))
    with pytest.raises(WeightsError, match=r"8 unexpected: llm.model.layers.0.self_attn.q_proj.lora.A"):
        vlm.load(folder)
    config["adapters"]["llm"]["modules"][0] = "model.layers.9.self_attn.q_proj"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"adapters.llm: there is no model.layers.9"):
        vlm.load(folder)
    config["adapters"] = {"llm": {"rank": 0, "modules": []}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"adapters.llm.rank: `0`"):
        vlm.load(folder)


def trained(model: Any, train: dict[str, float]) -> set[str]:
    return {plain(name) for name in learning_rates([name for name, _ in model.named_parameters()], train)}


def test_keys_of_train_mean_what_they_say(toy: Callable[..., Any]) -> None:
    model = toy()
    every = {name for name, _ in model.named_parameters()}
    second = {name for name in every if name.startswith("llm.model.layers.1.")}
    assert trained(model, {"llm.model.layers.1.*": 1.0}) == second
    model.adapt("llm", spec(targets=["*_proj"]))
    model.adapt("encoders.0", spec())
    adapters = {plain(name) for name, _ in model.named_parameters()} - every
    of_llm = {name for name in adapters if name.startswith("llm.")}
    assert len(of_llm) == 4 * 7 * 2
    assert trained(model, {"llm.lora": 1.0}) == of_llm
    assert trained(model, {"encoders.lora": 1.0}) == trained(model, {"encoders.0.lora": 1.0}) == adapters - of_llm
    assert trained(model, {"*.lora": 1.0}) == adapters
    layer = {name for name in of_llm if ".layers.1." in name}
    assert trained(model, {"llm.model.layers.1.lora": 1.0}) == layer
    assert trained(model, {"llm.model.layers.[1].lora": 1.0}) == layer
    assert trained(model, {"llm.*q_proj.lora": 1.0}) == {name for name in of_llm if "q_proj" in name}
    assert trained(model, {"llm.lora": 1.0, "*.lora.B": 0.0}) == {name for name in of_llm if name.endswith("A")}
    assert trained(model, {"llm.model.layers.1.*": 1.0, "llm.lora": 0.0}) == second, "the weights alone"
    whole = {"llm.lora": 1.0, "llm.model.embed_tokens": 1.0, "llm.*norm*": 1.0}  # modules trained whole
    assert trained(model, whole) == of_llm | {name for name in every if "embed_tokens" in name or "norm" in name} - {
        name for name in every if not name.startswith("llm.")
    }


def test_weights_do_not_train_beside_their_adapters(toy: Callable[..., Any]) -> None:
    model = toy()
    model.adapt("llm", spec(targets="q_proj"))
    names = [name for name, _ in model.named_parameters()]
    for key in ("llm", "llm.model.layers.1.*", "*"):
        with pytest.raises(
            ConfigError, match=r"weights \(`llm.*q_proj.weight`, ...\) beside their adapters.*`llm.lora`"
        ):
            learning_rates(names, {"llm.lora": 1e-4, key: 1e-3})
    with pytest.raises(ConfigError, match=r"encoders.lora: matches no parameter;.* allowed: .*llm.lora"):
        learning_rates(names, {"encoders.lora": 1e-3})


def test_dropout_of_adapters_follows_their_part(toy: Callable[..., Any]) -> None:
    model = toy()
    model.adapt("llm", spec(dropout=0.5))
    model.adapt("encoders.0", spec(dropout=0.5))
    assert not any(module.training for module in model.modules()), "put into a model in eval mode"
    set_trainable(model, learning_rates([name for name, _ in model.named_parameters()], {"llm.lora": 1e-3}))
    set_modes(model)
    dropouts = {name: module.training for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    inside = {name: training for name, training in dropouts.items() if "lora_dropout" in name}
    assert {name.startswith("llm.") for name in inside} == {True, False}
    assert all(training == name.startswith("llm.") for name, training in inside.items())


TIED = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": True}}


def test_tied_embeddings_stay_tied(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = everywhere(toy(llm=TIED))
    loaded = vlm.load(model.save(tmp_path / "model"))
    for one in (model, loaded):
        one.merge()
        assert one.llm.lm_head.weight is one.llm.model.embed_tokens.weight
    with pytest.raises(ConfigError, match=r"shared.*`lm_head` with `model.embed_tokens.weight`"):
        model.adapt("llm", spec(targets="lm_head"))


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("*_porj", r"`\*_porj` matches no layer; linear layers here: down_proj, gate_proj"),
        ("embed_tokens", "`model.embed_tokens` is of class Embedding; only linear layers"),
        ("*", "`model.embed_tokens` is of class Embedding"),
    ],
)
def test_layers_that_cannot_have_an_adapter_are_refused(toy: Callable[..., Any], targets: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        toy().adapt("llm", spec(targets=[targets]))


def test_convolutions_and_torchs_own_attention_are_refused(toy: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="patch_embedding` is of class Conv2d"):
        toy().adapt("encoders.0", spec(targets=["patch_embedding"]))
    block = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "mlp": nn.Linear(8, 8)})
    part = nn.ModuleList([block])
    assert chosen(part, []) == ["0.mlp"], "its out_proj is never called, so an adapter there would do nothing"
    with pytest.raises(ConfigError, match="out_proj` is of class NonDynamicallyQuantizableLinear"):
        chosen(part, ["out_proj"])


def test_cross_attention_and_the_head_work_with_adapters(toy: Callable[..., Any]) -> None:
    model = everywhere(toy({"name": "cross_attention", "every": 2}))
    one = batch(model)
    logits = model(one).logits
    hidden = model.hidden(one)
    assert torch.allclose(llms.logits(model.llm, hidden.flatten(0, 1)), logits.flatten(0, 1), atol=1e-5)
    other: Batch = model.processor([ask("What is it?", [picture(3)]), ask("And what is this here?", [picture(4)])])
    assert (model(other).logits - logits).abs().max() > 1e-3, "the picture is still seen"
    model.merge()
    assert torch.allclose(model(one).logits, logits, atol=2e-5)


def test_adapter_on_the_head_counts(toy: Callable[..., Any]) -> None:
    model = toy()
    before = model(batch(model)).logits
    model.adapt("llm", spec(targets=["lm_head"]))
    perturb(model.llm.lm_head.lora_B, seed=1)
    logits = model(batch(model)).logits
    assert (logits - before).abs().max() > 1e-2
    hidden = model.hidden(batch(model))
    assert torch.allclose(llms.logits(model.llm, hidden.flatten(0, 1)), logits.flatten(0, 1), atol=1e-5)


def test_identity_sees_the_scale(toy: Callable[..., Any]) -> None:
    ids = set()
    for alpha in (4.0, 8.0):
        model = toy()
        model.adapt("llm", spec(alpha=alpha))
        ids.add(identity(perturb(model)))
    assert len(ids) == 2


def test_adapters_begin_by_the_seed_alone(toy: Callable[..., Any]) -> None:
    one, same, other = toy(), toy(), toy()
    state = torch.get_rng_state()
    for model, seed in ((one, 5), (same, 5), (other, 6)):
        torch.rand(seed)
        before = torch.get_rng_state()
        begin_stage(model, stage(adapt={"llm": spec()}), seed)
        assert torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(state)
    matrices = [model.llm.model.layers[0].self_attn.q_proj.lora_A["default"].weight for model in (one, same, other)]
    assert torch.equal(matrices[0], matrices[1])
    assert not torch.equal(matrices[0], matrices[2])


def test_export_asks_for_a_merge(toy: Callable[..., Any]) -> None:
    from vlm.interop import to_transformers

    with pytest.raises(ConfigError, match=r"adapters on encoders.0, connector, llm have no place"):
        to_transformers(everywhere(toy()))


def test_base_stays_to_the_bit_when_adapters_train(toy: Callable[..., Any]) -> None:
    model = toy()
    model.adapt("llm", spec(dora=True))
    before = weights(model)
    before = {name: tensor.clone() for name, tensor in before.items()}
    set_trainable(model, learning_rates([name for name, _ in model.named_parameters()], {"llm.lora": 1e-2}))
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    model(batch(model)).logits.square().mean().backward()
    optimiser.step()
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if ".lora." in name and not name.endswith(".A")}, "B is zero, so A waits"


def toy_stages(*stages: dict[str, Any], **changes: Any) -> dict[str, Any]:
    common = {"data": [{"name": "handwriting"}], "steps": 2, "batch_size": 4, "precision": "32-true", "warmup": 0.0}
    return {**toy_recipe(), "stages": [{"name": f"s{n}", **common, **changes, **one} for n, one in enumerate(stages)]}


def saved(run: Path, number: int, stages: int) -> dict[str, torch.Tensor]:
    folder = run / "model" if number == stages - 1 else next((run / "stages").glob(f"{number + 1:02d}-*")) / "model"
    return load_file(folder / "model.safetensors")


def moved(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in one.keys() & other.keys() if not torch.equal(one[name], other[name])}


def test_stages_train_go_on_merge_and_begin_anew(tmp_path: Path) -> None:
    """Each stage in a process of its own would read the same: the run is taken up from saved models below."""
    rank, other = {"rank": 3, "dropout": 0.1}, {"rank": 2, "dora": True}
    recipe = toy_stages(
        {"train": {"connector": 1e-2, "llm.lora": 1e-2}, "adapt": {"llm": rank}},
        {"train": {"llm.lora": 1e-2}},
        {"train": {"llm.lora": 1e-2, "encoders.lora": 1e-2}, "adapt": {"llm": rank, "encoders": {"rank": 2}}},
        {"train": {"llm.lora": 1e-2}, "merge": "llm", "adapt": {"llm": other}},
        {"train": {"llm": 1e-2, "llm.lora": 0.0}},
        {"train": {"llm": 1e-2}, "merge": ["llm", "encoders"]},
    )
    run = train(recipe, out=tmp_path / "run")
    begin = vlm.assemble(recipe)
    models = [weights(begin), *(saved(run, number, 6) for number in range(6))]
    names = [{name for name in one if ".lora." in name} for one in models]
    base = set(models[0])
    llm = {name for name in base if name.startswith("llm.")}
    assert all(set(one) == base | own for one, own in zip(models, names, strict=True))
    assert names[1] == names[2] == {name for name in names[3] if name.startswith("llm.")}
    assert {name.rpartition(".")[2] for name in names[4] if name.startswith("llm.")} == {"A", "B", "magnitude"}
    assert names[4] == names[5]
    assert not names[6]
    connector = {name for name in base if name.startswith("connector.")}
    assert moved(models[0], models[1]) == connector
    assert moved(models[1], models[2]) == names[2]
    assert moved(models[2], models[3]) == names[2], "the encoder's are new, so they are in one only"
    merged = {f"{name.rpartition('.lora.')[0]}.weight" for name in names[2]}
    assert moved(models[3], models[4]) - names[4] == merged, "the base, by the merge alone"
    assert moved(models[4], models[5]) == llm
    encoder = {f"{name.rpartition('.lora.')[0]}.weight" for name in names[3] if name.startswith("encoders.")}
    assert moved(models[5], models[6]) == llm | encoder
    assert not vlm.load(run).adapters


def test_merge_before_a_stage_gives_the_adapters_answers(tmp_path: Path) -> None:
    recipe = toy_stages(
        {"train": {"llm.lora": 3e-1}, "adapt": {"llm": {"rank": 3}}, "steps": 6},
        {"train": {"connector": 1e-9}, "merge": ["llm"], "steps": 1},
    )
    run = train(recipe, out=tmp_path / "run")
    adapted, merged = vlm.load(run / "stages" / "01-s0" / "model"), vlm.load(run)
    one = batch(merged)
    begin = vlm.assemble(recipe)
    assert (begin(one).logits - adapted(one).logits).abs().max() > 1e-2
    assert torch.allclose(merged(one).logits, adapted(one).logits, atol=2e-5)


def resumable() -> dict[str, Any]:
    return toy_stages(
        {"train": {"connector": 1e-2}, "steps": 1},
        {"train": {"llm.lora": 1e-2}, "adapt": {"llm": {"rank": 3, "dropout": 0.3, "dora": True}}, "steps": 4},
        {"train": {"llm.lora": 1e-2, "connector": 1e-3}, "steps": 6},
        data=[{"name": f"{resume.__name__}:Failing"}],
        checkpoint_every=2,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(resumable(), out=tmp_path_factory.mktemp("run") / "whole")


@pytest.mark.parametrize("place", [6, 14, 18])
def test_resumes_to_the_bit(place: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the stage that they begin in before and behind its first checkpoint, and in the one that trains them on."""
    recipe = resumable()
    monkeypatch.setattr(resume.Failing, "at", place)
    with pytest.raises(resume.PowerCut):
        train(recipe, out=tmp_path / "run")
    monkeypatch.setattr(resume.Failing, "at", -1)
    run = train(recipe, out=tmp_path / "run")
    for folder in ("01-s0", "02-s1", "03-s2"):
        found, wanted = (read_metrics(one / "stages" / folder / "metrics.csv") for one in (run, whole))
        assert found == wanted
    found, wanted = (load_file(one / "model" / "model.safetensors") for one in (run, whole))
    assert found.keys() == wanted.keys()
    assert not moved(found, wanted)


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([{"adapt": {"lm": {}}, "train": {"llm": 1.0}}], r"stages.0.adapt.lm: no such part; did you mean `llm`\?"),
        ([{"adapt": {"llm": {"rnk": 2}}, "train": {"llm": 1.0}}], "stages.0.adapt.llm.rnk: unknown key `rnk`; did you"),
        ([{"adapt": {"llm": {"targets": "x"}}, "train": {"llm": 1.0}}], "stages.0.adapt.llm.targets: `x` matches no"),
        ([{"adapt": {"llm": {}}, "train": {"llm": 1.0}}], r"stages.0.train.llm: would train 28 weights.*`llm.lora`"),
        ([{"train": {"llm.lora": 1.0}}], "stages.0.train.llm.lora: matches no parameter"),
        ([{"merge": "llm", "train": {"llm": 1.0}}], "stages.0.merge: `llm` has no adapters"),
        (
            [{"adapt": {"llm": {"rank": rank}}, "train": {"llm.lora": 1.0}} for rank in (2, 4)],
            r"stages.1.adapt.llm: `llm` has other adapters already \(rank 2 for 4\).*`merge: \[llm\]` first",
        ),
        ([{"adapt": {"llm": {"rank": 3, "init": "orthogonal"}}, "train": {"llm.lora": 1.0}}], "needs an even one"),
        ([{"adapt": {"llm": {"rank": 40, "init": "pissa"}}, "train": {"llm.lora": 1.0}}], "16 or less"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_anything_loads(stages: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        vlm.train.run.check(toy_stages(*stages), [])


def test_plan_counts_adapters_stage_by_stage() -> None:
    recipe = toy_stages(
        {"train": {"connector": 1e-3}},
        {"train": {"llm.lora": 1e-3, "encoders.lora": 1e-3}, "adapt": {"llm": {"rank": 3}, "encoders": {"rank": 2}}},
        {"train": {"llm.lora": 1e-3}, "merge": "llm", "adapt": {"llm": {"rank": 2, "dora": True, "init": "pissa"}}},
        {"train": {"llm": 1e-3}, "merge": ["llm", "encoders"]},
    )
    found = plan(recipe)
    model = vlm.assemble(recipe)
    linear = [layer for layer in model.llm.model.layers.modules() if isinstance(layer, nn.Linear)]
    rows, sums = sum(layer.out_features for layer in linear), sum(sum(layer.weight.shape) for layer in linear)
    tower = [m for n, m in model.encoders[0].named_modules() if ".layers." in n and isinstance(m, nn.Linear)]
    parameters = found.parameters
    assert parameters["llm"] == sum(p.numel() for p in model.llm.parameters())
    nothing = dict.fromkeys(parameters, 0)
    assert found.stages == {
        "s0": {**nothing, "connector": parameters["connector"]},
        "s1": {**nothing, "llm": 3 * sums, "encoders.0": 2 * sum(sum(layer.weight.shape) for layer in tower)},
        "s2": {**nothing, "llm": 2 * sums + rows},
        "s3": {**nothing, "llm": parameters["llm"]},
    }
    total = sum(parameters.values())
    for name, trainable in ((name, sum(counts.values())) for name, counts in found.stages.items()):
        memory = found.training[name].memory
        assert (memory.gradients, memory.optimiser) == (4 * trainable, 8 * trainable)
        held = {"s1": trainable, "s2": trainable + found.stages["s1"]["encoders.0"]}.get(name, 0)
        weighing = memory.weights - found.training["s0"].memory.weights
        assert weighing == 4 * held, (name, total)


def test_a_run_begins_with_anothers_adapters(tmp_path: Path) -> None:
    """Trained a second time, in another run: they go on as they are, or are merged."""
    adapted = {"rank": 3, "dora": True}
    first = train(toy_stages({"train": {"llm.lora": 1e-1}, "adapt": {"llm": adapted}}), out=tmp_path / "first")
    before = load_file(first / "model" / "model.safetensors")
    own = {name for name in before if ".lora." in name}
    again = toy_stages({"train": {"llm.lora": 1e-2}}, {"train": {"connector": 1e-2}, "merge": "llm"})
    again["start"] = {"llm": str(first), "connector": str(first), "encoders": str(first)}
    assembled = vlm.assemble(again)
    assert assembled.adapters == vlm.load(first).adapters
    assert not moved(weights(assembled), before)
    assert plan(again).stages["s0"]["llm"] == sum(before[name].numel() for name in own)
    run = train(again, out=tmp_path / "again")
    assert moved(saved(run, 0, 2), before) == own
    assert not {name for name in saved(run, 1, 2) if ".lora." in name}


def test_merge_command(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = everywhere(toy())
    wanted = model(batch(model)).logits
    folder = model.save(tmp_path / "model")
    for parts, left in ([], []), (["--part", "llm"], ["encoders.0", "connector"]):
        result = CliRunner().invoke(app, ["merge", str(folder), str(tmp_path / "merged"), *parts])
        assert result.exit_code == 0, result.output
        merged = vlm.load(tmp_path / "merged")
        assert list(merged.adapters) == left
        assert torch.allclose(merged(batch(merged)).logits, wanted, atol=2e-5)
    toy().save(tmp_path / "bare")
    result = CliRunner().invoke(app, ["merge", str(tmp_path / "bare"), str(tmp_path / "other")])
    assert result.exit_code == 2
    assert "has no adapters on any part" in result.output


PAST = {
    "beit": ("beitv2_base_patch16_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}, [32, 32]),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2, "embed_dim": 32, "num_heads": 2}, [28, 28]),
    "swin2": (
        "swinv2_tiny_window8_256",
        {"depths": (1, 2), "num_heads": (1, 2), "embed_dim": 16, "window_size": 4},
        [64, 64],
    ),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", PAST)
def test_layers_whose_weights_are_taken_past_them_count(kind: str, dora: bool) -> None:
    """timm's attention takes `qkv.weight` itself where there is a bias; merged, there is no way past."""
    name, config, size = PAST[kind]
    encoder = perturb(Timm(model=name, config=config, size=tuple(size))).eval()
    part = nn.ModuleList([encoder])
    pixels = torch.randn(2, 3, *size)
    before = encoder(pixels).tokens
    adapted = choose(part, spec(targets=["qkv"], dora=dora))
    insert(part, adapted)
    assert torch.allclose(encoder(pixels).tokens, before, atol=1e-5)
    for module in part.modules():
        if isinstance(module, lora.Linear):
            perturb(module.lora_A)
            perturb(module.lora_B)
    adapters = encoder(pixels).tokens
    adapters.square().sum().backward()
    trained = [parameter for name, parameter in part.named_parameters() if "lora_" in name]
    assert len(trained) == (3 if dora else 2) * len(adapted.modules)
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    assert (adapters - before).abs().max() > 1e-3
    absorb(part, adapted)
    assert torch.allclose(encoder(pixels).tokens, adapters, atol=1e-4)


def test_answers_are_those_of_the_merged_model(toy: Callable[..., Any]) -> None:
    model = everywhere(toy(), dora=True)
    plain_answer = toy().ask(picture(1), "What is it?", max_new_tokens=8)
    answer = model.ask(picture(1), "What is it?", max_new_tokens=8)
    model.merge()
    assert model.ask(picture(1), "What is it?", max_new_tokens=8) == answer != plain_answer


def test_studies_count_adapters() -> None:
    stages = ({"train": {"connector": 1e-2}}, {"train": {"llm.lora": 1e-2}, "adapt": {"llm": {"rank": 2}}})
    recipe = toy_stages(*stages)
    planned, cell = plan(recipe), plan_cell(recipe)
    assert cell.trained == planned.stages["s0"]["connector"] + planned.stages["s1"]["llm"]
    assert cell.parameters == sum(planned.parameters.values()) + planned.stages["s1"]["llm"]


def adapted_everywhere(model: Any, kind: int) -> list[str]:
    """Adapters with an effect on every part that can have some; the layers that got one."""
    for part in model.parts():
        model.adapt(part, spec(dora=kind % 2 == 1))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, lora.Linear)}
    for module in layers.values():
        perturb(module.lora_A)
        perturb(module.lora_B)
    return list(layers)


@pytest.mark.parametrize("kind", [0, 1], ids=["lora", "dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_llms(toy: Callable[..., Any], name: str, kind: int) -> None:
    """All linear layers of the blocks by default, each with an effect, and merged the same."""
    model = toy(llm={"tokenizer": "bytes", "config": {**FAMILIES[name], "max_position_embeddings": 128}})
    linear = [m for m in llms.decoder_blocks(model.llm).modules() if isinstance(m, (nn.Linear, Conv1D))]
    layers = adapted_everywhere(model, kind)
    assert len([layer for layer in layers if layer.startswith("llm.")]) == len(linear)
    logits = model(batch(model)).logits
    logits.square().sum().backward()
    for layer in layers:
        assert model.get_parameter(f"{layer}.lora_B.default.weight").grad.abs().sum() > 0, layer
    model.merge()
    assert torch.allclose(model(batch(model)).logits, logits, atol=2e-5)


@pytest.mark.parametrize("name", ["blip-2", "idefics2", "minicpm-v-2.6", "nvlm-d", "prismatic"])
def test_parts_of_published_models(name: str, tmp_path: Path) -> None:
    """Q-Former, perceiver, resampler, cross-attention in the LLM, two encoders."""
    model = perturb(vlm.assemble({"model": toy_size(read_yaml(shipped_recipes()[name]))["model"]})).eval()
    one = model.processor([ask("What is it?", [picture(1, (96, 64))])])
    before = model(one).logits
    adapted_everywhere(model, 1)
    logits = model(one).logits
    assert (logits - before).abs().max() > 0.1
    loaded = vlm.load(model.save(tmp_path / "model"))
    assert torch.allclose(loaded(one).logits, logits, atol=1e-5)
    loaded.merge()
    assert torch.allclose(loaded(one).logits, logits, atol=2e-5)
