"""Tile policies: pixels of whole image processors at small sizes, grids and offsets of their functions at real ones."""

import numpy as np
import pytest
import torch
from transformers.models.cohere2_vision import image_processing_cohere2_vision as cohere2
from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as got
from transformers.models.idefics3 import image_processing_pil_idefics3 as idefics3
from transformers.models.llama4 import image_processing_llama4 as llama4
from transformers.models.llava_next import image_processing_pil_llava_next as llava_next
from transformers.models.llava_onevision import image_processing_pil_llava_onevision as onevision
from transformers.models.mllama import image_processing_pil_mllama as mllama
from transformers.models.ovis2 import image_processing_pil_ovis2 as ovis2
from transformers.models.perception_lm import image_processing_perception_lm as perception_lm

from tests.conftest import picture
from tests.encoders.sweep import SMALL, cell_order, check_pixels, colours, empty, noise, row_by_row, sweep
from vlm.encoders.crops import OverlappingCrops
from vlm.encoders.slices import Slices
from vlm.encoders.tiles import AnyRes, CanvasTiles, CoveringTiles, EdgeTiles, RoomyTiles, Tiles
from vlm.errors import ConfigError
from vlm.views import ImageSpec, View

T = 16
RAW = {"do_rescale": False, "do_normalize": False}
SQUARE = {"height": T, "width": T}
PINPOINTS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]


def grid_of(views: list[View]) -> tuple[int, int]:
    """(rows, columns) of the tiles; (1, 1) where a single view has no cell."""
    found = [view.cell for view in views if view.cell is not None]
    return max((row for row, _ in found), default=0) + 1, max((column for _, column in found), default=0) + 1


