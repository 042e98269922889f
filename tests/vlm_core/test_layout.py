"""Layouts: what each template does, and each mistake in them. Published models' texts: tests/parity/test_layouts.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlm
from tests.conftest import picture, toy_recipe
from vlm.errors import ConfigError
from vlm.features import Shape
from vlm.layout import Layout
from vlm.packer import Run
from vlm.processor import SampleError
from vlm.sample import ask
from vlm.views import Size, View, Views


def whole(tokens: int = 2, grid: tuple[int, int] | None = None) -> Run:
    return Run(Shape(tokens, 1, grid), "whole")


def tiles(rows: int, columns: int, tokens: int = 2) -> list[Run]:
    return [Run(Shape(tokens, 1), "tile", (row, column)) for row in range(rows) for column in range(columns)]


STITCHED = Run(Shape(6, 1, (2, 3)), "tiles")
ALL = Run(Shape(9, 1), "all")


def text(layout: Layout, runs: list[Run], number: int = 0) -> str:
    layout.check()
    return "".join(p if isinstance(p, str) else "#" * p for p in layout.render(number, (480, 640), runs))


@pytest.mark.parametrize(
    ("layout", "runs", "expected"),
    [
        ({}, [whole(), *tiles(1, 2)], "######"),
        ({"image": "<{views}>"}, [whole(3)], "<###>"),
        ({"image": "<{views}>", "single": "({views})"}, [whole(3)], "(###)"),
        ({"image": "<{views}>", "single": "({views})"}, [whole(), *tiles(1, 1)], "<####>"),
        ({"image": "<{views}>", "single": "({views})"}, tiles(1, 1), "<##>"),  # a tile, if the only one
        ({"single": "({thumbnail})"}, [whole(3)], "(###)"),
        ({"thumbnail": "[{tokens}]", "tile": "({tokens})"}, [whole(), *tiles(1, 2)], "[##](##)(##)"),
        ({"tile": "{row}/{rows}.{column}/{columns}={index}:{tokens} "}, tiles(2, 2, 1),
         "1/2.1/2=1:# 1/2.2/2=2:# 2/2.1/2=3:# 2/2.2/2=4:# "),
        ({"tile": "{row:02d}{tokens}"}, tiles(1, 2, 1), "01#01#"),
        ({"column": ",", "row": ";"}, [*tiles(2, 2, 1), whole(1)], "#,#;#,##"),
        ({"column": ",", "row": ";"}, [*tiles(1, 2, 1), whole(2), *tiles(1, 2, 3)], "#,#" + "##" + "###,###"),
        ({"image": "{tiles}|{thumbnail}", "row": "\n"}, [*tiles(2, 1, 1), whole(1)], "#\n#|#"),
        ({"image": "{thumbnail}|{tiles}"}, [whole(1), whole(2), *tiles(1, 2, 1)], "###|##"),
        ({"line": "\n"}, [whole(6, (2, 3))], "###\n###"),
        ({"line": "\n", "thumbnail": "[{tokens}]", "stitched": "({tokens}\n)"}, [whole(2, (2, 1)), STITCHED],
         "[#\n#](###\n###\n)"),
        ({"image": "{tiles}{thumbnail}", "stitched": "({tokens})"}, [STITCHED, whole(1)], "(######)#"),
        ({"image": "<{views}>", "thumbnail": "no{tokens}", "tile": "no{tokens}"}, [ALL], "<#########>"),
        ({"image": "{number} {ordinal} {height}x{width} {views}"}, [whole(1)], "3 4 480x640 #"),
        ({"image": "{{{views}}}{{}}"}, [whole(1)], "{#}{}"),
        ({"line": "|", "image": "<{views}>"}, [Run(Shape(0, 1, (0, 3)), "tiles")], "<>"),
    ],
)  # fmt: skip
def test_templates(layout: dict[str, str], runs: list[Run], expected: str) -> None:
    assert text(Layout(**layout), runs, number=3) == expected


def test_pieces_are_texts_and_runs() -> None:
    """Runs of neighbours stay apart: a route counts each by itself."""
    layout = Layout(image="<{views}>", tile="{tokens}t", column="c")
    assert layout.render(0, (1, 1), [whole(3), whole(4), *tiles(1, 2)]) == ("<", 3, 4, 2, "tc", 2, "t>")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"image": "<{view}>"}, "image: unknown field `view`; did you mean `views`? allowed: height, number, ordinal"),
        ({"image": "<img>"}, "image: `<img>` lacks {views} (or {thumbnail} and {tiles})"),
        ({"single": "<img>"}, "single: `<img>` lacks {views}"),
        ({"image": "{views}{views}"}, "image: `{views}{views}` has {views} twice"),
        ({"image": "{views}{tiles}"}, "image: `{views}{tiles}` has {views}, which is thumbnail and tiles already, and"),
        ({"tile": "<t>"}, "tile: `<t>` lacks {tokens}"),
        ({"tile": "{tokens} of {tokens}"}, "tile: `{tokens} of {tokens}` has {tokens} twice"),
        ({"thumbnail": "{tokens}{row}"}, "thumbnail: unknown field `row`; allowed: tokens"),
        ({"stitched": "{tokens}{rows}"}, "stitched: unknown field `rows`; allowed: tokens"),
        ({"line": "{row}"}, "line: unknown field `row`; allowed: nothing"),
        ({"image": "{views"}, "image: `{views` is no template: expected '}' before end of string; write {{ and }}"),
        ({"image": "{}{views}"}, "image: unknown field ``;"),
        ({"image": "{0}{views}"}, "image: unknown field `0`;"),
        ({"image": "{views.real}"}, "image: unknown field `views.real`;"),
        ({"image": "{views:>90}"}, "image: `{views:>90}` is no field: write {views}"),
        ({"tile": "{tokens!r}"}, "tile: `{tokens!r}` is no field: write {tokens}"),
        ({"tile": "{tokens}{row!r}"}, "tile: `{row!r}` is no field: write {row}"),
        ({"tile": "{tokens}{row:x y}"}, "tile: `{row:x y}`: Invalid format specifier"),
        ({"tile": "{tokens}{row:{column}}"}, "tile: `{row:{column}}`: "),
        ({"row": "<|image_token|>"}, "row: `<|image_token|>` is the kit's own token"),
        ({"joint": "<|image_token|>"}, "joint: `<|image_token|>` is the kit's own token"),
        ({"tiles": "{tokens}"}, "layout.tiles: unknown key `tiles`; did you mean `tile`?"),
        ({"line": 3}, "layout.line: `3` is wrong: Input should be a valid string"),
    ],
)
def test_mistakes_are_found_in_the_recipe(layout: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vlm.assemble(toy_recipe(layout=layout))
    place = message if message.startswith("layout") else f"layout.{message}"
    assert f"model.{place}" in str(caught.value)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match="3 mistakes"):
        Layout(image="{vews}", tile="", line="{x}").check()


def test_examples_of_the_docs() -> None:
    """Each layout on the page and the text below it."""
    page = (Path(__file__).parents[2] / "docs/layout.md").read_text(encoding="utf8")
    shown = re.findall(r"^```yaml\n(.*?)^```\n\n```text\n(.*?)\n```", page, re.MULTILINE | re.DOTALL)
    four = [*tiles(2, 2, 4), whole(4)]
    maps = [whole(4, (2, 2)), Run(Shape(16, 1, (4, 4)), "tiles")]
    images = [four, four, [whole(4), *tiles(2, 2, 4)], maps]
    assert len(shown) == len(images)
    for (layout, written), runs in zip(shown, images, strict=True):
        assert text(Layout(**yaml.safe_load(layout)), runs) == written
    table = re.findall(r"^\| [^|]+ \| `(\{.*image:.*\})` \|$", page, re.MULTILINE)
    assert len(table) == 8
    for layout in table:
        Layout(**yaml.safe_load(layout.replace("\\|", "|"))).check()


class Corners(Views):
    """An image as large as the encoder's is shown whole; a larger one in two rows of tiles, and whole or not."""

    def __init__(self, *, thumbnail: str = "last") -> None:
        self.thumbnail = thumbnail

    def plan(self, image: Size, size: Size) -> list[View]:
        whole = View(size, size)
        if image == size:
            return [whole]
        tiles = [View((2 * size[0], size[1]), size, (-row * size[0], 0), (row, 0)) for row in (0, 1)]
        return {"last": [*tiles, whole], "first": [whole, *tiles], "none": tiles}[self.thumbnail]


