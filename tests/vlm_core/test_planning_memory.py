"""Bytes of a plan beside what autograd, torch's allocator, AdamW and the LLM's cache hold on the model itself."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.conftest import LLAMA, toy_recipe
from tests.vlm_core.twins import (
    LLMS,
    RECIPES,
    TWO,
    Twin,
    batch_bytes,
    peak_bytes,
    recipe,
    saved_bytes,
    set_both,
    storages,
    twins,
)
from vlm.assembly import blueprint
from vlm.planning.costs import checkpointed_blocks, forward_costs, stage_costs
from vlm.planning.memory import STRATEGIES, Memory
from vlm.planning.meter import Meter
from vlm.planning.precision import Autocast
from vlm.planning.storages import Storages
from vlm.train.objectives import LanguageModelling

STAGES = (["encoders"], ["connector"], ["llm"], ["encoders", "connector", "llm"])
MEASURED = ["llama", "qwen2", "gemma2", "gpt2", "two_channel", "perceiver", "cross_attention", "convnext"]
FUSED = ["llama", "perceiver", "cross_attention"]
"""For softcapping and for masks that train (SAM's) the CPU has no fused kernel."""


def planned(twin: Twin, *parts: str, precision: str = "32-true") -> Memory:
    rates = twin.train(*parts)
    return stage_costs(twin.model, LanguageModelling(), twin.batch, rates=rates, precision=precision)[1]


@pytest.mark.parametrize(
    ("name", "attention"), [*((name, "eager") for name in MEASURED), *((name, "sdpa") for name in FUSED)]
)
def test_activations_are_what_autograd_keeps(name: str, attention: str) -> None:
    both = shadow, real = twins(RECIPES[name], text=30)
    set_both(both, attention)
    found = set()
    for trained in STAGES:
        real.train(*trained)
        memory = planned(shadow, *trained)
        assert memory.activations == saved_bytes(real.loss, real.model), trained
        found.add(memory.activations)
    assert len(found) == len(STAGES), "what is frozen makes no difference"


@pytest.mark.parametrize("name", ["llama", "two_channel", "cross_attention"])
def test_the_worst_moment_is_what_the_allocator_sees(name: str) -> None:
    """Gradients are there already, as after a first micro batch; the kernels' own scratch space is not planned."""
    both = shadow, real = twins(RECIPES[name], text=60)
    set_both(both, "eager")
    for trained in STAGES:
        real.train(*trained)
        for parameter in real.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        memory = planned(shadow, *trained)
        seen = peak_bytes(real.step) + batch_bytes(real.batch)
        assert memory.activations + memory.temporary == pytest.approx(seen, rel=0.001)
        assert memory.temporary > 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
@pytest.mark.parametrize("trained", STAGES)
def test_weights_gradients_and_moments_are_those_of_a_step(trained: list[str], precision: str) -> None:
    shadow, real = twins(
        toy_recipe(
            **{**TWO, "merge": "sequence"}, llm={"tokenizer": "bytes", "config": LLMS["qwen2"], "dtype": "bfloat16"}
        )
    )
    memory = planned(shadow, *trained, precision=precision)
    model = real.model.bfloat16() if precision == "bf16-true" else real.model
    real.train(*trained)
    real.step()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters)
    optimiser.step()
    moments = [value for state in optimiser.state.values() for key, value in state.items() if key != "step"]
    assert memory.weights == sum(storages([*model.parameters(), *model.buffers()]).values())
    assert memory.gradients == memory.step == sum(storages([p.grad for p in parameters if p.grad is not None]).values())
    assert memory.optimiser == sum(storages(moments).values()) > 0
    assert {parameter.dtype for parameter in shadow.model.llm.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in shadow.model.encoders.parameters()} == {torch.float32}


