"""SAM against timm's own implementation with the same weights, and against transformers."""

import json
import re
from functools import partial

import pytest
import torch
from torch import nn

from vlm.encoders.common import IMAGENET_MEAN, IMAGENET_STD
from vlm.encoders.sam import Sam
from vlm.errors import ConfigError

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
    "output_channels": 24, "window_size": 3, "global_attn_indexes": [1], "mlp_ratio": 2.0, "mlp_dim": 64,
}  # fmt: skip


@pytest.fixture
def build(perturb):
    def _build(**options):
        torch.manual_seed(0)
        return perturb(Sam(config=TINY, **options))

    return _build


NAMES = {
    r"patch_embed\.projection": "patch_embed.proj", r"^layers": "blocks", r"layer_norm([12])": r"norm\1",
    r"lin([12])": r"fc\1", r"neck\.conv1": "neck.0", r"neck\.norm1": "neck.1", r"neck\.conv2": "neck.2",
    r"neck\.norm2": "neck.3",
}  # fmt: skip


@pytest.fixture
def timm_sam():
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    def _timm_sam(encoder):
        model = VisionTransformerSAM(
            img_size=64, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2.0, window_size=3,
            global_attn_indexes=(1,), use_rel_pos=True, neck_chans=24, num_classes=0,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
        )  # fmt: skip
        mapped = {}
        for name, tensor in encoder.model.vision_encoder.state_dict().items():
            for old, new in NAMES.items():
                name = re.sub(old, new, name)
            mapped[name] = tensor
        model.load_state_dict(mapped)
        return model.eval()

    return _timm_sam


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (32, 32)])
@pytest.mark.parametrize("neck", [True, False])
@pytest.mark.parametrize("layers", [(-1,), (1, 3, 2)])
def test_equals_timm(size, neck, layers, build, timm_sam, pixels, same):
    encoder = build(neck=neck, layers=layers)
    images = pixels(*size)
    with torch.no_grad():
        features = encoder(images)
        maps = timm_sam(encoder).forward_intermediates(images, norm=neck, intermediates_only=True)
    expected = torch.cat([maps[layer - 1 if layer > 0 else layer] for layer in layers], dim=1)
    assert features.grid == tuple(expected.shape[2:]) == (size[0] // 8, size[1] // 8)
    same(features.tokens, expected.flatten(2).transpose(1, 2), atol=1e-4)


def test_equals_transformers(build, pixels, same):
    encoder = build()
    with torch.no_grad():
        out = encoder.model(pixels(64), output_hidden_states=True)
        same(encoder(pixels(64)).tokens, out.last_hidden_state.flatten(2).transpose(1, 2))
        for layer in (0, 1, -1, -4):
            raw = build(neck=False, layers=(layer,))
            same(raw(pixels(64)).tokens, out.hidden_states[layer].flatten(1, 2))


@pytest.mark.parametrize("options", [{}, {"neck": False, "layers": (0, 2), "size": (48, 64)}])
def test_contract(options, build, check_contract):
    check_contract(build(**options), sizes=[(64, 64), (24, 80)])


def test_each_layer_through_a_neck_of_its_own(build, pixels, same, check_contract):
    encoder = build(layers=(-1, 2, 1), neck="each")
    own = {name for name in encoder.state_dict() if ".neck." in name}
    assert {name.split(".")[1] for name in encoder.state_dict() if name.startswith("necks.")} == {"1", "2"}
    assert len([name for name in encoder.state_dict() if name.startswith("necks.2.")]) == len(own)
    with torch.no_grad():
        states = encoder.model(pixels(64), output_hidden_states=True)
        maps = [states.last_hidden_state, encoder.necks["2"](states.hidden_states[2])]
        maps.append(encoder.necks["1"](states.hidden_states[1]))
        found = encoder(pixels(64)).tokens
        same(found, torch.cat(maps, dim=1).flatten(2).transpose(1, 2))
        shared = build(layers=(-1, 2, 1))
        shared.load_state_dict(encoder.state_dict(), strict=False)
        assert (shared(pixels(64)).tokens - found)[..., 24:].abs().max() > 0.1  # they are not the model's own
    check_contract(encoder, sizes=[(48, 64)])


def test_a_further_neck_starts_as_a_copy(same):
    encoder = Sam(config=TINY, layers=(1,), neck="each")
    for name, parameter in encoder.necks["1"].named_parameters():
        original = encoder.model.vision_encoder.neck.get_parameter(name)
        assert parameter is not original
        same(parameter, original, atol=0)


@pytest.mark.parametrize("layers", [(-1,), (2,)])
def test_got_ocrs_copy(layers, perturb, pixels, same, check_contract):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.got_ocr2.modeling_got_ocr2 import GotOcr2VisionEncoder

    if "got_ocr2_vision" not in CONFIG_MAPPING:
        pytest.skip("this release of transformers (5.17) does not know it by a name of its own")
    config = {name: value for name, value in TINY.items() if name != "mlp_ratio"}
    encoder = perturb(Sam(config={"model_type": "got_ocr2_vision", **config}, layers=layers, neck=layers == (-1,)))
    model = GotOcr2VisionEncoder(encoder.model.config).eval()
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in encoder.state_dict().items()})
    with torch.no_grad():
        out = model(pixels(64), output_hidden_states=True)
        maps = out.last_hidden_state if layers == (-1,) else out.hidden_states[2].permute(0, 3, 1, 2)
        same(encoder(pixels(64)).tokens, maps.flatten(2).transpose(1, 2))
    encoder.set_attention("sdpa")  # it has eager only
    check_contract(encoder)


