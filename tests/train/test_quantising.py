"""4 bits below adapters. bitsandbytes and its GPU are not here: a slow layer of the same kind stands in for its own, so
what is tested is all around it: which layers, what is saved, resumed, refused and counted."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import vlm
import vlm.quantising
import vlm.train.run
from tests.conftest import perturb, picture, toy_recipe
from tests.train import test_resume as resume
from vlm.adapters import AdapterSpec
from vlm.errors import ConfigError
from vlm.planning.plan import plan
from vlm.quantising import check_available, lowered, lowered_layers, values
from vlm.sample import ask
from vlm.saving import weights
from vlm.train.plots import read_metrics
from vlm.train.run import train

FOUR_BIT = vlm.quantising.four_bit


class Slow(nn.Module):
    """16 values from -1 to 1 times the largest of each 64 weights."""

    def __init__(self, layer: nn.Linear, how: str) -> None:
        super().__init__()
        assert how == "nf4"
        blocks = layer.weight.detach().reshape(-1, 64)
        self.shape, self.bias = layer.weight.shape, layer.bias
        self.register_buffer("scales", blocks.abs().amax(1, keepdim=True))
        self.register_buffer("steps", torch.linspace(-1, 1, 16))
        nearest = ((blocks / self.scales)[..., None] - self.steps).abs().argmin(-1)
        self.packed = nn.Parameter(nearest.to(torch.uint8), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        return (self.steps[self.packed.long()] * self.scales).reshape(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm.quantising, "four_bit", Slow)


@pytest.fixture
def _available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlm.train.run, "check_available", lambda _: None)


class Packed(nn.Parameter):
    """The constructor of bitsandbytes' weights, which become 4 bit on their way to a GPU."""

    def __new__(cls, data: Tensor, requires_grad: bool, compress_statistics: bool, quant_type: str, module: Any) -> Any:
        made = super().__new__(cls, data, requires_grad)
        made.told = (compress_statistics, quant_type, module)
        return made


class Linear4bit(nn.Linear):
    """The constructor of bitsandbytes' layer."""

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        compute_dtype: Any = None,
        compress_statistics: bool = True,
        quant_type: str = "fp4",
        quant_storage: Any = torch.uint8,
        device: Any = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.told = (compress_statistics, quant_type)


