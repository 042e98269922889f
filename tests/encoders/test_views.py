"""Policies of one view, against the image processors; and what holds for every policy."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers.models.aria import image_processing_pil_aria as aria
from transformers.models.clip import image_processing_pil_clip as clip
from transformers.models.deepseek_vl import image_processing_pil_deepseek_vl as deepseek_vl
from transformers.models.deepseek_vl_hybrid import image_processing_pil_deepseek_vl_hybrid as hybrid
from transformers.models.janus import image_processing_pil_janus as janus
from transformers.models.llava import image_processing_pil_llava as llava
from transformers.models.sam import image_processing_pil_sam as sam

from tests.encoders.sweep import SMALL, check_pixels, colours, noise, sweep
from vlm.encoders.views import Crop, Pad, Squash
from vlm.errors import ConfigError
from vlm.registry import views as registry
from vlm.schema import check_options, options
from vlm.views import ImageSpec, View, render

T = 16
RAW = {"do_rescale": False, "do_normalize": False}
SQUARE = {"height": T, "width": T}
MEAN = (0.48145466, 0.4578275, 0.40821073)
SPEC = ImageSpec((T, T), MEAN, (0.2, 0.3, 0.4))
BLACK = (0, 0, 0)


def drawn(policy, image: Image.Image, size=T, spec: ImageSpec = SPEC) -> list[np.ndarray]:
    """The views in colours, [3, H, W], padded with the encoder's mean where nothing else is said."""
    views = policy.plan((image.height, image.width), (size, size))
    return [np.asarray(view.draw(image, spec)).transpose(2, 0, 1) for view in views]


class TestSquash:
    def test_pixels(self):
        for size in SMALL:
            image = noise(size)
            (view,) = Squash().plan(size, (T, 2 * T))
            assert view == View((T, 2 * T), (T, 2 * T))
            expected = np.asarray(image.resize((2 * T, T), Image.Resampling.BICUBIC), dtype=np.float64) / 255
            normalised = ((expected - SPEC.mean) / SPEC.std).transpose(2, 0, 1)
            np.testing.assert_allclose(view.render(image, SPEC).numpy(), normalised, atol=1e-5)


