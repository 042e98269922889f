"""The images of a sample on the page: as the encoder saw them, tiles in their places, boxes drawn over them."""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from vlm.images import open_image

from ..results import Row
from .html import safe


@dataclass(frozen=True)
class Seen:
    """One image of a sample as the model's first encoder saw it."""

    views: Sequence[Image.Image]
    cells: Sequence[tuple[int, int] | None] = ()
    """(row, column) of each view that is a tile, None for one of the whole image; all None if absent."""
    original: Image.Image | None = None
    """The image itself, upright: what boxes are drawn over."""


Pictures = Callable[[Row], Sequence[Seen]]
"""The images of a row; an `ImageError` or `DataError` if they cannot be had."""

MOST_PICTURES = 6
SMALL = 160
"""Pixels of the longer side below which an image is enlarged without smoothing and kept without loss."""
SIDES = (640, 512, 416, 336, 272, 208, 160)
"""Pixels of the longer side that an image may be reduced to: the first of which a sample's images fit their room."""
QUALITY = 70
_PROBE, _GROWTH = 208, 1.6
"""A file grows with about this power of the side; one try at a small side says where to begin."""
_GAP = 4
_BACK = (128, 128, 128)

Box = tuple[float, float, float, float]
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")


@dataclass(frozen=True)
class _Picture:
    image: Image.Image
    caption: str = ""
    boxes: Sequence[tuple[str, Box]] = ()


def view(row: Row, pictures: Pictures, room: int) -> str:
    """The images of a row.

    Args:
        row: which.
        pictures: gives them.
        room: bytes that they may take together; the smallest size is kept to even beyond it.
    """
    try:
        found = list(pictures(row))
    except ValueError as error:  # ImageError, DataError and ConfigError say what is wrong in words for people
        return f'<div class="view"><p>{safe(error)}</p></div>'
    marked = boxes(row)
    shown = [picture for seen in found for picture in _pictures(seen, marked)]
    more = f"<p>and {len(shown) - MOST_PICTURES} more views</p>" if len(shown) > MOST_PICTURES else ""
    return f'<div class="view">{_figures(shown[:MOST_PICTURES], room) or "<p>no image</p>"}{more}</div>'


def boxes(row: Row) -> list[tuple[str, Box]]:
    """("truth", box) and ("said", box), each (left, top, right, bottom) in shares of the image; nothing where the
    references are no boxes."""
    truths = [_box(_BOX.fullmatch(reference.strip())) for reference in row.question.references]
    found = [("truth", box) for box in truths if box is not None]
    if not found or len(found) < len(truths):
        return []
    read = (row.score.read_as if row.score else None) or row.answer
    said = _box(_BOX.search(read))
    return found if said is None else [*found, ("said", said)]


def _box(match: re.Match[str] | None) -> Box | None:
    if match is None:
        return None
    left, top, right, bottom = map(float, match.groups())
    inside = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    return (left, top, right, bottom) if inside else None


def _pictures(seen: Seen, marked: Sequence[tuple[str, Box]]) -> list[_Picture]:
    """Tiles as one picture with gaps, in the place of the first of them; every other view by itself."""
    if marked and seen.original is not None:
        said = any(kind == "said" for kind, _ in marked)
        return [_Picture(open_image(seen.original), "truth" + (", answer dashed" if said else ""), marked)]
    cells = list(seen.cells) or [None] * len(seen.views)
    tiles = {cell: image for cell, image in zip(cells, seen.views, strict=True) if cell is not None}
    found, done = [], False
    for cell, image in zip(cells, seen.views, strict=True):
        if cell is None:
            found.append(_Picture(open_image(image), "the whole image" if tiles else ""))
        elif not done:
            found.append(_mosaic(tiles))
            done = True
    return found


def _mosaic(tiles: dict[tuple[int, int], Image.Image]) -> _Picture:
    rows, columns = (1 + max(cell[axis] for cell in tiles) for axis in (0, 1))
    width, height = (max(image.size[axis] for image in tiles.values()) for axis in (0, 1))
    factor = min(1.0, SIDES[0] / max(columns * width, rows * height))
    width, height = max(1, round(factor * width)), max(1, round(factor * height))
    size = (columns * width + (columns - 1) * _GAP, rows * height + (rows - 1) * _GAP)
    canvas = Image.new("RGB", size, _BACK)
    for (row, column), image in tiles.items():
        tile = open_image(image).resize((width, height), Image.Resampling.BOX if factor < 1 else None)
        canvas.paste(tile, (column * (width + _GAP), row * (height + _GAP)))
    return _Picture(canvas, f"{len(tiles)} tiles, {rows} × {columns}")


def _figures(shown: Sequence[_Picture], room: int) -> str:
    """The pictures at the largest size that fits the room."""
    coded: list[_Coded] = []
    for side in _sides(shown, room):
        coded = [_coded(picture.image, side) for picture in shown]
        if sum(len(one.content) for one in coded) <= room:
            break
    return "".join(_figure(picture, one) for picture, one in zip(shown, coded, strict=True))


def _sides(shown: Sequence[_Picture], room: int) -> Sequence[int]:
    """The sizes to try: without those that are out of reach, as trying costs time."""
    probe = sum(len(_coded(picture.image, _PROBE).content) for picture in shown)
    within = [side for side in SIDES if probe * (side / _PROBE) ** _GROWTH <= room]
    return SIDES[-1 - len(within) :]


@dataclass(frozen=True)
class _Coded:
    content: bytes
    kind: str
    size: tuple[int, int]


def _coded(image: Image.Image, side: int) -> _Coded:
    """The file of an image that is reduced to `side`; a small one without loss."""
    image = image.copy()
    image.thumbnail((side, side))
    kind, stream = "png" if max(image.size) < SMALL else "webp", io.BytesIO()
    image.save(stream, kind, quality=QUALITY, method=2)
    return _Coded(stream.getvalue(), kind, image.size)


def _figure(picture: _Picture, coded: _Coded) -> str:
    width, height = coded.size
    alt = picture.caption or "what the encoder saw"
    sharp = ' class="small"' if coded.kind == "png" else ""
    source = data_uri(coded.content, coded.kind)
    image = f'<img alt="{alt}" loading="lazy" width="{width}" height="{height}"{sharp} src="{source}">'
    caption = f"<figcaption>{picture.caption}</figcaption>" if picture.caption else ""
    frame = f'<span class="frame">{image}{"".join(map(_outline, picture.boxes))}</span>'
    return f'<figure style="--ratio:{width / height:.4f}">{frame}{caption}</figure>'


def _outline(marked: tuple[str, Box]) -> str:
    kind, (left, top, right, bottom) = marked
    size = f"width:{100 * (right - left):.2f}%;height:{100 * (bottom - top):.2f}%"
    return f'<i class="box {kind}" style="left:{100 * left:.2f}%;top:{100 * top:.2f}%;{size}"></i>'


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that needs no other file."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
