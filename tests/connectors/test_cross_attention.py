"""Gated cross-attention inside unmodified LLMs: gate 0 is the plain LLM, cached generation the uncached forward."""

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vlm
from tests.conftest import LLAMA, perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.features import VisionTokens
from vlm.sample import Sample, Turn, ask

BLOCK = {"name": "cross_attention", "every": 2}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
OPT = {**LLAMA, "model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
for _key in ("intermediate_size", "num_key_value_heads"):
    OPT.pop(_key)
NEOX = {key: value for key, value in {**LLAMA, "model_type": "gpt_neox"}.items() if key != "num_key_value_heads"}
FAMILIES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "opt": OPT,
    "gpt_neox": NEOX,
    **{
        name: {**LLAMA, "model_type": name, **extra}
        for name, extra in {
            "qwen2": {},
            "qwen3": {"head_dim": 8},
            "mistral": {},
            "gemma2": {"head_dim": 8},
            "gemma3_text": {"head_dim": 8},
            "phi3": {},
            "olmo2": {},
            "smollm3": {},
        }.items()
    },
}


def family(name: str) -> Any:
    """A toy model of an LLM family with gated blocks; all perturbed but the gates, which are still zero."""
    recipe = toy_recipe(BLOCK, llm={"tokenizer": "bytes", "config": FAMILIES[name]})
    model = vlm.assemble(recipe)
    perturb(model)
    for block in model.connector.ops[-1].blocks:
        torch.nn.init.zeros_(block.attention_gate)
        torch.nn.init.zeros_(block.mlp_gate)
    return model.eval()


def open_gates(model: Any, value: float = 0.7) -> Any:
    for block in model.connector.ops[-1].blocks:
        torch.nn.init.constant_(block.attention_gate, value)
        torch.nn.init.constant_(block.mlp_gate, value)
    return model


SAMPLES = [ask("What is it?", [picture(1)]), ask("Which of the two is red?", [picture(2), picture(3)]), ask("Hello")]


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_closed_gates_are_the_plain_llm(name: str) -> None:
    model = family(name)
    batch = model.processor(SAMPLES)
    plain = copy.deepcopy(model.llm)
    for layer in plain.modules():
        layer._forward_pre_hooks.clear()
    real = batch.attention_mask.bool()
    wanted = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    assert torch.allclose(model(batch).logits[real], wanted[real], atol=1e-5)
    opened = open_gates(model)(batch).logits
    for row, sample in enumerate(SAMPLES):
        change = (opened[row] - wanted[row])[real[row]].abs().max()
        assert (change > 1e-2) == bool(sample.images), "open gates change exactly the samples with images"


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_cached_generation_equals_the_uncached_forward(name: str) -> None:
    model = open_gates(family(name))
    batch = model.processor(SAMPLES, side="left")
    found = model.generate(batch, max_new_tokens=6)
    assert torch.equal(found, greedy_without_cache(model, batch, 6)[:, : found.shape[1]])


def greedy_without_cache(model: Any, batch: Any, steps: int) -> torch.Tensor:
    """The whole sequence anew for each token."""
    batch = copy.copy(batch)
    stops, new = model.processor.chat.stop_ids, []
    done = torch.zeros(len(batch), dtype=torch.bool)
    for _ in range(steps):
        token = model(batch, use_cache=False).logits[:, -1].argmax(-1)
        token = token.masked_fill(done, model.processor.chat.pad_id)
        done |= torch.isin(token, torch.tensor(stops))
        new.append(token)
        column = token[:, None]
        batch.input_ids = torch.cat([batch.input_ids, column], 1)
        batch.attention_mask = torch.cat([batch.attention_mask, torch.ones_like(column)], 1)
        batch.owner = torch.cat([batch.owner, torch.full_like(column, -1)], 1)
        batch.seen = torch.cat([batch.seen, batch.seen[:, -1:]], 1)
    return torch.stack(new, 1)


