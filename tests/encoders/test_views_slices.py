"""MiniCPM-V's slices and Molmo's overlapping crops."""

import math
from inspect import signature

import numpy as np
import pytest
import torch
from transformers.models.minicpmv4_6 import image_processing_pil_minicpmv4_6 as minicpm

from tests.conftest import picture
from tests.encoders.sweep import SMALL, cell_order, check_pixels, colours, noise, row_by_row, sweep
from vlm.encoders.crops import OverlappingCrops
from vlm.encoders.slices import Slices
from vlm.errors import ConfigError
from vlm.views import View

RAW = {"do_rescale": False, "do_normalize": False}


class TestSlicesLikeMiniCpmV46:
    def test_pixels(self):
        """Patches of 2, merged by 4 and by 4: multiples of 8 for slices of about 16 x 16."""
        reference = minicpm.MiniCPMV4_6ImageProcessorPil(scale_resolution=16, patch_size=2, max_slice_nums=9, **RAW)
        for size in SMALL:
            image = noise(size)
            found = reference(image)
            views = Slices(multiple=8).plan(size, (16, 16))
            check_pixels(colours(views, image), self.unpacked(found))
            rows, columns = found["grids"][0]  # 0 and 0 without slices
            assert cell_order(views) == [None, *row_by_row(rows, columns)]

    @staticmethod
    def unpacked(found):
        """The reference's views lie behind one another, as strips of patches."""
        strips, images = np.asarray(found["pixel_values"])[0], []
        for rows, columns in np.asarray(found["target_sizes"]):
            strip, strips = np.split(strips, [rows * columns * 2], axis=-1)
            patches = strip.reshape(3, 2, rows, columns, 2)
            images.append(patches.transpose(0, 2, 1, 3, 4).reshape(3, rows * 2, columns * 2))
        assert strips.size == 0
        return images

    @pytest.mark.parametrize(("mode", "multiple"), [("16x", 56), ("4x", 28)])
    def test_geometry_at_real_sizes(self, mode, multiple):
        reference = minicpm.MiniCPMV4_6ImageProcessorPil()
        if "downsample_mode" not in signature(reference.find_best_resize).parameters:
            pytest.skip("this release of transformers has one mode only")
        for size in sweep(448, 9000):
            views = Slices(multiple=multiple).plan(size, (448, 448))
            grid = reference.get_sliced_grid(size, 9, 448)
            whole = reference.find_best_resize(size, 448, 14, downsample_mode=mode, allow_upscale=grid is None)
            assert views[0] == View(whole, whole), size
            if grid is None:
                assert len(views) == 1
                continue
            refined = reference.get_refine_size(size, grid, 448, 14, downsample_mode=mode, allow_upscale=True)
            assert cell_order(views) == [None, *row_by_row(*grid)], size
            assert {view.resize for view in views[1:]} == {refined}
            assert {view.size for view in views[1:]} == {(refined[0] // grid[0], refined[1] // grid[1])}


class TestSlicesLikeMiniCpmV2:
    """Versions 2 to 2.6 as published, in a slow loop of our own: all grids, the first of the best, 14-pixel patches."""

    SIDE, MOST, PATCH = 448, 9, 14

    def whole_patches(self, length):
        return max(self.PATCH, self.PATCH * round(length / self.PATCH))

    def brought_to_area(self, width, height):
        ratio = width / height
        new_height = int(self.SIDE / math.sqrt(ratio))
        return self.whole_patches(int(new_height * ratio)), self.whole_patches(new_height)

    def published(self, width, height):
        """[(width, height) of the source], then the slices of each row as (left, top, right, bottom), refined size."""
        wanted = min(math.ceil(width * height / self.SIDE**2), self.MOST)
        if wanted <= 1:
            return self.brought_to_area(width, height), [], None
        best, error = None, None
        for count in range(wanted - 1, wanted + 2):
            for across in range(1, count + 1):
                if count == 1 or count > self.MOST or count % across:
                    continue
                distance = abs(math.log(width / height) - math.log(across / (count // across)))
                if error is None or distance < error:
                    best, error = (across, count // across), distance
        across, down = best
        part_width = max(across, across * round(width / across)) / across
        part_height = max(down, down * round(height / down)) / down
        part = self.brought_to_area(part_width, part_height)
        boxes = [
            (x * part[0], y * part[1], (x + 1) * part[0], (y + 1) * part[1]) for y in range(down) for x in range(across)
        ]
        large = width * height > self.SIDE**2
        source = (
            self.brought_to_area(width, height) if large else (self.whole_patches(width), self.whole_patches(height))
        )
        return source, boxes, (part[0] * across, part[1] * down)

    def test_geometry(self):
        for size in [*sweep(448, 9000), *sweep(224, 3000)]:
            views = Slices().plan(size, (448, 448))
            source, boxes, refined = self.published(size[1], size[0])
            assert views[0] == View(source[::-1], source[::-1]), size
            found = [
                (-view.offset[1], -view.offset[0], view.size[1] - view.offset[1], view.size[0] - view.offset[0])
                for view in views[1:]
            ]
            assert found == boxes, size
            assert all(view.resize == refined[::-1] for view in views[1:])


class TestSlices:
    def test_an_image_of_the_encoders_area_is_not_sliced(self):
        assert len(Slices().plan((448, 448), (448, 448))) == 1
        assert len(Slices().plan((448, 449), (448, 448))) == 3
        assert len(Slices(max_slices=1).plan((4000, 4000), (448, 448))) == 1

    def test_thumbnail(self):
        assert cell_order(Slices(thumbnail="last").plan((448, 896), (448, 448))) == [(0, 0), (0, 1), None]
        assert cell_order(Slices(thumbnail="none").plan((448, 896), (448, 448))) == [(0, 0), (0, 1)]

    def test_a_line_thinner_than_the_rule_reaches_is_one_patch(self):
        assert [view.size for view in Slices().plan((1, 20), (4, 4))] == [(14, 14)] * 4

    @pytest.mark.parametrize("options", [{"max_slices": 0}, {"multiple": 0}])
    def test_options_that_cannot_be(self, options):
        with pytest.raises(ConfigError, match=r"allowed: 1 (or more|to 1000)"):
            Slices(**options)


def kept(views, size):
    """The canvas put together from what the crops keep, as (crop, row, column) of each pixel; each once."""
    crops = [view for view in views if view.cell is not None]
    rows, columns = (max(view.cell[axis] for view in crops) + 1 for axis in (0, 1))
    lines = []
    for row in range(rows):
        parts = []
        for number in range(row * columns, (row + 1) * columns):
            top, left, bottom, right = crops[number].keep
            index = np.stack(np.meshgrid([number], np.arange(size), np.arange(size), indexing="ij"), -1)[0]
            parts.append(index[top:bottom, left:right])
        lines.append(np.concatenate(parts, 1))
    return np.concatenate(lines, 0)


MARGIN = [(112, 1), (112, 112), (112, 700), (700, 112), (111, 3000), (113, 3000), (3000, 112)]
"""Sizes of about the margins, 8 patches of 14 pixels: the image without them has no area."""


class TestCropsLikeMolmo2:
    def test_geometry(self):
        reference = pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")
        policy = OverlappingCrops(max_crops=8, keep_aspect=False)
        for size in [*sweep(266, 6000), *MARGIN]:
            rows, columns, height, width = reference.compute_crop_geometry(*size, 8, [4, 4], 378, 14)
            views = policy.plan(size, (378, 378))
            assert cell_order(views) == [None, *row_by_row(rows, columns)], size
            assert views[0] == View((378, 378), (378, 378))
            assert {view.resize for view in views[1:]} == {(height, width)}
            assert {view.size for view in views[1:]} == {(378, 378)}
            assert [view.offset for view in views[1:]] == [
                (-row * 266, -column * 266) for row, column in row_by_row(rows, columns)
            ]

    @pytest.mark.parametrize("margins", [(4, 4), (1, 2), (0, 0), (0, 3)])
    def test_what_is_kept_is_the_index_map(self, margins):
        """Patches of one pixel, so that the reference's map of patches is a map of pixels."""
        module = pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")
        reference = module.Molmo2ImageProcessor(size={"height": 12, "width": 12})
        policy = OverlappingCrops(max_crops=8, margins=margins, patch=1, keep_aspect=False)
        for size in SMALL[::5]:
            pixels = torch.zeros(1, 3, *size, dtype=torch.uint8)
            _, index = reference._build_overlapping_crops(
                pixels, 8, list(margins), 12, 2, False, 1.0, False, (0.0,) * 3, (1.0,) * 3, 1
            )
            found = kept(policy.plan(size, (12, 12)), 12) @ np.array([144, 12, 1])
            np.testing.assert_array_equal(found, index.numpy())

    def test_pixels_are_nearly_those_of_the_reference_where_it_enlarges(self):
        """It does not smooth what it reduces, so only an enlargement is comparable."""
        module = pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")
        reference = module.Molmo2ImageProcessor(
            size={"height": 24, "width": 24}, patch_size=2, overlap_margins=[2, 2], max_crops=8, **RAW
        )
        policy = OverlappingCrops(max_crops=8, margins=(2, 2), patch=2, keep_aspect=False)
        for size in [(20, 20), (5, 9), (23, 24)]:
            image = picture(size=size[::-1])
            found = reference(image, return_tensors="pt")["pixel_values"].float().numpy()
            expected = found.reshape(-1, 12, 12, 2, 2, 3).transpose(0, 5, 1, 3, 2, 4).reshape(-1, 3, 24, 24)
            check_pixels(colours(policy.plan(size, (24, 24)), image, "bilinear"), list(expected), atol=1.01)


class TestCropsLikeMolmo1:
    """Version 1 as published, in a loop of our own: aspect ratio kept, in single precision, black around it."""

    CROP, PATCH, MARGIN, MOST = 336, 14, 4, 12

    def tiling(self, height, width):
        """The published choice, a candidate after another; margins are taken off the image first."""
        border, window = 2 * self.MARGIN * self.PATCH, self.CROP - 2 * self.MARGIN * self.PATCH
        pairs = [(a, b) for a in range(1, self.MOST + 1) for b in range(1, self.MOST + 1) if a * b <= self.MOST]
        scales = {}
        for pair in pairs:
            with np.errstate(divide="ignore"):
                scales[pair] = np.min(np.float32(pair) * window / (np.float32([height, width]) - border))
        enlarging = {pair: scale for pair, scale in scales.items() if scale >= 1}
        best = min(enlarging.values()) if enlarging else max(scales.values())
        return min((pair for pair in pairs if scales[pair] == best), key=lambda pair: (pair[0] * pair[1], pair[0]))

    @staticmethod
    def placed(height, width, canvas):
        scale = min(np.float32(canvas[0]) / np.float32(height), np.float32(canvas[1]) / np.float32(width))
        resized = max(1, int(np.float32(height) * scale)), max(1, int(np.float32(width) * scale))
        return resized, ((canvas[0] - resized[0]) // 2, (canvas[1] - resized[1]) // 2)

    def test_geometry(self):
        for size in [*sweep(224, 6000), *MARGIN]:
            rows, columns = self.tiling(*size)
            canvas = rows * 224 + 112, columns * 224 + 112
            resize, (top, left) = self.placed(*size, canvas)
            expected = [
                View(
                    resize,
                    (336, 336),
                    (top - row * 224, left - column * 224),
                    (row, column),
                    (0, 0, 0),
                    (
                        56 * (row > 0),
                        56 * (column > 0),
                        336 - 56 * (row < rows - 1),
                        336 - 56 * (column < columns - 1),
                    ),
                )
                for row, column in row_by_row(rows, columns)
            ]
            whole, corner = self.placed(*size, (336, 336))
            views = OverlappingCrops().plan(size, (336, 336))
            assert views[0] == View(whole, (336, 336), corner, fill=(0, 0, 0)), size
            assert views[1:] == expected, size

    def test_what_is_kept_is_the_canvas_once(self):
        for size in SMALL:
            views = OverlappingCrops(margins=(2, 1), patch=2).plan(size, (16, 16))
            large = noise((200, 200))
            crops = [view for view in views if view.cell is not None]
            rows, columns = crops[-1].cell[0] + 1, crops[-1].cell[1] + 1
            canvas = View(crops[0].resize, (rows * 10 + 6, columns * 10 + 6), crops[0].offset)
            whole = colours([canvas], large)[0]
            pieces = colours(crops, large)
            found = kept(views, 16)
            stitched = np.stack([pieces[crop][:, row, column] for crop, row, column in found.reshape(-1, 3)], 1)
            np.testing.assert_allclose(stitched.reshape(whole.shape), whole, atol=1e-4)


class TestCrops:
    @pytest.mark.parametrize("size", [(336, 100), (100, 100), (112, 112), (330, 336)])
    def test_an_encoder_too_small_for_the_margins(self, size):
        with pytest.raises(ConfigError, match="margins: the encoder takes"):
            OverlappingCrops().plan((500, 500), size)

    @pytest.mark.parametrize(
        ("options", "place"),
        [({"max_crops": 0}, "max_crops"), ({"margins": (-1, 2)}, "margins"), ({"patch": 0}, "patch")],
    )
    def test_options_that_cannot_be(self, options, place):
        with pytest.raises(ConfigError, match=rf"^{place}: .*allowed"):
            OverlappingCrops(**options)
