"""open_clip's vision towers against open_clip called directly."""

import json
from copy import deepcopy

import open_clip
import pytest
import torch

from vlm.encoders.common import CLIP_MEAN, HALF
from vlm.encoders.openclip import OpenClip
from vlm.errors import ConfigError
from vlm.weights import planning

TEXT = {"context_length": 4, "vocab_size": 10, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8}
CONFIGS = {
    "vit": {"embed_dim": 24, "vision_cfg": VIT, "quick_gelu": True},
    "resnet": {"embed_dim": 24, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8}},
    "timm_vit": {"embed_dim": 24, "vision_cfg": {"timm_model_name": "test_vit", "image_size": 160, "timm_proj": ""}},
    "timm_conv": {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_convnext", "image_size": 64, "timm_pool": "avg", "timm_proj": "linear"},
    },
}


@pytest.fixture
def build(perturb):
    def _build(kind, **options):
        torch.manual_seed(0)
        return perturb(OpenClip(model=f"tiny-{kind}", config=CONFIGS[kind], **options))

    return _build


@pytest.fixture
def folder(tmp_path, perturb):
    """A whole model with statistics of its own, as open_clip stores it: (folder, model)."""

    def _folder(kind):
        torch.manual_seed(0)
        config = deepcopy(CONFIGS[kind]) | {"text_cfg": TEXT}
        model = perturb(open_clip.CLIP(**config))
        torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
        preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
        (tmp_path / "open_clip_config.json").write_text(text)
        return tmp_path, model

    return _folder


def direct(encoder, kind, size):
    """The same tower made by open_clip itself."""
    config = deepcopy(CONFIGS[kind]) | {"text_cfg": TEXT}
    config["vision_cfg"]["image_size"] = size if size[0] != size[1] else size[0]
    tower = open_clip.CLIP(**config).visual
    if kind.startswith("timm"):
        tower.set_input_size(size)
    lacking = tower.load_state_dict(encoder.model.state_dict(), strict=False)
    assert not lacking.unexpected_keys
    return tower.eval()


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("vit", (32, 32)),
        ("vit", (16, 48)),
        ("resnet", (64, 64)),
        ("resnet", (96, 96)),
        ("timm_vit", (160, 160)),
        ("timm_vit", (32, 64)),
        ("timm_conv", (64, 64)),
        ("timm_conv", (96, 64)),
    ],
)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layers", [(-1,), (-2, 2), (1,)])
def test_equals_open_clip(kind, size, norm, layers, build, pixels, same):
    layers = tuple(layer for layer in layers if kind == "vit" or layer < 2)  # only the ViT's have one grid
    encoder = build(kind, size=size, norm=norm, layers=layers)
    images = pixels(*size)
    with torch.no_grad():
        features = encoder(images)
        out = direct(encoder, kind, size).forward_intermediates(
            images, normalize_intermediates=norm, intermediates_only=True, output_extra_tokens="vit" in kind
        )
    maps, tops = out["image_intermediates"], out.get("image_intermediates_prefix")
    taken = [layer - 1 if layer > 0 else layer for layer in layers]
    expected = torch.cat([maps[index] for index in taken], dim=1)
    assert features.grid == tuple(expected.shape[2:])
    same(features.tokens, expected.flatten(2).transpose(1, 2))
    if tops is None:
        assert features.extra is None
    else:
        same(features.extra, torch.cat([tops[index] for index in taken], dim=2))


@pytest.mark.parametrize("kind", CONFIGS)
def test_contract(kind, build, check_contract):
    check_contract(build(kind, size=32 if kind == "timm_vit" else 64))


def test_prefix_keep(build, pixels, same, check_contract):
    kept, apart = build("vit", prefix="keep"), build("vit")
    with torch.no_grad():
        features = apart(pixels(32))
        same(kept(pixels(32)).tokens, torch.cat([features.extra, features.tokens], dim=1))
    assert (kept.prefix, kept(pixels(32)).grid) == (1, None)
    check_contract(kept)


def test_last_layer_with_norm_is_what_open_clip_pools(build, pixels, same):
    encoder = build("vit", layers=(-1,), norm=True)
    tower = direct(encoder, "vit", (32, 32))
    with torch.no_grad():
        same(encoder(pixels(32)).extra[:, 0] @ tower.proj, tower(pixels(32)))


@pytest.mark.parametrize("size", [None, (48, 64)])
def test_local_folder(size, folder, pixels, same, check_contract):
    path, _ = folder("vit")
    name = f"local-dir:{path}"
    encoder = OpenClip(model=name, size=size).eval()
    reference = open_clip.create_model(name, force_image_size=size)
    spec, own = encoder.image, open_clip.get_model_preprocess_cfg(reference)
    assert (spec.mean, spec.std, spec.interpolation) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear")
    assert list(spec.mean) == list(own["mean"])
    with torch.no_grad():
        images = pixels(*spec.size)
        maps = reference.visual.eval().forward_intermediates(images, intermediates_only=True)["image_intermediates"]
        same(encoder(images).tokens, maps[-2].flatten(2).transpose(1, 2))
    check_contract(encoder)
    with planning():
        assert OpenClip(model=name, size=size).shape() == encoder.shape()


