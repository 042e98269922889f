"""Ops and merges: arithmetic against obvious loops, shapes against what forward gives."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import perturb
from vlm.connectors.merge import ChannelMerge, SequenceMerge
from vlm.connectors.mlp import LinearConnector, Mlp
from vlm.connectors.perceiver import Perceiver
from vlm.errors import ConfigError
from vlm.features import Features, Shape

FEATURES = Features(torch.randn(2, 12, 8, generator=torch.Generator().manual_seed(0)), grid=(3, 4))


@pytest.mark.parametrize(
    "op",
    [
        LinearConnector(8, 6),
        Mlp(8, 6, depth=3, hidden=10, activation="silu"),
        Perceiver(8, 6, latents=5, depth=2, heads=2),
    ],
    ids=["linear", "mlp", "perceiver"],
)
def test_shape_says_what_forward_gives(op: torch.nn.Module) -> None:
    out = op(FEATURES)
    assert op.shape(Shape(12, 8, (3, 4))) == Shape(out.tokens.shape[1], out.width, out.grid)


def test_mlp_is_linear_gelu_linear() -> None:
    op = perturb(Mlp(8, 6))
    first, second = op.layers
    wanted = F.linear(F.gelu(F.linear(FEATURES.tokens, first.weight, first.bias)), second.weight, second.bias)
    assert torch.equal(op(FEATURES).tokens, wanted)


def perceiver_by_hand(op: Perceiver, tokens: torch.Tensor) -> torch.Tensor:
    """One sample, one head at a time, with explicit sums (Flamingo's equations)."""
    latents = op.latents
    for block in op.blocks:
        normed = F.layer_norm(latents, latents.shape[-1:], block.norm_latents.weight, block.norm_latents.bias)
        context = F.layer_norm(tokens, tokens.shape[-1:], block.norm_tokens.weight, block.norm_tokens.bias)
        context = torch.cat([context, normed])
        attention = block.attention
        size = attention.q.out_features // attention.heads
        heads = []
        for head in range(attention.heads):
            rows = slice(head * size, (head + 1) * size)
            q, k, v = (
                normed @ attention.q.weight[rows].T,
                context @ attention.k.weight[rows].T,
                context @ attention.v.weight[rows].T,
            )
            heads.append(torch.softmax(q @ k.T / math.sqrt(size), -1) @ v)
        latents = latents + torch.cat(heads, -1) @ attention.out.weight.T
        latents = latents + block.mlp(latents)
    return op.projection(op.norm(latents))


def test_perceiver_equals_the_equations_and_skips_masked_tokens() -> None:
    op = perturb(Perceiver(8, 6, latents=5, depth=2, heads=2)).double()
    tokens = FEATURES.tokens.double()
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    for how in ("sdpa", "eager"):
        for block in op.blocks:
            block.attention.how = how
        found = op(Features(tokens, mask=mask)).tokens
        assert torch.allclose(found[0], perceiver_by_hand(op, tokens[0]), atol=1e-10)
        assert torch.allclose(found[1], perceiver_by_hand(op, tokens[1, :7]), atol=1e-10)


def test_channel_merge_aligns_grids() -> None:
    large = Features(torch.arange(24.0).reshape(1, 24, 1), grid=(4, 6))
    small = Features(torch.ones(1, 6, 2), grid=(2, 3))
    shapes = [Shape(6, 2, (2, 3)), Shape(24, 1, (4, 6))]
    merge = ChannelMerge(shapes, resample="area")
    out = merge([small, large])
    means = [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]  # of each 2 x 2 block of 0..23 in rows of six
    assert out.tokens[0, :, 2].tolist() == [*means[0], *means[1]]
    assert merge.shape(shapes) == Shape(6, 3, (2, 3))
    assert (out.tokens.shape, out.grid) == ((1, 6, 3), (2, 3))


def test_bilinear_shrinking_looks_at_every_token() -> None:
    """Without smoothing, shrinking 4:1 would skip most tokens of the finer grid."""
    shapes = [Shape(4, 1, (2, 2)), Shape(64, 1, (8, 8))]
    merge = ChannelMerge(shapes)
    fine = torch.randn(1, 64, 1, requires_grad=True)
    merge([Features(torch.zeros(1, 4, 1), (2, 2)), Features(fine, (8, 8))]).tokens.sum().backward()
    assert (fine.grad != 0).all()


def test_sequence_merge_maps_only_where_widths_differ() -> None:
    same = SequenceMerge([Shape(3, 4), Shape(2, 4)])
    assert not list(same.parameters())
    parts = [Features(torch.randn(1, 3, 4)), Features(torch.randn(1, 2, 4))]
    assert torch.equal(same(parts).tokens, torch.cat([part.tokens for part in parts], 1))
    differ = SequenceMerge([Shape(3, 4), Shape(2, 6)])
    out = differ([parts[0], Features(torch.randn(1, 2, 6), mask=torch.tensor([[True, False]]))])
    assert out.tokens.shape == (1, 5, 6)
    assert out.mask.tolist() == [[True, True, True, True, False]]
    assert differ.shape([Shape(3, 4), Shape(2, 6)]) == Shape(5, 6)


@pytest.mark.parametrize(
    ("make", "place", "words"),
    [
        (lambda: Perceiver(30, 8, heads=4), "heads", ["4", "30"]),
        (lambda: Perceiver(32, 8, latents=0), "latents", ["0", "1 or more"]),
        (lambda: Mlp(8, 8, depth=0), "depth", ["0", "1 or more"]),
        (lambda: ChannelMerge([Shape(5, 4), Shape(4, 4, (2, 2))]), "", ["encoder 0", "grid"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(make: object, place: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.problems[0].place == place
    assert all(word in str(caught.value) for word in words)
