"""Any vision tower of transformers against the library called directly, every parameter perturbed."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.encoders.toy_towers import ABSENT, CONFIGS, FIXED, PREFIX, SIZES, VIT, flat, library, outputs
from vlm import registry
from vlm.encoders.common import CLIP_MEAN, HALF, IMAGENET_MEAN
from vlm.encoders.families import FAMILIES
from vlm.encoders.tower import Tower
from vlm.errors import ConfigError
from vlm.schema import check_options
from vlm.weights import planning

ALL = [kind for kind in CONFIGS if kind not in ABSENT]
GROUPED = [kind for kind in ALL if kind.startswith("qwen")]
VITS = [kind for kind in ALL if kind not in (*SIZES, *GROUPED)]


def everything(features):
    return features.tokens if features.extra is None else torch.cat([features.extra, features.tokens], dim=1)


def test_every_family_in_the_table_is_tested():
    assert set(CONFIGS) == {kind for kind, family in FAMILIES.items() if not family.refused}


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", VITS)
def test_hidden_states_equal_the_library(kind, how, build_tower, pixels, same):
    depth = 3
    encoder = build_tower(kind, layers=tuple(range(depth + 1)), norm=False)
    encoder.set_attention(how)
    model = library(kind, encoder.state_dict(), how)
    for size in [(32, 32)] if kind in FIXED else [(32, 32), (24, 48)]:
        images = pixels(*size)
        with torch.no_grad():
            features = encoder(images)
        states = [flat(kind, state, 2) for state in outputs(kind, model, images).hidden_states]
        if kind == "ovis2_vision":  # its last one is tied to the normed one
            features = features.with_tokens(features.tokens[..., : 32 * depth])
            states.pop()
        expected = torch.cat(states, dim=-1)
        count = PREFIX.get(kind, 0)
        assert features.grid == (size[0] // 8, size[1] // 8)
        same(features.tokens, expected[:, count:])
        assert (features.extra is None) == (count == 0)
        if count:
            same(features.extra, expected[:, :count])


TOKENS_ARE_NOT_NORMED = {"clip_vision_model", "kosmos_2_vision_model", "metaclip_2_vision_model", "mlcd_vision_model"}
HAVE_NO_NORM = {"molmo2_vision", "pixtral", "radio"}


@pytest.mark.parametrize("kind", VITS)
def test_default_is_last_hidden_state(kind, build_tower, pixels, same):
    encoder = build_tower(kind)
    model = library(kind, encoder.state_dict())
    images = pixels(32)
    out = outputs(kind, model, images)
    with torch.no_grad():
        found = everything(encoder(images))
        assert encoder.norm == (kind not in TOKENS_ARE_NOT_NORMED | HAVE_NO_NORM)
        if kind == "llama4_vision_model":  # what it yields has gone through its adapter
            found, expected = model.vision_adapter(found[:, 1:]), out.last_hidden_state
        elif kind == "ovis2_vision":  # and here by four into the head
            blocks = found.reshape(2, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(2, 4, 128)
            found, expected = (
                torch.cat([blocks, model.head_norm(model.head_linear(blocks)).softmax(-1)], -1),
                torch.cat([out.last_hidden_state, out.pooler_output], -1),
            )
        else:
            expected = flat(kind, out.last_hidden_state, 2)
    same(found, expected)


@pytest.mark.parametrize(
    "kind", sorted(TOKENS_ARE_NOT_NORMED | {"blip_2_vision_model", "dinov3_vit", "idefics2_vision"})
)
def test_norm_of_any_layer(kind, build_tower, pixels, same):
    encoder = build_tower(kind, layers=(1, -1), norm=True)
    model = library(kind, encoder.state_dict())
    final = {"dinov3_vit": "norm", "kosmos_2_vision_model": "model.post_layernorm"}.get(kind, "post_layernorm")
    states = outputs(kind, model, pixels(32)).hidden_states
    with torch.no_grad():
        expected = torch.cat([model.get_submodule(final)(states[layer]) for layer in (1, -1)], dim=-1)
        same(everything(encoder(pixels(32))), expected)


@pytest.mark.parametrize("kind", ALL)
def test_contract(kind, build_tower, check_contract):
    other = {"hiera": (96, 64), "swin": (62, 90), "pixtral": (48, 16)}.get(kind, (64, 96))
    check_contract(build_tower(kind), sizes=[] if kind in FIXED or kind == "radio" else [other])


@pytest.mark.parametrize("kind", sorted(PREFIX))
def test_prefix_keep(kind, build_tower, pixels, same, check_contract):
    kept, dropped = build_tower(kind, prefix="keep"), build_tower(kind)
    with torch.no_grad():
        features, apart = kept(pixels(32)), dropped(pixels(32))
    assert (features.grid, features.extra, kept.prefix) == (None, None, PREFIX[kind])
    same(features.tokens, everything(apart))
    check_contract(kept)


@pytest.mark.parametrize("kind", ["siglip_vision_model", "convnext"])
def test_prefix_keep_without_one_keeps_the_tokens_as_they_come(kind, build_tower, pixels, same):
    kept, dropped = build_tower(kind, prefix="keep"), build_tower(kind)
    side = SIZES.get(kind, 32)
    with torch.no_grad():
        features = kept(pixels(side))
        same(features.tokens, dropped(pixels(side)).tokens)
    assert (kept.prefix, features.grid, kept.resolved()["prefix"]) == (0, dropped.grid((side, side)), "keep")


HEADS = {
    "siglip_vision_model": {"head"},
    "siglip2_vision_model": {"head"},
    "aimv2_vision_model": {"head"},
    "llama4_vision_model": {"vision_adapter"},
    "ovis2_vision": {"head_linear", "head_norm"},
    "sam2_vision_model": {"neck"},
    "hiera": {"pooler"},
    "qwen3_vl_vision": {"merger", "deepstack_merger_list"},
}


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind in HEADS])
def test_heads_are_kept_or_left_out(kind, build_tower, pixels, same, check_contract):
    side = SIZES.get(kind, 32)
    whole, bare = build_tower(kind), build_tower(kind, head=False)
    lacking = set(whole.state_dict()) - set(bare.state_dict())
    assert {name.split(".")[1] for name in lacking} == HEADS[kind]
    bare.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        same(bare(pixels(side)).tokens, whole(pixels(side)).tokens, atol=0)
    assert whole.resolved()["head"] is True
    off = bare.resolved()["config"].get("vision_use_head", True)  # a config that can say it itself does
    assert bare.resolved()["head"] is not off
    check_contract(bare)


@pytest.mark.parametrize(
    ("layers", "norm", "expected"), [((1,), True, [0]), ((0,), False, []), ((-1,), False, [0, 1, 2])]
)
def test_nothing_behind_the_deepest_layer_runs(layers, norm, expected, build_tower, pixels):
    encoder, ran = build_tower("siglip_vision_model", layers=layers, norm=norm), []
    for index, block in enumerate(encoder.model.encoder.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for part in (encoder.model.head, *([] if norm else [encoder.model.post_layernorm])):
        part.register_forward_hook(lambda *_: pytest.fail("the head or norm ran"))
    encoder(pixels(32))
    assert ran == expected


@pytest.mark.parametrize("kind", ["clip_vision_model", "idefics2_vision", "pixtral"])
def test_gradients_and_checkpointing(kind, build_tower, pixels, same):
    side = SIZES.get(kind, 32)
    found = []
    for again in (False, True):
        encoder = build_tower(kind, layers=(-2,) if kind == "clip_vision_model" else (-1,)).train()
        if again:
            encoder.model.gradient_checkpointing_enable()
        encoder(pixels(side)).tokens.square().sum().backward()
        found.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    for name, gradient in found[0].items():
        same(found[1][name], gradient, atol=1e-4)
    unused = {name for name, _ in build_tower(kind).named_parameters()} - found[0].keys()
    if kind == "clip_vision_model":
        assert {name.partition(".layers.")[2].partition(".")[0] for name in unused} == {"2", ""}  # block and norm


def test_statistics(build_tower):
    means = {"clip_vision_model": CLIP_MEAN, "dinov3_vit": IMAGENET_MEAN, "siglip2_vision_model": HALF}
    for kind, mean in {**means, "radio": (0.0, 0.0, 0.0)}.items():
        assert build_tower(kind).image.mean == mean
    assert build_tower("idefics3_vision").image.interpolation == "lanczos"
    assert build_tower("siglip2_vision_model", size=None).image.size == (32, 32)  # 16 patches of 8 pixels


@pytest.mark.parametrize(
    ("kind", "options", "place", "text"),
    [
        ("dinov3_vit", {"layers": (4,)}, "layers", "no layer 4: 3 blocks give layers 0 to 3"),
        ("convnext", {"layers": (-1, -2)}, "layers", "one grid.*layer -1: 2x2, layer -2: 4x4"),
        ("convnext", {"layers": (1,), "norm": True}, "norm", "the last stage's width"),
        ("pixtral", {"norm": True}, "norm", "a `pixtral` has no final norm; use `norm: false`"),
        ("aimv2_vision_model", {"size": (64, 32)}, "size", "a `aimv2_vision_model` cannot take 64x32 pixels"),
        ("siglip2_vision_model", {"size": 36}, "size", "height 36 is not a multiple .* 8 pixels; the nearest is 32"),
        ("florence_vision", {"size": None}, "size", "its config tells none"),
        ("qwen2_vl_vision", {"size": 36}, "size", "height 36 is not a multiple .* 8 pixels; the nearest is 32"),
    ],
)  # fmt: skip
def test_mistakes(kind, options, place, text, build_tower):
    with pytest.raises(ConfigError, match=text) as caught:
        build_tower(kind, **options)
    assert caught.value.problems[0].place == place


def test_a_size_is_refused_when_it_comes_as_well(build_tower, pixels):
    encoder = build_tower("aimv2_vision_model")
    with pytest.raises(ConfigError, match="a `aimv2_vision_model` cannot take 64x32 pixels"):
        encoder(pixels(64, 32))
    assert encoder.grid((32, 32)) == (4, 4)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"model_type": "llama"}, "cannot be an encoder|tells none"),
        ({"model_type": "mllama_vision_model", "image_size": 28}, "asks for aspect_ratio_ids, aspect_ratio_mask"),
        ({"model_type": "vit_mae", **VIT}, "lie on no grid"),
        ({"model_type": "yolos"}, "detection tokens stand behind the patches"),
        ({"model_type": "siglip_vision"}, "did you mean `siglip_vision_model`"),
        ({}, "model_type: is missing"),
    ],
)
def test_no_encoders(config, text):
    with pytest.raises(ConfigError, match=text), planning():
        Tower(config=config)


def test_a_vit_outside_the_table(pixels, same):
    """Families of the usual form need no entry."""
    from transformers import AutoConfig, AutoModel

    for kind in ("vit", "beit", "deit", "ijepa"):
        encoder = Tower(config={"model_type": kind, **VIT}).eval()
        model = AutoModel.from_config(AutoConfig.for_model(kind, **VIT)).eval()
        model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in encoder.state_dict().items()})
        with torch.no_grad():
            same(everything(encoder(pixels(32))), model(pixels(32)).last_hidden_state)


def test_examples_of_the_docs():
    """Options exist, and what needs no weights can be built."""
    page = (Path(__file__).parents[2] / "docs/encoders.md").read_text(encoding="utf8")
    examples = [yaml.safe_load(block)["encoders"] for block in re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)]
    assert len(examples) >= 4
    for part in [part for example in examples for part in (example if isinstance(example, list) else [example])]:
        name = part.pop("name")
        options = check_options(registry.encoders.get(name), part)
        if "config" in part:
            with planning():
                assert registry.encoders.get(name)(**options).width == 32
    for name in registry.encoders:
        assert f"`{name}`" in page
