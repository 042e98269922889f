"""The cells of a grid: each a recipe of its own, and the models that several start from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vlm.compare.grid import SEED, Grid, text, variable
from vlm.errors import ConfigError, Problem
from vlm.recipe import changed


@dataclass(frozen=True)
class Prepared:
    """A model that is trained first."""

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    needs: tuple[str, ...]
    """Names of the prepared models that it starts from itself."""


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    labels: Mapping[str, str]
    """Axis -> label."""
    folder: Path
    recipe: Mapping[str, Any]
    needs: tuple[str, ...]
    """Names of the prepared models that it starts from."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def key(self) -> tuple[str, ...]:
        """Its labels but for the seed's: what runs of one group have in common."""
        return tuple(label for axis, label in self.labels.items() if axis != SEED)

    @property
    def group(self) -> str:
        """What it is called together with its runs of other seeds."""
        return ", ".join(_said(axis, label) for axis, label in self.labels.items() if axis != SEED) or "all"


@dataclass(frozen=True)
class Cells:
    """A grid, taken apart."""

    cells: list[Cell]
    prepared: dict[str, Prepared]
    """By name, each after those that it needs."""
    baselines: dict[tuple[str, ...], tuple[str, ...]]
    """Key of a group -> that of its baseline, where it has one; a baseline has none."""

    def groups(self) -> dict[tuple[str, ...], list[Cell]]:
        """Runs that differ in their seeds only, by what they have in common."""
        found: dict[tuple[str, ...], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.key, []).append(cell)
        return found


def expand(grid: Grid, out: Path) -> Cells:
    """All cells of a grid whose folders lie in `out`, in the order of the axes.

    Raises:
        ConfigError: changes that cannot be applied, two cells of one name, none left, or no baseline among them.
    """
    cells: list[Cell] = []
    prepared: dict[str, Prepared] = {}
    problems: list[Problem] = []
    changed(grid.recipe, [])  # a recipe that is not there is one mistake, not one a cell
    for labels in _combinations(grid):
        folder = out / "cells" / _name(labels)
        try:
            values, needs = _values(grid, labels, out, prepared)
            recipe = _recipe(grid, [grid.change, *_own_changes(grid, labels)], values)
            cells.append(Cell(labels, folder, recipe, _used(recipe, needs)))
        except ConfigError as error:
            problems += error.under(folder.name).problems
    names = [*prepared, *(cell.name for cell in cells)]
    problems += [
        Problem("axes", f"two runs are called `{name}`") for name in sorted({n for n in names if names.count(n) > 1})
    ]
    if not cells and not problems:
        problems.append(Problem("skip", "leaves no cell"))
    found = Cells(cells, prepared, _baselines(grid, cells))
    wanted = {axis: text(label) for axis, label in grid.baseline.items()}
    if cells and not any(wanted.items() <= cell.labels.items() for cell in cells):
        problems.append(Problem("baseline", "is no cell: all that it could be are skipped"))
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)), source="grid")
    return found


def _combinations(grid: Grid) -> Iterator[dict[str, str]]:
    skipped = [{axis: text(label) for axis, label in one.items()} for one in grid.skip]
    for chosen in product(*grid.axes.values()):
        labels = dict(zip(grid.axes, chosen, strict=True))
        if not any(one.items() <= labels.items() for one in skipped):
            yield labels


def _own_changes(grid: Grid, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    tasks = {} if grid.tasks is None else {"eval": grid.tasks}
    return [*(grid.changes(axis, label) for axis, label in labels.items()), tasks]


def _values(
    grid: Grid, labels: Mapping[str, str], out: Path, prepared: dict[str, Prepared]
) -> tuple[dict[str, Any], dict[str, str]]:
    """What `$name` stands for in this cell, and by folder the names of its prepared models, which are added."""
    values = {name: value for axis, label in labels.items() for name, value in grid.values(axis, label).items()}
    folders: dict[str, str] = {}
    models = {f"${name}" for name in grid.prepare}
    shared = {place: value for place, value in grid.change.items() if not models & _texts(value)}
    for name, changes in grid.prepare.items():
        recipe = _recipe(grid, [shared, {"eval": []}, changes], values)
        used = _texts(changes)
        own = [_said(axis, label) for axis, label in labels.items() if {f"${one}" for one in grid.names(axis)} & used]
        instance = _safe("-".join([name, *own]))
        folder = out / "prepared" / instance
        prepared.setdefault(instance, Prepared(instance, folder, recipe, _used(recipe, folders)))
        values[name] = str(folder)
        folders[str(folder)] = instance
    return values, folders


def _recipe(grid: Grid, changes: list[dict[str, Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    merged = [(place, _filled(value, values)) for one in changes for place, value in one.items()]
    return changed(grid.recipe, merged)


def _filled(node: Any, values: Mapping[str, Any]) -> Any:
    """`node` with every `$name` replaced."""
    if isinstance(node, dict):
        return {key: _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(item, values) for item in node]
    name = variable(node)
    if name is None:
        return node
    if name not in values:
        raise ConfigError(f"`${name}` is prepared later than it is used")
    return values[name]


def _used(recipe: Mapping[str, Any], folders: Mapping[str, str]) -> tuple[str, ...]:
    found = _texts(recipe)
    return tuple(name for folder, name in folders.items() if folder in found)


def _texts(node: Any) -> set[str]:
    if isinstance(node, dict | list):
        return {found for item in (node.values() if isinstance(node, dict) else node) for found in _texts(item)}
    return {node} if isinstance(node, str) else set()


def _baselines(grid: Grid, cells: list[Cell]) -> dict[tuple[str, ...], tuple[str, ...]]:
    if not grid.baseline:
        return {}
    wanted = {axis: text(label) for axis, label in grid.baseline.items()}
    keys = dict.fromkeys(cell.key for cell in cells)
    axes = [axis for axis in grid.axes if axis != SEED]
    of = {key: tuple(wanted.get(axis, label) for axis, label in zip(axes, key, strict=True)) for key in keys}
    return {key: baseline for key, baseline in of.items() if baseline in keys and baseline != key}


def _said(axis: str, label: str) -> str:
    """A number says nothing without its axis."""
    try:
        float(label)
    except ValueError:
        return label
    return f"{axis.rpartition('.')[2]} {label}"


def _name(labels: Mapping[str, str]) -> str:
    return "-".join(_safe(_said(axis, label)) for axis, label in labels.items())


def _safe(name: str) -> str:
    """As a folder may be called everywhere."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "", name.replace("/", "-"))
