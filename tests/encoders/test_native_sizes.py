"""Towers that take images as they are: the same features as from the library's padded or packed batches."""

import pytest
import torch

from tests.encoders.toy_towers import ABSENT, CONFIGS, cut, library

GROUPED = [kind for kind in CONFIGS if kind.startswith("qwen") and kind not in ABSENT]


def test_a_padded_batch_of_idefics(build_tower, pixels, same):
    """Images of several sizes, padded and masked in one batch, give what each gives alone."""
    for kind in ("idefics2_vision", "idefics3_vision", "smolvlm_vision"):
        encoder = build_tower(kind)
        model = library(kind, encoder.state_dict())
        small, large = pixels(24, 40, views=1), pixels(48, 32, views=1)
        batch, mask = torch.zeros(2, 3, 48, 40), torch.zeros(2, 6, 5, dtype=torch.bool)
        batch[0, :, :24, :40], batch[1, :, :48, :32] = small[0], large[0]
        mask[0, :3, :5], mask[1, :6, :4] = True, True
        with torch.no_grad():
            expected = model(pixel_values=batch, patch_attention_mask=mask).last_hidden_state
            for image, row, valid in ((small, expected[0], mask[0]), (large, expected[1], mask[1])):
                same(encoder(image).tokens[0], row[valid.flatten()])


def test_pixels_that_fill_no_patch_are_left_out_by_idefics(build_tower, pixels, same):
    encoder = build_tower("idefics2_vision")
    model = library("idefics2_vision", encoder.state_dict())
    with torch.no_grad():
        features = encoder(pixels(37, 50))
        same(features.tokens, model(pixel_values=pixels(37, 50)).last_hidden_state)
    assert features.grid == (4, 6)


def test_a_packed_batch_of_pixtral(build_tower, pixels, same):
    encoder = build_tower("pixtral")
    model = library("pixtral", encoder.state_dict())
    small, large = pixels(24, 40, views=1), pixels(48, 32, views=1)
    batch = torch.zeros(2, 3, 48, 40)
    batch[0, :, :24, :40], batch[1, :, :48, :32] = small[0], large[0]
    with torch.no_grad():
        packed = model(batch, image_sizes=[(24, 40), (48, 32)]).last_hidden_state[0]
        same(torch.cat([encoder(small).tokens[0], encoder(large).tokens[0]]), packed)


def test_a_padded_batch_of_siglip2(build_tower, pixels, same):
    encoder = build_tower("siglip2_vision_model")
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
def test_grouped_patches(kind, size, how, build_tower, pixels, same):
    """Qwen's ViTs: the merger, applied to the kit's tokens put back into groups, gives what the library gives."""
    encoder = build_tower(kind)
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
            raw = build_tower(kind, layers=(layer,))(pixels(*size)).tokens
            grouped = torch.stack([raw[n, row * grid[1] + column] for n, row, column in places])
            if layer == 0 and not kind.startswith("qwen3"):  # which has embedded positions too
                same(grouped, model.patch_embed(patches))
            if kind != "qwen2_5_vl_vision":  # whose tokens are in order of windows there
                same(grouped, out.hidden_states[layer])
            if kind.startswith("qwen3") and layer:
                same(model.deepstack_merger_list[layer - 1](grouped), out.deepstack_features[layer - 1])
