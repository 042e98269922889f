"""Cross-entropy in pieces: the same loss and gradients as from all logits, for every kind of head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

import vlm
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from vlm import llm as llms
from vlm.sample import Sample, Turn
from vlm.train import losses
from vlm.train.objectives import LanguageModelling

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "mistral": {},
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": {"head_dim": 8, "final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 3.0},
    "olmo2": {},
    "phi": {},
    "phi3": {"pad_token_id": 0},
    "stablelm": {},
    "starcoder2": {},
    "smollm3": {"pad_token_id": 0},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"word_embed_proj_dim": 24, "ffn_dim": 48, "max_position_embeddings": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "head_dim": 8},
    "falcon": {"new_decoder_architecture": False},
}


def build(family: str) -> nn.Module:
    sizes = {**LLAMA, "num_hidden_layers": 2, "vocab_size": 70, **FAMILIES[family], "model_type": family}
    if family in ("gpt_neox", "falcon"):
        sizes.pop("num_key_value_heads")
    return perturb(AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes))).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_apart_gives_the_familys_own_logits(family: str) -> None:
    llm: Any = build(family)
    inputs = {"input_ids": torch.randint(0, 70, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    whole = llm(**inputs, use_cache=False).logits
    hidden = llms.hidden_states(llm, **inputs)
    assert hidden.shape[:2] == (2, 9)
    apart = llms.logits(llm, hidden.flatten(0, 1)).view_as(whole)
    torch.testing.assert_close(apart, whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(llm(**inputs, use_cache=False).logits, whole), "the LLM is not as it was"
    gradients = torch.autograd.grad(apart.square().sum(), llms.head_parameters(llm), allow_unused=True)
    assert all(one is not None and one.abs().sum() > 0 for one in gradients)


@pytest.mark.parametrize("piece", [70, 3 * 70, 10**6])
@pytest.mark.parametrize("frozen", ["nothing", "head", "body"])
def test_pieces_give_loss_and_gradients_of_the_whole(piece: int, frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "ELEMENTS", piece)
    head = nn.Linear(16, 70)
    hidden = torch.randn(11, 16, requires_grad=frozen != "body")
    head.requires_grad_(frozen != "head")
    targets = torch.randint(0, 70, (11,))
    options: dict[str, Any] = {"parameters": list(head.parameters()), "vocabulary": 70, "label_smoothing": 0.1}
    found = losses.cross_entropy(hidden, targets, head, **options)
    wanted = F.cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(found, wanted)
    trained = [one for one in (hidden, *head.parameters()) if one.requires_grad]
    pairs = zip(torch.autograd.grad(found * 3, trained), torch.autograd.grad(wanted * 3, trained), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(losses.cross_entropy(hidden, targets, head, **options), wanted)
    assert losses.cross_entropy(hidden[:0], targets[:0], head, **options) == 0


def slow_loss(model: Any, batch: Any) -> torch.Tensor:
    """Every position's logits, one at a time."""
    logits, total = model(batch, use_cache=False).logits, torch.zeros(())
    for row in range(len(batch)):
        for place in range(batch.labels.shape[1] - 1):
            if batch.labels[row, place + 1] >= 0:
                total = total - logits[row, place].log_softmax(-1)[batch.labels[row, place + 1]]
    return total


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("connector", ["mlp", {"name": "cross_attention", "every": 2}])
def test_language_modelling_is_the_slow_loop(
    connector: Any, tied: bool, toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ELEMENTS", 4 * 262)
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": tied}}
    model = perturb(vlm.assemble(toy_recipe(connector, llm=llm)))
    talks = [[Turn("user", "Why?"), Turn("assistant", text)] for text in ("So.", "Because of that.", "x")]
    batch = model.processor([Sample(turns, [picture(1)] * (n < 2)) for n, turns in enumerate(talks)])
    found = LanguageModelling()(model, batch)
    wanted = slow_loss(model, batch)
    assert found.count == sum(len(turns[1].text) + 1 for turns in talks)
    torch.testing.assert_close(found.total, wanted, rtol=1e-5, atol=1e-4)
    names, trained = zip(*model.named_parameters(), strict=True)
    pairs = zip(
        torch.autograd.grad(found.total, trained, allow_unused=True),
        torch.autograd.grad(wanted, trained, allow_unused=True),
        strict=True,
    )
    for name, (one, other) in zip(names, pairs, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)
