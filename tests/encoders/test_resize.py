"""Encoders that are given another size once they are built."""

import math
from types import SimpleNamespace

import pytest
import timm
import torch
from open_clip.model import resize_pos_embed
from timm.models.vision_transformer import checkpoint_filter_fn

from vlm.encoders.openclip import OpenClip
from vlm.encoders.sam import Sam
from vlm.encoders.timms import Timm
from vlm.encoders.vit import Clip, Dinov2, Siglip
from vlm.errors import ConfigError
from vlm.weights import planning

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
VIT = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}}
SMALL = {"depth": 2, "embed_dim": 32, "num_heads": 2}
BUILD = {
    "clip": lambda **options: Clip(config=TINY | {"intermediate_size": 48}, **options),
    "siglip": lambda **options: Siglip(config=TINY | {"intermediate_size": 48}, **options),
    "dinov2": lambda **options: Dinov2(config=TINY, **options),
    "sam": lambda **options: Sam(
        config=TINY | {"output_channels": 16, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 48}, **options
    ),
    "timm": lambda **options: Timm(model="vit_tiny_patch16_224", config=SMALL, **{"size": 32} | options),
    "timm_conv": lambda **options: Timm(model="test_convnext", **{"size": 32} | options),
    "open_clip": lambda **options: OpenClip(model="tiny", config=VIT, **options),
}


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_contract_holds_at_the_new_size(kind, size, perturb, check_contract):
    encoder = perturb(BUILD[kind]())
    before = dict(encoder.named_parameters())
    encoder.resize(size)
    assert encoder.image.size == size
    after = dict(encoder.named_parameters())
    assert before.keys() == after.keys()
    changed = [name for name in before if before[name] is not after[name]]
    assert all("pos" in name for name in changed), "nothing but position embeddings may be another parameter"
    check_contract(encoder)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "sam"])
def test_those_that_interpolate_as_they_go_come_back_unharmed(kind, perturb, pixels):
    encoder = perturb(BUILD[kind]())
    with torch.no_grad():
        wanted = encoder(pixels(32)).tokens
        encoder.resize((64, 64))
        encoder.resize((32, 32))
        assert torch.equal(encoder(pixels(32)).tokens, wanted)


def test_timm_resamples_as_it_does_on_loading(perturb, pixels, same):
    encoder = perturb(BUILD["timm"]())
    reference = timm.create_model("vit_tiny_patch16_224", img_size=(64, 96), num_classes=0, **SMALL).eval()
    reference.load_state_dict(checkpoint_filter_fn(encoder.model.state_dict(), reference))
    encoder.resize((64, 96))
    with torch.no_grad():
        wanted = reference.forward_intermediates(pixels(64, 96), norm=True, intermediates_only=True)[-1]
        same(encoder(pixels(64, 96)).tokens, wanted.flatten(2).transpose(1, 2))


def test_open_clip_resamples_as_it_does_on_loading(perturb, same):
    encoder = perturb(BUILD["open_clip"]())
    state = {"visual.positional_embedding": encoder.model.positional_embedding.detach()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(8, 12))))
    encoder.resize((64, 96))
    same(encoder.model.positional_embedding, state["visual.positional_embedding"])
    assert math.prod(encoder.grid((64, 96))) + 1 == len(encoder.model.positional_embedding)


@pytest.mark.parametrize("kind", BUILD)
def test_size_that_does_not_fit_changes_nothing(kind, perturb, pixels):
    encoder = perturb(BUILD[kind]())
    with torch.no_grad():
        wanted = encoder(pixels(32)).tokens
    size = (0, 32) if kind == "timm_conv" else (33, 32)
    with pytest.raises(ConfigError):
        encoder.resize(size)
    assert encoder.image.size == (32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(pixels(32)).tokens, wanted)


def test_timm_family_that_stays_at_its_size_says_so():
    encoder = Timm(model="xcit_nano_12_p16_224", config={"depth": 1, "img_size": 224})
    with pytest.raises(ConfigError, match="cannot change its size once it is built"):
        encoder.resize((64, 64))


@pytest.mark.parametrize("kind", BUILD)
def test_without_weights_too(kind):
    with planning():
        encoder = BUILD[kind]()
        encoder.resize((64, 64))
    assert all(parameter.is_meta for parameter in encoder.parameters())
    assert encoder.shape().grid == encoder.grid((64, 64))