def corners(thumbnail: str = "last", **layout: str) -> dict[str, Any]:
    return toy_recipe(views={"name": f"{__name__}:Corners", "thumbnail": thumbnail}, layout=layout)


@pytest.mark.parametrize(
    ("thumbnail", "layout", "message"),
    [
        ("last", {"image": "{thumbnail}{tiles}"},
         r"model\.layout\.image: `\{thumbnail\}\{tiles\}` puts thumbnail and tiles in another order than the view"),
        ("first", {"image": "{tiles}{thumbnail}"}, r"model\.layout\.image: .* in another order than the view policy"),
        ("last", {"image": "{thumbnail}"}, r"model\.layout\.image: `\{thumbnail\}` leaves .* it lacks \{tiles\} \(or"),
        ("last", {"image": "{tiles}", "single": "{views}"}, r"model\.layout\.image: .* it lacks \{thumbnail\} \(or"),
        ("last", {"image": "{tiles}"}, r"model\.layout\.image: `\{tiles\}` leaves tokens out: it lacks \{thumbnail\}"),
        ("last", {"single": "{tiles}"}, r"model\.layout\.single: `\{tiles\}` leaves .* lacks \{thumbnail\}"),
    ],
)  # fmt: skip
def test_views_left_out_or_reordered_are_found_at_planning(
    thumbnail: str, layout: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        vlm.assemble(corners(thumbnail, **layout))


@pytest.mark.parametrize(
    ("thumbnail", "layout"),
    [
        ("last", {"image": "{tiles}{thumbnail}"}),
        ("first", {"image": "{thumbnail}{tiles}"}),
        ("none", {"image": "{tiles}", "single": "{views}"}),
    ],
)
def test_views_in_order_are_taken(thumbnail: str, layout: dict[str, str]) -> None:
    assert vlm.assemble(corners(thumbnail, **layout)).processor.tokens(99, 50) == (2 if thumbnail == "none" else 3) * 16


def test_packers_are_tried_at_planning() -> None:
    recipe = corners()
    recipe["model"]["packer"] = {"name": "separators"}  # its `grid` wants the thumbnail first
    with pytest.raises(ConfigError, match=r"model\.packer: `grid` stands between"):
        vlm.assemble(recipe)
    recipe["model"]["packer"] = {"name": "separators", "at": ["end"]}
    recipe["model"]["layout"] = {"image": "{tiles}{thumbnail}"}
    with pytest.raises(ConfigError, match=r"model\.layout\.image: .* lacks \{views\}: the packer makes one sequence"):
        vlm.assemble(recipe)
    recipe["model"]["layout"] = {"line": "\n"}
    with pytest.raises(ConfigError, match=r"model\.layout\.line: .* these lie on no grid"):
        vlm.assemble(recipe)
    recipe["model"]["layout"] = {}
    assert vlm.assemble(recipe).processor.tokens(99, 50) == 3 * 16 + 1


def test_lines_need_a_grid() -> None:
    recipe = toy_recipe({"name": "perceiver", "latents": 4}, layout={"line": "\n"})
    with pytest.raises(ConfigError, match=r"model\.layout\.line: .* these lie on no grid"):
        vlm.assemble(recipe)


class Odd(Corners):
    """A tall image, which planning does not try, has its thumbnail last."""

    def plan(self, image: Size, size: Size) -> list[View]:
        self.thumbnail = "last" if image[0] > 20 * image[1] else "first"
        return super().plan(image, size)


def test_a_sample_that_cannot_be_laid_out_says_so() -> None:
    recipe = toy_recipe(views={"name": f"{__name__}:Odd"}, layout={"image": "{thumbnail}{tiles}"})
    model = vlm.assemble(recipe)
    model.processor([ask("What?", [picture(0, (40, 50))])])
    with pytest.raises(SampleError, match=r"sample \(no id\): layout\.image: .* another order"):
        model.processor([ask("What?", [picture(0, (4, 100))])])


def test_text_around_images_reaches_the_model_and_costs_positions() -> None:
    model = vlm.assemble(corners(image="<img>{views}</img>", tile="{index}{tokens}", row="\n"))
    batch = model.processor([ask("What?", [picture(0, (40, 50))])])
    shown = model.tokenizer.decode(batch.input_ids[0]).replace("<|image_token|>", "#")
    hashes = "#" * 16
    assert f"<img>1{hashes}\n2{hashes}{hashes}</img>" in shown
    assert model.processor.positions(50, 40) == 48
    assert model(batch).logits.shape[1] == batch.input_ids.shape[1]
