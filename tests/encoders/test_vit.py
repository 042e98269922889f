"""CLIP, SigLIP and DINOv2 against the library called directly."""

import json

import pytest
import torch

from vlm.encoders.common import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD
from vlm.encoders.sam import Sam
from vlm.encoders.vit import Clip, Dinov2, Siglip
from vlm.errors import ConfigError
from vlm.weights import planning

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
CONFIGS = {
    "clip": (Clip, TINY | {"intermediate_size": 48}),
    "siglip": (Siglip, TINY | {"intermediate_size": 48}),
    "dinov2": (Dinov2, TINY | {"mlp_ratio": 2}),
    "registers": (
        Dinov2,
        TINY | {"model_type": "dinov2_with_registers", "mlp_ratio": 2, "num_register_tokens": 4},
    ),
}
PREFIX = {"clip": 1, "siglip": 0, "dinov2": 1, "registers": 5}


@pytest.fixture
def build(perturb):
    def _build(family, **options):
        torch.manual_seed(0)
        encoder_class, config = CONFIGS[family]
        return perturb(encoder_class(config=config, **options))

    return _build


def library(encoder, images):
    """(hidden states, final norm) from the library's own forward."""
    model = encoder.model
    arguments = {} if isinstance(encoder, Dinov2) else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        out = model(images, output_hidden_states=True, **arguments)
    return out, (model.layernorm if isinstance(encoder, Dinov2) else model.post_layernorm)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layers", [(-1,), (-2,), (0,), (1, -1), (-1, 2, -2, 2, 0)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (64, 24)])
def test_layers_equal_the_library(family, layers, norm, size, build, pixels, same):
    encoder = build(family, layers=layers, norm=norm)
    images = pixels(*size)
    out, final = library(encoder, images)
    with torch.no_grad():
        features = encoder(images)
        chosen = [final(out.hidden_states[layer]) if norm else out.hidden_states[layer] for layer in layers]
    expected, count = torch.cat(chosen, dim=-1), PREFIX[family]
    same(features.tokens, expected[:, count:])
    assert features.grid == (size[0] // 8, size[1] // 8)
    if count:
        same(features.extra, expected[:, :count])
    else:
        assert features.extra is None


@pytest.mark.parametrize("family", ["siglip", "dinov2", "registers"])
def test_default_is_last_hidden_state(family, build, pixels, same):
    encoder = build(family)
    out, _ = library(encoder, pixels(32))
    with torch.no_grad():
        same(encoder(pixels(32)).tokens, out.last_hidden_state[:, PREFIX[family] :])


def test_clip_default_is_llava(build, pixels, same):
    encoder = build("clip")
    out, _ = library(encoder, pixels(32))
    with torch.no_grad():
        same(encoder(pixels(32)).tokens, out.hidden_states[-2][:, 1:])


@pytest.mark.parametrize("family", ["clip", "dinov2", "registers"])
def test_prefix_keep(family, build, pixels, same, check_contract):
    kept, dropped = build(family, prefix="keep"), build(family)
    with torch.no_grad():
        features, apart = kept(pixels(32)), dropped(pixels(32))
    assert (features.grid, features.extra, kept.prefix) == (None, None, PREFIX[family])
    same(features.tokens, torch.cat([apart.extra, apart.tokens], dim=1))
    check_contract(kept)


@pytest.mark.parametrize("family", CONFIGS)
def test_contract(family, build, check_contract):
    check_contract(build(family, layers=(1, -1), size=(48, 32)), sizes=[(32, 32), (16, 64)])


def test_blocks_beyond_the_deepest_layer_do_not_run(build, pixels):
    encoder = build("clip", layers=(1,))
    ran = []
    for index, block in enumerate(encoder.model.encoder.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    encoder(pixels(32))
    assert ran == [0]
    assert any("layers.2." in name for name in encoder.state_dict())


def test_own_statistics(build):
    assert build("clip").image.mean == CLIP_MEAN
    assert build("clip").image.std == CLIP_STD
    assert build("siglip").image.mean == HALF
    assert (build("dinov2").image.mean, build("dinov2").image.std) == (IMAGENET_MEAN, IMAGENET_STD)


SAVED = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": {"shortest_edge": 99}}


@pytest.mark.parametrize("family", CONFIGS)
def test_local_folder(family, tmp_path, build, pixels, same, check_contract):
    source = build(family)
    source.model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAVED))
    encoder = CONFIGS[family][0](weights=str(tmp_path)).eval()
    spec = encoder.image
    assert (spec.size, spec.mean, spec.std, spec.interpolation) == (
        (32, 32), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear",
    )  # fmt: skip
    with torch.no_grad():
        same(encoder(pixels(32)).tokens, source(pixels(32)).tokens, atol=0)
    check_contract(encoder)
    with planning():
        assert CONFIGS[family][0](weights=str(tmp_path)).shape() == encoder.shape()