def test_whole_sam_folder(tmp_path, perturb, pixels, same, check_contract):
    from transformers import SamConfig, SamModel

    prompt = {"hidden_size": 24, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    mask = {"hidden_size": 24, "mlp_dim": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    mask |= {"iou_head_depth": 2, "iou_head_hidden_dim": 16}
    config = SamConfig(vision_config=TINY, prompt_encoder_config=prompt, mask_decoder_config=mask)
    whole = perturb(SamModel(config))
    whole.save_pretrained(tmp_path)
    encoder = Sam(weights=str(tmp_path)).eval()
    assert (encoder.image.mean, encoder.image.std, encoder.image.interpolation) == (
        IMAGENET_MEAN, IMAGENET_STD, "bilinear",
    )  # fmt: skip
    with torch.no_grad():
        expected = whole.vision_encoder(pixels(64)).last_hidden_state
        same(encoder(pixels(64)).tokens, expected.flatten(2).transpose(1, 2))
    check_contract(encoder)
    saved = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 3, "size": {"longest_edge": 64}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    assert Sam(weights=str(tmp_path)).image.mean == (0.1, 0.2, 0.3)


def test_set_attention(build, pixels, same, monkeypatch):
    encoder, calls = build().train(), []
    before = dict(encoder.named_parameters())
    before["model.vision_encoder.layers.0.attn.qkv.weight"].requires_grad_(False)
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    found = {}
    for how in ("sdpa", "eager", "sdpa"):
        encoder.set_attention(how)
        calls.clear()
        found[how] = encoder(pixels(64)).tokens
        assert bool(calls) == (how == "sdpa")
        after = dict(encoder.named_parameters())
        assert list(after) == list(before)
        assert all(after[name] is before[name] for name in before)  # optimizers keep hold of them
        assert all(module.training for module in encoder.modules())
    assert not before["model.vision_encoder.layers.0.attn.qkv.weight"].requires_grad
    same(found["sdpa"], found["eager"])


def test_mistakes(build):
    with pytest.raises(ConfigError, match="height 60 is not a multiple of the encoder's step of 8") as caught:
        build(size=(60, 64))
    assert caught.value.problems[0].place == "size"
    with pytest.raises(ConfigError, match="no layer 4") as caught:
        build(layers=(4,))
    assert caught.value.problems[0].place == "layers"
