"""Any vision tower of transformers against the library called directly, every parameter perturbed."""

import re
from pathlib import Path

import pytest
import torch
import yaml

from tests.encoders.toy_towers import ABSENT, CONFIGS, FIXED, PREFIX, SIZES, VIT, cut, flat, library, outputs
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


@pytest.fixture
def build(perturb):
    def _build(kind, **options):
        torch.manual_seed(0)
        config = {"model_type": kind, **CONFIGS[kind]}
        return perturb(Tower(config=config, **{"size": SIZES.get(kind, 32)} | options))

    return _build


def everything(features):
    return features.tokens if features.extra is None else torch.cat([features.extra, features.tokens], dim=1)


def test_every_family_in_the_table_is_tested():
    assert set(CONFIGS) == {kind for kind, family in FAMILIES.items() if not family.refused}


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", VITS)
def test_hidden_states_equal_the_library(kind, how, build, pixels, same):
    depth = 3
    encoder = build(kind, layers=tuple(range(depth + 1)), norm=False)
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
def test_default_is_last_hidden_state(kind, build, pixels, same):
    encoder = build(kind)
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
def test_norm_of_any_layer(kind, build, pixels, same):
    encoder = build(kind, layers=(1, -1), norm=True)
    model = library(kind, encoder.state_dict())
    final = {"dinov3_vit": "norm", "kosmos_2_vision_model": "model.post_layernorm"}.get(kind, "post_layernorm")
    states = outputs(kind, model, pixels(32)).hidden_states
    with torch.no_grad():
        expected = torch.cat([model.get_submodule(final)(states[layer]) for layer in (1, -1)], dim=-1)
        same(everything(encoder(pixels(32))), expected)


