"""What `vlm compare` is asked for: a recipe, axes of choices, a budget, a baseline."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vlm.errors import ConfigError, Problem, choices, join, unknown
from vlm.recipe import Recipe, read_yaml
from vlm.schema import validate

SEED = "seed"
"""The axis that is pooled: its cells are runs of one and the same thing."""
Kind = Literal["steps", "tokens", "flops"]
Changes = dict[str, Any]
"""Dotted place in the recipe -> what is put there."""
Scalar = str | bool | int | float


class Budget(BaseModel):
    """How much training every cell gets, in one of these; `baseline` is as much as the baseline's recipe says."""

    model_config = ConfigDict(extra="forbid")
    steps: float | Literal["baseline"] | None = None
    """Optimiser steps, over all stages."""
    tokens: float | Literal["baseline"] | None = None
    """Positions of the samples' sequences in the LLM, visual and text, over all steps of all stages."""
    flops: float | Literal["baseline"] | None = None
    """Planned floating-point operations, forward and backward, over all steps of all stages."""

    @property
    def kind(self) -> Kind:
        kinds: tuple[Kind, ...] = ("steps", "tokens", "flops")
        return next(kind for kind in kinds if getattr(self, kind) is not None)

    @property
    def amount(self) -> float | None:
        """None: the baseline's."""
        amount = getattr(self, self.kind)
        return None if amount == "baseline" else float(amount)


def _budget(node: Any) -> Any:
    """`flops` means `{flops: baseline}`."""
    if node is None:
        return None
    kinds = list(Budget.model_fields)
    node = {node: "baseline"} if node in kinds else node
    pairs = list(node.items()) if isinstance(node, dict) else []
    if len(pairs) != 1 or pairs[0][0] not in kinds:
        raise ValueError(f"give one of {', '.join(kinds)}, alone or with a number: {{flops: 1e15}}")
    amount = pairs[0][1]
    if amount != "baseline" and (isinstance(amount, bool) or not isinstance(amount, int | float) or amount <= 0):
        raise ValueError("give a number above 0, or `baseline`")
    return node


def _labelled(node: Any) -> Any:
    """A list of values is labelled by them."""
    return {text(value): value for value in node} if isinstance(node, list) else node


def text(value: Any) -> str:
    """A label as YAML would write it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


Axis = Annotated[dict[str, Changes | Scalar | None], BeforeValidator(_labelled), Field(min_length=1)]


class Grid(BaseModel):
    """A grid of recipes that are trained on the same budget, evaluated on the same tasks and compared."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    description: str = ""
    recipe: str | dict[str, Any]
    """A shipped name, a path, or the recipe itself."""
    change: Changes = {}
    """Changes to the recipe that all cells share."""
    prepare: dict[str, Changes] = {}
    """Models trained first: name -> changes to the recipe. `$name` is then the model's folder, for a cell's `start`."""
    axes: Annotated[dict[str, Axis], Field(min_length=1)]
    """Axis -> label -> changes to the recipe, and `$name: value` for what is written elsewhere; or a list of values for
    `$axis`."""
    skip: list[dict[str, Scalar]] = []
    """Cells that are left out, by some of their labels."""
    budget: Annotated[Budget | None, BeforeValidator(_budget)] = None
    """The recipes' own steps, if absent."""
    baseline: dict[str, Scalar] = {}
    """Labels of what the others are tested against; on axes that are not named here, each cell's own."""
    tasks: list[str] | None = None
    """What is evaluated; the recipe's `eval` if absent."""
    data: dict[str, str] = {}
    """Task -> path of its files, for tasks that read yours."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Ask only so many questions of each task."""

    def sets(self, axis: str) -> bool:
        """Whether the values of an axis go to the place in the recipe that it is named after."""
        return "." in axis or axis in Recipe.model_fields

    def changes(self, axis: str, label: str) -> Changes:
        """What a label does to the recipe."""
        choice = self.axes[axis][label]
        if isinstance(choice, dict):
            return {place: value for place, value in choice.items() if variable(place) is None}
        return {axis: choice} if self.sets(axis) and choice is not None else {}

    def values(self, axis: str, label: str) -> dict[str, Any]:
        """What `$axis`, and names that the label says itself (`$name: value`), stand for."""
        choice = self.axes[axis][label]
        if not isinstance(choice, dict):
            return {axis: label if choice is None else choice}
        named = {place[1:]: value for place, value in choice.items() if variable(place) is not None}
        return {axis: label, **named}

    def names(self, axis: str) -> set[str]:
        """All that any label of an axis gives a value."""
        return {name for label in self.axes[axis] for name in self.values(axis, label)}

    def variables(self) -> set[str]:
        """The names that are written as `$name` somewhere."""
        return set(_variables([self.change, self.prepare, self.axes]))


