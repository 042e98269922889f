"""A recipe with holes: filled from another program's config, or matched against a recipe to get that config back.

A hole is a text `$path = default`: the value at the dotted `path`, or the default (YAML) where the config has no such
field; without a default the field must be there. `$path|change` brings the value to the kit's form by a named change,
`$path|change(other.path)` by one that looks at another field, `$path|{theirs: ours, ...}` by a table. In a mapping the
key `$` names a hole that gives the whole mapping; the other keys stand above it. `$new_name/old_name` reads whichever
of the two is there, and writes both.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from PIL import Image

from vlm.errors import ConfigError, Problem, join

_HOLE = re.compile(
    r"^\$(?P<path>[\w./]+)(?:\|(?:(?P<change>\w+)(?:\((?P<other>[\w.]+)\))?|(?P<table>\{.*?\})))?(?:\s*=\s*(?P<default>.+))?$"
)
_MISSING, _UNKNOWN = object(), object()


def fill(template: Any, facts: Mapping[str, Any], *, lacking: Any = None) -> Any:
    """The template with every hole filled; `lacking` stands for a field that `facts` have not, if given.

    Raises:
        ConfigError: `facts` lack a field that has no default, or a value cannot be brought to the kit's form.
    """
    if isinstance(template, dict):
        base = fill(template["$"], facts, lacking=lacking) if "$" in template else {}
        own = {key: fill(value, facts, lacking=lacking) for key, value in template.items() if key != "$"}
        return own if base is lacking else {**base, **own}
    if isinstance(template, list):
        return [fill(item, facts, lacking=lacking) for item in template]
    hole = _hole(template)
    if hole is None:
        return template
    value = next((value for path in _paths(hole) if (value := get(facts, path)) is not _MISSING), _MISSING)
    if value is _MISSING:
        if hole["default"] is None and lacking is not None:
            return lacking
        if hole["default"] is None:
            raise ConfigError(f"the config has no field `{hole['path']}`")
        return yaml.safe_load(hole["default"])
    try:
        return _forth(hole, value, facts)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        if lacking is not None:
            return lacking
        raise ConfigError(f"`{hole['path']}` is `{_brief(value)}`, which the key map cannot read: {error}") from error


def _forth(hole: Mapping[str, Any], value: Any, facts: Mapping[str, Any]) -> Any:
    if hole["table"]:
        table = yaml.safe_load(hole["table"])
        if value not in table:
            raise ConfigError(f"`{hole['path']}` is `{value}`; the key map knows {', '.join(map(str, table))}")
        return table[value]
    return CHANGES[hole["change"]][0](value, _other(hole, facts)) if hole["change"] else value


def _paths(hole: Mapping[str, Any]) -> list[str]:
    return str(hole["path"]).split("/")


def _other(hole: Mapping[str, Any], facts: Mapping[str, Any]) -> Any:
    return get(facts, hole["other"]) if hole["other"] else None


def match(template: Any, found: Any, *, what: str) -> tuple[dict[str, Any], list[Problem]]:
    """The facts that fill `template` to `found`, and the places where no facts do.

    Args:
        template: with all keys that `found` has; those it leaves out are filled in by the caller.
        found: plain data.
        what: whose template it is, for messages.
    """
    facts: dict[str, Any] = {}
    holes = sorted(_holes(template, found), key=lambda hole: (isinstance(hole[1], dict), bool(hole[0]["change"])))
    for wholes in (True, False):  # a whole mapping before its fields
        for hole, value in holes:
            if isinstance(value, dict) == wholes and not _one_way(hole):
                for path in _paths(hole):
                    put(facts, path, _back(hole, value, facts))
    filled = fill(template, facts, lacking=_UNKNOWN)
    return facts, list(_differences(filled, found, "", what))


def get(facts: Any, path: str) -> Any:
    """The value at a dotted path; a private mark if there is none."""
    for piece in path.split("."):
        if not isinstance(facts, Mapping) or piece not in facts:
            return _MISSING
        facts = facts[piece]
    return facts


def has(facts: Any, path: str) -> bool:
    """Whether there is a value at a dotted path."""
    return is_there(get(facts, path))


def is_there(value: Any) -> bool:
    """Whether `get` has found a value."""
    return value is not _MISSING


def put(facts: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path."""
    *places, last = path.split(".")
    for piece in places:
        below = facts.get(piece)
        facts[piece] = dict(below) if isinstance(below, Mapping) else {}
        facts = facts[piece]
    facts[last] = value


def _hole(template: Any) -> dict[str, Any] | None:
    found = _HOLE.match(template) if isinstance(template, str) else None
    if found is None and isinstance(template, str) and template.startswith("$"):
        raise ConfigError(f"`{template}` is no hole of the form $path|change=default")
    if found is not None and found["change"] and found["change"] not in CHANGES:
        raise ConfigError(f"`{template}`: there is no change `{found['change']}`; there are {', '.join(CHANGES)}")
    return None if found is None else found.groupdict()


