"""Stitching against transformers' own packing, and against slow loops where transformers has none."""

import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import vlm
from tests.conftest import picture, toy_recipe
from vlm.connectors.stitch import Stitch
from vlm.errors import ConfigError
from vlm.features import Shape
from vlm.packer import ImagePlan
from vlm.sample import ask
from vlm.views import Size, View, Views

WIDTH = 3
SIDE, PATCHES = 336, 6  # of a tile, in pixels and in tokens
NEXT = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
ONEVISION = [(336 * rows, 336 * columns) for rows in range(1, 7) for columns in range(1, 7)]
WIDE = [(336, 672), (336, 1344), (672, 1344), (336, 336)]


def canvas_views(size: Size, best: Size, side: int = SIDE) -> tuple[View, ...]:
    """LLaVA-NeXT's geometry: a squashed thumbnail, and tiles of the image, which is centred on a canvas."""
    scale = min(best[0] / size[0], best[1] / size[1])
    resize = tuple(max(1, min(math.ceil(own * scale), most)) for own, most in zip(size, best, strict=True))
    offset = [(most - own) // 2 for own, most in zip(resize, best, strict=True)]
    tiles = [
        View(resize, (side, side), (offset[0] - row * side, offset[1] - column * side), (row, column))  # type: ignore[arg-type]
        for row in range(best[0] // side)
        for column in range(best[1] // side)
    ]
    return View((side, side), (side, side)), *tiles


def anyres(size: Size, pinpoints: list[Size]) -> ImagePlan:
    from transformers.image_processing_utils import select_best_resolution

    return ImagePlan(size, (canvas_views(size, select_best_resolution(size, pinpoints)),))


def sizes(number: int, seed: int) -> list[Size]:
    """Image sizes of all aspects, odd ones and exact fits among them."""
    random = np.random.default_rng(seed)
    drawn = [tuple(int(2**power) for power in random.uniform(5, 11.5, 2)) for _ in range(number - 16)]
    drawn += [*inexact(12), *inexact(18)]
    return [*drawn, (336, 336), (672, 671), (1000, 1001), (480, 640), (20, 2000), (2000, 21)]  # type: ignore[list-item]


@cache
def inexact(columns: int) -> list[Size]:
    """Sizes whose height in tokens is a whole number that floating point falls short of: a row more would go."""
    found = []
    for width in range(31, 700):
        for height in range(3, width):
            length = height * (columns / width)
            if int(length) != round(length, 7) == int(round(length, 7)) and (columns - int(length)) % 2 == 0:
                found.append((height, width))
    return found[:5]


def reference(kind: str, features: Tensor, size: Size, pinpoints: list[Size], newline: Tensor | None) -> Tensor:
    from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    vision = SimpleNamespace(image_size=SIDE, patch_size=SIDE // PATCHES)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints))
    given: dict[str, Any] = {"image_newline": newline}
    if kind == "next":
        packed, _ = LlavaNextModel.pack_image_features(model, [features], [size], "full", **given)  # type: ignore[arg-type]
    else:
        given["vision_aspect_ratio"] = kind
        packed, _ = LlavaOnevisionModel.pack_image_features(model, [features], [size], **given)  # type: ignore[arg-type]
    return packed[0]  # type: ignore[no-any-return]


def reference_count(kind: str, size: Size, pinpoints: list[Size]) -> int:
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

    processor: Any = object.__new__(LlavaNextProcessor if kind == "next" else LlavaOnevisionProcessor)
    processor.image_processor = SimpleNamespace(image_grid_pinpoints=pinpoints)
    processor.patch_size, processor.num_additional_image_tokens = SIDE // PATCHES, 0
    processor.num_image_tokens, processor.vision_aspect_ratio = PATCHES**2, kind
    return int(processor._get_number_of_features(*size, SIDE, SIDE))


@pytest.mark.parametrize("pinpoints", [NEXT, ONEVISION, WIDE], ids=["next", "onevision", "wide"])
@pytest.mark.parametrize(("kind", "most"), [("next", None), ("anyres_max_9", 9), ("anyres_max_2", 2)])
def test_tokens_and_counts_are_those_of_llava(kind: str, most: int | None, pinpoints: list[Size]) -> None:
    packer, plain, padded = Stitch(WIDTH, max_tiles=most), Stitch(WIDTH), Stitch(WIDTH, unpad=False)
    shape = Shape(PATCHES**2, WIDTH, (PATCHES, PATCHES))
    unpadded = shrunk = 0
    for size in sizes(80, seed=len(pinpoints)):
        image = anyres(size, pinpoints)
        tokens = torch.randn(image.count, PATCHES**2, WIDTH)
        shapes = [shape] * image.count
        packed = packer(list(tokens), shapes, image)
        assert torch.equal(packed, reference(kind, tokens, size, pinpoints, packer.newline)), size
        runs = packer.runs(shapes, image)
        assert [run.shows for run in runs] == ["whole", "tiles"]
        assert len(packed) == sum(run.shape.tokens for run in runs) == reference_count(kind, size, pinpoints), size
        counts = [sum(run.shape.tokens for run in one.runs(shapes, image)) for one in (packer, plain, padded)]
        shrunk += counts[0] < counts[1]
        unpadded += counts[1] < counts[2]
    assert unpadded > 20
    assert (shrunk > 5) == (most == 2 or (most == 9 and pinpoints == ONEVISION))


@pytest.mark.parametrize("newline", [True, False])
def test_image_of_one_view_ends_with_a_newline(newline: bool) -> None:
    """OneVision's sample of several images too: each has one view."""
    packer = Stitch(WIDTH, newline="tiles" if newline else "none")
    image = ImagePlan((50, 70), ((View((SIDE, SIDE), (SIDE, SIDE)),),))
    tokens = torch.randn(1, 36, WIDTH)
    for shape in (Shape(36, WIDTH, (6, 6)), Shape(36, WIDTH)):  # it needs no grid
        packed = packer(list(tokens), [shape], image)
        assert torch.equal(packed, reference("next", tokens, (50, 70), NEXT, packer.newline))
        (run,) = packer.runs([shape], image)
        assert (run.shows, run.shape.tokens) == ("whole", 36 + newline)


@pytest.mark.parametrize("last", [True, False])
def test_thumbnail_stands_where_the_views_have_it(last: bool) -> None:
    whole, *tiles = canvas_views((500, 600), (672, 672))
    views = (*tiles, whole) if last else (whole, *tiles)
    packer = Stitch(WIDTH)
    tokens = list(torch.randn(5, 36, WIDTH))
    shapes = [Shape(36, WIDTH, (6, 6))] * 5
    packed = packer(tokens, shapes, ImagePlan((500, 600), (views,)))
    runs = packer.runs(shapes, ImagePlan((500, 600), (views,)))
    assert [run.shows for run in runs] == (["tiles", "whole"] if last else ["whole", "tiles"])
    thumbnail = packed[-36:] if last else packed[:36]
    assert torch.equal(thumbnail, tokens[-1 if last else 0])


def test_order_of_the_tiles_does_not_matter() -> None:
    whole, *tiles = canvas_views((500, 600), (672, 672))
    packer, shapes = Stitch(WIDTH), [Shape(36, WIDTH, (6, 6))] * 5
    tokens = torch.randn(5, 36, WIDTH)
    straight = packer(list(tokens), shapes, ImagePlan((500, 600), ((whole, *tiles),)))
    shuffled = [0, 3, 1, 4, 2]
    views = tuple((whole, *tiles)[number] for number in shuffled)
    assert torch.equal(packer(list(tokens[shuffled]), shapes, ImagePlan((500, 600), (views,))), straight)


def test_squashed_tiles_have_no_padding_to_remove() -> None:
    """InternVL's tiles: LLaVA's rule would take the image for a narrow one and cut it."""
    whole = View((SIDE, SIDE), (SIDE, SIDE))
    tiles = [
        View((672, 672), (SIDE, SIDE), (-336 * row, -336 * column), (row, column))
        for row in (0, 1)
        for column in (0, 1)
    ]
    image = ImagePlan((900, 300), ((whole, *tiles),))
    (_, run) = Stitch(WIDTH, newline="none").runs([Shape(36, WIDTH, (6, 6))] * 5, image)
    assert run.shape == Shape(144, WIDTH, (12, 12))


def test_padding_on_one_side_is_refused() -> None:
    tiles = [View((336, 500), (SIDE, SIDE), (0, -336 * column), (0, column)) for column in (0, 1)]
    image, shapes = ImagePlan((336, 500), (tuple(tiles),)), [Shape(36, WIDTH, (6, 6))] * 2
    with pytest.raises(ConfigError, match=r"not the same on both sides.*unpad: false"):
        Stitch(WIDTH).runs(shapes, image)
    (run,) = Stitch(WIDTH, unpad=False).runs(shapes, image)
    assert run.shape.grid == (6, 13)


@pytest.mark.parametrize("tiles", [(2, 3), None])
def test_unlimited_ocr(tiles: tuple[int, int] | None) -> None:
    """Newlines in every view, tiles first, and a learned end."""
    module = pytest.importorskip("transformers.models.unlimited_ocr.modeling_unlimited_ocr")
    rows, columns = tiles or (0, 0)
    whole, parts = torch.randn(1, 16, WIDTH), torch.randn(rows * columns, 9, WIDTH)
    packer = Stitch(WIDTH, unpad=False, newline="all", end=True)
    features = iter([whole, parts])
    model = SimpleNamespace(
        config=SimpleNamespace(return_dict=True),
        vision_tower=lambda _: SimpleNamespace(last_hidden_state=next(features), hidden_states=None, attentions=None),
        multi_modal_projector=lambda hidden: hidden,
        image_newline=packer.newline,
        view_separator=packer.end,
    )
    given = {"pixel_values_local": parts, "num_local_patches": [rows * columns], "patches_grid": [[columns, rows]]}
    undecorated: Any = module.UnlimitedOcrModel.get_image_features
    while hasattr(undecorated, "__wrapped__"):
        undecorated = undecorated.__wrapped__
    wanted = undecorated(model, whole, **(given if tiles else {})).pooler_output[0]
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    views = [View((96, 96 * 2), (96, 96), (0, 0), cell) for cell in cells]
    image = ImagePlan((100, 200), ((*views, View((128, 128), (128, 128))),))
    shapes = [Shape(9, WIDTH, (3, 3))] * len(views) + [Shape(16, WIDTH, (4, 4))]
    packed = packer([*parts, *whole], shapes, image)
    assert torch.equal(packed, wanted)
    assert len(packed) == sum(run.shape.tokens for run in packer.runs(shapes, image))


class TestOverlap:
    """Molmo's crops: each sees a margin of its neighbours, whose tokens are used once."""

    CROP, PATCH, MARGINS = 84, 14, (1, 2)

    def plan(self, size: Size, low: bool = True) -> ImagePlan:
        molmo = pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")  # not in older releases
        rows, columns, *canvas = molmo.compute_crop_geometry(*size, 8, list(self.MARGINS), self.CROP, self.PATCH)
        crop, (before, behind) = self.CROP, (margin * self.PATCH for margin in self.MARGINS)
        window = crop - before - behind
        views = [View((crop, crop), (crop, crop))] * low
        for row in range(rows):
            for column in range(columns):
                keep = (
                    before if row else 0,
                    before if column else 0,
                    crop - behind if row < rows - 1 else crop,
                    crop - behind if column < columns - 1 else crop,
                )
                offset = (-row * window, -column * window)
                views.append(View(tuple(canvas), (crop, crop), offset, (row, column), keep=keep))  # type: ignore[arg-type]
        return ImagePlan(size, (tuple(views),))

    @pytest.mark.parametrize("size", [(60, 60), (100, 200), (200, 90), (150, 151), (400, 300), (84, 500)])
    def test_tokens_are_molmo2s(self, size: Size) -> None:
        """The reference: its own index of patches, pooled one by one."""
        molmo = pytest.importorskip("transformers.models.molmo2.image_processing_molmo2")
        processor = molmo.Molmo2ImageProcessor(
            size={"height": self.CROP, "width": self.CROP},
            patch_size=self.PATCH,
            overlap_margins=list(self.MARGINS),
            pooling_size=[1, 1],
        )
        found = processor(picture(0, size[::-1]), return_tensors="pt")
        image = self.plan(size)
        patches = (self.CROP // self.PATCH) ** 2
        assert int(found["image_num_crops"][0]) == image.count
        tokens = torch.arange(image.count * patches).reshape(image.count, patches, 1).float()
        shapes = [Shape(patches, 1, (6, 6))] * image.count
        packer = Stitch(1, newline="none")
        assert (
            packer(list(tokens), shapes, image).squeeze(1).tolist() == found["image_token_pooling"].squeeze(1).tolist()
        )
        runs = packer.runs(shapes, image)
        assert [side for run in runs for side in run.shape.grid or ()] == found["image_grids"][0].tolist()
        assert [run.shows for run in runs] == ["whole", "tiles"]

    def test_without_a_packer_they_are_refused(self) -> None:
        from vlm.connector import Chain

        image = self.plan((100, 200))
        with pytest.raises(ConfigError, match=r"packer: .*overlap.*allowed: stitch"):
            Chain([[]], None, []).runs([Shape(36, WIDTH, (6, 6))] * image.count, image)

    def test_margin_within_a_token_is_refused(self) -> None:
        image = self.plan((100, 200))
        with pytest.raises(ConfigError, match="begins or ends within a token"):
            Stitch(WIDTH).runs([Shape(9, WIDTH, (3, 3))] * image.count, image)


@pytest.mark.parametrize(
    ("shapes", "cells", "message"),
    [
        ([Shape(4, WIDTH)] * 2, [(0, 0), (0, 1)], "4 tokens on none"),
        ([Shape(3, WIDTH, (2, 2))] * 2, [(0, 0), (0, 1)], r"3 tokens on one of \(2, 2\)"),
        ([Shape(4, WIDTH, (2, 2))] * 3, [(0, 0), (0, 1), (1, 0)], "fill no rectangle"),
        ([Shape(4, WIDTH, (2, 2))] * 2, [(0, 0), (0, 0)], "fill no rectangle"),
        ([Shape(4, WIDTH, (2, 2)), Shape(6, WIDTH, (3, 2))], [(0, 0), (0, 1)], "do not fit side by side"),
    ],
)
def test_what_makes_no_map_is_refused(shapes: list[Shape], cells: list[Size], message: str) -> None:
    views = tuple(View((10, 10), (10, 10), cell=cell) for cell in cells)
    with pytest.raises(ConfigError, match=message):
        Stitch(WIDTH, unpad=False).runs(shapes, ImagePlan((10, 10), (views,)))


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_tiles: `0`; allowed: 1 or more"):
        Stitch(WIDTH, max_tiles=0)


class Quarters(Views):
    """Two by two tiles on a centred canvas, for a model to be built with."""

    def plan(self, image: Size, size: Size) -> list[View]:
        return list(canvas_views(image, (2 * size[0], 2 * size[1]), size[0]))


def test_view_of_which_a_part_is_used_may_be_whole() -> None:
    """Its lines are those of the part."""
    packer = Stitch(WIDTH, newline="all")
    image = ImagePlan((9, 9), ((View((8, 8), (8, 8), keep=(2, 0, 8, 4)),),))
    tokens = torch.randn(16, WIDTH)
    rows = [torch.cat([tokens[4 * row : 4 * row + 2], packer.newline[None]]) for row in (1, 2, 3)]  # type: ignore[index]
    shape = Shape(16, WIDTH, (4, 4))
    assert torch.equal(packer([tokens], [shape], image), torch.cat(rows))
    assert packer.runs([shape], image)[0].shape == Shape(9, WIDTH, (3, 3))


def test_model_learns_its_newline(tmp_path: Path) -> None:
    model = vlm.assemble(toy_recipe(views={"name": f"{__name__}:Quarters"}, packer={"name": "stitch", "max_tiles": 2}))
    samples = [ask("What?", [picture(0, (40, 20))]), ask("And?", [picture(1, (30, 30)), picture(2, (9, 40))])]
    batch = model.processor(samples)
    vision = model.encode(batch)
    assert vision is not None
    assert list(vision.counts) == [model.processor.tokens(*size) for size in ((20, 40), (30, 30), (40, 9))]
    assert len(set(vision.counts)) > 1
    model(batch).logits.square().mean().backward()
    gradient = model.connector.packer.newline.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    model.eval()
    again = vlm.load(model.save(tmp_path / "model")).eval()
    assert torch.equal(again(again.processor(samples)).logits, model(batch).logits)