def variable(node: Any) -> str | None:
    """`x` of the text `$x`."""
    return node[1:] if isinstance(node, str) and node.startswith("$") and node[1:].isidentifier() else None


def _variables(node: Any) -> Iterator[str]:
    items: Sequence[Any] = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    for item in items:
        yield from _variables(item)
    name = variable(node)
    if name is not None:
        yield name


def shipped_studies() -> dict[str, Path]:
    """Name -> file of the grids that come with the kit."""
    return {path.stem: path for path in sorted((Path(str(resources.files("vlm"))) / "studies").glob("*.yaml"))}


def read_grid(source: str | Path | Mapping[str, Any]) -> Grid:
    """A grid from a shipped name, a path, or plain data.

    Raises:
        ConfigError: every mistake that can be seen without looking into the recipes.
    """
    if isinstance(source, Mapping):
        return _checked(dict(source), "grid")
    shipped = shipped_studies()
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise ConfigError(unknown("study", str(source), shipped) + ", or the path of a YAML file")
    return _checked(read_yaml(path), str(path))


def _checked(raw: dict[str, Any], source: str) -> Grid:
    try:
        grid: Grid = validate(Grid, raw)
    except ConfigError as error:
        raise ConfigError(error.problems, source=source) from error
    problems = [*_axis_problems(grid), *_label_problems(grid), *_variable_problems(grid)]
    if grid.budget is not None and grid.budget.amount is None and not grid.baseline:
        problems.append(Problem("budget", "is the baseline's, and there is no `baseline`; give a number, or name one"))
    if problems:
        raise ConfigError(problems, source=source)
    return grid


def _axis_problems(grid: Grid) -> Iterator[Problem]:
    """Choices that undo each other, and axes that do nothing."""
    used = grid.variables()
    for axis, labels in grid.axes.items():
        place = join("axes", axis)
        if not grid.names(axis) & used and not any(grid.changes(axis, label) for label in labels):
            yield Problem(
                place, f"changes nothing: no place in a recipe has this name, and `${axis}` is written nowhere"
            )
        for name in sorted(grid.names(axis) & grid.prepare.keys()):
            yield Problem(place, f"`${name}` is a model of `prepare` too")
        lacking = {name for label in labels for name in (grid.names(axis) & used) - grid.values(axis, label).keys()}
        for name in sorted(lacking):
            yield Problem(place, f"`${name}` has no value for some of its labels")
    for first, later in combinations(grid.axes, 2):
        clash = next(_clashes(grid, first, later), None)
        if clash is not None:
            yield Problem(
                join("axes", later), f"sets `{clash[1]}`, and `axes.{first}` sets `{clash[0]}`: one undoes the other"
            )


def _clashes(grid: Grid, first: str, later: str) -> Iterator[tuple[str, str]]:
    """(place, place) that two axes set; the later one may go deeper into what the first has set."""
    mine, others = (
        {place for label in grid.axes[axis] for place in grid.changes(axis, label)} for axis in (first, later)
    )
    yield from ((a, b) for a in sorted(mine) for b in sorted(others) if a == b or a.startswith(b + "."))
    yield from ((f"${name}", f"${name}") for name in sorted(grid.names(first) & grid.names(later)))


def _label_problems(grid: Grid) -> Iterator[Problem]:
    """Axes and labels that `baseline` and `skip` name and that are not there."""
    named = [("baseline", grid.baseline), *((join("skip", number), one) for number, one in enumerate(grid.skip))]
    for place, labels in named:
        for axis, label in labels.items():
            if axis not in grid.axes:
                yield Problem(join(place, axis), f"no such axis;{choices(axis, list(grid.axes))}")
            elif place == "baseline" and axis == SEED:
                yield Problem(join(place, axis), "runs with other seeds are pooled; leave it out")
            elif text(label) not in grid.axes[axis]:
                yield Problem(join(place, axis), f"`{label}`;{choices(text(label), list(grid.axes[axis]))}")


def _variable_problems(grid: Grid) -> Iterator[Problem]:
    known = [*(name for axis in grid.axes for name in grid.names(axis)), *grid.prepare]
    for name in sorted(grid.variables() - set(known)):
        yield Problem("", f"`${name}` is no axis and no model of `prepare`;{choices(name, known)}")


def budget_said(grid: Grid) -> str:
    """The budget in words."""
    if grid.budget is None:
        return "every cell trains for the steps that its recipe says"
    kind = grid.budget.kind
    words = {
        "steps": "the same number of optimiser steps",
        "tokens": "the same number of positions of the LLM's sequence (visual and text, over all stages)",
        "flops": "the same planned compute (FLOPs, forward and backward, over all stages)",
    }[kind]
    amount = grid.budget.amount
    return f"every cell gets {words}: {'its baseline' + chr(39) + 's' if amount is None else f'{amount:,.4g}'}"
