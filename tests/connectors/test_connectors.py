"""The first ops: arithmetic against obvious loops, shapes against what forward gives."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import perturb
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


@pytest.mark.parametrize(
    ("make", "place", "words"),
    [
        (lambda: Perceiver(30, 8, heads=4), "heads", ["4", "30"]),
        (lambda: Perceiver(32, 8, latents=0), "latents", ["0", "1 or more"]),
        (lambda: Mlp(8, 8, depth=0), "depth", ["0", "1 or more"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(make: object, place: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.problems[0].place == place
    assert all(word in str(caught.value) for word in words)
