"""Timm models against timm called directly."""

import json

import pytest
import timm
import torch

from vlm.encoders.timms import Timm
from vlm.errors import ConfigError
from vlm.weights import planning

VIT = {"depth": 3, "embed_dim": 32, "num_heads": 2}
MODELS = {
    "cls": ("vit_tiny_patch16_224", VIT, 48, (32, 64)),
    "registers": ("vit_small_patch14_reg4_dinov2", VIT, 42, (28, 56)),
    "siglip": ("vit_base_patch16_siglip_224", VIT, 48, (32, 64)),
    "eva": ("eva02_tiny_patch14_224", VIT | {"depth": 2}, 42, (28, 56)),
    "eva_plain": ("vit_pe_core_gigantic_patch14_448", VIT | {"depth": 2}, 42, (28, 56)),
    "pe": ("vit_pe_core_tiny_patch16_384", VIT, 48, (32, 64)),
    "convnext": ("test_convnext", {}, 64, (96, 64)),
    "fastvit": ("fastvit_t8", {"layers": (1,) * 4, "embed_dims": (16, 32, 64, 128)}, 64, (96, 64)),
    "resnet": ("test_resnet", {}, 64, (96, 64)),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"depths": (1, 1, 2), "num_heads": (1, 2, 4), "embed_dim": 16, "window_size": 4},
        64,
        (32, 64),
    ),
}
PREFIX = {"cls": 1, "registers": 5, "siglip": 0, "eva": 1, "eva_plain": 0, "pe": 1}
CONVOLUTIONS = ("convnext", "fastvit", "resnet")


@pytest.fixture
def build(perturb):
    def _build(kind, **options):
        torch.manual_seed(0)
        name, config, size, _ = MODELS[kind]
        return perturb(Timm(model=name, config=config, **{"size": size} | options))

    return _build


def direct(encoder, kind, size):
    """timm's own model of the same weights, made without the encoder."""
    name, config, *_ = MODELS[kind]
    sized = {} if kind in CONVOLUTIONS else {"img_size": size}
    model = timm.create_model(name, **config, **sized)
    lacking = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not lacking.unexpected_keys
    assert all(key.startswith(("head", "fc", "attn_pool", "final_conv")) for key in lacking.missing_keys)
    return model.eval()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [(-1,), (2,), (-1, -1)])
@pytest.mark.parametrize("other", [False, True])
def test_equals_timm(kind, norm, layers, other, build, pixels, same):
    size = MODELS[kind][3] if other else (MODELS[kind][2],) * 2
    encoder = build(kind, norm=norm, layers=layers, size=size)
    model = direct(encoder, kind, size)
    with torch.no_grad():
        features = encoder(pixels(*size))
        found = model.forward_intermediates(pixels(*size), norm=norm, intermediates_only=True)
    chosen = torch.cat([found[layer - 1 if layer > 0 else layer] for layer in layers], dim=1)
    info = model.feature_info
    assert encoder.width == sum(info[layer - 1 if layer > 0 else layer]["num_chs"] for layer in layers)
    assert features.grid == encoder.grid(size) == tuple(chosen.shape[2:])
    same(features.tokens, chosen.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind", ["cls", "registers", "siglip", "pe"])
def test_default_is_forward_features(kind, build, pixels, same):
    encoder, kept = build(kind), build(kind, prefix="keep") if PREFIX[kind] else None
    size = (MODELS[kind][2],) * 2
    count = PREFIX[kind]
    with torch.no_grad():
        expected = direct(encoder, kind, size).forward_features(pixels(*size))
        features = encoder(pixels(*size))
        same(features.tokens, expected[:, count:])
        if kept is None:
            assert features.extra is None
        else:
            same(features.extra, expected[:, :count])
            same(kept(pixels(*size)).tokens, expected)
            assert (kept.prefix, kept(pixels(*size)).grid) == (count, None)


def test_vit_layers_in_the_order_given(build, pixels, same):
    size = (48, 48)
    encoder = build("cls", layers=(3, 1, -3, -2), norm=False)
    with torch.no_grad():
        maps = direct(encoder, "cls", size).forward_intermediates(pixels(*size), intermediates_only=True)
        expected = torch.cat([maps[2], maps[0], maps[0], maps[1]], dim=1).flatten(2).transpose(1, 2)
        same(encoder(pixels(*size)).tokens, expected)


@pytest.mark.parametrize("kind", MODELS)
def test_contract(kind, build, check_contract):
    check_contract(build(kind, size=MODELS[kind][3]))
    if kind in CONVOLUTIONS:
        check_contract(build(kind, layers=(-2,)), sizes=[(96, 160), (65, 70)])


@pytest.mark.parametrize("kind", ["cls", "siglip", "convnext", "swin"])
def test_statistics_are_the_weights_own(kind, build):
    name, *_ = MODELS[kind]
    data = timm.data.resolve_model_data_config(timm.create_model(name, **MODELS[kind][1]))
    spec = build(kind, size=None).image
    assert (spec.mean, spec.std, spec.size) == (data["mean"], data["std"], data["input_size"][1:])
    assert spec.interpolation == data["interpolation"]


def saved(tmp_path, kind, size):
    """A timm folder: weights with their classifier, and a config with statistics of their own."""
    from safetensors.torch import save_file

    name, config, *_ = MODELS[kind]
    torch.manual_seed(3)
    model = timm.create_model(name, **config, img_size=size, num_classes=7)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, size, size], "num_classes": 7}
    cfg |= {"fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head"}
    arguments = {**config, "img_size": size}
    text = json.dumps({"architecture": name, "num_classes": 7, "pretrained_cfg": cfg, "model_args": arguments})
    (tmp_path / "config.json").write_text(text)
    return model.eval()