def test_bitsandbytes_layers_are_built_as_it_documents_them(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(nn=SimpleNamespace(Linear4bit=Linear4bit, Params4bit=Packed))
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    layer = nn.Linear(8, 16)
    low = FOUR_BIT(layer, "nf4")
    assert low.told == (False, "nf4")
    assert low.weight.told == (False, "nf4", low)
    assert torch.equal(low.weight, layer.weight)
    assert not any(parameter.requires_grad for parameter in low.parameters())
    assert low.bias is not layer.bias
    assert torch.equal(values(low), layer.weight), "never on a GPU, so never in 4 bit"
    x = torch.randn(3, 8)
    assert torch.equal(low(x), layer(x))


def stages(*each: dict[str, Any], **changes: Any) -> dict[str, Any]:
    common = {"data": [{"name": "handwriting"}], "steps": 2, "batch_size": 4, "precision": "32-true", "warmup": 0.0}
    return {**toy_recipe(), "stages": [{"name": f"s{n}", **common, **changes, **one} for n, one in enumerate(each)]}


QLORA = {"train": {"llm.lora": 1e-2}, "adapt": {"llm": {"rank": 3, "dropout": 0.2}}, "quantize": {"llm": "nf4"}}


def test_all_plain_layers_of_the_blocks_and_no_adapter(toy: Callable[..., Any]) -> None:
    model = toy()
    model.adapt("llm", AdapterSpec(rank=3, targets=["q_proj"]))
    names = lowered_layers(model, {"llm": "nf4"})
    assert len(names) == 4 * 7
    assert sum(name.endswith("q_proj.base_layer") for name in names) == 4
    assert not any("lora" in name or "lm_head" in name for name in names)
    encoders = lowered_layers(model, {"encoders": "nf4"})
    assert len(encoders) == 2 * 6
    assert all(name.startswith("encoders.0.") for name in encoders)


def test_afterwards_the_weights_are_what_the_bits_stood_for(toy: Callable[..., Any]) -> None:
    model = toy()
    model.adapt("llm", AdapterSpec(rank=3, targets=["q_proj"]))
    perturb(model, seed=1)
    modules = {name: type(module) for name, module in model.named_modules()}
    before = {name: tensor.clone() for name, tensor in weights(model).items()}
    layers = lowered_layers(model, {"llm": "nf4"})
    changed = {f"{name.removesuffix('.base_layer')}.weight" for name in layers}
    expected = {name: Slow(layer, "nf4").weight for name, (layer, _) in layers.items()}
    batch = model.processor([ask("What is it?", [picture(1)])])
    with lowered(model, {"llm": "nf4"}):
        low = model(batch).logits
        assert sum(isinstance(module, Slow) for module in model.modules()) == 4 * 7
        assert not any(".q_proj.base_layer.weight" in name for name in model.state_dict()), "checkpoints leave them out"
        assert "llm.model.layers.0.self_attn.q_proj.lora_B.default.weight" in model.state_dict()
        model.load_state_dict(model.state_dict(), strict=True)
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert torch.equal(model(batch).logits, low)
    for name, layer in expected.items():
        assert torch.equal(model.get_submodule(name).weight, layer)
    after = weights(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    with lowered(model, {"llm": "nf4"}):
        assert torch.allclose(model(batch).logits, low, atol=1e-6), "a second time changes nothing"


@pytest.mark.usefixtures("_available")
def test_stage_trains_adapters_on_four_bits_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [{"name": f"{resume.__name__}:Failing"}]
    recipe = stages({**QLORA, "steps": 4}, {"train": {"llm.lora": 1e-2}}, data=source, checkpoint_every=2)
    whole = train(recipe, out=tmp_path / "whole")
    monkeypatch.setattr(resume.Failing, "at", 13)
    with pytest.raises(resume.PowerCut):
        train(recipe, out=tmp_path / "run")
    checkpoint = next((tmp_path / "run/stages/01-s0/checkpoints").glob("*.ckpt"))
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert not any(name.endswith("base_layer.weight") or "packed" in name for name in held)
    monkeypatch.setattr(resume.Failing, "at", -1)
    run = train(recipe, out=tmp_path / "run")
    for folder in ("01-s0", "02-s1"):
        found, wanted = (read_metrics(one / "stages" / folder / "metrics.csv") for one in (run, whole))
        assert found == wanted
    found, wanted = (load_file(one / "model" / "model.safetensors") for one in (run, whole))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    first = load_file(whole / "stages/01-s0/model/model.safetensors")
    for name, begin in weights(vlm.assemble(recipe)).items():
        if name.startswith("llm.model.layers") and name.endswith("proj.weight"):
            layer = nn.Linear(*begin.shape[::-1], bias=False)
            layer.weight.data = begin
            assert torch.equal(first[name], Slow(layer, "nf4").weight), name
        else:
            assert torch.equal(first[name], begin), name


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({**QLORA, "quantize": {"lm": "nf4"}}, r"stages.0.quantize.lm: no such part; did you mean `llm`\?"),
        ({**QLORA, "quantize": {"llm": "nf5"}}, r"stages.0.quantize.llm: `nf5` is not allowed"),
        (
            {"train": {"llm": 1.0}, "quantize": {"llm": "nf4"}},
            r"stages.0.train: 28 weights in 4 bit \(`llm.model",
        ),
        (QLORA, "stages.0.quantize: (bitsandbytes is not installed|there is no CUDA device here); without `quantize`"),
    ],
    ids=["part", "word", "trained", "machine"],
)
def test_mistakes_are_told_before_anything_loads(stage: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        vlm.train.run.check(stages(stage), [])


def test_without_the_key_nothing_is_asked_of_the_machine() -> None:
    check_available({})


@pytest.mark.parametrize("dora", [False, True])
def test_plan_counts_half_a_byte_a_weight(dora: bool) -> None:
    adapt = {"llm": {"rank": 3, "dora": dora}}
    plain = {"train": {"llm.lora": 1e-2}, "adapt": adapt}
    low, full = (plan(stages(stage)).training["s0"] for stage in ({**plain, "quantize": {"llm": "nf4"}}, plain))
    layers = [layer for layer, _ in lowered_layers(vlm.assemble(toy_recipe()), {"llm": "nf4"}).values()]
    count = sum(layer.weight.numel() for layer in layers)
    assert full.memory.weights - low.memory.weights == 4 * count - count // 2 - 4 * count // 64
    assert full.flops == low.flops
    assert low.memory.activations <= full.memory.activations