def canvas(views: list[View]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(resize, offset of the image on the canvas of all tiles), which every tile must agree on."""
    tiles = [view for view in views if view.cell is not None] or views
    cells = [view.cell or (0, 0) for view in tiles]
    corners = {
        (view.offset[0] + row * view.size[0], view.offset[1] + column * view.size[1])
        for view, (row, column) in zip(tiles, cells, strict=True)
    }
    assert len(corners) == len({view.resize for view in tiles}) == 1
    return tiles[0].resize, corners.pop()


class TestTiles:
    def test_pixels_are_those_of_internvl_and_got(self):
        for least, most in ((1, 12), (1, 6), (3, 5)):
            reference = got.GotOcr2ImageProcessorPil(
                size=SQUARE, crop_to_patches=True, min_patches=least, max_patches=most, **RAW
            )
            policy = Tiles(min_tiles=least, max_tiles=most)
            for size in SMALL:
                image = noise(size)
                expected = reference(image)["pixel_values"]
                views = policy.plan(size, (T, T))
                check_pixels(colours(views, image), expected)
                rows, columns = grid_of(views)
                assert cell_order(views) == ([None] if len(views) == 1 else [*row_by_row(rows, columns), None])

    @pytest.mark.parametrize(("least", "most"), [(1, 12), (1, 6), (4, 9), (1, 40)])
    def test_grids_at_real_sizes(self, least, most):
        policy = Tiles(min_tiles=least, max_tiles=most)
        for size in sweep(448, 9000):
            columns, rows = got.get_optimal_tiled_canvas(size, (448, 448), least, most)
            views = policy.plan(size, (448, 448))
            assert grid_of(views) == (rows, columns), size
            assert canvas(views) == ((rows * 448, columns * 448), (0, 0))
            assert len(views) == rows * columns + (rows * columns > 1)

    @pytest.mark.parametrize("size", [(12, 15), (15, 12), (800, 1000), (1000, 800), (600, 750)])
    def test_halfway_between_two_grids_of_equal_size(self, size):
        columns, rows = got.get_optimal_tiled_canvas(size, (448, 448), 2, 2)
        assert grid_of(Tiles(min_tiles=2, max_tiles=2).plan(size, (448, 448))) == (rows, columns)

    def test_thumbnail(self):
        assert cell_order(Tiles(thumbnail="first").plan((16, 32), (T, T))) == [None, (0, 0), (0, 1)]
        assert cell_order(Tiles(thumbnail="none").plan((16, 32), (T, T))) == [(0, 0), (0, 1)]

    def test_tiles_of_another_shape_than_square(self):
        """16 x 32 pixels a tile: an image of 1 : 2 is one tile, one of 1 : 1 two rows of it."""
        assert grid_of(Tiles(max_tiles=3).plan((100, 200), (16, 32))) == (1, 1)
        assert grid_of(Tiles(max_tiles=3).plan((200, 200), (16, 32))) == (2, 1)


class TestAnyRes:
    def test_pixels_are_those_of_llava_next(self):
        reference = llava_next.LlavaNextImageProcessorPil(
            size={"shortest_edge": T},
            crop_size=SQUARE,
            image_grid_pinpoints=[[rows * T, columns * T] for rows, columns in PINPOINTS],
            do_pad=False,
            **RAW,
        )
        for size in SMALL:
            image = noise(size)
            views = AnyRes().plan(size, (T, T))
            check_pixels(colours(views, image), reference(image)["pixel_values"][0])
            assert cell_order(views) == [None, *row_by_row(*grid_of(views))]

    def test_pixels_are_those_of_llava_onevision(self):
        mean = (0.48145466, 0.4578275, 0.40821073)
        pinpoints = [[rows * T, columns * T] for rows in range(1, 7) for columns in range(1, 7)]
        reference = onevision.LlavaOnevisionImageProcessorPil(
            size=SQUARE, image_grid_pinpoints=pinpoints, image_mean=list(mean), do_pad=False, **RAW
        )
        policy = AnyRes(grids=6, several="pad")
        spec = ImageSpec((T, T), mean, (1.0, 1.0, 1.0))
        for size in SMALL[::2]:
            image = noise(size)
            check_pixels(colours(policy.among(1).plan(size, (T, T)), image), reference(image)["pixel_values"][0])
            expected = reference([[image, image]])["pixel_values"]
            (view,) = policy.among(2).plan(size, (T, T))
            check_pixels([np.asarray(view.draw(image, spec)).transpose(2, 0, 1)], expected[0])
            assert view.cell is None

    @pytest.mark.parametrize(
        ("tile", "policy", "pinpoints"),
        [
            (336, AnyRes(), PINPOINTS),
            (384, AnyRes(grids=6), [[rows, columns] for rows in range(1, 7) for columns in range(1, 7)]),
        ],
    )
    def test_grids_and_padding_at_real_sizes(self, tile, policy, pinpoints):
        resolutions = [[rows * tile, columns * tile] for rows, columns in pinpoints]
        processor = llava_next.LlavaNextImageProcessorPil()
        for size in sweep(tile, 9000):
            best = llava_next.select_best_resolution(size, resolutions)
            resize = llava_next.get_patch_output_size(empty(size), best, "channels_first")
            (top, _), (left, _) = processor._get_padding_size(resize, best)
            views = policy.plan(size, (tile, tile))
            assert grid_of(views) == (best[0] // tile, best[1] // tile), size
            assert canvas(views) == (resize, (top, left)), size

    def test_among_several(self):
        assert isinstance(AnyRes().among(5), AnyRes)
        policy = AnyRes(several="pad")
        assert policy.among(1) is policy

    def test_a_tile_that_shows_nothing_says_so(self):
        views = AnyRes(grids=((3, 3),)).plan((1, 300), (T, T))
        assert [view.cell for view in views[1:] if view.valid[0] < view.valid[2]] == [(1, 0), (1, 1), (1, 2)]
        assert all(
            0 <= low <= high <= T for view in views for low, high in zip(view.valid[:2], view.valid[2:], strict=True)
        )


class TestCanvasTiles:
    @pytest.mark.parametrize("most", [4, 7])
    def test_pixels_are_those_of_mllama(self, most):
        reference = mllama.MllamaImageProcessorPil(size=SQUARE, max_image_tiles=most, **RAW)
        for size in SMALL:
            image = noise(size)
            found = reference([[image]])
            views = CanvasTiles(max_tiles=most).plan(size, (T, T))
            count = found["num_tiles"][0][0]
            assert len(views) == count
            check_pixels(colours(views, image, "bilinear"), found["pixel_values"][0, 0, :count])
            ratios = mllama.get_all_supported_aspect_ratios(most)
            assert grid_of(views) == ratios[found["aspect_ratio_ids"][0, 0] - 1]
            assert cell_order(views) == ([None] if count == 1 else row_by_row(*grid_of(views)))

    def test_geometry_of_mllama_at_real_sizes(self):
        for size in sweep(560, 9000):
            high, wide = (int(side) for side in mllama.get_optimal_tiled_canvas(*size, 4, 560))
            resize = tuple(int(side) for side in mllama.get_image_size_fit_to_canvas(*size, high, wide, 560))
            views = CanvasTiles().plan(size, (560, 560))
            assert grid_of(views) == (high // 560, wide // 560), size
            assert canvas(views) == (resize, (0, 0)), size

    @staticmethod
    def llama4(size, tile, most):
        """(grid, resize) by the functions of the reference, put together as it does."""
        resolutions = torch.tensor(
            sorted(
                {(rows * tile, columns * tile) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)}
            )
        )
        best = [int(side) for side in llama4.get_best_fit(size, resolutions)]
        target = tuple(min(max(side, tile), limit) for side, limit in zip(size, best, strict=True))
        resize = llama4.get_max_res_without_distortion(size, target)
        return (best[0] // tile, best[1] // tile), (max(resize[0], 1), max(resize[1], 1))

    def test_geometry_of_llama_4_at_real_sizes(self):
        for size in sweep(336, 9000):
            grid, resize = self.llama4(size, 336, 16)
            views = CanvasTiles(max_tiles=16, thumbnail="last").plan(size, (336, 336))
            assert grid_of(views) == grid, size
            assert canvas(views) == (resize, (0, 0)), size
            assert cell_order(views) == ([None] if grid == (1, 1) else [*row_by_row(*grid), None])

    def test_pixels_are_nearly_those_of_llama_4(self):
        """It resamples tensors, without Pillow's rounding between the two directions."""
        reference = llama4.Llama4ImageProcessor(size=SQUARE, max_patches=16, **RAW)
        for size in [(40, 90), (16, 16), (1, 50), (70, 33), (12, 9)]:
            image = picture(size=size[::-1])
            views = CanvasTiles(max_tiles=16, thumbnail="last").plan(size, (T, T))
            expected = reference(image, return_tensors="pt")["pixel_values"]
            check_pixels(colours(views, image, "bilinear"), list(expected.float().numpy()), atol=2.01)

    def test_geometry_of_command_a_vision(self):
        for size in sweep(512, 9000):
            columns, rows = cohere2.get_optimal_tiled_canvas(size, (512, 512), 1, 12)
            views = CanvasTiles(max_tiles=12, thumbnail="last", keep_aspect=False).plan(size, (512, 512))
            assert grid_of(views) == (rows, columns), size
            assert canvas(views) == ((rows * 512, columns * 512), (0, 0))
            assert len(views) == rows * columns + (rows * columns > 1)


class TestCoveringTiles:
    def test_pixels_are_those_of_ovis_2_in_transformers(self):
        reference = ovis2.Ovis2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=9, **RAW)
        policy = CoveringTiles(keep_aspect=False, transpose=True)
        for size in SMALL:
            image = noise(size)
            found = reference(image)
            views = policy.plan(size, (T, T))
            check_pixels(colours(views, image), found["pixel_values"])
            assert list(grid_of(views)) == found["grids"][0]

    def test_grids_at_real_sizes(self):
        for size in sweep(448, 9000):
            rows, columns = ovis2.get_min_tile_covering_grid(size, 448, 9, 0.9)
            for policy in (CoveringTiles(), CoveringTiles(keep_aspect=False)):
                views = policy.plan(size, (448, 448))
                assert grid_of(views) == (rows, columns), size
                assert cell_order(views) == ([None] if len(views) == 1 else [None, *row_by_row(rows, columns)])

    @pytest.mark.parametrize("size", [(61, 112), (112, 61), (1000, 1000), (448, 17), (3, 9000)])
    def test_the_whole_at_real_sizes(self, size):
        """The published arithmetic gives 243, not 244, for 61 / 112 * 448."""
        height, width = size
        resize = (int(height / width * 448), 448) if width >= height else (448, int(width / height * 448))
        whole = CoveringTiles().plan(size, (448, 448))[0]
        assert (whole.resize, whole.valid[:2]) == (
            (max(1, resize[0]), max(1, resize[1])),
            ((448 - max(1, resize[0])) // 2, (448 - max(1, resize[1])) // 2),
        )

    def test_pixels_are_those_of_ovis_as_published(self):
        """Cut by `Image.crop`, each part resampled and padded by itself."""
        mean = (0.2, 0.4, 0.6)
        spec = ImageSpec((T, T), mean, (1.0, 1.0, 1.0))
        for size in SMALL:
            image = noise(size)
            rows, columns = ovis2.get_min_tile_covering_grid(size, T, 9, 0.9)
            boxes = ovis2.split_image_into_grid(*size, (rows, columns))
            parts = [image.crop(box) for box in boxes]
            expected = [self.letterboxed(part, mean) for part in ([image] if len(parts) == 1 else [image, *parts])]
            found = [view.draw(image, spec) for view in CoveringTiles().plan(size, (T, T))]
            check_pixels([np.asarray(one).transpose(2, 0, 1) for one in found], expected)

    @staticmethod
    def letterboxed(image, mean):
        width, height = image.size
        if width > height:
            new_width, new_height = T, max(1, int(height / width * T))
        else:
            new_width, new_height = (T, T) if width == height else (max(1, int(width / height * T)), T)
        found = np.empty((T, T, 3), dtype=np.uint8)
        found[:] = [int(255 * channel) for channel in mean]
        top, left = (T - new_height) // 2, (T - new_width) // 2
        found[top : top + new_height, left : left + new_width] = np.asarray(image.resize((new_width, new_height), 3))
        return found.transpose(2, 0, 1)


class TestEdgeTiles:
    @pytest.mark.parametrize("longest", [1, 3, 4])
    def test_pixels_are_those_of_idefics_3(self, longest):
        reference = idefics3.Idefics3ImageProcessorPil(
            size={"longest_edge": longest * T}, max_image_size={"longest_edge": T}, do_pad=False, **RAW
        )
        for size in SMALL:
            image = noise(size)
            found = reference(image, return_row_col_info=True)
            views = EdgeTiles(longest=longest).plan(size, (T, T))
            check_pixels(colours(views, image, "lanczos"), found["pixel_values"][0])
            rows, columns = found["rows"][0][0], found["cols"][0][0]  # 0 and 0 where it is not split
            assert cell_order(views) == [*row_by_row(rows, columns), None]

    @pytest.mark.parametrize("tile", [364, 512])
    def test_sizes_at_real_sizes(self, tile, monkeypatch):
        """The reference's own resizing, with arrays that take no memory in place of pixels."""
        taken = []

        def resize(self, image, size, **_):
            taken.append((size.height, size.width))
            return empty(taken[-1])

        monkeypatch.setattr(idefics3.PilBackend, "resize", resize)
        processor = idefics3.Idefics3ImageProcessorPil()
        for size in sweep(tile, 9000):
            taken.clear()
            first = processor.resize(empty(size), idefics3.SizeDict(longest_edge=4 * tile))
            second = processor.resize_for_vision_encoder(first, tile)
            frames, rows, columns = processor.split_images(second, {"longest_edge": tile})
            views = EdgeTiles().plan(size, (tile, tile))
            assert [view.size for view in views] == [frame.shape[1:] for frame in frames]
            assert grid_of(views) == (max(rows, 1), max(columns, 1))
            assert [views[0].of.resize, views[0].resize] == taken[:2], size


class TestRoomyTiles:
    @pytest.mark.parametrize(("tile", "most"), [(448, 36), (448, 4), (T, 9)])
    def test_grids_are_those_of_perception_lm(self, tile, most):
        processor = perception_lm.PerceptionLMImageProcessor(tile_size=tile, max_num_tiles=most)
        for height, width in sweep(tile, 9000):
            expected = processor._fit_image_to_canvas(
                img_width=width, img_height=height, tile_size=tile
            ) or processor._find_closest_aspect_ratio(img_width=width, img_height=height, tile_size=tile)
            views = RoomyTiles(max_tiles=most).plan((height, width), (tile, tile))
            assert grid_of(views) == expected[::-1], (height, width)
            assert cell_order(views) == [None, *row_by_row(*grid_of(views))]
            assert canvas(views) == ((expected[1] * tile, expected[0] * tile), (0, 0))

    def test_pixels_are_nearly_those_of_perception_lm(self):
        """It resamples tensors, without Pillow's rounding between the two directions."""
        reference = perception_lm.PerceptionLMImageProcessor(tile_size=T, max_num_tiles=9, **RAW)
        for size in [(40, 90), (16, 16), (1, 50), (70, 33), (12, 9)]:
            image = picture(size=size[::-1])
            expected = reference(image, return_tensors="pt")["pixel_values"][0].numpy()
            check_pixels(colours(RoomyTiles(max_tiles=9).plan(size, (T, T)), image), list(expected), atol=2.01)


@pytest.mark.parametrize(
    ("policy", "options", "place"),
    [
        (Tiles, {"max_tiles": 0}, "max_tiles"),
        (Tiles, {"max_tiles": 3, "min_tiles": 4}, "min_tiles"),
        (AnyRes, {"grids": ()}, "grids"),
        (AnyRes, {"grids": 0}, "grids"),
        (AnyRes, {"grids": ((1, 2), (0, 1))}, "grids"),
        (AnyRes, {"fill": (0, 0, 256)}, "fill"),
        (CanvasTiles, {"max_tiles": -1}, "max_tiles"),
        (CoveringTiles, {"threshold": 1.5}, "threshold"),
        (CoveringTiles, {"transpose": True}, "transpose"),
        (EdgeTiles, {"longest": 0}, "longest"),
        (RoomyTiles, {"max_tiles": 0}, "max_tiles"),
        (Tiles, {"max_tiles": 10**9}, "max_tiles"),  # all ways to arrange them: without a limit, no end
        (AnyRes, {"grids": 10**9}, "grids"),
        (AnyRes, {"grids": ((1, 2), (10**5, 10**5))}, "grids"),
        (CanvasTiles, {"max_tiles": 10**9}, "max_tiles"),
        (CoveringTiles, {"max_tiles": 10**9}, "max_tiles"),
        (EdgeTiles, {"longest": 10**9}, "longest"),
        (RoomyTiles, {"max_tiles": 10**9}, "max_tiles"),
        (OverlappingCrops, {"max_crops": 10**9}, "max_crops"),
        (Slices, {"max_slices": 10**9}, "max_slices"),
    ],
)
def test_options_that_cannot_be(policy, options, place):
    with pytest.raises(ConfigError, match=rf"^{place}: ") as error:
        policy(**options)
    assert "allowed" in str(error.value) or "needs" in str(error.value)
