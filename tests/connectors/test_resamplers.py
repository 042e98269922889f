"""Resamplers that transformers lacks against slow equations; what is masked is not seen."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.conftest import perturb
from vlm.attention import set_attention
from vlm.features import Features, Grid, Shape

from .chains import Reference, both, chain, same, third, tokens

W, OUT = 12, 16


def place(row: float, column: float, width: int) -> list[float]:
    """The embedding of one place: a quarter each of sin(column f), cos(column f), sin(row f), cos(row f)."""
    quarter = width // 4
    frequencies = [1 / 10000 ** (number / quarter) for number in range(quarter)]
    waves = [[function(at * f) for f in frequencies] for at in (column, row) for function in (math.sin, math.cos)]
    return [value for wave in waves for value in wave]


def places(grid: Grid, width: int) -> Tensor:
    return torch.tensor([place(row, column, width) for row in range(grid[0]) for column in range(grid[1])])


def attention_by_hand(op: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One view [T, C], head by head, query by query."""
    q, k, v = op.q(queries), op.k(keys), op.v(values)
    size = q.shape[1] // op.heads
    out = torch.zeros_like(q)
    for head in range(op.heads):
        part = slice(head * size, (head + 1) * size)
        for number in range(len(q)):
            weights = torch.exp(k[:, part] @ q[number, part] / math.sqrt(size))
            out[number, part] = (weights[:, None] * v[:, part]).sum(0) / weights.sum()
    return op.out(out)


def qwen_by_hand(own: Any, x: Tensor, keys_at: Tensor, queries_at: Tensor | float) -> Tensor:
    """One view: norms, then positions on queries and keys but not on values, no residual, a norm and a matrix."""
    resampler, (block,) = own.ops[0], own.ops[0].blocks
    x = block.norm_tokens(resampler.map(x))
    queries = block.norm_latents(resampler.latents) + queries_at
    found = attention_by_hand(block.attention, queries, x + keys_at, x)
    return own.ops[1].projection(resampler.norm(found))


def stretched(own: Grid, grid: Grid) -> Tensor:
    maps = places(own, OUT).T.reshape(1, OUT, *own)
    return F.interpolate(maps, grid, mode="bicubic").reshape(OUT, -1).T


RESAMPLER = {"name": "resampler", "latents": 4, "residual": False, "attention": {"heads": 2, "bias": True}}
TO_LLM = {"name": "linear", "bias": False}


@pytest.mark.parametrize("grid", [(3, 5), (2, 2), (1, 7)])
@pytest.mark.parametrize("positions", ["keys", "both", "stretched"])
@torch.no_grad()
def test_qwen_and_minicpm(positions: str, grid: Grid) -> None:
    """MiniCPM-V 2.5 has positions on the keys, 2.0 on both, Qwen-VL stretches the queries' grid to the keys'."""
    ops = [{**RESAMPLER, "positions": positions, "out_width": OUT}, TO_LLM]
    own = perturb(chain(ops, Shape(grid[0] * grid[1], W, grid), OUT)).double()
    features = tokens(grid, W)
    features = features.with_tokens(features.tokens.double())
    keys = stretched((2, 2), grid) if positions == "stretched" else places(grid, OUT)
    queries = 0.0 if positions == "keys" else places((2, 2), OUT).double()
    wanted = torch.stack([qwen_by_hand(own, view, keys.double(), queries) for view in features.tokens])
    same(own(features).tokens, wanted, tolerance=3e-6)  # sines are taken in single precision


@torch.no_grad()
def test_attention_is_torchs_own() -> None:
    """Qwen-VL keeps its weights in `nn.MultiheadAttention`."""
    reference = Reference(torch.nn.MultiheadAttention(OUT, 2, batch_first=True))
    ops = [{**RESAMPLER, "positions": "none", "norm": {"kind": "none"}}]
    own = chain(ops, Shape(6, OUT, (2, 3)), OUT)
    names = {"ops.0.latents": lambda weights: own.state_dict()["ops.0.latents"]}
    for number, one in enumerate("qkv"):
        for kind in ("weight", "bias"):
            names[f"ops.0.blocks.0.attention.{one}.{kind}"] = third(f"in_proj_{kind}", number)
    own = reference.fill(own, names | both("ops.0.blocks.0.attention.out", "out_proj"))
    x = tokens((2, 3), OUT)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    queries = own.ops[0].latents.expand(2, -1, -1)
    wanted = reference.module(queries, x.tokens, x.tokens, key_padding_mask=~mask)[0]
    same(own(x.with_tokens(x.tokens, mask=mask)).tokens, wanted)


def test_positions_are_seen() -> None:
    """Without them a resampler gives the same for tokens in any order."""
    features = tokens((3, 3), W)
    turned = features.with_tokens(features.tokens.flip(1))
    for positions, moves in (("none", False), ("keys", True), ("both", True), ("stretched", True)):
        op = perturb(chain([{**RESAMPLER, "positions": positions}], Shape(9, W, (3, 3)), OUT))
        assert ((op(features).tokens - op(turned).tokens).abs().max() > 1e-4) == moves, positions


@pytest.mark.parametrize(
    "op",
    [
        {"name": "perceiver", "latents": 3, "heads": 2},
        {"name": "resampler", "latents": 3, "positions": "none"},
        {"name": "resampler", "latents": 3, "positions": "none", "mutual": True, "depth": 2, "mlp": {}},
        {"name": "resampler", "latents": 4, "positions": "none", "norm": {"place": "post", "kind": "rms"}, "mlp": {}},
        {"name": "qformer", "latents": 3, "depth": 2, "width": 8, "heads": 2},
    ],
    ids=["perceiver", "resampler", "mutual", "post", "qformer"],
)
@torch.no_grad()
def test_masked_tokens_are_not_seen(op: dict[str, Any]) -> None:
    """Padding may hold anything, and a padded view gives what it gives alone; one with no real token stays finite."""
    own = perturb(chain([op], Shape(12, W, (3, 4)), OUT))
    x = tokens((3, 4), W, views=3).tokens
    mask = torch.ones(3, 12, dtype=torch.bool)
    mask[1, 7:], mask[2] = False, False
    found = own(Features(x, mask=mask))
    assert found.mask is None
    assert torch.allclose(found.tokens[1:2], own(Features(x[1:2, :7])).tokens, atol=1e-6)
    assert torch.allclose(found.tokens[:1], own(Features(x[:1])).tokens, atol=1e-6)
    other = own(Features(torch.where(mask[..., None], x, torch.full_like(x, 9.0)), mask=mask)).tokens
    assert torch.equal(other[:2], found.tokens[:2])
    assert found.tokens.isfinite().all()
    set_attention(own, "eager")
    assert torch.allclose(own(Features(x, mask=mask)).tokens, found.tokens, atol=1e-5)


def test_post_norm_block_by_hand() -> None:
    op: Any = perturb(
        chain([{**RESAMPLER, "positions": "none", "norm": {"place": "post"}, "residual": True, "mlp": {}}], SHAPE, OUT)
    )
    features = tokens((2, 3), OUT)
    (block,) = op.ops[0].blocks
    for x, found in zip(features.tokens, op(features).tokens, strict=True):
        latents = op.ops[0].latents
        latents = block.norm_attended(latents + attention_by_hand(block.attention, latents, x, x))
        latents = block.norm_out(latents + block.mlp.down(F.gelu(block.mlp.up(latents))))
        assert torch.allclose(found, latents, atol=1e-6)


SHAPE = Shape(6, OUT, (2, 3))
