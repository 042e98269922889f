"""One sample on the page: its views as the first encoder sees them beside its tokens."""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from vlm.collate import Look
from vlm.images import ImageError, open_image
from vlm.processor import Processor
from vlm.views import View

from .measure import Seen
from .tokens import tokens_html

SIDE = 336
"""Pixels of a view's longer side; tiles share them."""
_QUALITY = 75
_SMALL = 96
"""Below, a view is kept without loss."""
MOST_IMAGES = 6


def card(seen: Seen, processor: Processor) -> str:
    """The HTML of a sample, or of what is known of one that cannot be used."""
    kind = "refused" if seen.error else "odd" if seen.warnings else ""
    said = [seen.error] if seen.error else seen.warnings
    faults = "".join(f'<div class="fault">{escape(text)}</div>' for text in said)
    images, text = _views(seen, processor), _text(seen, processor)
    return f"""<article class="panel sample {kind}"><header><strong>{escape(seen.name)}</strong>
<span class="soft">{_counts(seen)}</span></header>{faults}<div class="body">{images}{text}</div></article>
"""


def _counts(seen: Seen) -> str:
    place = f"no. {seen.index + 1:,}"
    if seen.example is None:
        return place
    total = len(seen.example.input_ids)
    visual, learned = int((seen.example.owner >= 0).sum()), int((seen.example.labels[1:] >= 0).sum())
    parts = [f"{visual:,} of images", f"{total - visual - learned:,} read", f"{learned:,} learned"]
    return f"{place} · {total:,} positions: {' + '.join(parts)}"


def _text(seen: Seen, processor: Processor) -> str:
    if seen.example is not None:
        return f'<div class="text">{tokens_html(processor.chat.tokenizer, seen.example)}</div>'
    if seen.sample is None:
        return ""
    turns = (f'<div class="turn"><b>{turn.role}:</b> {escape(turn.text)}</div>' for turn in seen.sample.turns)
    return f'<div class="text">{"".join(turns)}</div>'


def _views(seen: Seen, processor: Processor) -> str:
    if seen.example is not None:
        looks = seen.example.looks[:MOST_IMAGES]
        figures = [
            _figure(number, look, processor, int((seen.example.owner == number).sum()))
            for number, look in enumerate(looks)
        ]
        more = len(seen.example.looks) - len(looks)
        figures += [f'<p class="soft">and {more} more images</p>'] * bool(more)
    else:
        figures = _plain(seen)
    return f'<div class="views">{"".join(figures)}</div>' if figures else ""


def _plain(seen: Seen) -> list[str]:
    """The images of a sample that cannot be used, as far as they can be opened."""
    figures = []
    for number, image in enumerate(list(seen.sample.images if seen.sample else [])[:MOST_IMAGES]):
        try:
            opened = open_image(image)
        except ImageError:
            figures.append(f"<figure><figcaption><b>image {number + 1}</b> cannot be opened</figcaption></figure>")
            continue
        caption = f"<b>image {number + 1}</b> {opened.width} × {opened.height}, as it is"
        picture = f'<div class="whole">{_img(opened, SIDE)}</div>'
        figures.append(f"<figure><figcaption>{caption}</figcaption>{picture}</figure>")
    return figures


def _figure(number: int, look: Look, processor: Processor, positions: int) -> str:
    """The views of one image, tiles in their places."""
    views, shown = look.plan.views[0], processor.shown(look)[0]
    height, width = look.plan.size
    tiles = [(view, image) for view, image in zip(views, shown, strict=True) if view.cell is not None]
    whole = [image for view, image in zip(views, shown, strict=True) if view.cell is None]
    facts = [f"{width} × {height}", _named(views), f"{positions:,} positions"]
    pictures = f'<div class="whole">{"".join(_img(image, SIDE) for image in whole)}</div>' if whole else ""
    return (
        f"<figure><figcaption><b>image {number + 1}</b> {' · '.join(facts)}</figcaption>"
        f"{pictures}{_tiles(tiles)}</figure>"
    )


def _named(views: Sequence[View]) -> str:
    cells = [view.cell for view in views if view.cell is not None]
    if not cells:
        size = views[0].size
        return f"{len(views)} views" if len(views) > 1 else f"seen as {size[1]} × {size[0]}"
    rows, columns = (1 + max(cell[axis] for cell in cells) for axis in (0, 1))
    rest = len(views) - len(cells)
    return f"{len(cells)} tiles, {rows} × {columns}" + (f", and {rest} of the whole" if rest else "")


def _tiles(tiles: Sequence[tuple[View, Image.Image]]) -> str:
    if not tiles:
        return ""
    columns = 1 + max(view.cell[1] for view, _ in tiles if view.cell is not None)
    cells = "".join(
        f'<div style="grid-row:{1 + view.cell[0]};grid-column:{1 + view.cell[1]}">{_img(image, 2 * SIDE // columns)}'
        "</div>"
        for view, image in tiles
        if view.cell is not None
    )
    return f'<div class="tiles" style="grid-template-columns:repeat({columns},1fr)">{cells}</div>'


def _img(image: Image.Image, side: int) -> str:
    image = image.copy()
    image.thumbnail((side, side))
    kind, stream = "png" if max(image.size) < _SMALL else "webp", io.BytesIO()
    image.save(stream, kind, quality=_QUALITY, method=2)
    data = base64.b64encode(stream.getvalue()).decode()
    width, height = image.size
    factor = max(1, 128 // max(width, height))  # a view of few pixels is shown larger
    sharp = ' style="image-rendering:pixelated"' if factor > 1 else ""
    size = f'width="{factor * width}" height="{factor * height}"'
    return f'<img alt="" loading="lazy" {size}{sharp} src="data:image/{kind};base64,{data}">'
