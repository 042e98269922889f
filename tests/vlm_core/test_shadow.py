"""What is known and what is a shape only when a model runs on the meta device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlm.planning.meter import Meter
from vlm.planning.shadow import LARGEST
from vlm.planning.shadow_results import Results

META = torch.device("meta")


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    with found.running():
        yield found


def same(found: Tensor, values: Any) -> None:
    assert not found.is_meta
    assert found.tolist() == values


@pytest.mark.usefixtures("meter")
def test_whole_numbers_are_known_wherever_they_were_asked_for() -> None:
    floats = torch.empty(2, 3, device=META)
    same(torch.tensor([1, 2], device=META), [1, 2])
    same(torch.arange(3, device=META).repeat_interleave(torch.tensor([0, 2, 1], device=META)), [1, 1, 2])
    same(torch.ones(2, dtype=torch.bool, device=META), [True, True])
    same(torch.zeros_like(floats, dtype=torch.long), [[0, 0, 0], [0, 0, 0]])
    same(floats.new_full((2,), 7, dtype=torch.int32), [7, 7])
    same(torch.tensor([3, 4]).to(META), [3, 4])
    same(torch.bincount(torch.tensor([0, 2, 2], device=META), minlength=4), [1, 0, 2, 0])
    for unknown in (torch.tensor([1.0], device=META), torch.zeros(2, device=META), floats > 0, floats.cpu()):
        assert unknown.is_meta
    with pytest.raises(RuntimeError, match="meta"):
        float(floats.sum())


@pytest.mark.usefixtures("meter")
def test_a_known_mask_picks_as_many_as_it_says() -> None:
    hidden = torch.empty(2, 3, 4, device=META, requires_grad=True)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    picked = hidden[mask]
    assert (picked.shape, picked.is_meta) == ((5, 4), True)
    assert hidden[..., 0].masked_select(mask).shape == (5,)
    assert hidden.masked_scatter(mask[..., None], picked).shape == hidden.shape
    picked.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == hidden.shape


@pytest.mark.usefixtures("meter")
def test_a_large_mask_has_a_shape_only() -> None:
    side = int(LARGEST**0.5)
    places = torch.arange(side)
    assert not (places[:, None] >= places[None]).is_meta
    places = torch.arange(2 * side)
    large = places[:, None] >= places[None]
    assert (large.shape, large.is_meta) == ((2 * side, 2 * side), True)


@pytest.mark.usefixtures("meter")
def test_a_large_batch_is_known_all_the_same() -> None:
    owner = torch.zeros(LARGEST + 1, dtype=torch.int8)
    assert torch.ones(LARGEST + 1, dtype=torch.bool, device=META).is_meta
    same((owner > 0).nonzero(), [])
    same(torch.zeros(LARGEST + 1, dtype=torch.int8, device=META)[owner == 0].sum(), 0)
    assert torch.ones(LARGEST + 2, dtype=torch.bool, device=META).is_meta


@pytest.mark.usefixtures("meter")
def test_experts_are_chosen_evenly() -> None:
    for shape, dim in (((6, 4), -1), ((4, 6), 0), ((2, 3, 4), 2)):
        values, chosen = torch.empty(shape, device=META).topk(2, dim=dim)
        assert values.shape == chosen.shape
        counts = torch.bincount(chosen.flatten(), minlength=4)
        assert counts.tolist() == [3, 3, 3, 3]
        pairs = chosen.movedim(dim, -1).reshape(-1, 2)
        assert bool((pairs[:, 0] != pairs[:, 1]).all()), "one thing is chosen twice"
    best = torch.empty(8, 4, device=META).argmax(-1)
    assert torch.bincount(best).tolist() == [2, 2, 2, 2]


def test_remembered_results_are_like_new_ones() -> None:
    """Of every operation in the forward and backward pass of a small network, in fresh memory where torch's are."""

    def run(meter: Meter) -> tuple[int, int, int, list[Any]]:
        torch.manual_seed(0)
        with META:
            layers = [nn.TransformerEncoderLayer(16, 4, 32, batch_first=True) for _ in range(3)]
            net = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.Unflatten(2, (16,)), *layers)
            pixels = torch.empty(2, 3, 16, 16)
        with meter.running():
            net(pixels).softmax(-1).square().sum().backward()
        return meter.total, meter.storages.peak, meter.storages.saved(), [p.grad.shape for p in net.parameters()]

    remembered = run(Meter())
    calls = Results.__call__
    Results.__call__ = lambda self, func, args, kwargs: func(*args, **kwargs)  # type: ignore[method-assign]
    try:
        assert run(Meter()) == remembered
    finally:
        Results.__call__ = calls  # type: ignore[method-assign]


def test_views_are_not_remembered_as_new_memory(meter: Meter) -> None:
    tokens = torch.empty(4, 6, device=META) * 2
    before = meter.storages.live
    views = [torch.ops.aten._unsafe_view.default(tokens, [6, 4]) for _ in range(3)]
    views += [tokens.t(), tokens.view(2, 12), tokens[1:], tokens.detach()]
    assert meter.storages.live == before
    more = [tokens + 1 for _ in range(3)]
    assert meter.storages.live == before + 3 * 4 * 6 * 4
    del more
    assert meter.storages.live == before
    assert meter.storages.peak == before + 3 * 4 * 6 * 4
    del views


def test_flops_outside_of_all_parts_are_their_own() -> None:
    a, b = (nn.Linear(4, 4, device=META) for _ in range(2))
    meter = Meter(parts=[("a", a), ("b", b)])
    x = torch.empty(2, 4, device=META)
    with meter.running():
        b(a(x)) @ x.T
    assert meter.flops == {"a": 64, "b": 64, "": 2 * 2 * 2 * 4}
