"""Font files that come with matplotlib, who may see which, and what each can show.

The split rule: from level 3 on the train split is drawn in the faces of `TRAIN`, the test split in those of `HELD_OUT`
alone: what training never saw are then the words *and* the letter shapes. Levels 1 and 2 have the same faces in both.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import ImageFont

from .lexicon import Split, pick

PLAIN = ("DejaVuSans",)
UPRIGHT = (*PLAIN, "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral")
TRAIN = (
    *UPRIGHT,
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif-Bold",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
)
HELD_OUT = (
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneralBol",
    "STIXGeneralBolIta",
    "cmb10",
    "cmti10",
    "cmtt10",
)
HELD_OUT_FROM = 3
"""The level from which the splits have different faces."""

# Computer Modern is encoded as TeX has it: `<` shows an inverted mark, `{` a dash. Only these are themselves.
_TEX = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 !#%&()*+,-./:;=?@[]")


def faces(level: int, split: Split) -> tuple[str, ...]:
    """The faces of a level."""
    if level >= HELD_OUT_FROM:
        return TRAIN if split == "train" else HELD_OUT
    return UPRIGHT if level == 2 else PLAIN


@lru_cache(maxsize=1)
def folder() -> Path:
    """Where the font files are."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


@lru_cache(maxsize=1024)
def font(face: str, em: int) -> ImageFont.FreeTypeFont:
    """A face at `em` pixels. The basic layout is asked for: where the other one is installed, widths would differ."""
    return ImageFont.truetype(str(folder() / f"{face}.ttf"), em, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=64)
def characters(face: str) -> frozenset[str]:
    """What a face can show."""
    if face.startswith("cm"):
        return _TEX
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(str(folder() / f"{face}.ttf")).get_charmap()))


def shows(face: str, text: str) -> bool:
    """Whether the face has every character of the text."""
    return characters(face).issuperset(text)


def choose(rng: np.random.Generator, level: int, split: Split, text: str) -> str:
    """One of the faces of a level that show the text.

    Raises:
        ValueError: none does.
    """
    able = [face for face in faces(level, split) if shows(face, text)]
    if not able:
        raise ValueError(f"no face of level {level}, {split}, shows `{text}`")
    return pick(rng, able)


def width(text: str, face: str, em: int) -> float:
    """How far the pen moves, in pixels."""
    return font(face, em).getlength(text)
