"""The small encoder against a slow obvious one."""

import pytest
import torch
import torch.nn.functional as F

from vlm.encoders.conv_vit import ConvVit
from vlm.errors import ConfigError

SMALL = {"size": (16, 24), "width": 16, "stem": (6, 8), "depth": 2, "heads": 4}


@pytest.fixture
def build(perturb):
    def _build(**options):
        torch.manual_seed(0)
        return perturb(ConvVit(**SMALL | options))

    return _build


def obvious(encoder, images, strides):
    """The same maths written out, from the encoder's parameters by name."""
    weights = encoder.state_dict()

    def linear(hidden, name):
        return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(hidden, name):
        centred = hidden - hidden.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    hidden = images
    for index, stride in enumerate(strides):
        hidden = F.conv2d(hidden, weights[f"stem.{3 * index}.weight"], stride=stride, padding=1)
        mean, var, scale, shift = (
            weights[f"stem.{3 * index + 1}.{name}"][:, None, None]
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        hidden = F.relu((hidden - mean) / (var + 1e-5).sqrt() * scale + shift)
    last = f"stem.{3 * len(strides)}"
    if f"{last}.weight" in weights:
        hidden = F.conv2d(hidden, weights[f"{last}.weight"], weights[f"{last}.bias"])
    positions = F.interpolate(weights["positions"], size=hidden.shape[-2:], mode="bicubic", align_corners=False)
    hidden = (hidden + positions).flatten(2).transpose(1, 2)
    heads, head = 4, hidden.shape[-1] // 4
    for index in range(2):
        name = f"blocks.{index}"
        query, key, value = (linear(norm(hidden, f"{name}.norm1"), f"{name}.attention.{which}") for which in "qkv")
        mixed = []
        for number in range(heads):
            part = slice(number * head, (number + 1) * head)
            scores = query[..., part] @ key[..., part].transpose(1, 2) / head**0.5
            mixed.append(scores.softmax(-1) @ value[..., part])
        hidden = hidden + linear(torch.cat(mixed, dim=-1), f"{name}.attention.out")
        inner = F.gelu(linear(norm(hidden, f"{name}.norm2"), f"{name}.mlp.0"))
        hidden = hidden + linear(inner, f"{name}.mlp.2")
    return norm(hidden, "norm")


@pytest.mark.parametrize("strides", [None, ((2, 2), (2, 1)), ((1, 3), (4, 2))])
@pytest.mark.parametrize("stem", [(6, 8), (6, 16)])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equals_the_obvious_one(strides, stem, attention, build, pixels, same):
    encoder = build(strides=strides, stem=stem)
    encoder.set_attention(attention)
    for size in [(16, 24), (32, 12)]:
        with torch.no_grad():
            same(encoder(pixels(*size)).tokens, obvious(encoder, pixels(*size), strides or ((2, 2), (2, 2))))


@pytest.mark.parametrize("options", [{}, {"strides": ((2, 2), (2, 1)), "std": (0.1, 0.2, 0.3)}])
def test_contract(options, build, check_contract):
    check_contract(build(**options), sizes=[(32, 24), (16, 48)])


def test_defaults(pixels):
    encoder = ConvVit().eval()
    assert encoder.shape().grid == (2, 6)
    assert encoder(pixels(32, 96)).tokens.shape == (2, 12, 128)
    assert encoder.image.mean == (0.5, 0.5, 0.5)


def test_attention_may_be_changed_at_any_time(build, pixels, same):
    encoder = build()
    fused = encoder(pixels(16, 24)).tokens
    encoder.set_attention("eager")
    same(encoder(pixels(16, 24)).tokens, fused)


def test_every_parameter_learns(build, pixels):
    encoder = build().train()
    encoder(pixels(16, 24)).tokens.pow(2).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("options", "place", "text"),
    [
        ({"heads": 3}, "heads", "`3` does not divide the width 16"),
        ({"size": (18, 24)}, "size", "height 18 is not a multiple of .* 4 pixels; the nearest is 16"),
        ({"strides": ((2, 2),)}, "strides", "1 strides for 2 convolutions"),
        ({"stem": ()}, "stem", "at least one"),
        ({"stem": (6, 0)}, "stem.1", "`0`; allowed: 1 or more"),
        ({"strides": ((2, 2), (2, 0))}, "strides.1.1", "`0`; allowed: 1 or more"),
        ({"strides": ((-1, 2), (2, 2))}, "strides.0.0", "`-1`; allowed: 1 or more"),
        ({"width": 0}, "width", "`0`; allowed: 1 or more"),
        ({"width": -4}, "width", "`-4`; allowed: 1 or more"),
        ({"depth": -1}, "depth", "`-1`; allowed: 0"),
    ],
)
def test_mistakes(options, place, text, build):
    with pytest.raises(ConfigError, match=text) as caught:
        build(**options)
    assert [problem.place for problem in caught.value.problems] == [place]