def composite(kind, perturb):
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config_class, model_class = (CLIPConfig, CLIPModel) if kind == "clip" else (SiglipConfig, SiglipModel)
    vision = CONFIGS[kind][1]
    return perturb(model_class(config_class(text_config=text | {"vocab_size": 20}, vision_config=vision)))


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_folder_with_a_text_tower(kind, tmp_path, perturb, pixels, same):
    whole = composite(kind, perturb)
    whole.save_pretrained(tmp_path)
    encoder = CONFIGS[kind][0](weights=str(tmp_path), layers=(-1,), norm=False).eval()
    assert encoder.image.mean == (CLIP_MEAN if kind == "clip" else HALF)  # no file says otherwise
    with torch.no_grad():
        expected = whole.vision_model(pixels(32), output_hidden_states=True).hidden_states[-1]
        same(encoder(pixels(32)).tokens, expected[:, PREFIX[kind] :])


def test_a_saved_image_overrides_everything(tmp_path, build):
    build("clip").model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SAVED))
    image = {"size": [16, 24], "mean": [0, 0, 0], "std": [1, 1, 1], "interpolation": "box"}
    encoder = Clip(weights=str(tmp_path), size=64, image=image)
    assert encoder.resolved()["image"] == image
    assert encoder.shape().grid == (2, 3)


IMAGE = {"size": 32, "mean": HALF, "std": HALF}


@pytest.mark.parametrize(
    ("family", "options", "place", "text"),
    [
        ("clip", {"layers": (4,)}, "layers", "no layer 4: 3 blocks give layers 0 to 3, or -4 to -1"),
        ("clip", {"layers": (-5,)}, "layers", "no layer -5"),
        ("clip", {"layers": ()}, "layers", "at least one"),
        ("clip", {"size": 36}, "size", "height 36 is not a multiple .* 8 pixels; the nearest is 32"),
        ("dinov2", {"size": (32, 4)}, "size", "width 4 .* nearest is 8"),
        ("clip", {"image": IMAGE | {"sdt": HALF}}, "image.sdt", "did you mean `std`"),
        ("clip", {"image": IMAGE | {"interpolation": "cubic"}}, "image.interpolation", "bicubic"),
    ],
)  # fmt: skip
def test_mistakes(family, options, place, text, build):
    with pytest.raises(ConfigError, match=text) as caught:
        build(family, **options)
    assert caught.value.problems[0].place == place


def test_mistakes_in_the_source(tmp_path, build):
    with pytest.raises(ConfigError, match="give `weights`"):
        Clip()
    with pytest.raises(ConfigError, match="did you mean `hidden_size`"):
        Clip(config={"hiden_size": 3})
    build("clip").model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"is a `clip_vision_model`; .*siglip_vision_model") as caught:
        Siglip(weights=str(tmp_path))
    assert caught.value.problems[0].place == "weights"


@pytest.mark.parametrize("encoder", [Clip, Siglip, Dinov2, Sam])
@pytest.mark.parametrize("field", ["patch_size", "hidden_size"])
def test_a_size_of_zero(encoder, field):
    with pytest.raises(ConfigError, match="`0`; allowed: 1 or more") as caught:
        encoder(config=TINY | {field: 0})
    assert caught.value.problems[0].place == f"config.{field}"
    with pytest.raises(ConfigError, match=r"allowed: 1 or more|modulo by zero"):  # CLIP's config tries it itself
        encoder(config=TINY | {"num_attention_heads": 0})


@pytest.mark.parametrize("encoder", [Clip, Siglip, Dinov2, Sam])
def test_weights_bring_their_own_config(encoder, tmp_path):
    encoder(config=TINY).model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="stands beside `weights`") as caught:
        encoder(weights=str(tmp_path), config=TINY | {"num_hidden_layers": 1})
    assert caught.value.problems[0].place == "config"


@pytest.mark.parametrize("family", CONFIGS)
def test_half_precision_is_rebuilt_as_such(family, build, pixels, tmp_path):
    build(family).to(torch.bfloat16).model.save_pretrained(tmp_path)
    encoder = CONFIGS[family][0](weights=str(tmp_path)).eval()
    again = CONFIGS[family][0](**json.loads(json.dumps(encoder.resolved()))).eval()
    again.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert again(pixels(32)).tokens.dtype == encoder(pixels(32)).tokens.dtype == torch.bfloat16
        torch.testing.assert_close(again(pixels(32)).tokens, encoder(pixels(32)).tokens, atol=0, rtol=0)
    assert "dtype" not in encoder.float().resolved()["config"]


@pytest.mark.parametrize("family", ["siglip", "dinov2", "clip"])
def test_own_size_may_leave_pixels_over_and_no_other(family, perturb, pixels, same):
    """SigLIP's 384 pixels at a patch of 14: the library cuts the rest off, in training too."""
    encoder_class, config = CONFIGS[family]
    encoder = perturb(encoder_class(config=config | {"image_size": 37}, layers=(-1,), norm=True))
    out, final = library(encoder, pixels(37))
    assert encoder.grid((37, 37)) == (4, 4)
    with torch.no_grad():
        same(encoder(pixels(37)).tokens, final(out.hidden_states[-1])[:, PREFIX[family] :])
    with pytest.raises(ConfigError, match="height 38 is not a multiple of the encoder's step of 8"):
        encoder.grid((38, 38))


@pytest.mark.parametrize(("field", "value"), [("image_size", []), ("image_size", [32]), ("patch_size", [])])
def test_a_config_whose_list_is_too_short(field, value):
    with pytest.raises(ConfigError, match=r"allowed: "):
        Siglip(config=TINY | {"intermediate_size": 48, field: value})
