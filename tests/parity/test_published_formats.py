"""Layouts of models whose processors transformers does not have, by the formats that their own code writes."""

from collections.abc import Callable

import pytest

from tests.parity.test_layouts import MINICPM_2_6, MOLMO, layout, tiles, whole
from vlm.features import Shape
from vlm.packer import Run

MINICPM_2_5 = """
image: "{thumbnail}<slice>{tiles}</slice>"
single: "{views}"
thumbnail: "<image>{tokens}</image>"
tile: "<image>{tokens}</image>"
row: "\\n"
"""
NVLM_D = """
image: "<Image>{views}</Image>"
thumbnail: "<tile_global_thumbnail>{tokens}"
tile: "<tile_{index}>{tokens}"
"""
QWEN2_VL = 'image: "<|vision_start|>{views}<|vision_end|>"'


def rows_of(tokens: int, columns: int, end: str) -> str:
    return ("#" * columns + end) * (tokens // columns)


PUBLISHED: dict[str, tuple[str, Callable[[], list[Run]], str]] = {
    "minicpm-v 2.0 and 2.5": (
        MINICPM_2_5,
        lambda: [whole(2), *tiles((2, 2), 2)],
        "<image>##</image><slice><image>##</image><image>##</image>\n<image>##</image><image>##</image></slice>",
    ),
    "minicpm-v 2.0 and 2.5, no slices": (MINICPM_2_5, lambda: [whole(2)], "<image>##</image>"),
    "minicpm-v 2.6": (
        MINICPM_2_6,
        lambda: [whole(2), *tiles((2, 1), 2)],
        "<image_id>0</image_id><image>##</image><slice>##</slice>\n<slice>##</slice>",
    ),
    "nvlm-d": (
        NVLM_D,
        lambda: [*tiles((2, 1), 2), whole(2)],
        "<Image><tile_1>##<tile_2>##<tile_global_thumbnail>##</Image>",
    ),
    "nvlm-d, no tiles": (NVLM_D, lambda: [whole(2)], "<Image><tile_global_thumbnail>##</Image>"),
    "qwen2-vl": (QWEN2_VL, lambda: [whole(6, (2, 3))], "<|vision_start|>######<|vision_end|>"),
    "qwen-vl": (
        'image: "Picture {ordinal}: <img>{views}</img>\\n"',
        lambda: [whole(4)],
        "Picture 1: <img>####</img>\n",
    ),
    "molmo": (
        MOLMO,
        lambda: [whole(4, (2, 2)), Run(Shape(12, 1, (3, 4)), "tiles")],
        f"<im_start>{rows_of(4, 2, '<im_col>')}<im_end><im_start>{rows_of(12, 4, '<im_col>')}<im_end>",
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_formats(name: str) -> None:
    text, runs, expected = PUBLISHED[name]
    pieces = layout(text).render(0, (1, 1), runs())
    assert "".join(piece if isinstance(piece, str) else "#" * piece for piece in pieces) == expected