@pytest.mark.parametrize("kind", ["cls", "siglip"])
def test_local_folder(kind, tmp_path, pixels, same, check_contract):
    model = saved(tmp_path, kind, 48)
    encoder = Timm(model=MODELS[kind][0], weights=str(tmp_path)).eval()
    assert (encoder.image.size, encoder.image.mean, encoder.image.std) == ((48, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with torch.no_grad():
        same(encoder(pixels(48)).tokens, model.forward_features(pixels(48))[:, PREFIX[kind] :])
    assert not any(name.startswith(("model.head", "model.attn_pool")) for name in encoder.state_dict())
    check_contract(encoder)
    with planning():
        assert Timm(model=MODELS[kind][0], weights=str(tmp_path)).shape() == encoder.shape()

    larger = Timm(model=MODELS[kind][0], weights=str(tmp_path), size=(64, 96)).eval()  # position embeddings resampled
    model.set_input_size(img_size=(64, 96))
    with torch.no_grad():
        same(larger(pixels(64, 96)).tokens, model.forward_features(pixels(64, 96))[:, PREFIX[kind] :])


def test_local_file(tmp_path, pixels, same):
    model = saved(tmp_path, "cls", 48)
    options = VIT | {"img_size": 48, "num_classes": 7}
    encoder = Timm(model="vit_tiny_patch16_224", weights=str(tmp_path / "model.safetensors"), config=options).eval()
    with torch.no_grad():
        same(encoder(pixels(48)).tokens, model.forward_features(pixels(48))[:, 1:])


def test_a_file_that_lacks_parameters_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "cls", 48)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["blocks.1.attn.qkv.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        options = VIT | {"img_size": 48, "num_classes": 7}
        with pytest.raises(ConfigError, match=r"blocks\.1\.attn\.qkv\.weight") as caught:
            Timm(model="vit_tiny_patch16_224", weights=str(weights), config=options)
        assert caught.value.problems[0].place == "weights"


@pytest.mark.parametrize(
    ("options", "place", "text"),
    [
        ({"model": "vit_tinny_patch16_224"}, "model", "did you mean `vit_tiny_patch16_224`.* and 1... more"),
        ({"model": "vit_tiny_patch16_224.nothing"}, "model", "vit_tiny_patch16_224.augreg_in21k"),
        ({"model": "test_vit", "layers": (0,)}, "layers", "no layer 0: 6 blocks give layers 1 to 6, or -6 to -1"),
        ({"model": "test_vit", "layers": (7,)}, "layers", "no layer 7"),
        ({"model": "test_vit", "size": (40, 64)}, "size", "height 40 is not a multiple of .* 16"),
        ({"model": "test_convnext", "layers": (-1, -2)}, "layers", "one grid.*layer -1: 5x5, layer -2: 10x10"),
        ({"model": "test_vit", "config": {"dept": 2}}, "config", "dept"),
        ({"model": "test_vit", "final": True}, "final", "yields tokens, no map"),
        ({"model": "test_convnext", "final": True, "layers": (-2,)}, "layers", "beside `final: true`"),
        ({"model": "test_vit", "weights": "x", "pretrained": True}, "weights", "not both"),
        ({"model": "test_vit", "config": {"patch_size": 0}}, "config", "ZeroDivision|division|by zero"),
        ({"model": "hiera_tiny_224", "config": {"stages": (1, 1, 1, 1), "embed_dim": 8}}, "norm", "use `norm: false`"),
        ({"model": "gemma4_vit_167m", "config": {"depth": 1}}, "model", "`gemma4_vit_167m` reads values of its input"),
    ],
)
def test_mistakes(options, place, text):
    with pytest.raises(ConfigError, match=text) as caught:
        Timm(**options)
    assert caught.value.problems[0].place == place


@pytest.mark.parametrize("model", ["hiera_tiny_224", "sam2_hiera_tiny", "hieradet_small"])
def test_families_without_a_norm(model):
    with planning():
        assert Timm(model=model, norm=False).shape().width == 768
        with pytest.raises(ConfigError, match=f"`{model}` cannot apply one here; use `norm: false`") as caught:
            Timm(model=model)
    assert caught.value.problems[0].place == "norm"


HIERA = {"stages": (1, 2, 2, 1), "embed_dim": 8, "global_att_blocks": (4,), "window_spec": (4, 2, 2, 2)}


@pytest.mark.parametrize("size", [128, (128, 192)])
def test_sam2s_hiera(size, perturb, pixels, same, check_contract):
    encoder = perturb(Timm(model="sam2_hiera_tiny.fb_r896", config=HIERA, size=size, norm=False, layers=(-1,)))
    images = pixels(*encoder.image.size)
    with torch.no_grad():
        expected = encoder.model.forward_features(images)  # [N, H, W, C]
        features = encoder(images)
    assert features.grid == tuple(expected.shape[1:3]) == tuple(length // 32 for length in encoder.image.size)
    same(features.tokens, expected.flatten(1, 2))
    check_contract(encoder)


@pytest.mark.parametrize("kind", ["fastvit", "convnext", "swin"])
def test_final_is_what_the_model_yields(kind, build, pixels, same, check_contract):
    encoder = build(kind, final=True)
    size = encoder.image.size
    model = timm.create_model(MODELS[kind][0], **MODELS[kind][1], **({"img_size": size} if kind == "swin" else {}))
    lacking = model.load_state_dict(encoder.model.state_dict(), strict=False)
    assert all(key.startswith(("head.fc", "head.pre_logits")) for key in lacking.missing_keys)
    with torch.no_grad():
        expected = model.eval().forward_features(pixels(*size))
        features = encoder(pixels(*size))
    expected = expected.permute(0, 3, 1, 2) if kind == "swin" else expected
    assert features.width == expected.shape[1] == {"fastvit": 256, "swin": 64}.get(kind, features.width)
    same(features.tokens, expected.flatten(2).transpose(1, 2))
    check_contract(encoder)


def test_perception_encoder_of_perception_lm(perturb, pixels, same):
    """Perception-LM's tower as its config writes it: no norm after the blocks, no pooling, CLS dropped."""
    from transformers import TimmWrapperConfig, TimmWrapperModel

    arguments = VIT | {"img_size": [48, 48], "global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1}
    arguments |= {"ref_feat_shape": [3, 3]}
    encoder = perturb(Timm(model="vit_pe_core_tiny_patch16_384", config=arguments))
    model = TimmWrapperModel(
        TimmWrapperConfig(architecture="vit_pe_core_tiny_patch16_384", model_args=arguments, do_pooling=False)
    )
    model.timm_model.load_state_dict(encoder.model.state_dict())
    with torch.no_grad():
        expected = model.eval()(pixels(48)).last_hidden_state
        same(encoder(pixels(48)).tokens, expected[:, 1:])


def test_names_with_a_tag():
    assert Timm(model="test_vit.r160_in1k").image.size == (160, 160)
    with pytest.raises(ConfigError, match=r"did you mean `test_vit\.r160_in1k`\? allowed: test_vit\.r160_in1k and 0"):
        Timm(model="test_vit.r160_in1")


def test_prefix_keep_without_one(build, pixels, same):
    kept, dropped = build("siglip", prefix="keep"), build("siglip")
    with torch.no_grad():
        same(kept(pixels(48)).tokens, dropped(pixels(48)).tokens)
    assert (kept.prefix, kept(pixels(48)).grid) == (0, (3, 3))


def test_a_librarys_own_bug_names_the_model(build, monkeypatch):
    encoder = build("cls")

    def buggy(*_, **__):
        raise UnboundLocalError("cannot access local variable 'prefix_tokens'")

    monkeypatch.setattr(type(encoder.model), "forward_intermediates", buggy)
    with pytest.raises(ConfigError, match=r"`vit_tiny_patch16_224` cannot yield .* 48x48 .*UnboundLocalError: cannot"):
        build("cls")


@pytest.mark.parametrize("kind", ["cls", "eva", "swin"])
def test_set_attention(kind, build, pixels, same, monkeypatch):
    encoder, fused = build(kind), []
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or real(*a, **k)
    )
    found = {}
    for how in ("sdpa", "eager"):
        encoder.set_attention(how)
        fused.clear()
        with torch.no_grad():
            found[how] = encoder(pixels(MODELS[kind][2])).tokens
        assert bool(fused) == (how == "sdpa")
    same(found["sdpa"], found["eager"])


def test_folder_of_another_model(tmp_path):
    saved(tmp_path, "cls", 48)
    with pytest.raises(ConfigError, match="holds a `vit_tiny_patch16_224`, not a `test_vit`"):
        Timm(model="test_vit", weights=str(tmp_path))


def test_tags_of_weights_are_known():
    with planning():
        encoder = Timm(model="vit_so400m_patch14_siglip_384.webli", pretrained=True)
    assert encoder.image.size == (384, 384)
    assert encoder.shape().grid == (27, 27)
    with pytest.raises(ConfigError, match=r"did you mean `vit_so400m_patch14_siglip_384\.webli`"):
        Timm(model="vit_so400m_patch14_siglip_384.weblii")