@pytest.fixture
def registered(folder):
    """The tiny ViT under a name of open_clip's own; its registry is put back afterwards."""
    path, model = folder("vit")
    config = deepcopy(CONFIGS["vit"]) | {"text_cfg": TEXT}
    (path / "kit-test-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(path / "kit-test-tiny.json")
    yield path / "open_clip_pytorch_model.bin", model
    open_clip.factory._MODEL_CONFIG_PATHS.remove(path / "kit-test-tiny.json")
    del open_clip.factory._MODEL_CONFIGS["kit-test-tiny"]


def test_local_file(registered, pixels, same):
    file, model = registered
    encoder = OpenClip(model="kit-test-tiny", weights=str(file)).eval()
    assert encoder.image.mean == CLIP_MEAN
    with torch.no_grad():
        maps = model.visual.forward_intermediates(pixels(32), intermediates_only=True)["image_intermediates"]
        same(encoder(pixels(32)).tokens, maps[-2].flatten(2).transpose(1, 2))

    tensors = torch.load(file)
    del tensors["visual.conv1.weight"]
    torch.save(tensors, file)
    with pytest.raises(ConfigError, match=r"visual\.conv1\.weight") as caught:
        OpenClip(model="kit-test-tiny", weights=str(file))
    assert caught.value.problems[0].place == "weights"


def test_tag(registered, monkeypatch, pixels, same):
    """Weights by tag: statistics and activation are the tag's, whatever the model's config says."""
    file, model = registered
    plain = deepcopy(CONFIGS["vit"]) | {"text_cfg": TEXT, "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "kit-test-tiny", plain)
    tag = {"mean": HALF, "std": HALF, "interpolation": "bilinear", "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "kit-test-tiny", {"some_tag": tag})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(file))
    encoder = OpenClip(model="kit-test-tiny", pretrained="some_tag").eval()
    assert (encoder.image.mean, encoder.image.interpolation) == (HALF, "bilinear")
    with torch.no_grad():
        maps = model.visual.forward_intermediates(pixels(32), intermediates_only=True)["image_intermediates"]
        same(encoder(pixels(32)).tokens, maps[-2].flatten(2).transpose(1, 2))


def test_planning_knows_the_tag():
    with planning():
        openai = OpenClip(model="ViT-B-32", pretrained="openai")
        siglip = OpenClip(model="ViT-B-16-SigLIP", pretrained="webli", size=(64, 128))
    assert openai.resolved()["config"]["quick_gelu"] is True  # open_clip would only warn
    assert (siglip.image.mean, siglip.shape().grid, siglip.width) == (HALF, (4, 8), 768)


def test_a_tower_without_prefix_tokens():
    """timm's Eva fails when asked for prefix tokens that it has not."""
    with planning():
        encoder = OpenClip(model="PE-Core-bigG-14-448")
    assert (encoder.shape().grid, encoder.width) == ((32, 32), 1536)


def test_set_attention_reaches_a_timm_tower(build, pixels, same):
    encoder = build("timm_vit", size=32)
    with torch.no_grad():
        fused = encoder(pixels(32)).tokens
        encoder.set_attention("eager")
        same(encoder(pixels(32)).tokens, fused)
    assert not any(block.attn.fused_attn for block in encoder.model.trunk.blocks)


@pytest.mark.parametrize("options", [{}, {"qk_norm": True}])
def test_its_own_vit_stays_fused(options, perturb, pixels, same, monkeypatch):
    encoder = perturb(OpenClip(model="x", config={"embed_dim": 24, "vision_cfg": VIT | options}))
    calls, found = [], {}
    real = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    for how in ("sdpa", "eager"):
        encoder.set_attention(how)
        calls.clear()
        found[how] = encoder(pixels(32)).tokens  # with gradients: without, torch takes a route of its own
        assert len(calls) == 2  # of three blocks the third does not run
    same(found["sdpa"], found["eager"])


@pytest.mark.parametrize(
    ("options", "place", "text"),
    [
        ({"model": "ViT-B-31"}, "model", "did you mean `ViT-B-32`.*more"),
        ({"model": "ViT-B-32", "pretrained": "openia"}, "pretrained", "did you mean `openai`"),
        ({"model": "x", "config": CONFIGS["vit"], "layers": (0,)}, "layers", "no layer 0: 3 blocks give layers 1 to 3"),
        ({"model": "x", "config": CONFIGS["vit"], "size": (30, 32)}, "size", "height 30 is not a multiple"),
        ({"model": "x", "config": CONFIGS["resnet"], "layers": (-1, -2)}, "layers", "one grid"),
        ({"model": "x", "config": {"embed_dim": 8, "vision_cfg": VIT | {"widht": 3}}}, "config", "widht"),
        ({"model": "x", "config": {"embed_dim": 8, "vision_cfg": VIT | {"patch_size": 0}}}, "config", "refuses it"),
        ({"model": "x", "config": CONFIGS["vit"], "pretrained": "openai"}, "config", "only one of"),
        ({"model": "x", "weights": "/nowhere"}, "weights", "no file"),
    ],
)
def test_mistakes(options, place, text):
    with pytest.raises(ConfigError, match=text) as caught:
        OpenClip(**options)
    assert caught.value.problems[0].place == place
