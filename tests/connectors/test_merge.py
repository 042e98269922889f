"""Merges of several encoders: arithmetic against what is obvious, shapes against what forward gives."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import perturb
from vlm.connector import Merge
from vlm.connectors.merge import ChannelMerge, GatedMerge, InterleaveMerge, SequenceMerge
from vlm.errors import ConfigError
from vlm.features import Features, Shape

from .chains import tokens


def shapes_of(features: Sequence[Features]) -> list[Shape]:
    return [Shape(one.tokens.shape[1], one.width, one.grid) for one in features]


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


def interleaved(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One token of each in turn, place by place."""
    return torch.stack([part[:, place] for place in range(parts[0].shape[1]) for part in parts], dim=1)


def test_interleaved_tokens_alternate() -> None:
    parts = [tokens((2, 3), 4), tokens((2, 3), 4, seed=1), tokens((2, 3), 4, seed=2)]
    merge = InterleaveMerge(shapes_of(parts))
    assert not list(merge.parameters())
    out = merge(parts)
    assert torch.equal(out.tokens, interleaved([part.tokens for part in parts]))
    assert out.grid is None
    assert merge.shape(shapes_of(parts)) == Shape(18, 4)


def test_interleaving_maps_widths_keeps_masks_and_needs_no_grid() -> None:
    mask = torch.tensor([[False, True]])
    parts = [Features(torch.randn(1, 2, 4)), Features(torch.randn(1, 2, 6), mask=mask)]
    merge: Any = InterleaveMerge(shapes_of(parts), width=5)
    out = merge(parts)
    assert torch.equal(
        out.tokens, interleaved([change(one.tokens) for change, one in zip(merge.maps, parts, strict=True)])
    )
    assert out.mask.tolist() == [[True, False, True, True]]


@pytest.mark.parametrize("asked", [None, (3, 2)])
def test_interleaving_brings_grids_that_differ_to_one(asked: tuple[int, int] | None) -> None:
    parts = [tokens((2, 3), 4), tokens((4, 6), 4, seed=1)]
    merge = InterleaveMerge(shapes_of(parts), grid=asked, resample="area")
    grid = asked or (2, 3)
    maps = [part.tokens.transpose(1, 2).unflatten(-1, part.grid) for part in parts]
    aligned = [F.interpolate(one, grid, mode="area").flatten(2).transpose(1, 2) for one in maps]
    assert torch.allclose(merge(parts).tokens, interleaved(aligned), atol=1e-6)
    assert merge.shape(shapes_of(parts)) == Shape(12, 4)


def test_tokens_of_one_count_on_two_grids_are_not_of_one_place() -> None:
    parts = [tokens((2, 6), 4), tokens((3, 4), 4, seed=1)]
    out = InterleaveMerge(shapes_of(parts))(parts).tokens
    assert torch.equal(out[:, ::2], parts[0].tokens)
    assert not torch.equal(out[:, 1::2], parts[1].tokens)


@pytest.mark.parametrize("gate", ["encoder", "channel", "token"])
def test_gates_start_equal_and_weigh_by_softmax(gate: Any) -> None:
    parts = [tokens((2, 3), 4), tokens((2, 3), 4, seed=1), tokens((2, 3), 4, seed=2)]
    merge: Any = GatedMerge(shapes_of(parts), gate=gate)
    stack = torch.stack([part.tokens for part in parts])
    assert torch.allclose(merge(parts).tokens, stack.mean(0), atol=1e-6)
    perturb(merge)
    wanted = torch.zeros(2, 6, 4)
    for view in range(2):
        for place in range(6):
            here = stack[:, view, place]  # [encoders, channels]
            logits = merge.gate.expand(3, 4)
            if gate == "token":
                logits = logits + (merge.judge.weight @ here.flatten())[:, None]
            shares = torch.exp(logits) / torch.exp(logits).sum(0)
            wanted[view, place] = (shares * here).sum(0)
    assert torch.allclose(merge(parts).tokens, wanted, atol=1e-6)
    assert merge.gate.shape == (3, 4 if gate == "channel" else 1)


MERGES: dict[str, Callable[[Sequence[Shape]], Merge]] = {
    "channel": ChannelMerge,
    "channel-grid": lambda shapes: ChannelMerge(shapes, grid=(5, 3)),
    "sequence": SequenceMerge,
    "interleave": InterleaveMerge,
    "gated": GatedMerge,
    "gated-token": lambda shapes: GatedMerge(shapes, gate="token", grid=(2, 2), width=7),
}


@pytest.mark.parametrize("name", MERGES)
def test_shape_says_what_forward_gives_and_all_parameters_learn(name: str) -> None:
    """At the encoders' own size, and at that of other views; the question about a view stays with it."""
    merge = perturb(MERGES[name]([Shape(12, 4, (3, 4)), Shape(30, 6, (5, 6))]))
    for grids in (((3, 4), (5, 6)), ((4, 7), (2, 3))):
        parts = [tokens(grids[0], 4), tokens(grids[1], 6, seed=1)]
        question = torch.tensor([[1], [2]])
        out = merge([part.with_tokens(part.tokens, question=question) for part in parts])
        assert merge.shape(shapes_of(parts)) == Shape(out.tokens.shape[1], out.width, out.grid)
        assert out.question is question
        if list(merge.parameters()):
            out.tokens.square().sum().backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in merge.parameters())


@pytest.mark.parametrize("name", ["channel", "gated", "interleave"])
def test_what_cannot_be_aligned_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder 0 .* `prefix: drop`"):
        MERGES[name]([Shape(5, 4), Shape(4, 4, (2, 2))])
    masked = tokens((2, 2), 4)
    parts = [masked.with_tokens(masked.tokens, mask=torch.ones(2, 4, dtype=torch.bool)), tokens((3, 3), 4)]
    with pytest.raises(RuntimeError, match="mask"):
        MERGES[name](shapes_of(parts))(parts)
    with pytest.raises(ConfigError, match=r"grid.1: `0`"):
        {"channel": ChannelMerge, "gated": GatedMerge, "interleave": InterleaveMerge}[name](
            shapes_of(parts), grid=(2, 0)
        )