def kept_by_autocast(make: Any, loss: Any) -> int:
    """Bytes that torch's own autocast for CUDA keeps, on fake tensors that say they are on such a device."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            module = make()
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        torch.set_autocast_enabled("cuda", True)  # torch.autocast itself wants to see a device
        torch.autocast_increment_nesting()
        try:
            return saved_bytes(lambda: loss(module, "cuda"), module)
        finally:
            torch.autocast_decrement_nesting()
            torch.set_autocast_enabled("cuda", False)
            torch.clear_autocast_cache()


def kept_by_plan(make: Any, loss: Any) -> tuple[int, int, int]:
    """(activations, copies of weights, those of them that train)."""
    with torch.device("meta"):
        module = make()
    meter = Meter(persistent=[*module.parameters(), *module.buffers()])
    with meter.running():
        with Autocast(torch.bfloat16, lambda copy, trained: meter.storages.copy(copy, trained=trained)):
            kept = loss(module, "meta")
        found = meter.storages.saved(), meter.storages.copied(), meter.storages.copied(trained=True)
    del kept
    return found


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("trains", [True, False])
def test_mixed_precision_keeps_what_torchs_autocast_keeps(name: str, trains: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**LLMS[name], "vocab_size": 40, "attention_dropout": 0.0})

    def make() -> Any:
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager").requires_grad_(trains)

    def loss(llm: Any, device: str) -> Any:
        embeds = torch.empty(2, 13, 32, device=device, requires_grad=True)
        logits = llm(inputs_embeds=embeds, use_cache=False).logits.flatten(0, 1).float()
        return torch.nn.functional.cross_entropy(logits, torch.zeros(26, dtype=torch.long, device=device))

    saved, copies, trained = kept_by_plan(make, loss)
    matrices = [p for name, p in make().named_parameters() if p.ndim == 2]  # a tied one is the head's as well
    untied = 0 if config.tie_word_embeddings else 40 * 32
    assert copies == 2 * (sum(p.numel() for p in matrices) - untied)
    assert trained == (copies if trains else 0)
    assert saved + copies == kept_by_autocast(make, loss)


@pytest.mark.parametrize("trains", [True, False])
def test_a_weight_that_trains_is_copied_once(trains: bool) -> None:
    def make() -> Any:
        return torch.nn.Linear(16, 16, bias=False).requires_grad_(trains)

    def loss(layer: Any, device: str) -> Any:
        return layer(layer(torch.empty(3, 16, device=device, requires_grad=True))).float().exp().sum()

    saved, copies, trained = kept_by_plan(make, loss)
    assert copies == 2 * 16 * 16 * (1 if trains else 2)
    assert trained == (copies if trains else 0)
    assert saved + copies == kept_by_autocast(make, loss)


def test_checkpointing_keeps_inputs_what_is_outside_and_one_block() -> None:
    """By hand, in bytes: copies of weights that train are told apart, others are made again with their block."""
    storages = Storages(persistent=[])
    x, y, mask, inside, larger, copy, frozen, logits, gone = (
        torch.empty(size, dtype=torch.uint8) for size in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    )
    storages.add(gone)  # kept by nobody
    storages.enter(0, [x, mask])
    storages.enter(1, [y, mask])
    storages.enter(2, [logits])  # through it no gradient passes
    for tensor, block in ((x, 0), (inside, 0), (y, 1), (larger, 1), (frozen, 1), (mask, 1), (copy, 1), (logits, None)):
        storages.save(tensor, block)
    storages.copy(copy, trained=True)
    storages.copy(frozen, trained=False)
    assert storages.saved() == 1 + 2 + 4 + 8 + 16 + 128
    assert (storages.copied(), storages.copied(trained=True)) == (32 + 64, 32)
    assert storages.working_blocks() == {0, 1}
    assert storages.checkpointed() == (1 + 2 + 4) + 128 + (16 + 64)
    del gone
    assert storages.live == 255
    assert storages.peak == 511


@pytest.mark.parametrize("name", ["llama", "cross_attention"])
def test_checkpointing_is_bounded_closely(name: str) -> None:
    """Torch's own checkpointing needs less: the largest block is not run again at the moment of the loss."""
    model = {**LLAMA, "num_hidden_layers": 12, "hidden_size": 64}
    both = shadow, real = twins(
        {"model": {**RECIPES[name]["model"], "llm": {"tokenizer": "bytes", "config": model}}}, text=60, size=4
    )
    set_both(both, "eager")
    trained = ["connector"]
    real.train(*trained)
    for block in checkpointed_blocks(real.model):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    seen = peak_bytes(real.step) + batch_bytes(real.batch)
    memory = planned(shadow, *trained)
    assert seen < memory.checkpointed + memory.temporary < 1.25 * seen
    assert seen < 0.7 * (memory.activations + memory.temporary)


def test_blocks_are_the_decoders_and_what_repeats_elsewhere() -> None:
    _, model = blueprint(recipe(**TWO, connector={"name": "perceiver", "depth": 3}))
    wanted = [
        *model.llm.model.layers,
        *model.encoders[0].model.encoder.layers,
        *model.encoders[1].model.vision_encoder.layers,
        *model.connector.ops[0].blocks,
    ]
    assert set(checkpointed_blocks(model)) == set(wanted)


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2", "cross_attention", "perceiver"])
def test_cache_is_what_the_llm_keeps(name: str) -> None:
    shadow, real = twins(RECIPES[name], text=20)
    given: dict[str, Any] = {}
    real.model.llm.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        cache = real.model.eval()(real.batch, use_cache=True).past_key_values
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    if stream := given.get("vision"):
        held += [
            stream.tokens,
            stream.image,
            stream.seen,
            stream.since,
            *(t for pair in stream.cache.values() for t in pair),
        ]
    wanted = sum(t.numel() * t.element_size() for t in held)
    assert 0 <= forward_costs(shadow.model, shadow.batch)[1] - wanted <= 64  # a few caches count their tokens too


def test_each_strategy_shares_what_it_says() -> None:
    memory = Memory(
        weights=1000,
        gradients=400,
        optimiser=800,
        activations=300,
        checkpointed=90,
        copies=500,
        trained_copies=200,
        temporary=50,
        step=400,
        block=100,
        rest=60,
    )
    totals = {name: share(memory, 4).total() for name, share in STRATEGIES.items()}
    assert totals == {
        "DDP": 1000 + 400 + 800 + 500 + 300 + 50,
        "ZeRO-1": 1000 + 400 + 200 + 850,
        "ZeRO-2": 1000 + 100 + 200 + 850,
        "ZeRO-3": (250 + 100) + 100 + 200 + 350,
        "FSDP": (250 + 160) + 100 + 200 + 350,
    }
    small = {name: share(memory, 4).total(checkpointing=True) for name, share in STRATEGIES.items()}
    assert small["DDP"] == 2200 + max(90 + 200 + 50, 400)  # the optimiser's step needs more than the backward pass
    assert small["ZeRO-3"] == 350 + 100 + 200 + 90 + 50
    assert {name: share(memory, 1).weights for name, share in STRATEGIES.items()} == dict.fromkeys(STRATEGIES, 1000)
