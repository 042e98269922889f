"""One picture as every view policy cuts it -> docs/views.png: `python benchmarks/draw_views.py`."""

from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from vlm.registry import views as registry
from vlm.views import ImageSpec, Size, View

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
PICTURE: Size = (300, 480)
TILE: Size = (112, 112)
GREY = 0.72
GAP = 8
PANELS: list[tuple[str, dict[str, Any]]] = [
    ("squash", {}),
    ("crop", {}),
    ("pad", {}),
    ("fit", {"multiple": 14}),
    ("native", {"multiple": 14, "max_pixels": 40_000}),
    ("tiles", {}),
    ("anyres", {}),
    ("canvas_tiles", {"max_tiles": 16, "thumbnail": "last"}),
    ("covering_tiles", {}),
    ("edge_tiles", {"longest": 3}),
    ("roomy_tiles", {"max_tiles": 12}),
    ("fit", {"multiple": 14, "align": "cut", "quarters": True}),
    ("slices", {}),
    ("overlapping_crops", {"patch": 7, "margins": (2, 2)}),
]


def picture() -> Image.Image:
    """A board of numbered fields, so that every cut is seen."""
    height, width = PICTURE
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    rows, columns = 3, 5
    font = ImageFont.load_default(size=44)
    for row in range(rows):
        for column in range(columns):
            left, top = column * width // columns, row * height // rows
            colour = (60 + 180 * column // columns, 80 + 140 * row // rows, 200 - 150 * column // columns)
            draw.rectangle((left, top, left + width // columns, top + height // rows), fill=colour)
            text = f"{'ABC'[row]}{column + 1}"
            draw.text((left + width // columns / 2, top + height // rows / 2), text, "white", font, anchor="mm")
    return image


def drawn(view: View, image: Image.Image) -> Image.Image:
    """A view in colours; what it keeps is outlined."""
    found = view.draw(image, ImageSpec(TILE, (GREY, GREY, GREY), (1.0, 1.0, 1.0))).copy()
    if view.keep is not None:
        top, left, bottom, right = view.keep
        ImageDraw.Draw(found).rectangle((left, top, right - 1, bottom - 1), outline="red", width=2)
    return found


def laid_out(views: list[View], image: Image.Image) -> Image.Image:
    """The tiles in their grid, the whole image beside them on the side where it stands in the order."""
    tiles = [view for view in views if view.cell is not None]
    wholes = [view for view in views if view.cell is None]
    blocks = [_grid(tiles, image)] if tiles else []
    for whole in wholes:
        blocks.insert(0 if views[0] is whole else len(blocks), drawn(whole, image))
    width = sum(block.width for block in blocks) + 3 * GAP * (len(blocks) - 1)
    page = Image.new("RGB", (width, max(block.height for block in blocks)), "white")
    left = 0
    for block in blocks:
        page.paste(block, (left, (page.height - block.height) // 2))
        left += block.width + 3 * GAP
    return page


def _grid(tiles: list[View], image: Image.Image) -> Image.Image:
    heights, widths = {}, {}
    for view in tiles:
        assert view.cell is not None
        heights[view.cell[0]], widths[view.cell[1]] = view.size
    size = (sum(widths.values()) + GAP * (len(widths) - 1), sum(heights.values()) + GAP * (len(heights) - 1))
    page = Image.new("RGB", size, "white")
    for view in tiles:
        assert view.cell is not None
        top = sum(heights[row] + GAP for row in range(view.cell[0]))
        left = sum(widths[column] + GAP for column in range(view.cell[1]))
        page.paste(drawn(view, image), (left, top))
    return page


def title(name: str, options: dict[str, Any], views: list[View]) -> str:
    said = ", ".join(
        f"{key}: {str(list(value) if isinstance(value, tuple) else value).lower()}" for key, value in options.items()
    )
    count = f"{len(views)} view{'s' * (len(views) > 1)}"
    sizes = {view.size for view in views}
    if len(sizes) == 1:
        height, width = sizes.pop()
        count += f" of {height} x {width}"
    return f"{name}\n{said or 'defaults'}\n{count}"


def main() -> None:
    image = picture()
    panels: list[tuple[str, Image.Image]] = [(f"the image\n{PICTURE[0]} x {PICTURE[1]}", image)]
    for name, options in PANELS:
        size = (140, 210) if name == "fit" else TILE
        views = registry.get(name)(**options).plan(PICTURE, size)
        panels.append((title(name, options, views), laid_out(views, image)))
    show(panels, columns=3)


def show(panels: list[tuple[str, Image.Image]], columns: int, inches: float = 4.6, titles: float = 0.85) -> None:
    """All panels at one scale, rows as high as what stands in them."""
    scale = inches / (max(page.width for _, page in panels) + 40)
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(page.height for _, page in line) * scale + titles for line in lines]
    figure = plt.figure(figsize=(inches * columns, sum(heights)))
    bottom = 1.0
    for line, height in zip(lines, heights, strict=True):
        bottom -= height / sum(heights)
        for number, (text, page) in enumerate(line):
            size = (page.width * scale / (inches * columns), page.height * scale / sum(heights))
            top = bottom + (height - titles + 0.1) / sum(heights)
            axis = figure.add_axes(((number + 0.5) / columns - size[0] / 2, top - size[1], *size))
            axis.imshow(page, aspect="auto")
            axis.set_axis_off()
            axis.set_title(text, fontsize=12)
    figure.savefig(ROOT / "docs" / "views.png", dpi=80)


if __name__ == "__main__":
    main()
