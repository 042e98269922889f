"""Raw patches against a slow loop, Fuyu's own processor and a toy model."""

import pytest
import torch

from tests.conftest import picture, toy_recipe
from vlm.encoders.patches import Patches
from vlm.errors import ConfigError
from vlm.parts import set_trainable
from vlm.planning.plan import plan


def by_pixel(image, height, width, order):
    """[3, H, W] -> [T, ...] one number at a time."""
    rows = []
    for top in range(0, image.shape[1], height):
        for left in range(0, image.shape[2], width):
            spots = [(y, x) for y in range(top, top + height) for x in range(left, left + width)]
            if order == "hwc":
                rows.append([image[c, y, x] for y, x in spots for c in range(3)])
            else:
                rows.append([image[c, y, x] for c in range(3) for y, x in spots])
    return torch.tensor(rows)


@pytest.mark.parametrize("order", ["hwc", "chw"])
@pytest.mark.parametrize("patch", [4, (2, 6)])
def test_order(order, patch, pixels, same):
    encoder = Patches(patch=patch, size=(8, 12), order=order)
    height, width = (patch, patch) if isinstance(patch, int) else patch
    images = pixels(8, 12)
    features = encoder(images)
    assert features.grid == (8 // height, 12 // width)
    same(features.tokens, torch.stack([by_pixel(image, height, width, order) for image in images]), atol=0)


def test_equals_fuyu(pixels, same):
    from transformers import FuyuImageProcessor

    processor = FuyuImageProcessor(patch_size={"height": 30, "width": 30})
    images = pixels(60, 90)
    same(Patches(size=(60, 90))(images).tokens, processor.patchify_image(images), atol=0)


def test_a_convolutions_weights_read_chw(pixels, same):
    convolution = torch.nn.Conv2d(3, 7, 4, stride=4, bias=False)
    with torch.no_grad():
        tokens = Patches(patch=4, size=8, order="chw")(pixels(8, 12)).tokens @ convolution.weight.flatten(1).T
        same(tokens, convolution(pixels(8, 12)).flatten(2).transpose(1, 2))


def test_contract():
    encoder = Patches(patch=(8, 16), size=(16, 32), mean=(0.1, 0.2, 0.3), interpolation="bicubic", order="chw")
    assert list(encoder.parameters()) == []
    assert (encoder.width, encoder.shape().tokens, encoder.shape((32, 32)).grid) == (384, 4, (4, 2))
    again = Patches(**encoder.resolved())
    assert (again.image, again.resolved()) == (encoder.image, encoder.resolved())
    encoder.set_attention("eager")


def test_in_a_model(toy, tmp_path):
    import vlm

    model = toy(connector="linear", encoders={"name": "patches", "patch": 8, "size": [16, 24]})
    set_trainable(model, {})
    assert [name for name, _ in model.named_parameters() if name.startswith("encoders")] == []
    said = model.ask(picture(), "What is it?", max_new_tokens=4)
    batch = model.processor([_sample()])
    batch.groups[0].pixels[0] += 0.5
    first, second = model.encode(model.processor([_sample()])), model.encode(batch)
    assert first.counts == (6,)
    assert (first.tokens - second.tokens).abs().max() > 1e-3
    model.save(tmp_path)
    assert vlm.load(tmp_path).ask(picture(), "What is it?", max_new_tokens=4) == said
    assert plan(toy_recipe(encoders="patches", connector="linear")).parameters["encoders.0"] == 0


def _sample():
    from vlm.sample import ask

    return ask("What is it?", [picture()])


@pytest.mark.parametrize(
    ("options", "place", "text"),
    [
        ({"patch": 7, "size": 32}, "size", "height 32 is not a multiple .* 7 pixels; the nearest is 35"),
        ({"patch": 0, "size": 32}, "patch", "`0`; allowed: 1 or more"),
    ],
)
def test_mistakes(options, place, text):
    with pytest.raises(ConfigError, match=text) as caught:
        Patches(**options)
    assert caught.value.problems[0].place == place
