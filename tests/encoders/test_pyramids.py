"""Pyramids as towers: layers are stages, each with its own grid."""

import pytest
import torch

from tests.encoders.toy_towers import flat, library, outputs
from vlm.errors import ConfigError


@pytest.mark.parametrize("kind", ["convnext", "convnextv2", "dinov3_convnext", "swin", "swinv2"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_stages_equal_the_library(kind, size, build_tower, pixels, same):
    images = pixels(*size)
    for layer in range(4 if kind.startswith("swin") else 5):
        encoder = build_tower(kind, layers=(layer,), norm=False)
        model = library(kind, encoder.state_dict())
        state = outputs(kind, model, images).hidden_states[layer]
        with torch.no_grad():
            features = encoder(images)
        first = 1 if kind == "dinov3_convnext" else 4
        step = {0: first}.get(layer, 4 * 2 ** (layer - 1)) if "convnext" in kind else 4 * 2 ** min(layer, 2)
        assert features.grid == (size[0] // step, size[1] // step)
        same(features.tokens, flat(kind, state, 2))


def test_sizes_that_a_pyramid_pads(build_tower, pixels, same):
    encoder = build_tower("swin")
    model = library("swin", encoder.state_dict())
    with torch.no_grad():
        features = encoder(pixels(62, 90))
        same(features.tokens, model(pixels(62, 90)).last_hidden_state)
    assert features.grid == (4, 6)  # 62 / 4, 90 / 4 and then twice by 2, each rounded up


@pytest.mark.parametrize("kind", ["swin", "swinv2", "dinov3_convnext"])
def test_norm_of_the_last_stage(kind, build_tower, pixels, same):
    encoder = build_tower(kind)
    model = library(kind, encoder.state_dict())
    expected = outputs(kind, model, pixels(64)).last_hidden_state
    with torch.no_grad():
        found = encoder(pixels(64))
    same(found.tokens, expected[:, 1:] if kind == "dinov3_convnext" else expected)  # whose first is the mean
    with torch.no_grad():
        pooled = build_tower("convnext", norm=True)
        tokens = pooled(pixels(64)).tokens
        last = library("convnext", pooled.state_dict())(pixels(64)).last_hidden_state
        same(tokens, pooled.model.layernorm(flat("convnext", last, 2)))


@pytest.mark.parametrize("kind", ["sam2_hiera_det_model", "sam2_vision_model"])
@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_stages_of_sam2(kind, size, build_tower, pixels, same):
    model = library(kind, build_tower(kind).state_dict())
    with torch.no_grad():
        trunk = model.backbone if kind == "sam2_vision_model" else model
        stages = trunk(pixels(*size)).intermediate_hidden_states
        for layer, stage in enumerate(stages, start=1):
            features = build_tower(kind, layers=(layer,))(pixels(*size))
            assert (
                features.grid == tuple(stage.shape[1:3]) == (size[0] // 2 ** (layer + 1), size[1] // 2 ** (layer + 1))
            )
            same(features.tokens, stage.flatten(1, 2))
        encoder = build_tower(kind)
        same(encoder(pixels(*size)).tokens, model(pixels(*size)).last_hidden_state.flatten(1, 2))
    with pytest.raises(ConfigError, match="no layer 5: 4 blocks"):
        build_tower(kind, layers=(5,))


def test_hiera_is_put_in_raster_order(build_tower, pixels, same):
    model = library("hiera", build_tower("hiera").state_dict())
    states = model(pixels(64), output_hidden_states=True).reshaped_hidden_states
    for layer, state in enumerate(states):
        with torch.no_grad():
            features = build_tower("hiera", layers=(layer,))(pixels(64))
        assert features.grid == tuple(state.shape[1:3])
        same(features.tokens, state.flatten(1, 2))


def test_hiera_at_another_size(build_tower, pixels):
    """The library puts its own size alone in order: here a change of one place must show at that place."""
    encoder = build_tower("hiera", layers=(0,))
    images = pixels(96, 64, views=1)
    changed = images.clone()
    changed[:, :, 40:44, 20:24] += 1
    with torch.no_grad():
        difference = (encoder(changed).tokens - encoder(images).tokens).abs().sum(-1)[0]
    assert encoder.grid((96, 64)) == (24, 16)
    assert divmod(int(difference.argmax()), 16) == (10, 5)


def test_davit(build_tower, pixels, same):
    encoder = build_tower("florence_vision")
    model = library("florence_vision", encoder.state_dict())
    for size in ((64, 64), (64, 96)):
        with torch.no_grad():
            features = encoder(pixels(*size))
            expected = model(pixels(*size)).last_hidden_state
        assert features.grid == tuple(expected.shape[2:])
        same(features.tokens, expected.flatten(2).transpose(1, 2))