class TestCrop:
    def test_pixels_are_those_of_clip(self):
        reference = clip.CLIPImageProcessorPil(size={"shortest_edge": T}, crop_size=SQUARE, **RAW)
        for size in SMALL:
            image = noise(size)
            check_pixels(drawn(Crop(), image), reference(image)["pixel_values"])

    @pytest.mark.parametrize("side", [224, 336])
    def test_geometry_at_real_sizes(self, side):
        for size in sweep(side, 9000):
            if max(size) / min(size) > 700:
                continue
            longer = int(side * max(size) / min(size))
            resize = (side, longer) if size[0] <= size[1] else (longer, side)
            offset = tuple(-((length - side) // 2) for length in resize)
            assert Crop().plan(size, (side, side)) == [View(resize, (side, side), offset)], size

    @pytest.mark.parametrize(
        ("image", "size", "resize", "offset"),
        [
            ((20, 20), (40, 60), (60, 60), (-10, 0)),
            ((20, 90), (40, 60), (40, 180), (0, -60)),
            ((90, 20), (40, 60), (270, 60), (-115, 0)),
            ((2, 3), (40, 60), (40, 60), (0, 0)),
        ],
    )
    def test_an_encoder_that_is_not_square(self, image, size, resize, offset):
        assert Crop().plan(image, size) == [View(resize, size, offset)]

    def test_a_line_too_thin_to_be_resampled_is_refused(self):
        assert Crop().plan((1, 700), (336, 336))
        with pytest.raises(
            ConfigError, match=r"1 x 5000 pixels is too thin .* 336 x 1680000 pixels; allowed: 89478485"
        ):
            Crop().plan((1, 5000), (336, 336))


class TestPad:
    def test_pixels_are_those_of_llava(self):
        """Padded around its own pixels first."""
        reference = llava.LlavaImageProcessorPil(
            size={"shortest_edge": T}, crop_size=SQUARE, do_pad=True, image_mean=list(MEAN), **RAW
        )
        for size in SMALL:
            image = noise(size)
            check_pixels(drawn(Pad(base="image"), image), reference(image)["pixel_values"])

    @pytest.mark.parametrize("module", [deepseek_vl, janus], ids=["deepseek_vl", "janus"])
    @pytest.mark.parametrize("side", [15, 24, 37])
    def test_pixels_are_those_of_deepseek_vl_and_janus(self, module, side):
        name = {deepseek_vl: "DeepseekVLImageProcessorPil", janus: "JanusImageProcessorPil"}[module]
        square = {"height": side, "width": side}
        reference = vars(module)[name](size=square, image_mean=list(MEAN), **RAW)
        for size in SMALL:
            image = noise(size)
            found = drawn(Pad(min_side=14), image, side)
            expected = reference(image)["pixel_values"][0]
            assert np.array_equal(found[0], expected), size

    def test_pixels_are_those_of_the_hybrid(self):
        """The smaller encoder sees the larger one's padded picture, resampled once more."""
        large = {"height": 48, "width": 48}
        reference = hybrid.DeepseekVLHybridImageProcessorPil(
            size=SQUARE, high_res_size=large, image_mean=list(MEAN), high_res_image_mean=list(MEAN), **RAW
        )
        policy = Pad(base=48, min_side=14)
        for size in SMALL:
            image = noise(size)
            expected = reference(image)
            check_pixels(drawn(policy, image, 48), expected["high_res_pixel_values"])
            check_pixels(drawn(policy, image, T), expected["pixel_values"])
        assert policy.plan((10, 20), (48, 48))[0].of is None

    def test_pixels_are_those_of_sam(self):
        reference = sam.SamImageProcessorPil(
            size={"longest_edge": T}, pad_size=SQUARE, mask_size={"longest_edge": 4}, do_pad=False, **RAW
        )
        policy = Pad(centre=False, rounding="half_up", fill=BLACK)
        compared = 0
        for size in SMALL:
            image = noise(size)
            (view,) = policy.plan(size, (T, T))
            if 0 in reference._get_preprocess_shape(size, T):  # the reference fails; ours keeps one pixel
                assert 1 in view.resize
                continue
            compared += 1
            assert view.resize == reference._get_preprocess_shape(size, T)
            resized = reference(image)["pixel_values"][0]
            expected = np.pad(resized, ((0, 0), (0, T - resized.shape[1]), (0, T - resized.shape[2])))
            check_pixels(drawn(policy, image, spec=replace(SPEC, interpolation="bilinear")), [expected])
        assert compared >= 200

    def test_pixels_are_those_of_aria(self):
        reference = aria.AriaImageProcessorPil(max_image_size=490, **RAW)
        policy = Pad(centre=False, rounding="down", min_side=336, fill=BLACK)
        for size in [*SMALL, (15, 15), (30, 30), (500, 333), (333, 500)]:
            image = noise(size)
            found = reference(image)
            (view,) = policy.plan(size, (490, 490))
            check_pixels(drawn(policy, image, 490), found["pixel_values"])
            top, left, bottom, right = view.valid
            assert found["pixel_mask"][0][top:bottom, left:right].all()
            assert found["pixel_mask"][0].sum() == (bottom - top) * (right - left)

    def test_trimmed_padding_is_what_arias_patches_mask(self):
        """The patches that its mask leaves, and no others, are there; with the same pixels."""
        policy = Pad(centre=False, rounding="down", min_side=336, fill=BLACK, trim=14)
        reference = aria.AriaImageProcessorPil(max_image_size=490, **RAW)
        for size in [*SMALL[::20], (500, 333), (333, 500), (341, 490), (490, 490)]:
            image = noise(size)
            found, (view,) = reference(image), policy.plan(size, (490, 490))
            mask = found["pixel_mask"][0].reshape(35, 14, 35, 14).any(axis=(1, 3))
            rows, columns = view.size[0] // 14, view.size[1] // 14
            assert mask[:rows, :columns].all()
            assert mask.sum() == rows * columns
            check_pixels(drawn(policy, image, 490), [found["pixel_values"][0][:, : view.size[0], : view.size[1]]])

    @pytest.mark.parametrize("side", [980, 490])
    def test_geometry_of_aria_at_real_sizes(self, side):
        policy = Pad(centre=False, rounding="down", min_side=336, fill=BLACK)
        for height, width in sweep(side // 2, 9000):
            shorter = max(int(min(height, width) * (side / max(height, width))), 336)
            resize = (shorter, side) if width >= height else (side, shorter)
            assert policy.plan((height, width), (side, side)) == [View(resize, (side, side), fill=BLACK)]

    @pytest.mark.parametrize(
        ("image", "size", "resize", "offset"),
        [
            ((10, 10), (40, 60), (40, 40), (0, 10)),  # a small image grows
            ((40, 60), (40, 60), (40, 60), (0, 0)),
            ((10, 30), (40, 60), (20, 60), (10, 0)),
            ((1, 1), (40, 60), (40, 40), (0, 10)),
            ((1, 5000), (40, 60), (1, 60), (19, 0)),  # 60 / 5000 of a pixel high
        ],
    )
    def test_an_encoder_that_is_not_square(self, image, size, resize, offset):
        assert Pad().plan(image, size) == [View(resize, size, offset)]
        assert Pad(centre=False).plan(image, size) == [View(resize, size)]

    def test_around_the_image_for_an_encoder_that_is_not_square(self):
        (view,) = Pad(base="image").plan((20, 20), (40, 60))
        assert view == View((40, 60), (40, 60), of=View((20, 20), (20, 30), (0, 5)))
        (view,) = Pad(base="image").plan((10, 60), (40, 60))
        assert view == View((10, 60), (40, 60), (15, 0))

    def test_a_square_too_large_to_be_made_is_not_made(self):
        assert Pad(base="image").plan((1, 9459), (T, T))[0].of is not None  # 9459 ** 2 are under 2 ** 30 / 12
        assert Pad(base="image").plan((1, 9460), (T, T)) == Pad().plan((1, 9460), (T, T))

    def test_padding_with_the_mean_is_zero(self):
        (view,) = Pad().plan((10, 40), (40, 40))
        pixels = view.render(noise((10, 40)), SPEC)
        assert pixels[:, :15].abs().max() < 0.02  # the mean, cut to a whole colour
        assert pixels[:, 15:25].abs().max() > 1

    @pytest.mark.parametrize(
        ("given", "place"),
        [
            ({"min_side": 0}, "min_side"),
            ({"base": 0}, "base"),
            ({"base": 10**6}, "base"),
            ({"fill": (1, 2, 300)}, "fill"),
        ],
    )
    def test_options_that_cannot_be(self, given, place):
        with pytest.raises(ConfigError, match=rf"^{place}: .*allowed"):
            Pad(**given)

    def test_a_shortest_side_that_does_not_fit(self):
        with pytest.raises(ConfigError, match="min_side: `20`; the view has 16 x 16 pixels"):
            Pad(min_side=20).plan((5, 5), (T, T))


POLICIES = {
    "squash": {},
    "pad": {"base": "image", "fill": [1, 2, 3]},
    "crop": {},
    "fit": {"multiple": 8, "align": "cut", "quarters": True},
    "native": {"multiple": 8, "min_pixels": 64},
    "tiles": {"min_tiles": 2, "max_tiles": 6, "thumbnail": "first"},
    "anyres": {"grids": [[1, 2], [3, 3]], "several": "pad"},
    "canvas_tiles": {"max_tiles": 9, "thumbnail": "last"},
    "covering_tiles": {"threshold": 0.8},
    "edge_tiles": {"longest": 3},
    "roomy_tiles": {"max_tiles": 9},
    "slices": {"max_slices": 6, "multiple": 8},
    "overlapping_crops": {"patch": 8, "margins": [1, 1], "max_crops": 5},
}


def policy(name):
    part = registry.get(name)
    return part(**check_options(part, json.loads(json.dumps(POLICIES[name]))))


def test_every_registered_policy_is_here():
    assert set(POLICIES) == set(registry)


def test_the_page_of_the_docs_has_every_policy_with_its_options():
    page = (Path(__file__).parents[2] / "docs" / "views.md").read_text(encoding="utf8")
    rows = [line.split("|") for line in page.partition("## Odd images")[0].splitlines() if line.startswith("| `")]
    told = {row[1].strip(" `"): re.findall(r"`(\w+): ([^`]+)`", row[3]) for row in rows}
    assert set(told) == set(registry)
    for name, pairs in told.items():
        part = registry.get(name)
        values = check_options(part, {key: yaml.safe_load(value) for key, value in pairs})
        assert values == {key: parameter.default for key, parameter in options(part).items()}


@pytest.mark.parametrize("name", POLICIES)
class TestEveryPolicy:
    @pytest.mark.parametrize("size", [(0, 20), (20, 0), (0, 0)])
    def test_an_image_without_area_is_refused(self, name, size):
        for one in (policy(name), registry.get(name)(), policy(name).among(3)):
            with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} pixels shows nothing; allowed: 1 x 1"):
                one.plan(size, (336, 336))

    def test_every_plan_is_sound(self, name):
        for size in SMALL:
            if name == "native" and max(size) > 100 * min(size):
                continue
            views = policy(name).plan(size, (32, 32))
            cells = [view.cell for view in views if view.cell is not None]
            assert cells == sorted(set(cells))
            assert len(views) - len(cells) <= 1
            assert len(views) > 1 or not cells
            for view in views:
                top, left, bottom, right = view.valid
                assert min(view.resize) >= 1
                assert min(view.size) >= 1
                assert 0 <= top <= bottom <= view.size[0]
                assert 0 <= left <= right <= view.size[1]
                if name not in ("fit", "native", "slices"):
                    assert view.size == (32, 32)
            assert any((bottom - top) * (right - left) for top, left, bottom, right in (view.valid for view in views))

    @pytest.mark.parametrize("size", [(70, 45), (9, 33), (1, 40), (64, 64)])
    def test_views_rendered_together_are_views_rendered_alone(self, name, size):
        image = noise(size)
        views = policy(name).plan(size, (32, 32))
        for together, view in zip(render(views, image, SPEC), views, strict=True):
            assert together.shape == (3, *view.size)
            np.testing.assert_array_equal(together.numpy(), view.render(image, SPEC).numpy())


def test_colours_are_what_the_encoder_gets():
    """The helper by which the other tests compare pixels, against an obvious rendering."""
    image = noise((20, 30))
    (found,) = colours(Squash().plan((20, 30), (T, T)), image)
    expected = np.asarray(image.resize((T, T), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
