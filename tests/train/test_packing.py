"""Samples packed into one row: logits and gradients are those of each sample alone."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import vlm
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.llm import isolates_packed
from vlm.sample import Sample, Turn
from vlm.train.module import StageModule
from vlm.train.objectives import LanguageModelling
from vlm.train.plots import read_metrics
from vlm.train.run import train

ROUTES: dict[str, Any] = {
    "mlp": "mlp",
    "perceiver": {"name": "perceiver", "latents": 5},
    "latest": {"name": "cross_attention", "every": 2},
    "all": {"name": "cross_attention", "every": 2, "sees": "all"},
    "qformer": {"name": "qformer", "latents": 3, "depth": 1},
}
LLMS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {"head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": 3.0},
    "mistral": {"sliding_window": 5},
    "gpt2": {"n_positions": 64, "num_key_value_heads": None, "intermediate_size": None},
    "gpt_neox": {"num_key_value_heads": None},
    "olmo2": {},
    "phi3": {"pad_token_id": 0},
}


def samples() -> list[Sample]:
    """Several images, one, none; several turns; one that begins with the assistant."""

    def talk(*texts: str) -> list[Turn]:
        return [Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]

    return [
        Sample(talk("Why <image>?", "So.", "And <image>?", "Yes."), [picture(1), picture(2, (90, 30))], id="two"),
        Sample(talk("What?", "That is it."), [picture(3)], id="one"),
        Sample(talk("Say it.", "It!"), [], id="none"),
        Sample(talk("Where?", "Here, of course."), [picture(4)], id="last"),
    ]


def gradients(model: Any, total: torch.Tensor) -> dict[str, Any]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def agree(model: Any, packs: Sequence[int]) -> None:
    """Packed, every sample has its own logits, and the sum of the losses its own gradients."""
    examples = [model.processor.encode(sample) for sample in samples()]
    packed = model.processor.collate(examples, packs=packs)
    assert len(packed) == len(packs)
    logits = model(packed, use_cache=False).logits
    rows = [logits[row][packed.segments[row] == number] for row, count in enumerate(packs) for number in range(count)]
    wanted = torch.zeros(())
    for example, found in zip(examples, rows, strict=True):
        alone = model.processor.collate([example])
        torch.testing.assert_close(found, model(alone, use_cache=False).logits[0], rtol=1e-5, atol=1e-5)
        wanted = wanted + LanguageModelling()(model, alone).total
    together = LanguageModelling()(model, packed)
    assert together.count == sum(LanguageModelling()(model, model.processor.collate([one])).count for one in examples)
    torch.testing.assert_close(together.total, wanted, rtol=1e-5, atol=1e-4)
    one, other = gradients(model, together.total), gradients(model, wanted)
    for name, gradient in one.items():
        assert (gradient is None) == (other[name] is None), name
        if gradient is not None:
            assert (gradient - other[name]).abs().max() <= 1e-5 * max(1.0, float(other[name].abs().max())), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("route", ROUTES)
def test_packed_is_alone_on_every_route(route: str, attention: str) -> None:
    model = perturb(vlm.assemble(toy_recipe(ROUTES[route]))).eval()
    model.set_attention(attention)
    agree(model, [4])
    agree(model, [1, 3])


def test_packed_is_alone_with_flex_attention() -> None:
    """On a CPU torch has its forward pass alone, and takes heads of 16 and more."""
    config = {**LLAMA, "hidden_size": 64, "num_hidden_layers": 2}
    model = perturb(vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": config}))).eval()
    examples = [model.processor.encode(sample) for sample in samples()]
    alone = [model(model.processor.collate([one]), use_cache=False).logits[0] for one in examples]
    model.set_attention("flex_attention")
    packed = model.processor.collate(examples, packs=[4])
    with torch.no_grad():
        found = model(packed, use_cache=False).logits
    torch.testing.assert_close(found[0], torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", LLMS)
def test_packed_is_alone_in_every_family(family: str) -> None:
    sizes = {**LLAMA, "num_hidden_layers": 2, **LLMS[family], "model_type": family}
    config = {key: value for key, value in sizes.items() if value is not None}
    model = perturb(vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": config}))).eval()
    agree(model, [2, 2])


@pytest.mark.parametrize(
    ("family", "sizes", "isolates"),
    [
        ("llama", {}, True),
        ("gemma2", {"head_dim": 8, "sliding_window": 6}, True),
        ("bloom", {"n_layer": 2, "n_head": 4}, False),
        ("mamba", {"num_hidden_layers": 2, "state_size": 4}, False),
        ("rwkv", {"num_hidden_layers": 2, "attention_hidden_size": 32}, False),
    ],
)
def test_families_that_leak_between_samples_are_found(family: str, sizes: dict[str, Any], isolates: bool) -> None:
    base = LLAMA if isolates else {"hidden_size": 32}
    config = AutoConfig.for_model(**{**base, "vocab_size": 70, **sizes, "model_type": family})
    assert isolates_packed(perturb(AutoModelForCausalLM.from_config(config))) is isolates


def recipe(folder: Path, **options: Any) -> dict[str, Any]:
    """A stage with dropout, so that a wrong random state would show, on answers of different lengths."""
    picture(1).save(folder / "a.png")
    lines = [
        {"question": "?", "answer": "x" * (1 + n * n % 70), **({"image": "a.png"} if n % 3 else {})} for n in range(50)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "attention_dropout": 0.2}, "attention": "eager"}
    stage = {"name": "s", "train": {"connector": 1e-2, "llm": 1e-3}, "data": str(folder / "rows.jsonl"), "steps": 11}
    common = {"batch_size": 4, "micro_batch_size": 2, "precision": "32-true", "checkpoint_every": 2, "pack": 260}
    return {**toy_recipe(llm=llm), "stages": [{**stage, **common, **options}]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_packed_stage_goes_on_to_the_bit(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a window, with samples carried over from the one before."""
    monkeypatch.setattr("vlm.train.batches.WINDOW", 16)
    monkeypatch.setattr("vlm.train.batches.STEPS", 1)
    spec = recipe(tmp_path)
    whole = train(spec, out=tmp_path / "whole")
    spec["stages"][0]["workers"] = workers
    stop = StageModule.on_before_optimizer_step

    def cut(self: StageModule, optimizer: Any) -> None:
        if self.global_step == 7:
            raise KeyError("power")
        stop(self, optimizer)

    monkeypatch.setattr(StageModule, "on_before_optimizer_step", cut)
    with pytest.raises(KeyError, match="power"):
        train(spec, out=tmp_path / "run")
    monkeypatch.setattr(StageModule, "on_before_optimizer_step", stop)
    run = train(spec, out=tmp_path / "run")
    found, wanted = (read_metrics(one / "stages/01-s/metrics.csv") for one in (run, whole))
    assert found == wanted
    found, wanted = vlm.load(run).state_dict(), vlm.load(whole).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_an_llm_that_leaks_is_refused(tmp_path: Path) -> None:
    spec = recipe(tmp_path)
    config = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}
    spec["model"]["llm"] = {"tokenizer": "bytes", "config": config, "attention": "eager"}
    with pytest.raises(ConfigError, match=r"stages\.0\.pack: `260`: BloomForCausalLM does not keep samples in one row"):
        train(spec, out=tmp_path / "run")


def test_flex_attention_is_refused_where_torch_cannot_train_with_it(tmp_path: Path) -> None:
    spec = recipe(tmp_path)
    spec["model"]["llm"]["attention"] = "flex_attention"
    with pytest.raises(
        ConfigError, match=r"model\.llm\.attention: `flex_attention`: torch trains with it on GPUs only"
    ):
        train(spec, out=tmp_path / "run")