def _holes(template: Any, found: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every hole with the value that `found` has there."""
    if isinstance(template, dict) and isinstance(found, Mapping):
        own = {key: value for key, value in template.items() if key != "$"}
        if "$" in template:
            yield from _holes(template["$"], {key: value for key, value in found.items() if key not in own})
        for key, value in own.items():
            if key in found:
                yield from _holes(value, found[key])
    elif isinstance(template, list) and isinstance(found, list):
        for one, other in zip(template, found, strict=False):
            yield from _holes(one, other)
    else:
        hole = _hole(template)
        if hole is not None and found is not None:
            yield hole, found


def _differences(wanted: Any, found: Any, place: str, what: str) -> Iterator[Problem]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        other = wanted.get("name") != found.get("name")  # another part: its options say nothing
        for key in ["name"] if other else {**wanted, **found}:
            yield from _differences(wanted.get(key), found.get(key), join(place, key), what)
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for number, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(one, other, join(place, number), what)
    elif wanted is _UNKNOWN:
        if found is not None:  # else the part is another one, which its name has told
            yield Problem(place, f"`{_brief(found)}`, but {what} has nothing there")
    elif wanted != found:
        yield Problem(place, f"`{_brief(found)}`, but {what} has `{_brief(wanted)}`")


def _brief(value: Any) -> str:
    """A value in a message; of parts their names."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        return ", ".join(item["name"] for item in value)
    text = str(value["name"] if isinstance(value, dict) and "name" in value else value)
    return text if len(text) <= 80 else text[:77] + "..."


def _one_way(hole: Mapping[str, Any]) -> bool:
    return bool(hole["change"]) and CHANGES[hole["change"]][1] is None


def _back(hole: Mapping[str, Any], value: Any, facts: Mapping[str, Any]) -> Any:
    if hole["table"]:
        return {ours: theirs for theirs, ours in yaml.safe_load(hole["table"]).items()}.get(value, value)
    back = CHANGES[hole["change"]][1] if hole["change"] else None
    if back is None:
        return value
    try:
        return back(value, _other(hole, facts))
    except (TypeError, ValueError, KeyError, IndexError, ZeroDivisionError):
        return value  # then filling again gives something else, and the difference is reported


Change = Callable[[Any, Any], Any]


def _inverse(value: Any, _: Any) -> Any:
    return round(1 / value) if value < 1 else 1 / value


CHANGES: dict[str, tuple[Change, Change | None]] = {
    # one layer or several
    "list": (
        lambda value, _: list(value) if isinstance(value, (list, tuple)) else [value],
        lambda value, _: value[0] if len(value) == 1 else value,
    ),
    # the side of a square, and its two sides; `sides` reads either, where it follows from a config of its own
    "square": (lambda value, _: [value, value], lambda value, _: value[0] if value[0] == value[1] else value),
    "sides": (lambda value, _: _sides(value), None),
    # a ratio and the factor by which it divides
    "inverse": (_inverse, _inverse),
    # a number relative to another field's
    "over": (lambda value, other: _whole(value / other), lambda value, other: _whole(value * other)),
    "times": (lambda value, other: value * other, lambda value, other: _whole(value / other)),
    "minus": (lambda value, other: value - other, lambda value, other: value + other),
    "half_of": (lambda value, _: value // 2, lambda value, _: 2 * value),
    # what follows from a field that stands elsewhere as well
    "half": (lambda value, _: value // 2, None),
    "double": (lambda value, _: 2 * value, None),
    "fourfold": (lambda value, _: 4 * value, None),
    "after_first": (lambda value, _: value[0] + 1, None),
    "fourfold_patches": (lambda size, patch: [4 * (size // patch)] * 2, None),
    # one number for three channels, or three
    "thrice": (
        lambda value, _: [value] * 3 if isinstance(value, (int, float)) else value,
        lambda value, _: value[0] if len(set(value)) == 1 else value,
    ),
    # sizes of canvases in pixels, and in tiles of another field's side
    "cells": (
        lambda value, tile: [[height // _side(tile, 0), width // _side(tile, 1)] for height, width in value],
        lambda value, tile: [[rows * _side(tile, 0), columns * _side(tile, 1)] for rows, columns in value],
    ),
    # LLaVA-OneVision's `anyres_max_9`
    "anyres": (lambda value, _: int(value.removeprefix("anyres_max_")), lambda value, _: f"anyres_max_{value}"),
    # PIL's number of a resampling and its name
    "resample": (
        lambda value, _: Image.Resampling(value).name.lower(),
        lambda value, _: int(Image.Resampling[value.upper()]),
    ),
}
"""Name -> (from the config to the kit, and back if there is a way); each is given the value and the other field's."""


def _whole(value: float) -> float:
    """A computed number without the last bit's error of a division."""
    return round(value) if abs(value - round(value)) < 1e-9 else value


def _side(size: Any, axis: int) -> int:
    return int(size if isinstance(size, int) else size[axis])


def _sides(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(side) for side in value]
