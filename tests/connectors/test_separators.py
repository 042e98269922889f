"""Learned separators against Ovis2's processor, and against sequences written out."""

from itertools import chain
from typing import Any

import pytest
import torch

import vlm
from tests.conftest import picture, toy_recipe
from vlm.connectors.separators import Separators
from vlm.errors import ConfigError
from vlm.features import Shape
from vlm.packer import ImagePlan
from vlm.sample import ask
from vlm.tokenizers import bytes_tokenizer
from vlm.views import Size, View, Views

OVIS = {"start": "<IMG_START>", "grid": "<IMG_GRID>", "column": "<IMG_COL>", "row": "<IMG_ROW>", "end": "<IMG_END>"}


def plan(grid: tuple[int, int] | None, wholes: int = 1) -> ImagePlan:
    rows, columns = grid or (0, 0)
    tiles = [View((8, 8), (8, 8), cell=(row, column)) for row in range(rows) for column in range(columns)]
    return ImagePlan((20, 30), ((*[View((8, 8), (8, 8))] * wholes, *tiles),))


def packed(packer: Separators, image: ImagePlan) -> list[str]:
    """The sequence in words: each vector of the packer by its name, tokens of view 0 as 0.0, 0.1, ..."""
    names: dict[float, str] = {}
    with torch.no_grad():
        for number, (place, vector) in enumerate(packer.at.items(), start=1):
            vector.fill_(-number)
            names[-float(number)] = place
    tokens = [torch.tensor([[float(10 * view + number)] * 2 for number in range(4)]) for view in range(image.count)]
    shapes = [Shape(4, 2, (2, 2))] * image.count
    rows = packer(tokens, shapes, image)
    (run,) = packer.runs(shapes, image)
    assert (run.shows, run.shape) == ("all", Shape(len(rows), 2))
    assert torch.equal(rows[:, 0], rows[:, 1])
    return [names.get(value, f"{int(value) // 10}.{int(value) % 10}") for value in rows[:, 0].tolist()]


def test_order_is_ovis2s() -> None:
    """The tiles themselves are the view policy's matter: rows and columns are those of the image processor."""
    import transformers

    made = bytes_tokenizer()
    special = ["<image>", "<IMG_ATOM>", *OVIS.values()]
    made.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
    images: Any = transformers.Ovis2ImageProcessor(
        size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=6
    )
    processor = transformers.Ovis2Processor(images, made, image_seq_length=4)
    names = {token: place for place, token in OVIS.items()}
    grids = set()
    for size in ((64, 40), (16, 16), (33, 80), (90, 20), (20, 90), (40, 40)):
        found = processor(images=[picture(0, size)], text=["<image>"], return_tensors="pt")["input_ids"][0]
        rows, columns = (int(side) for side in images(picture(0, size), return_tensors="pt")["grids"][0])
        image = plan((rows, columns) if rows * columns > 1 else None)
        atoms = iter(f"{view}.{number}" for view in range(image.count) for number in range(4))
        expected = [names.get(token) or next(atoms) for token in made.convert_ids_to_tokens(found)]
        assert next(atoms, None) is None
        assert packed(Separators(2), image) == expected
        grids.add((rows > 1, columns > 1))
    assert grids == {(False, False), (False, True), (True, False), (True, True)}


def words(*parts: str | int) -> list[str]:
    """Names of separators, and the four tokens of a view for its number."""
    return list(chain.from_iterable([p] if isinstance(p, str) else [f"{p}.{n}" for n in range(4)] for p in parts))


@pytest.mark.parametrize(
    ("at", "grid", "expected"),
    [
        (["column"], (2, 2), words(0, 1, "column", 2, 3, "column", 4)),
        (["row"], (2, 2), words(0, 1, 2, "row", 3, 4)),
        (["view"], (1, 2), words(0, "view", 1, "view", 2, "view")),
        (["end", "start"], None, words("start", 0, "end")),
        (["grid"], None, words(0, "grid")),
        (["grid"], (1, 1), words(0, "grid", 1)),
        (["start", "line", "end"], None, ["start", "0.0", "0.1", "line", "0.2", "0.3", "line", "end"]),
    ],
)
def test_each_place(at: list[Any], grid: tuple[int, int] | None, expected: list[str]) -> None:
    assert packed(Separators(2, at=at), plan(grid)) == expected


def test_tiles_alone_and_tiles_before_the_whole() -> None:
    assert packed(Separators(2, at=["row", "view"]), plan((2, 1), wholes=0)) == words(0, "view", "row", 1, "view")
    image = plan((1, 2))
    last = ImagePlan(image.size, (image.views[0][1:] + image.views[0][:1],))
    assert packed(Separators(2, at=["column", "end"]), last) == words(0, "column", 1, 2, "end")
    with pytest.raises(ConfigError, match=r"`grid` stands between .* must come first"):
        Separators(2).runs([Shape(4, 2)] * 3, last)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="at: is empty"):
        Separators(2, at=[])
    with pytest.raises(ConfigError, match="lie on no grid"):
        Separators(2, at=["line"]).runs([Shape(4, 2)], plan(None))
    overlapping = ImagePlan((8, 8), ((View((8, 8), (8, 8), cell=(0, 0), keep=(0, 0, 4, 8)),),))
    with pytest.raises(ConfigError, match=r"overlap.*allowed: stitch"):
        Separators(2).runs([Shape(4, 2, (2, 2))], overlapping)


class Halves(Views):
    """The whole image and its halves, for a model to be built with."""

    def plan(self, image: Size, size: Size) -> list[View]:
        tiles = [View((size[0], 2 * size[1]), size, (0, -column * size[1]), (0, column)) for column in (0, 1)]
        return [View(size, size), *tiles]


def test_model_learns_its_separators() -> None:
    model = vlm.assemble(toy_recipe(views={"name": f"{__name__}:Halves"}, packer="separators"))
    batch = model.processor([ask("What?", [picture(0, (40, 20)), picture(1, (9, 40))])])
    vision = model.encode(batch)
    assert vision is not None
    assert vision.counts == (3 * 16 + 4,) * 2
    model(batch).logits.square().mean().backward()
    learned = {place for place, vector in model.connector.packer.at.items() if vector.grad is not None}
    assert learned == {"start", "grid", "column", "end"}  # one row of tiles: nothing between rows


def test_unknown_place_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.packer\.at\.0: `middle` is not allowed; allowed: start, line, view"):
        vlm.assemble(toy_recipe(packer={"name": "separators", "at": ["middle"]}))
