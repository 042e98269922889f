"""Keep-aspect policies for encoders of any size, against the image processors and their functions."""

import math

import numpy as np
import pytest
from transformers.models.fuyu import image_processing_pil_fuyu as fuyu
from transformers.models.idefics2 import image_processing_pil_idefics2 as idefics2
from transformers.models.pixtral import image_processing_pil_pixtral as pixtral
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as qwen2_vl

from tests.encoders.sweep import SMALL, check_pixels, colours, empty, noise, sweep
from vlm.encoders.native import Fit, Native
from vlm.errors import ConfigError
from vlm.views import View

RAW = {"do_rescale": False, "do_normalize": False}


class TestFitLikePixtral:
    @staticmethod
    def vanishes(size, most):
        """Where the reference reduces a side to nothing and fails; ours keeps one pixel, so one patch."""
        ratio = max(size) / most
        return ratio > 1 and math.floor(min(size) / ratio) == 0

    def test_pixels(self):
        reference = pixtral.PixtralImageProcessorPil(
            size={"longest_edge": 48}, patch_size={"height": 4, "width": 4}, do_pad=False, **RAW
        )
        sizes = [size for size in SMALL if not self.vanishes(size, 48)]
        assert len(sizes) >= 200
        for size in sizes:
            image = noise(size)
            views = Fit(multiple=4).plan(size, (48, 48))
            check_pixels(colours(views, image), reference(image)["pixel_values"])

    @pytest.mark.parametrize(("most", "multiple"), [(1024, 16), (1540, 28)])
    def test_sizes_at_real_sizes(self, most, multiple):
        compared = 0
        for size in sweep(most // 3, 9000):
            (view,) = Fit(multiple=multiple).plan(size, (most, most))
            assert view.cell is None
            if self.vanishes(size, most):
                assert sorted(view.size) == [multiple, math.ceil(most / multiple) * multiple]
                continue
            compared += 1
            expected = pixtral.get_resize_output_image_size(empty(size), most, multiple, "channels_first")
            assert view == View(expected, expected), size
        assert compared >= 200


class TestFitLikeFuyu:
    BOX, PATCH = {"height": 24, "width": 40}, {"height": 4, "width": 4}
    POLICY = Fit(multiple=4, align="pad", fill=(1, 1, 1))

    @staticmethod
    def vanishes(size, box):
        return int(min(size) * min(1, box[0] / size[0], box[1] / size[1])) == 0

    def test_pixels(self):
        """The reference pads to the whole box and cuts that to the patches which show something."""
        reference = fuyu.FuyuImageProcessorPil(size=self.BOX, patch_size=self.PATCH, **RAW)
        sizes = [size for size in SMALL if not self.vanishes(size, (24, 40))]
        assert len(sizes) >= 200
        for size in sizes:
            image = noise(size)
            found = reference(image)
            height, width = found["image_unpadded_heights"][0][0], found["image_unpadded_widths"][0][0]
            shown = [math.ceil(side / 4) * 4 for side in (height, width)]
            expected = np.asarray(found["images"][0][0])[:, : shown[0], : shown[1]]
            views = self.POLICY.plan(size, (24, 40))
            check_pixels(colours(views, image, "bilinear"), [expected])
            assert views[0].valid == (0, 0, height, width)

    def test_sizes_at_real_sizes(self, monkeypatch):
        monkeypatch.setattr(fuyu.PilBackend, "resize", lambda self, image, size, **_: empty((size.height, size.width)))
        reference = fuyu.FuyuImageProcessorPil()
        policy = Fit(multiple=30, align="pad")
        for size in sweep(360, 9000):
            (view,) = policy.plan(size, (1080, 1920))
            expected = reference.resize(empty(size), fuyu.SizeDict(height=1080, width=1920)).shape[1:]
            assert view.resize == tuple(max(1, side) for side in expected), size  # the reference fails at zero
            assert view.size == tuple(math.ceil(side / 30) * 30 for side in view.resize)
            assert view.offset == (0, 0)


class TestFitLikeIdefics2:
    @pytest.mark.parametrize("quarters", [False, True])
    def test_pixels(self, quarters):
        reference = idefics2.Idefics2ImageProcessorPil(
            size={"shortest_edge": 12, "longest_edge": 40}, do_image_splitting=quarters, do_pad=False, **RAW
        )
        policy = Fit(multiple=1, align="cut", min_side=12, quarters=quarters)
        sizes = [size for size in SMALL if min(size) > 1 or not quarters]
        for size in sizes:
            image = noise(size)
            views = policy.plan(size, (40, 40))
            check_pixels(colours(views, image, "bilinear"), reference(image)["pixel_values"][0])
            assert [view.cell for view in views] == ([(0, 0), (0, 1), (1, 0), (1, 1)] if quarters else []) + [None]

    def test_sizes_at_real_sizes(self):
        """What a patch convolution does not reach is cut off."""
        limits = idefics2.SizeDict(shortest_edge=378, longest_edge=980)
        for size in sweep(490, 9000):
            (view,) = Fit(align="cut", min_side=378).plan(size, (980, 980))
            height, width = idefics2.get_resize_output_image_size(empty(size), limits)
            assert view == View((height, width), (height // 14 * 14, width // 14 * 14), fill=(0, 0, 0)), size

    def test_a_line_of_one_pixel_has_no_quarters(self):
        policy = Fit(align="cut", min_side=378, quarters=True)
        assert [len(policy.plan(size, (980, 980))) for size in [(1, 500), (500, 1), (1, 1), (2, 500)]] == [1, 1, 1, 5]

    def test_a_side_below_one_patch_is_padded_to_it(self):
        (view,) = Fit(align="cut").plan((3, 100), (980, 980))
        assert (view.resize, view.size, view.valid) == ((3, 100), (14, 98), (0, 0, 3, 98))


class TestNative:
    def test_pixels(self):
        reference = qwen2_vl.Qwen2VLImageProcessorPil(
            patch_size=2, merge_size=2, temporal_patch_size=1, size={"shortest_edge": 64, "longest_edge": 1600}, **RAW
        )
        policy = Native(multiple=4, min_pixels=64, max_pixels=1600)
        for size in SMALL:
            image = noise(size)
            (view,) = policy.plan(size, (40, 40))
            found = reference(image)
            rows, columns = np.asarray(found["image_grid_thw"])[0, 1:]
            assert view.size == (rows * 2, columns * 2)
            # the reference's patches stand in groups of 2 x 2
            patches = np.asarray(found["pixel_values"]).reshape(rows // 2, columns // 2, 2, 2, 3, 2, 2)
            expected = patches.transpose(4, 0, 2, 5, 1, 3, 6).reshape(3, *view.size)
            check_pixels(colours([view], image), [expected])

    @pytest.mark.parametrize(
        ("multiple", "least", "most"),
        [(28, 56 * 56, 28 * 28 * 1280), (32, 65536, 16777216), (8, 512 * 512, 1024 * 1024)],
    )
    def test_sizes_at_real_sizes(self, multiple, least, most):
        policy = Native(multiple=multiple, min_pixels=least, max_pixels=most)
        refused = 0
        for size in sweep(336, 9000):
            if max(size) / min(size) > 200:
                refused += 1
                with pytest.raises(ConfigError, match=f"{size[0]} x {size[1]} pixels .* allowed: 200 times"):
                    policy.plan(size, (336, 336))
                continue
            expected = qwen2_vl.smart_resize(*size, multiple, least, most)
            assert policy.plan(size, (336, 336)) == [View(expected, expected)], size
        assert 0 < refused < 30

    def test_the_encoders_own_area_is_the_most(self):
        (view,) = Native().plan((1000, 1000), (448, 448))
        assert view.size == (448, 448)

    def test_aspect(self):
        assert Native(max_aspect=1).plan((20, 20), (448, 448))
        with pytest.raises(ConfigError, match="allowed: 1 times"):
            Native(max_aspect=1).plan((20, 21), (448, 448))


@pytest.mark.parametrize(
    ("policy", "options", "place"),
    [
        (Fit, {"multiple": 0}, "multiple"),
        (Fit, {"min_side": 0}, "min_side"),
        (Fit, {"fill": (-1, 0, 0)}, "fill"),
        (Native, {"multiple": 0}, "multiple"),
        (Native, {"min_pixels": 0}, "min_pixels"),
        (Native, {"max_pixels": 100}, "max_pixels"),
        (Native, {"max_pixels": 10**9}, "max_pixels"),
        (Native, {"multiple": 10**9}, "multiple"),
        (Native, {"max_aspect": 0.5}, "max_aspect"),
        (Native, {"max_aspect": float("nan")}, "max_aspect"),
    ],
)
def test_options_that_cannot_be(policy, options, place):
    with pytest.raises(ConfigError, match=rf"^{place}: .*allowed"):
        policy(**options)


def test_a_shortest_side_that_the_encoder_cannot_take():
    with pytest.raises(ConfigError, match="min_side: `378`; the encoder takes 224 x 400 pixels"):
        Fit(min_side=378).plan((50, 50), (224, 400))
