"""What holds for every op: its shape is what forward gives, all of it learns, and misfits are named at planning."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers.activations import ACT2FN

from tests.conftest import perturb, picture, toy_recipe
from vlm import registry
from vlm.connectors.qformer import QFormer, TextOptions
from vlm.errors import ConfigError
from vlm.features import Features, Grid, Shape
from vlm.layers import ACTIVATIONS, Activation
from vlm.sample import ask

from .chains import Op, chain, tokens

W, OUT = 8, 12
RESAMPLER = {"name": "resampler", "latents": 4}
OPS: dict[str, Op] = {
    "linear": "linear",
    "mlp": {"name": "mlp", "depth": 3, "hidden": 10, "norm": "rms", "norm_out": "layer"},
    "mlp-glu": {"name": "mlp", "glu": "first", "activation": "silu"},
    "norm": "norm",
    "norm-unit": {"name": "norm", "kind": "unit"},
    "activation": {"name": "activation", "kind": "relu2"},
    "layer_mix": {"name": "layer_mix", "layers": 4},
    "layer_mix-softmax": {"name": "layer_mix", "kind": "softmax"},
    "space_to_depth-pad": {"name": "space_to_depth", "uneven": "pad"},
    "space_to_depth-drop": {"name": "space_to_depth", "uneven": "drop", "order": "chw"},
    "pool-adaptive": {"name": "pool", "kind": "adaptive", "factor": 2},
    "pool-grid": {"name": "pool", "kind": "adaptive", "grid": [2, 2]},
    "pool-bilinear": {"name": "pool", "kind": "bilinear", "factor": 2},
    "resize": {"name": "resize", "grid": [4, 7], "how": "bicubic", "smooth": True},
    "positions": "positions",
    "positions-learned": {"name": "positions", "kind": "learned"},
    "conv": {"name": "conv", "kernel": 2, "stride": 2, "padding": 1},
    "conv-depthwise": {"name": "conv", "kernel": 5, "depthwise": True, "out_width": 16},
    "attention_pool-pad": {"name": "attention_pool", "uneven": "pad"},
    "attention_pool-drop": {"name": "attention_pool", "uneven": "drop", "heads": 4, "kv_heads": 2, "head_width": 3},
    "abstractor": {"name": "abstractor", "grid": [2, 2], "width": 6, "depth": 2},
    "resampler": RESAMPLER,
    "resampler-both": {**RESAMPLER, "positions": "both", "mutual": True, "depth": 2, "mlp": {"glu": "second"}},
    "resampler-post": {**RESAMPLER, "norm": {"place": "post"}, "mlp": {}, "attention": {"qk_norm": "rms"}},
    "resampler-double": {**RESAMPLER, "out_width": W, "attention": {"double": True, "bias": True}},
    "perceiver": {"name": "perceiver", "latents": 3},
    "qformer": {"name": "qformer", "latents": 3, "depth": 3, "width": 8, "heads": 2},
    "soft_vocabulary": {"name": "soft_vocabulary", "size": 6},
    "soft_vocabulary-gumbel": {"name": "soft_vocabulary", "size": 6, "kind": "gumbel"},
    "soft_vocabulary-argmax": {"name": "soft_vocabulary", "size": 6, "kind": "argmax"},
    "merge_tokens": {"name": "merge_tokens", "budget": 3},
    "cross_attention": "cross_attention",
}
EVEN: dict[str, Op] = {
    "space_to_depth": "space_to_depth",
    "pool": {"name": "pool", "factor": 2},
    "attention_pool": "attention_pool",
}
GRIDS: list[Grid] = [(4, 6), (3, 3), (5, 2), (2, 7)]
IN_THE_LLM = "cross_attention"
"""Its own blocks sit in the LLM and learn there (tests/connectors/test_cross_attention.py)."""


def test_every_registered_op_is_here() -> None:
    names = {op if isinstance(op, str) else op["name"] for op in [*OPS.values(), *EVEN.values()]}
    assert names == set(registry.connectors)


def cases() -> list[Any]:
    pairs = [(name, op, grid) for name, op in OPS.items() for grid in GRIDS]
    pairs += [(name, op, grid) for name, op in EVEN.items() for grid in ((4, 6), (2, 2))]
    return [pytest.param(name, op, grid, id=f"{name}-{grid[0]}x{grid[1]}") for name, op, grid in pairs]


@pytest.mark.parametrize(("name", "op", "grid"), cases())
def test_shape_says_what_forward_gives_and_all_parameters_learn(name: str, op: Op, grid: Grid) -> None:
    """What is asked about a view stays with it, prefix tokens (of another width then) do not."""
    own = perturb(chain([op], Shape(grid[0] * grid[1], W, grid), OUT)).train()
    features = tokens(grid, W)
    question = torch.tensor([[1], [2]])
    x = features.tokens.requires_grad_()
    out = own(features.with_tokens(x, question=question, extra=torch.zeros(2, 1, W)))
    assert own.shape(Shape(grid[0] * grid[1], W, grid)) == Shape(out.tokens.shape[1], out.width, out.grid)
    assert out.question is question
    assert out.extra is None
    (out.tokens * torch.randn(out.tokens.shape)).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).any()
    if name != IN_THE_LLM:
        idle = [key for key, one in own.named_parameters() if one.grad is None or not (one.grad != 0).any()]
        assert idle == []


@pytest.mark.parametrize("name", OPS)
def test_an_op_takes_views_of_other_sizes_than_it_was_built_for(name: str) -> None:
    own = perturb(chain([OPS[name]], Shape(24, W, (4, 6)), OUT)).eval()
    for grid in GRIDS:
        out = own(tokens(grid, W))
        assert own.shape(Shape(grid[0] * grid[1], W, grid)) == Shape(out.tokens.shape[1], out.width, out.grid)


@pytest.mark.parametrize("name", OPS)
@torch.no_grad()
def test_an_op_runs_in_half_precision(name: str) -> None:
    """With weights in bfloat16, and with autocast; within what three digits allow."""
    features = tokens((4, 6), W)
    own = chain([OPS[name]], Shape(24, W, (4, 6)), OUT).eval()
    wanted = own(features).tokens
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(own(features).tokens.float(), wanted, atol=0.05, rtol=0.05)
    half = features.with_tokens(features.tokens.bfloat16())
    found = own.to(torch.bfloat16)(half).tokens
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), wanted, atol=0.05, rtol=0.05)


ON_A_GRID = ["space_to_depth-pad", "pool-adaptive", "resize", "conv", "attention_pool-pad", "abstractor"]
TOKEN_BY_TOKEN = ["linear", "mlp", "norm", "activation", "layer_mix", "soft_vocabulary"]


@pytest.mark.parametrize("name", [*ON_A_GRID, "positions", "resampler"])
def test_ops_on_a_grid_are_told_that_there_is_none(name: str) -> None:
    own = chain([OPS[name]], Shape(24, W, (4, 6)), OUT)
    with pytest.raises(ConfigError, match=r"needs tokens on a grid.*prefix: keep"):
        own.shape(Shape(25, W))
    with pytest.raises(RuntimeError, match="grid"):
        own(Features(torch.randn(1, 25, W)))


@pytest.mark.parametrize("name", [*ON_A_GRID, "merge_tokens"])
def test_masked_tokens_are_refused_where_they_would_mix_in(name: str) -> None:
    features = tokens((4, 6), W)
    own = chain([OPS[name]], Shape(24, W, (4, 6)), OUT)
    with pytest.raises(RuntimeError, match="masked"):
        own(features.with_tokens(features.tokens, mask=torch.ones(2, 24, dtype=torch.bool)))


@pytest.mark.parametrize("name", TOKEN_BY_TOKEN)
def test_ops_on_single_tokens_keep_grid_and_mask(name: str) -> None:
    mask = torch.rand(2, 24) < 0.5
    features = tokens((4, 6), W)
    own = perturb(chain([OPS[name]], Shape(24, W, (4, 6)), OUT)).eval()
    out = own(features.with_tokens(features.tokens, mask=mask))
    assert (out.grid, out.mask) == ((4, 6), mask)
    assert torch.allclose(out.tokens[:, 5:6], own(Features(features.tokens[:, 5:6])).tokens, atol=1e-6)


MISFITS: list[tuple[Op, Grid, str, list[str]]] = [
    ("space_to_depth", (27, 27), "factor", ["`2`", "27 x 27", "factor 3 or 9", "26 x 26 or 28 x 28", "`uneven: pad`"]),
    (
        {"name": "space_to_depth", "factor": 3},
        (4, 5),
        "factor",
        ["`3`", "4 x 5", "nearest: an image", "or 6 x 6"],
    ),
    ({"name": "space_to_depth", "factor": 5, "uneven": "drop"}, (4, 5), "factor", ["`5`", "side of the grid 4 x 5"]),
    ({"name": "space_to_depth", "factor": 0}, (4, 4), "factor", ["`0`", "1 or more"]),
    ({"name": "attention_pool"}, (5, 4), "factor", ["`2`", "5 x 4", "`uneven: pad`"]),
    ({"name": "attention_pool", "heads": 3}, (4, 4), "heads", ["`3`", "width 8"]),
    ({"name": "attention_pool", "heads": 4, "kv_heads": 3}, (4, 4), "kv_heads", ["`3`", "4 heads"]),
    ({"name": "pool", "factor": 2}, (5, 4), "factor", ["`2`", "5 x 4", "`kind: adaptive`"]),
    ({"name": "pool", "grid": [3, 2]}, (4, 4), "grid", ["[3, 2]", "4 x 4", "divisors", "`kind: adaptive`"]),
    ({"name": "pool", "grid": [5, 2], "kind": "adaptive"}, (4, 4), "grid", ["[5, 2]", "4 x 4", "no more"]),
    ({"name": "pool", "factor": 0}, (4, 4), "factor", ["`0`", "1 or more"]),
    ("pool", (4, 4), "", ["one of `factor` and `grid`"]),
    ({"name": "pool", "factor": 2, "grid": [2, 2]}, (4, 4), "", ["one of `factor` and `grid`"]),
    ({"name": "resize", "grid": [0, 2]}, (4, 4), "grid.0", ["`0`", "1 or more"]),
    ({"name": "conv", "kernel": 7, "padding": 0}, (4, 8), "kernel", ["`7`", "4 x 8"]),
    ({"name": "conv", "padding": -1}, (4, 4), "padding", ["`-1`", "0 to the kernel"]),
    ({"name": "conv", "depthwise": True}, (4, 4), "depthwise", ["8", "12"]),
    ({"name": "conv", "residual": True, "stride": 2}, (4, 4), "residual", ["stride 1"]),
    ({"name": "abstractor", "grid": [5, 5]}, (4, 6), "grid", ["[5, 5]", "4 x 6"]),
    ({"name": "norm", "plus_one": True}, (4, 4), "plus_one", ["rms", "layer"]),
    ({"name": "layer_mix", "layers": 3}, (4, 4), "layers", ["`3`", "width of 8", "[2, 4, 8]"]),
    ({"name": "mlp", "depth": 1, "glu": "first"}, (4, 4), "glu", ["`first`", "depth 1"]),
    ({**RESAMPLER, "attention": {"heads": 5}}, (4, 4), "attention.heads", ["`5`", "width 12"]),
    ({**RESAMPLER, "attention": {"headz": 5}}, (4, 4), "attention.headz", ["did you mean `heads`", "kv_heads"]),
    ({**RESAMPLER, "mlp": {"ratio": 0.01}}, (4, 4), "mlp.ratio", ["`0.01`", "12"]),
    ({**RESAMPLER, "positions": "both", "latents": 5}, (4, 4), "latents", ["`5`", "no square", "both"]),
    ({**RESAMPLER, "out_width": 6}, (4, 4), "positions", ["6", "4 divides"]),
    ({**RESAMPLER, "latents": {12: 3, 9: 2}}, (4, 4), "latents", ["16 tokens", "[9, 12]"]),
    ({**RESAMPLER, "latents": {12: 0}}, (3, 4), "latents", ["`0`", "1 or more"]),
    ({"name": "qformer", "width": 8, "heads": 3}, (4, 4), "heads", ["`3`", "width 8"]),
    ({"name": "soft_vocabulary", "temperature": 0.0}, (4, 4), "temperature", ["more than 0"]),
    ({"name": "merge_tokens", "budget": 17}, (4, 4), "budget", ["`17`", "16 tokens"]),
]


@pytest.mark.parametrize(("op", "grid", "place", "words"), MISFITS)
def test_misfits_are_named_at_planning(op: Op, grid: Grid, place: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        chain([op], Shape(grid[0] * grid[1], W, grid), OUT)
    assert [problem.place for problem in caught.value.problems] == [place]
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_place_in_the_recipe_stands_before_it() -> None:
    import vlm

    recipe = toy_recipe([{"name": "space_to_depth", "factor": 3}, "mlp"])
    with pytest.raises(ConfigError, match=r"model\.connector\.0\.factor: `3` does not divide the grid 4 x 4"):
        vlm.assemble(recipe)


def test_activations_are_those_of_transformers() -> None:
    x = torch.linspace(-4, 4, 101)
    assert set(get_args(Activation)) == set(ACTIVATIONS)
    for name, make in ACTIVATIONS.items():
        assert torch.allclose(make()(x), ACT2FN[name.replace("gelu_tanh", "gelu_pytorch_tanh")](x), atol=1e-6), name


def test_hard_words_are_one_word_with_a_soft_gradient() -> None:
    soft: Any = perturb(chain([{"name": "soft_vocabulary", "size": 6}], Shape(4, W, (2, 2)), OUT))
    features = tokens((2, 2), W)
    for kind in ("argmax", "gumbel"):
        hard: Any = chain([{"name": "soft_vocabulary", "size": 6, "kind": kind}], Shape(4, W, (2, 2)), OUT).eval()
        hard.load_state_dict(soft.state_dict())
        op = hard.ops[0]
        best = op.norm(op.head(features.tokens)).argmax(-1)
        assert torch.allclose(hard(features).tokens, op.table[best], atol=1e-6)
        gradients = []
        for model in (soft, hard):
            model.zero_grad()
            (model(features).tokens * torch.arange(OUT)).sum().backward()
            gradients.append(model.ops[0].head.weight.grad)
        assert torch.allclose(*gradients, atol=1e-4)
        op.train()
        drawn = torch.stack([hard(features).tokens for _ in range(20)])
        assert bool((drawn.std(0) > 0).any()) == (kind == "gumbel")
        words = (drawn.detach()[..., None, :] - op.table).abs().amax(-1).argmin(-1)
        assert torch.allclose(drawn, op.table[words], atol=1e-5)


def test_words_mix_more_evenly_when_it_is_warm() -> None:
    features = tokens((2, 2), W)
    op: Any = perturb(chain([{"name": "soft_vocabulary", "size": 6, "temperature": 3.0}], Shape(4, W, (2, 2)), OUT))
    words = op.ops[0]
    chances = torch.exp(words.norm(words.head(features.tokens)) / 3)
    wanted = chances / chances.sum(-1, keepdim=True) @ words.table
    assert torch.allclose(op(features).tokens, wanted, atol=1e-6)


def test_layer_mix_by_hand() -> None:
    features = tokens((2, 2), 6)
    parts = features.tokens.split(2, dim=-1)
    residual: Any = perturb(chain([{"name": "layer_mix", "layers": 3}], Shape(4, 6, (2, 2)), OUT))
    a, b = residual.ops[0].weights
    assert torch.allclose(residual(features).tokens, parts[0] + a * parts[1] + b * parts[2], atol=1e-6)
    softmax: Any = perturb(chain([{"name": "layer_mix", "layers": 3, "kind": "softmax"}], Shape(4, 6, (2, 2)), OUT))
    shares = torch.exp(softmax.ops[0].weights) / torch.exp(softmax.ops[0].weights).sum()
    wanted = sum(share * part for share, part in zip(shares, parts, strict=True))
    assert torch.allclose(softmax(features).tokens, wanted, atol=1e-6)


def test_unit_norm_has_length_one() -> None:
    found = chain([{"name": "norm", "kind": "unit"}], Shape(4, W, (2, 2)), W)(tokens((2, 2), W)).tokens
    assert torch.allclose(found.norm(dim=-1), torch.ones(2, 4))


def test_a_qformer_that_reads_the_question_says_when_there_is_none() -> None:
    text = TextOptions(tokenizer="bytes", vocabulary=7, length=4)
    op = QFormer(W, OUT, latents=3, depth=2, width=8, heads=2, text=text)
    features = tokens((2, 2), W)
    with pytest.raises(RuntimeError, match="without one"):
        op(features)
    with pytest.raises(RuntimeError, match="5 tokens; this Q-Former takes 4"):
        op(features.with_tokens(features.tokens, question=torch.zeros(2, 5, dtype=torch.long)))
    op(features.with_tokens(features.tokens, question=torch.ones(2, 4, dtype=torch.long))).tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in op.parameters())


def test_eager_and_fused_attention_agree() -> None:
    from vlm.attention import set_attention

    features = tokens((4, 6), W)
    for name in ("resampler-both", "resampler-double", "attention_pool-drop", "qformer"):
        own = perturb(chain([OPS[name]], Shape(24, W, (4, 6)), OUT))
        fused = own(features).tokens
        set_attention(own, "eager")
        assert torch.allclose(own(features).tokens, fused, atol=1e-5), name


LONG = [
    {"name": "conv", "out_width": 16},
    {"name": "resampler", "latents": {16: 4, 4: 2}, "attention": {"heads": 2, "kv_heads": 1}, "mlp": {"glu": "first"}},
    {"name": "mlp", "activation": "silu", "glu": "second", "norm": "rms"},
]


def test_nested_options_are_saved_with_the_model(tmp_path: Path) -> None:
    import vlm

    model = perturb(vlm.assemble(toy_recipe(LONG))).eval()
    batch = model.processor([ask("What?", [picture(1)])])
    again = vlm.load(model.save(tmp_path / "model"))
    assert batch.owner.ge(0).sum() == 4
    with torch.no_grad():
        assert torch.equal(again.encode(batch).tokens, model.encode(batch).tokens)