@pytest.mark.parametrize("kind", ["convnext", "convnextv2", "dinov3_convnext", "swin", "swinv2"])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_stages_equal_the_library(kind, size, build, pixels, same):
    images = pixels(*size)
    for layer in range(4 if kind.startswith("swin") else 5):
        encoder = build(kind, layers=(layer,), norm=False)
        model = library(kind, encoder.state_dict())
        state = outputs(kind, model, images).hidden_states[layer]
        with torch.no_grad():
            features = encoder(images)
        first = 1 if kind == "dinov3_convnext" else 4
        step = {0: first}.get(layer, 4 * 2 ** (layer - 1)) if "convnext" in kind else 4 * 2 ** min(layer, 2)
        assert features.grid == (size[0] // step, size[1] // step)
        same(features.tokens, flat(kind, state, 2))


def test_sizes_that_a_pyramid_pads(build, pixels, same):
    encoder = build("swin")
    model = library("swin", encoder.state_dict())
    with torch.no_grad():
        features = encoder(pixels(62, 90))
        same(features.tokens, model(pixels(62, 90)).last_hidden_state)
    assert features.grid == (4, 6)  # 62 / 4, 90 / 4 and then twice by 2, each rounded up


@pytest.mark.parametrize("kind", ["swin", "swinv2", "dinov3_convnext"])
def test_norm_of_the_last_stage(kind, build, pixels, same):
    encoder = build(kind)
    model = library(kind, encoder.state_dict())
    expected = outputs(kind, model, pixels(64)).last_hidden_state
    with torch.no_grad():
        found = encoder(pixels(64))
    same(found.tokens, expected[:, 1:] if kind == "dinov3_convnext" else expected)  # whose first is the mean
    with torch.no_grad():
        pooled = build("convnext", norm=True)
        tokens = pooled(pixels(64)).tokens
        last = library("convnext", pooled.state_dict())(pixels(64)).last_hidden_state
        same(tokens, pooled.model.layernorm(flat("convnext", last, 2)))


@pytest.mark.parametrize("kind", ["sam2_hiera_det_model", "sam2_vision_model"])
@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_stages_of_sam2(kind, size, build, pixels, same):
    model = library(kind, build(kind).state_dict())
    with torch.no_grad():
        trunk = model.backbone if kind == "sam2_vision_model" else model
        stages = trunk(pixels(*size)).intermediate_hidden_states
        for layer, stage in enumerate(stages, start=1):
            features = build(kind, layers=(layer,))(pixels(*size))
            assert (
                features.grid == tuple(stage.shape[1:3]) == (size[0] // 2 ** (layer + 1), size[1] // 2 ** (layer + 1))
            )
            same(features.tokens, stage.flatten(1, 2))
        encoder = build(kind)
        same(encoder(pixels(*size)).tokens, model(pixels(*size)).last_hidden_state.flatten(1, 2))
    with pytest.raises(ConfigError, match="no layer 5: 4 blocks"):
        build(kind, layers=(5,))


def test_hiera_is_put_in_raster_order(build, pixels, same):
    model = library("hiera", build("hiera").state_dict())
    states = model(pixels(64), output_hidden_states=True).reshaped_hidden_states
    for layer, state in enumerate(states):
        with torch.no_grad():
            features = build("hiera", layers=(layer,))(pixels(64))
        assert features.grid == tuple(state.shape[1:3])
        same(features.tokens, state.flatten(1, 2))


def test_hiera_at_another_size(build, pixels):
    """The library puts its own size alone in order: here a change of one place must show at that place."""
    encoder = build("hiera", layers=(0,))
    images = pixels(96, 64, views=1)
    changed = images.clone()
    changed[:, :, 40:44, 20:24] += 1
    with torch.no_grad():
        difference = (encoder(changed).tokens - encoder(images).tokens).abs().sum(-1)[0]
    assert encoder.grid((96, 64)) == (24, 16)
    assert divmod(int(difference.argmax()), 16) == (10, 5)


def test_davit(build, pixels, same):
    encoder = build("florence_vision")
    model = library("florence_vision", encoder.state_dict())
    for size in ((64, 64), (64, 96)):
        with torch.no_grad():
            features = encoder(pixels(*size))
            expected = model(pixels(*size)).last_hidden_state
        assert features.grid == tuple(expected.shape[2:])
        same(features.tokens, expected.flatten(2).transpose(1, 2))


def test_a_padded_batch_of_idefics(build, pixels, same):
    """Images of several sizes, padded and masked in one batch, give what each gives alone."""
    for kind in ("idefics2_vision", "idefics3_vision", "smolvlm_vision"):
        encoder = build(kind)
        model = library(kind, encoder.state_dict())
        small, large = pixels(24, 40, views=1), pixels(48, 32, views=1)
        batch, mask = torch.zeros(2, 3, 48, 40), torch.zeros(2, 6, 5, dtype=torch.bool)
        batch[0, :, :24, :40], batch[1, :, :48, :32] = small[0], large[0]
        mask[0, :3, :5], mask[1, :6, :4] = True, True
        with torch.no_grad():
            expected = model(pixel_values=batch, patch_attention_mask=mask).last_hidden_state
            for image, row, valid in ((small, expected[0], mask[0]), (large, expected[1], mask[1])):
                same(encoder(image).tokens[0], row[valid.flatten()])


def test_pixels_that_fill_no_patch_are_left_out_by_idefics(build, pixels, same):
    encoder = build("idefics2_vision")
    model = library("idefics2_vision", encoder.state_dict())
    with torch.no_grad():
        features = encoder(pixels(37, 50))
        same(features.tokens, model(pixel_values=pixels(37, 50)).last_hidden_state)
    assert features.grid == (4, 6)


def test_a_packed_batch_of_pixtral(build, pixels, same):
    encoder = build("pixtral")
    model = library("pixtral", encoder.state_dict())
    small, large = pixels(24, 40, views=1), pixels(48, 32, views=1)
    batch = torch.zeros(2, 3, 48, 40)
    batch[0, :, :24, :40], batch[1, :, :48, :32] = small[0], large[0]
    with torch.no_grad():
        packed = model(batch, image_sizes=[(24, 40), (48, 32)]).last_hidden_state[0]
        same(torch.cat([encoder(small).tokens[0], encoder(large).tokens[0]]), packed)


def test_a_padded_batch_of_siglip2(build, pixels, same):
    encoder = build("siglip2_vision_model")
    model = library("siglip2_vision_model", encoder.state_dict())
    small, large = pixels(24, 40, views=1), pixels(48, 32, views=1)
    patches, mask = torch.zeros(2, 24, 192), torch.zeros(2, 24, dtype=torch.long)
    patches[0, :15], patches[1] = cut(small, 8)[0], cut(large, 8)[0]
    mask[0, :15], mask[1] = 1, 1
    with torch.no_grad():
        expected = model(patches, pixel_attention_mask=mask, spatial_shapes=torch.tensor([[3, 5], [6, 4]]))
        same(encoder(small).tokens[0], expected.last_hidden_state[0, :15])
        same(encoder(large).tokens[0], expected.last_hidden_state[1])


def groups(images, config):
    """The places (image, row, column) of patches in the order in which a merger takes them, and the patches."""
    side, merge = config.patch_size, config.spatial_merge_size
    places = [
        (n, top + row, left + column)
        for n in range(len(images))
        for top in range(0, images.shape[2] // side, merge)
        for left in range(0, images.shape[3] // side, merge)
        for row in range(merge)
        for column in range(merge)
    ]
    cut = [images[n, :, r * side : r * side + side, c * side : c * side + side] for n, r, c in places]
    return places, torch.stack([torch.stack([one, one], dim=1).flatten() for one in cut])


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_grouped_patches(kind, size, how, build, pixels, same):
    """Qwen's ViTs: the merger, applied to the kit's tokens put back into groups, gives what the library gives."""
    encoder = build(kind)
    encoder.set_attention(how)
    model = library(kind, encoder.state_dict(), how)
    places, patches = groups(pixels(*size), model.config)
    grid = [size[0] // 4, size[1] // 4]
    with torch.no_grad():
        out = model(patches, grid_thw=torch.tensor([[1, *grid]] * 2), output_hidden_states=True)
        features = encoder(pixels(*size))
        assert features.grid == tuple(grid)
        grouped = torch.stack([features.tokens[n, row * grid[1] + column] for n, row, column in places])
        same(model.merger(grouped), out.pooler_output)
        for layer in (0, 1, 2):
            raw = build(kind, layers=(layer,))(pixels(*size)).tokens
            grouped = torch.stack([raw[n, row * grid[1] + column] for n, row, column in places])
            if layer == 0 and not kind.startswith("qwen3"):  # which has embedded positions too
                same(grouped, model.patch_embed(patches))
            if kind != "qwen2_5_vl_vision":  # whose tokens are in order of windows there
                same(grouped, out.hidden_states[layer])
            if kind.startswith("qwen3") and layer:
                same(model.deepstack_merger_list[layer - 1](grouped), out.deepstack_features[layer - 1])


@pytest.mark.parametrize("kind", ALL)
def test_contract(kind, build, check_contract):
    other = {"hiera": (96, 64), "swin": (62, 90), "pixtral": (48, 16)}.get(kind, (64, 96))
    check_contract(build(kind), sizes=[] if kind in FIXED or kind == "radio" else [other])


@pytest.mark.parametrize("kind", sorted(PREFIX))
def test_prefix_keep(kind, build, pixels, same, check_contract):
    kept, dropped = build(kind, prefix="keep"), build(kind)
    with torch.no_grad():
        features, apart = kept(pixels(32)), dropped(pixels(32))
    assert (features.grid, features.extra, kept.prefix) == (None, None, PREFIX[kind])
    same(features.tokens, everything(apart))
    check_contract(kept)


@pytest.mark.parametrize("kind", ["siglip_vision_model", "convnext"])
def test_prefix_keep_without_one_keeps_the_tokens_as_they_come(kind, build, pixels, same):
    kept, dropped = build(kind, prefix="keep"), build(kind)
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
def test_heads_are_kept_or_left_out(kind, build, pixels, same, check_contract):
    side = SIZES.get(kind, 32)
    whole, bare = build(kind), build(kind, head=False)
    lacking = set(whole.state_dict()) - set(bare.state_dict())
    assert {name.split(".")[1] for name in lacking} == HEADS[kind]
    bare.load_state_dict(whole.state_dict(), strict=False)
    with torch.no_grad():
        same(bare(pixels(side)).tokens, whole(pixels(side)).tokens, atol=0)
    assert (whole.resolved()["head"], bare.resolved()["head"]) == (True, False)
    check_contract(bare)


@pytest.mark.parametrize(
    ("layers", "norm", "expected"), [((1,), True, [0]), ((0,), False, []), ((-1,), False, [0, 1, 2])]
)
def test_nothing_behind_the_deepest_layer_runs(layers, norm, expected, build, pixels):
    encoder, ran = build("siglip_vision_model", layers=layers, norm=norm), []
    for index, block in enumerate(encoder.model.encoder.layers):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    for part in (encoder.model.head, *([] if norm else [encoder.model.post_layernorm])):
        part.register_forward_hook(lambda *_: pytest.fail("the head or norm ran"))
    encoder(pixels(32))
    assert ran == expected


@pytest.mark.parametrize("kind", ["clip_vision_model", "idefics2_vision", "pixtral"])
def test_gradients_and_checkpointing(kind, build, pixels, same):
    side = SIZES.get(kind, 32)
    found = []
    for again in (False, True):
        encoder = build(kind, layers=(-2,) if kind == "clip_vision_model" else (-1,)).train()
        if again:
            encoder.model.gradient_checkpointing_enable()
        encoder(pixels(side)).tokens.square().sum().backward()
        found.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) > 20
    for name, gradient in found[0].items():
        same(found[1][name], gradient, atol=1e-4)
    unused = {name for name, _ in build(kind).named_parameters()} - found[0].keys()
    if kind == "clip_vision_model":
        assert {name.partition(".layers.")[2].partition(".")[0] for name in unused} == {"2", ""}  # block and norm


def test_statistics(build):
    means = {"clip_vision_model": CLIP_MEAN, "dinov3_vit": IMAGENET_MEAN, "siglip2_vision_model": HALF}
    for kind, mean in {**means, "radio": (0.0, 0.0, 0.0)}.items():
        assert build(kind).image.mean == mean
    assert build("idefics3_vision").image.interpolation == "lanczos"
    assert build("siglip2_vision_model", size=None).image.size == (32, 32)  # 16 patches of 8 pixels


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
def test_mistakes(kind, options, place, text, build):
    with pytest.raises(ConfigError, match=text) as caught:
        build(kind, **options)
    assert caught.value.problems[0].place == place


def test_a_size_is_refused_when_it_comes_as_well(build, pixels):
    encoder = build("aimv2_vision_model")
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
