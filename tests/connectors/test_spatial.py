"""Ops on a grid, token merging and the C-Abstractor against slow loops and timm's blocks."""

import math
from typing import Any

import pytest
import torch
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import perturb
from vlm.features import Features, Grid, Shape

from .chains import Reference, Source, both, chain, same, tokens

W = 4
LARGER: list[Grid] = [(4, 6), (5, 7), (3, 3), (1, 5)]


def cell(features: Features, row: int, column: int) -> Tensor:
    """[N, C]; zeros outside of the grid."""
    height, width = features.grid
    if row >= height or column >= width:
        return torch.zeros_like(features.tokens[:, 0])
    return features.tokens[:, row * width + column]


def one(op: dict[str, Any], features: Features, out_width: int = W) -> Features:
    own = chain([op], Shape(features.tokens.shape[1], W, features.grid), out_width)
    return own(features)


@pytest.mark.parametrize("grid", LARGER)
@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("factor", [2, 3])
def test_space_to_depth_with_padding(grid: Grid, order: str, factor: int) -> None:
    features = tokens(grid, W)
    found = one({"name": "space_to_depth", "factor": factor, "order": order, "uneven": "pad"}, features)
    assert found.grid == (math.ceil(grid[0] / factor), math.ceil(grid[1] / factor))
    inner = range(factor)
    for row in range(found.grid[0]):
        for column in range(found.grid[1]):
            cells = [cell(features, row * factor + r, column * factor + c) for r in inner for c in inner]
            together = torch.stack(cells, dim=1 if order == "hwc" else 2).flatten(1)
            assert torch.equal(cell(found, row, column), together)


@pytest.mark.parametrize("order", ["hwc", "chw"])
def test_space_to_depth_that_drops_is_that_of_the_part(order: str) -> None:
    features = tokens((5, 7), W)
    part = features.tokens.unflatten(1, (5, 7))[:, :4, :6].flatten(1, 2)
    op = {"name": "space_to_depth", "order": order}
    found, wanted = one({**op, "uneven": "drop"}, features), one(op, Features(part, (4, 6)))
    assert torch.equal(found.tokens, wanted.tokens)
    assert found.grid == (2, 3)


def mean_of(features: Features, rows: range, columns: range) -> Tensor:
    return torch.stack([cell(features, row, column) for row in rows for column in columns]).mean(0)


def test_average_pooling() -> None:
    features = tokens((4, 6), W)
    for op in (
        {"factor": 2},
        {"grid": [2, 3]},
        {"grid": [2, 3], "kind": "adaptive"},
        {"factor": 2, "kind": "adaptive"},
    ):
        found = one({"name": "pool", **op}, features)
        assert found.grid == (2, 3)
        for row in range(2):
            for column in range(3):
                rows, columns = range(2 * row, 2 * row + 2), range(2 * column, 2 * column + 2)
                assert torch.allclose(cell(found, row, column), mean_of(features, rows, columns), atol=1e-6)


