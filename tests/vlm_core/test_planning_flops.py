"""FLOPs of a plan beside torch's counter on the model itself, with weights and pictures."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from tests.vlm_core.twins import RECIPES, Twin, recipe, set_both, twins
from vlm.planning.costs import forward_costs, stage_costs
from vlm.train.objectives import LanguageModelling

knows_fused = pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="torch's own counter (before 2.12 or so) counts nothing for the CPU's fused attention",
)

AGREES = 0.02
"""Share by which a fused kernel's count may differ: which one torch takes depends on the machine."""


@pytest.fixture(autouse=True)
def _seen_by_the_counter() -> Iterator[None]:
    """A fused path of `nn.MultiheadAttention` in eval mode is none of the operations that torch's counter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


def counted(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def counted_forward(twin: Twin) -> int:
    twin.model.eval().requires_grad_(False)  # the counter stumbles over parameters that want a gradient and get none
    return counted(lambda: twin.model(twin.batch))


def planned(twin: Twin, *parts: str) -> tuple[int, int]:
    """(forward, forward and backward) of the whole batch."""
    costs = {"rates": twin.train(*parts), "precision": "32-true"}
    flops, _ = stage_costs(twin.model, LanguageModelling(), twin.batch, **costs)
    return len(twin.batch) * flops.forward, len(twin.batch) * (flops.forward + flops.backward)


def pair(name: str, attention: str = "eager", **options: Any) -> tuple[Twin, Twin]:
    both = twins(RECIPES[name], **options)
    set_both(both, attention)
    both[1].model.llm.config._experts_implementation = "eager"  # torch's counter does not know grouped products
    return both


@pytest.mark.parametrize("name", RECIPES)
def test_flops_are_those_of_torchs_counter(name: str) -> None:
    shadow, real = pair(name)
    rel = AGREES if name == "open_clip" else 0  # its attention is fused always
    by_part, _ = forward_costs(shadow.model, shadow.batch)
    assert set(by_part) == set(real.model.parts())
    assert sum(by_part.values()) == pytest.approx(counted_forward(real), rel=rel)
    parts = list(real.model.parts())
    totals = set()
    for trained in [[part] for part in parts] + [parts]:
        real.train(*trained)
        forward, total = planned(shadow, *trained)
        assert total == pytest.approx(counted(real.step), rel=rel), trained
        totals.add(total)
    assert forward == pytest.approx(counted(real.loss), rel=rel)
    assert len(totals) > 2, "what is frozen makes no difference"


@pytest.mark.parametrize("name", ["llama", "cross_attention", "perceiver"])
def test_flops_of_text_alone_and_of_several_images(name: str) -> None:
    for images in (0, 3):
        shadow, real = pair(name, images=images)
        assert sum(forward_costs(shadow.model, shadow.batch)[0].values()) == counted_forward(real)
        for trained in (["connector"], ["llm"]):
            real.train(*trained)
            assert planned(shadow, *trained)[1] == counted(real.step)


def test_each_part_has_its_own_share() -> None:
    """An encoder's and a connector's FLOPs are those of the part run by itself; blocks inside the LLM are the
    connector's."""
    shadow, real = pair("two_channel")
    by_part, _ = forward_costs(shadow.model, shadow.batch)
    pixels = real.batch.groups[0].pixels
    with torch.no_grad():
        features = [encoder(one) for encoder, one in zip(real.model.encoders, pixels, strict=True)]
        assert by_part["encoders.0"] == counted(lambda: real.model.encoders[0](pixels[0]))
        assert by_part["encoders.1"] == counted(lambda: real.model.encoders[1](pixels[1]))
        assert by_part["connector"] == counted(lambda: real.model.connector(features))

    shadow, real = pair("cross_attention")
    by_part, _ = forward_costs(shadow.model, shadow.batch)
    plain, _ = pair("llama", images=0, text=10)  # a newline follows an image
    assert by_part["llm"] == forward_costs(plain.model, plain.batch)[0]["llm"]
    assert by_part["connector"] == counted_forward(real) - by_part["encoders.0"] - by_part["llm"] > 0


@knows_fused
@pytest.mark.parametrize("name", ["llama", "cross_attention", "two_channel"])
def test_fused_attention_is_counted_as_torchs_own_kernels_are(name: str) -> None:
    shadow, real = pair(name, "sdpa")
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        assert sum(forward_costs(shadow.model, shadow.batch)[0].values()) == counted_forward(real)
        for trained in (["connector"], ["encoders", "connector", "llm"]):
            real.train(*trained)
            assert planned(shadow, *trained)[1] == pytest.approx(counted(real.step), rel=AGREES)


def test_fused_attention_computes_the_scores_twice() -> None:
    """By hand, N H Tq Tk: two products forward; backward four, and the scores again if they were not kept."""
    shadow, _ = pair("llama")
    fused, _ = pair("llama", "sdpa")
    samples, heads, tokens, width, layers = 2, 4, shadow.batch.input_ids.shape[1], 8, 4
    product = 2 * samples * heads * tokens * tokens * width * layers
    (forward, total), (fused_forward, fused_total) = planned(shadow, "llm"), planned(fused, "llm")
    assert fused_forward == forward
    assert fused_total - total == product


@pytest.mark.parametrize("llm", ["mixtral", "qwen2_moe", "aria_text"])
def test_grouped_experts_are_counted_as_single_ones(llm: str) -> None:
    """The library's default for experts is one grouped product; it does what a loop over the experts does."""
    assert pair(llm)[0].model.llm.config._experts_implementation == "grouped_mm"
    grouped, looped = pair(llm)[0], pair(llm)[0]
    looped.model.llm.config._experts_implementation = "eager"
    assert planned(grouped, "llm") == planned(looped, "llm")


def test_flops_grow_with_the_batch_as_they_should() -> None:
    one, three = (pair("mixtral", size=size)[0] for size in (1, 3))
    assert [3 * flops for flops in planned(one, "llm")] == list(planned(three, "llm"))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing")
def test_checkpointing_runs_the_working_blocks_again() -> None:
    shadow, real = pair("llama")
    for trained in (["connector"], ["llm"]):
        rates = shadow.train(*trained)
        flops, _ = stage_costs(shadow.model, LanguageModelling(), shadow.batch, rates=rates, precision="32-true")
        real.train(*trained)
        plain = counted(real.step)
        real.model.llm.gradient_checkpointing_enable({"use_reentrant": False})
        real.model.llm.train()
        assert counted(real.step) - plain == len(shadow.batch) * flops.recomputed
        real.model.llm.gradient_checkpointing_disable()


@knows_fused
def test_a_mixture_of_views_is_planned() -> None:
    """What the processor plans is what is counted: nothing is assumed of the number of views."""
    shadow, real = twins(recipe(views="pad"))
    assert sum(forward_costs(shadow.model, shadow.batch)[0].values()) == counted_forward(real)


@knows_fused
def test_finding_a_grid_at_a_new_size_is_not_counted() -> None:
    """Views that are not of the encoder's own size: a run without data says once on which grid their tokens are."""
    shown = recipe(views={"name": "native", "multiple": 8, "min_pixels": 64})
    shadow, real = twins(shown)
    assert shadow.batch.groups[0].pixels[0].shape[2:] == (24, 32)
    real.loss()  # the real model has found its grid then
    assert sum(forward_costs(shadow.model, shadow.batch)[0].values()) == counted_forward(real)
    shadow, _ = twins(shown)
    real.train("llm")
    assert planned(shadow, "llm") == (counted(real.loss), counted(real.step))
