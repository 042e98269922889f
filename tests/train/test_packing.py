"""Samples packed into one row: logits and gradients are those of each sample alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import vlm
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from vlm.llm import isolates_packed
from vlm.sample import Sample, Turn
from vlm.train.objectives import LanguageModelling

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
