"""Rendered text of every kind and level -> docs/rendered/KIND-LEVEL.png: `python benchmarks/draw_rendered.py`.

In each picture train is at the left (or above) and test at the right. `--time` prints milliseconds a sample instead.
"""

import argparse
import sys
import time
from pathlib import Path

from PIL import Image

from vlm import registry
from vlm.eval.rendered.canvas import LEVELS

OUT = Path(__file__).parent.parent / "docs" / "rendered"
GAP = 6
# Kind -> columns, rows, the share of its size at which each picture is shown, and how many colours it keeps: noise
# does not compress, so files have to be made small in another way.
SHEETS: dict[str, tuple[int, int, float, int]] = {
    "words": (6, 2, 0.75, 20),
    "lines": (2, 3, 0.8, 40),
    "receipts": (4, 1, 0.5, 48),
    "charts": (3, 1, 0.5, 80),
    "tables": (3, 1, 0.5, 60),
}


def sheet(kind: str, level: int) -> Image.Image:
    """Pictures of one kind and level, those of the test split in the right half or, of an odd number, at the end."""
    columns, rows, share, colours = SHEETS[kind]
    source = registry.sources.get(kind)
    width, height = (round(side * share) for side in source(count=1).size[::-1])
    page = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for row in range(rows):
        for column in range(columns):
            split = "train" if column < (columns + 1) // 2 else "test"
            image = source(split=split, levels=(level,), seed=7)[row * columns + column].images[0]
            small = image.resize((width, height), Image.Resampling.LANCZOS)
            few = small.quantize(colours, dither=Image.Dither.NONE)
            page.paste(few.convert("RGB"), (column * (width + GAP), row * (height + GAP)))
    return page


def timed(kind: str, level: int, count: int = 40) -> float:
    """Processor milliseconds a sample, after a few that fill the caches of fonts."""
    source = registry.sources.get(kind)(levels=(level,))
    for index in range(count, 2 * count):
        source[index]
    start = time.process_time()
    for index in range(count):
        source[index]
    return (time.process_time() - start) / count * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time", action="store_true")
    if parser.parse_args().time:
        for kind in SHEETS:
            row = "".join(f"{timed(kind, level):7.1f}" for level in LEVELS)
            sys.stdout.write(f"{kind:9}{row} ms at levels 1 to 5\n")
        return
    OUT.mkdir(exist_ok=True)
    for kind in SHEETS:
        for level in LEVELS:
            drawn = sheet(kind, level).quantize(256, dither=Image.Dither.NONE)
            drawn.save(OUT / f"{kind}-{level}.png", optimize=True)


if __name__ == "__main__":
    main()