@torch.no_grad()
def test_block_equals_the_equations() -> None:
    """One gated block on one sample: which image a position sees, and x + tanh(gate) * ..., by explicit loops."""
    model = open_gates(family("llama"), 0.3)
    op = model.connector.ops[-1]
    block = op.blocks[0].double()
    turns = [Turn("user", "a <image> b <image> c")]
    batch = model.processor([Sample(turns, [picture(1), picture(2)])])
    tokens = op(model.encoders[0](batch.groups[0].pixels[0])).tokens.double()  # [2 images, t, C]
    hidden = torch.randn(1, batch.input_ids.shape[1], 32, dtype=torch.double)
    _, extra = op.route().apply(hidden, VisionTokens(tokens.flatten(0, 1), (len(tokens[0]),) * 2), batch.places)
    found = op._look(0, hidden, extra["vision"])[0]
    for position, image in enumerate(batch.seen[0].tolist()):
        x = hidden[0, position]
        if image < 0:
            assert torch.equal(found[position], x), "before the first image nothing changes"
            continue
        looked = look(block, x, tokens[image])
        x = x + math.tanh(0.3) * looked
        x = x + math.tanh(0.3) * block.mlp(x)
        assert torch.allclose(found[position], x, atol=1e-10)
    assert batch.seen[0].unique().tolist() == [-1, 0, 1]


def look(block: Any, x: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    attention, heads = block.attention, []
    size = attention.q.out_features // attention.heads
    normed = F.layer_norm(x, x.shape, block.norm.weight, block.norm.bias)
    for head in range(attention.heads):
        rows = slice(head * size, (head + 1) * size)
        q = attention.q.weight[rows] @ normed
        k, v = image @ attention.k.weight[rows].T, image @ attention.v.weight[rows].T
        heads.append(torch.softmax(k @ q / math.sqrt(size), 0) @ v)
    return attention.out.weight @ torch.cat(heads)


@torch.no_grad()
def test_sees_all_looks_at_earlier_images_too() -> None:
    samples = [Sample([Turn("user", "<image> then <image> compare")], [picture(1), picture(2)])]
    changed = [Sample(samples[0].turns, [picture(9), picture(2)])]
    for sees, moves in (("latest", False), ("all", True)):
        model = perturb(vlm.assemble(toy_recipe({**BLOCK, "every": 4, "sees": sees}))).eval()
        block = model.connector.ops[-1]
        hidden = torch.randn(1, model.processor(samples).input_ids.shape[1], 32)
        last = []
        for one in (samples, changed):
            batch = model.processor(one)
            _, extra = block.route().apply(hidden, model.encode(batch), batch.places)
            last.append(block._look(0, hidden, extra["vision"])[0, -1])
        assert (not torch.allclose(last[0], last[1])) == moves


@torch.no_grad()
def test_beam_search_carries_the_images_along() -> None:
    model = open_gates(family("llama"))
    batch = model.processor(SAMPLES[:2], side="left")
    together = model.generate(batch, max_new_tokens=5, num_beams=3)
    for row, sample in enumerate(SAMPLES[:2]):
        alone = model.generate(model.processor([sample], side="left"), max_new_tokens=5, num_beams=3)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()


def test_deepcopy_has_hooks_of_its_own() -> None:
    model = open_gates(family("llama"))
    twin = copy.deepcopy(model)
    batch = model.processor(SAMPLES)
    with torch.no_grad():
        before = model(batch).logits
        for block in twin.connector.ops[-1].blocks:
            block.attention_gate.zero_()
            block.mlp_gate.zero_()
        assert torch.equal(model(batch).logits, before), "the copy's gates are not the original's"
        assert not torch.allclose(twin(batch).logits, before)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = open_gates(family("llama")).train()
    batch = model.processor(SAMPLES)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(batch, use_cache=False).logits.square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-5), name


def test_family_that_drops_keywords_is_refused() -> None:
    config = {"model_type": "bloom", "hidden_size": 32, "n_layer": 4, "n_head": 4}
    with pytest.raises(ConfigError, match=r"model.connector.*BloomForCausalLM does not"):
        vlm.assemble(toy_recipe(BLOCK, llm={"tokenizer": "bytes", "config": config}))


@pytest.mark.parametrize(("every", "blocks"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_blocks_stand_before_every_kth_layer(every: int, blocks: int) -> None:
    assert len(vlm.assemble(toy_recipe({"name": "cross_attention", "every": every})).connector.ops[0].blocks) == blocks


def test_every_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.connector\.every: `0`; allowed: 1 or more"):
        vlm.assemble(toy_recipe({"name": "cross_attention", "every": 0}))