def test_adaptive_pooling_of_uneven_blocks() -> None:
    """Block i of n over a side s covers floor(i s / n) up to ceil((i + 1) s / n)."""
    features = tokens((5, 7), W)
    found = one({"name": "pool", "kind": "adaptive", "grid": [2, 3]}, features)

    def part(number: int, count: int, side: int) -> range:
        return range(number * side // count, math.ceil((number + 1) * side / count))

    for row in range(2):
        for column in range(3):
            wanted = mean_of(features, part(row, 2, 5), part(column, 3, 7))
            assert torch.allclose(cell(found, row, column), wanted, atol=1e-6)


def interpolated(features: Features, row: float, column: float) -> Tensor:
    """Between the four cells around a place, whose coordinates are held inside the grid."""
    height, width = features.grid
    row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
    top, left = min(int(row), height - 1), min(int(column), width - 1)
    down, right = row - top, column - left
    bottom, far = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = cell(features, top, left) * (1 - right) + cell(features, top, far) * right
    lower = cell(features, bottom, left) * (1 - right) + cell(features, bottom, far) * right
    return upper * (1 - down) + lower * down


@pytest.mark.parametrize(
    ("op", "grid", "corners"),
    [
        ({"name": "pool", "kind": "bilinear", "factor": 2}, (3, 4), False),
        ({"name": "pool", "kind": "bilinear", "grid": [2, 3]}, (2, 3), False),
        ({"name": "resize", "grid": [8, 9]}, (8, 9), False),
        ({"name": "resize", "grid": [3, 10], "corners": True}, (3, 10), True),
    ],
)
def test_bilinear_resampling(op: dict[str, Any], grid: Grid, corners: bool) -> None:
    """Cells' centres lie at (i + 0.5) of the side, or with corners at i of (count - 1)."""
    features = tokens((5, 7), W)
    found = one(op, features)
    assert found.grid == grid

    def at(number: int, count: int, side: int) -> float:
        return number * (side - 1) / (count - 1) if corners else (number + 0.5) * side / count - 0.5

    for row in range(grid[0]):
        for column in range(grid[1]):
            wanted = interpolated(features, at(row, grid[0], 5), at(column, grid[1], 7))
            assert torch.allclose(cell(found, row, column), wanted, atol=1e-5)


def test_smooth_resizing_looks_at_every_token() -> None:
    features = tokens((8, 8), W)
    for smooth in (False, True):
        x = features.tokens.clone().requires_grad_()
        one({"name": "resize", "grid": [2, 2], "smooth": smooth}, Features(x, (8, 8))).tokens.sum().backward()
        assert bool((x.grad != 0).all()) == smooth


def test_convolution_by_hand() -> None:
    op = perturb(chain([{"name": "conv", "stride": 2, "kernel": 3}], Shape(35, W, (5, 7)), 6))
    features = tokens((5, 7), W)
    found = op(features)
    assert found.grid == (3, 4)
    weight, bias = op.ops[0].conv.weight, op.ops[0].conv.bias
    for row in range(3):
        for column in range(4):
            total = bias.expand(2, -1)
            for r in range(3):
                for c in range(3):
                    y, x = 2 * row + r - 1, 2 * column + c - 1
                    if y >= 0 and x >= 0:
                        total = total + cell(features, y, x) @ weight[:, :, r, c].T
            assert torch.allclose(cell(found, row, column), total, atol=1e-5)


def test_residual_depthwise_convolution() -> None:
    op = perturb(chain([{"name": "conv", "depthwise": True, "residual": True}], Shape(12, W, (3, 4)), W))
    features = tokens((3, 4), W)
    found = op(features).tokens
    assert op.ops[0].conv.weight.shape == (W, 1, 3, 3)
    inner = [cell(features, r, c) * op.ops[0].conv.weight[:, 0, r, c] for r in range(3) for c in range(3)]
    wanted = torch.stack(inner).sum(0) + op.ops[0].conv.bias + cell(features, 1, 1)
    assert torch.allclose(found[:, 5], wanted, atol=1e-6)


def test_learned_positions_are_the_encoders_own_and_stretch() -> None:
    op = perturb(chain([{"name": "positions", "kind": "learned"}], Shape(12, W, (3, 4)), W))
    own, other = tokens((3, 4), W), tokens((6, 8), W)
    table = op.ops[0].table
    assert torch.allclose(op(own).tokens - own.tokens, table.flatten(2).transpose(1, 2).expand(2, -1, -1), atol=1e-6)
    added = (op(other).tokens - other.tokens)[0].T.reshape(1, W, 6, 8)
    assert torch.allclose(added, F.interpolate(table, (6, 8), mode="bicubic"), atol=1e-5)


def merged_by_hand(x: Tensor, budget: int) -> Tensor:
    """One view: bipartite soft matching over lists (ToMe's algorithm), rounds until the budget is met."""
    groups = [(vector, 1, place) for place, vector in enumerate(x)]  # mean, size, first place of the kept token
    while len(groups) > budget:
        count = min(len(groups) - budget, max(len(groups) // 4, 1))
        a, b = groups[::2], groups[1::2]
        choices = []
        for number, (vector, _, _) in enumerate(a):
            likeness = [float(F.cosine_similarity(vector, other, dim=0)) for other, _, _ in b]
            best = max(range(len(b)), key=likeness.__getitem__)
            choices.append((likeness[best], number, best))
        chosen = sorted(choices, reverse=True)[:count]
        members: dict[int, list[tuple[Tensor, int, int]]] = {number: [b[number]] for number in range(len(b))}
        for _, number, best in chosen:
            members[best].append(a[number])
        gone = {number for _, number, _ in chosen}
        left = [one for number, one in enumerate(a) if number not in gone]
        for joined in members.values():
            size = sum(count for _, count, _ in joined)
            mean = torch.stack([vector * count for vector, count, _ in joined]).sum(0) / size
            left.append((mean, size, joined[0][2]))
        groups = sorted(left, key=lambda one: one[2])
    return torch.stack([vector for vector, _, _ in groups])


@pytest.mark.parametrize("count", [9, 12])
@pytest.mark.parametrize("budget", [1, 2, 5, 8, 9])
def test_token_merging(count: int, budget: int) -> None:
    x = torch.randn(2, count, W, generator=torch.Generator().manual_seed(count), dtype=torch.double)
    found = one({"name": "merge_tokens", "budget": budget}, Features(x))
    wanted = torch.stack([merged_by_hand(view, budget) for view in x])
    assert torch.allclose(found.tokens, wanted, atol=1e-12)


def test_token_merging_joins_what_is_alike() -> None:
    x = torch.eye(3).repeat_interleave(torch.tensor([1, 4, 3]), dim=0)[None]
    found = one({"name": "merge_tokens", "budget": 3}, Features(x * torch.tensor([1.0]), None), 3)
    assert torch.allclose(found.tokens[0], torch.eye(3))


class Honeybee(nn.Module):
    """C-Abstractor of timm's blocks, as its authors build it, with learned positions."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"stride": 1, "dilation": 1, "act_layer": nn.SiLU, "norm_layer": LayerNorm2d}
        self.pos_emb = nn.Parameter(torch.zeros(1, 30, 10))
        self.net = nn.Sequential(
            RegStage(2, 10, 16, **options), nn.AdaptiveAvgPool2d((2, 3)), RegStage(2, 16, 16, **options)
        )
        self.readout = nn.Sequential(nn.Linear(16, 12), nn.SiLU(), nn.Linear(12, 12))

    def forward(self, x: Tensor) -> Tensor:
        maps = (x + self.pos_emb).transpose(1, 2).reshape(len(x), -1, 5, 6)
        return self.readout(self.net(maps).flatten(2).transpose(1, 2))


@torch.no_grad()
def test_c_abstractor() -> None:
    reference = Reference(Honeybee())
    ops = [
        {"name": "positions", "kind": "learned"},
        {"name": "abstractor", "grid": [2, 3], "width": 16, "depth": 2, "mlp_depth": 2},
    ]
    names: dict[str, Source] = {
        "ops.0.table": lambda weights: weights["pos_emb"].transpose(1, 2).reshape(1, 10, 5, 6),
        **both("ops.1.readout.layers.0", "readout.0"),
        **both("ops.1.readout.layers.1", "readout.2"),
    }
    for stage, other in (("before", 0), ("after", 2)):
        for number in range(2):
            own, block = f"ops.1.{stage}.{number}", f"net.{other}.b{number + 1}"
            for mine, theirs in (("enter", "conv1"), ("mix", "conv2"), ("leave", "conv3")):
                names[f"{own}.{mine}.weight"] = f"{block}.{theirs}.conv.weight"
                names |= both(f"{own}.norm_{mine}", f"{block}.{theirs}.bn")
            names |= both(f"{own}.squeeze", f"{block}.se.fc1") | both(f"{own}.excite", f"{block}.se.fc2")
    shortcut = "net.0.b1.downsample"
    names["ops.1.before.0.shortcut.0.weight"] = f"{shortcut}.conv.weight"
    names |= both("ops.1.before.0.shortcut.1", f"{shortcut}.bn")
    own = reference.fill(chain(ops, Shape(30, 10, (5, 6)), 12), names)
    features = tokens((5, 6), 10)
    same(own(features).tokens, reference.module(features.tokens))
