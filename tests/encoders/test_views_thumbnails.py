"""`thumbnail`: the view of the whole image first, last, or not at all, in every policy that has the option."""

import json
from typing import Any

import pytest

from vlm import registry
from vlm.schema import check_options, options

POLICIES: dict[str, dict[str, Any]] = {
    "tiles": {"max_tiles": 6},
    "anyres": {"grids": [[1, 2], [2, 2]]},
    "canvas_tiles": {"max_tiles": 4},
    "covering_tiles": {"max_tiles": 4},
    "edge_tiles": {"longest": 3},
    "roomy_tiles": {"max_tiles": 6},
    "slices": {"max_slices": 6, "multiple": 8},
    "overlapping_crops": {"patch": 8, "margins": [1, 1], "max_crops": 6},
}
WIDE = (40, 90)
"""(height, width) of an image that each of them cuts."""


def plan(name: str, where: str, image: tuple[int, int] = WIDE) -> list[Any]:
    part = registry.views.get(name)
    values = json.loads(json.dumps({**POLICIES[name], "thumbnail": where}))
    return list(part(**check_options(part, values)).plan(image, (32, 32)))


def test_every_policy_with_a_thumbnail_is_here() -> None:
    having = {name for name in registry.views if "thumbnail" in options(registry.views.get(name))}
    assert having == set(POLICIES)


@pytest.mark.parametrize("name", POLICIES)
def test_the_whole_image_is_first_last_or_absent(name: str) -> None:
    first, last, none = (plan(name, where) for where in ("first", "last", "none"))
    assert len(none) > 1
    assert all(view.cell is not None for view in none)
    assert first[1:] == last[:-1] == none
    assert first[0] == last[-1]
    whole = first[0]
    assert whole.cell is None
    top, left, bottom, right = whole.valid
    assert (bottom - top, right - left) == whole.resize, "nothing of the image is cut off"
