"""`vlm compare`: a grid of recipes trained on the same budget, evaluated and tested against a baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm import running
from vlm.assembly import blueprint
from vlm.compare.budgets import CellPlan, plan_cell, scaled
from vlm.compare.cells import Cell, Cells, Prepared, expand
from vlm.compare.grid import SEED, Grid, budget_said, read_grid
from vlm.compare.jobs import Job, job, run_jobs
from vlm.compare.process import TALLIES, read_usage
from vlm.errors import ConfigError, Problem
from vlm.files import write_json
from vlm.recipe import Recipe, changed
from vlm.starting import misfits, shapes

if TYPE_CHECKING:
    from rich.console import Console

Key = tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A grid that is known to be sound: its cells, what each takes and how many steps it gets."""

    name: str
    grid: Grid
    cells: Cells
    plans: dict[Key, CellPlan]
    """By group, with the recipe's own steps."""
    steps: dict[Key, tuple[int, ...]]
    """By group, for the budget."""
    jobs: list[Job]


def study(source: str | Path | Mapping[str, Any], out: Path) -> Study:
    """A grid taken apart, planned, and checked before anything is trained.

    Args:
        source: a shipped study, a path, or the grid itself.
        out: folder of all its runs.

    Raises:
        ConfigError: every mistake in the grid; then every mistake in any cell's recipe, under the cell's name.
    """
    grid = read_grid(source)
    cells = expand(grid, out)
    problems = [*_problems(cells), *_task_problems(grid, cells)]
    if problems:
        raise ConfigError(problems, source="the grid's recipes")
    plans = {key: plan_cell(group[0].recipe) for key, group in cells.groups().items()}
    steps = _budgeted(grid, cells, plans)
    jobs = [job(one, one.recipe) for one in cells.prepared.values()]
    options = {"data": grid.data, "limit": grid.limit}
    jobs += [job(cell, _with_steps(cell, steps[cell.key]), **options) for cell in cells.cells]
    if others := [problem for one in jobs for problem in _other_run(one)]:
        raise ConfigError(others, source=str(out))
    return Study(name_of(source), grid, cells, plans, steps, jobs)


def compare(found: Study, out: Path, *, at_once: int = 1, console: "Console") -> Any:
    """Train and evaluate what is not done yet, compare, and write `compare.json`, `report.html` and plots to `out`.

    Args:
        found: the grid.
        out: folder of all its runs; the same as in `study`.
        at_once: processes at a time; seconds of cells are comparable only where this is the same for all.
        console: where progress is shown.

    Returns:
        a `vlm.eval.comparison.comparison.Comparison`.
    """
    from vlm.compare.show import Progress

    with Progress(found.jobs, console) as progress:
        run_jobs(found.jobs, at_once=at_once, ended=progress.ended, tick=progress.tick)
    result = collect(found)
    write(result, out)
    return result


def collect(found: Study) -> Any:
    """What the runs have left, compared."""
    comparison = import_module("vlm.eval.comparison.comparison")
    jobs = {one.name: one for one in found.jobs}
    groups = {key: [jobs[cell.name] for cell in group] for key, group in found.cells.groups().items()}
    names = {key: group[0].group for key, group in found.cells.groups().items()}
    shown = []
    for key, cells in found.cells.groups().items():
        plan, steps, baseline = found.plans[key], found.steps[key], found.cells.baselines.get(key)
        shown.append(
            comparison.Group(
                name=names[key],
                labels={axis: label for axis, label in cells[0].labels.items() if axis != SEED},
                runs=[_run(one, cell, comparison) for one, cell in zip(groups[key], cells, strict=True)],
                baseline=None if baseline is None else names[baseline],
                parameters=plan.parameters,
                trained=plan.trained,
                tokens=plan.tokens,
                positions=plan.positions,
                steps=steps,
                flops=plan.total("flops", steps),
                trained_tokens=plan.total("tokens", steps) or 0.0,
            )
        )
    words = {"title": found.name, "description": found.grid.description, "budget": budget_said(found.grid)}
    return comparison.compare(shown, **words, notes=_notes(found))


def write(result: Any, out: Path) -> None:
    """`compare.json`, the plots and `report.html`."""
    write_json(out / "compare.json", result.to_dict())
    pictures = import_module("vlm.eval.comparison.plots").plot_all(result, out)
    import_module("vlm.eval.comparison.page").write_report(out / "report.html", result, pictures)


def name_of(source: str | Path | Mapping[str, Any]) -> str:
    """What a comparison is called."""
    return "comparison" if isinstance(source, Mapping) else Path(source).stem


def _problems(cells: Cells) -> list[Problem]:
    """All that is wrong with any recipe, under the name of its run."""
    problems: list[Problem] = []
    models: dict[str, Any] = {}
    checked: list[Any] = []
    runs: list[Prepared | Cell] = [*cells.prepared.values(), *cells.cells]
    for one in runs:
        if (seedless := _without_seeds(_alone(one, cells))) in checked and isinstance(one, Cell):
            continue
        checked.append(seedless)
        try:
            recipe = running.check(_alone(one, cells))
            if one.needs or isinstance(one, Prepared):
                model = blueprint(recipe)[1]
                problems += [problem.under(one.name) for problem in _misfits(one, model, models)]
                models[one.name] = shapes(model)
        except ConfigError as error:
            problems += error.under(one.name).problems
    return problems


def _without_seeds(node: Any) -> Any:
    """What is left of a recipe: another seed makes no other model, and no new mistake."""
    if isinstance(node, Mapping):
        return {key: _without_seeds(value) for key, value in node.items() if key != "seed"}
    return [_without_seeds(item) for item in node] if isinstance(node, list) else node


def _task_problems(grid: Grid, cells: Cells) -> list[Problem]:
    """Each set of tasks is opened once."""
    problems: list[Problem] = []
    sets = {tuple(cell.recipe.get("eval", [])): cell.name for cell in cells.cells}
    for tasks, name in sets.items():
        found = running.task_problems(tasks, grid.data, scored=True)
        place = "tasks" if grid.tasks is not None else f"{name}.eval"
        problems += [
            problem if problem.place.startswith("data") else Problem(place, problem.message) for problem in found
        ]
        problems += [] if tasks else [Problem(place, "there is no task, so that nothing can be compared")]
    return problems


def _alone(one: Cell | Prepared, cells: Cells) -> dict[str, Any]:
    """Its recipe without its tasks, and without what comes from models that are still to be trained."""
    folders = {str(cells.prepared[name].folder) for name in one.needs}
    start = {part: folder for part, folder in one.recipe.get("start", {}).items() if folder not in folders}
    return {**one.recipe, "start": start, "eval": []}


def _misfits(one: Cell | Prepared, model: Any, models: Mapping[str, Any]) -> list[Problem]:
    problems: list[Problem] = []
    for part, folder in one.recipe.get("start", {}).items():
        name = Path(folder).name
        if name in one.needs and name in models:
            problems += [problem.under("start") for problem in misfits(part, models[name], model, name)]
    return problems


def _budgeted(grid: Grid, cells: Cells, plans: Mapping[Key, CellPlan]) -> dict[Key, tuple[int, ...]]:
    if grid.budget is None:
        return {key: plan.steps for key, plan in plans.items()}
    kind, problems = grid.budget.kind, list[Problem]()
    steps: dict[Key, tuple[int, ...]] = {}
    for key, plan in plans.items():
        amount = grid.budget.amount
        if amount is None:
            amount = plans[cells.baselines.get(key, key)].total(kind)
        try:
            if amount is None:
                raise ConfigError(f"what its baseline takes in {kind} is not known")
            steps[key] = tuple(scaled(plan, kind, amount))
        except ConfigError as error:
            problems += error.under(", ".join(key)).problems
    if problems:
        raise ConfigError(problems, source="the grid's budget")
    return steps


def _with_steps(cell: Cell, steps: Sequence[int]) -> dict[str, Any]:
    return changed(cell.recipe, [(f"stages.{number}.steps", count) for number, count in enumerate(steps)])


def _other_run(one: Job) -> list[Problem]:
    try:
        recipe: Recipe = import_module("vlm.recipe").read_recipe(one.recipe)
        import_module("vlm.train.run").refuse_another(recipe, one.folder)
    except ConfigError as error:
        return error.under(one.name).problems
    return []


def _run(one: Job, cell: Cell, comparison: Any) -> Any:
    usage = asdict(read_usage(one.folder))
    figures = {key: usage[key] for key in ("training", "evaluation", "memory", "gpu_memory", "attempts")}
    error = None if one.done else one.error or "not done"
    tallies = import_module("vlm.eval.comparison.tallies").read_tallies(one.folder / TALLIES) if one.done else {}
    return comparison.Run(cell.name, cell.labels.get(SEED, ""), tallies=tallies, error=error, **figures)


def _notes(found: Study) -> list[str]:
    """What a reader of the scores should know besides."""
    notes = [note for plan in found.plans.values() for note in plan.notes]
    if found.cells.prepared:
        names = ", ".join(found.cells.prepared)
        notes.append(f"trained first, and not counted in the cells' compute and seconds: {names}")
    chosen = {key: sorted(_devices(found, key)) for key in found.plans}
    if len({str(settings) for settings in chosen.values()}) > 1:
        notes.append(
            "cells ran with different attention or precision, as was fastest for each; "
            "set `model.llm.attention` and the stages' `precision` to make them equal"
        )
    return list(dict.fromkeys(notes))


def _devices(found: Study, key: Key) -> set[str]:
    """Attention and precision of each stage of a group's runs."""
    files = [file for cell in found.cells.groups()[key] for file in cell.folder.glob("stages/*/device.json")]
    return {f"{file.parent.name} {file.read_text(encoding='utf8')}" for file in files}
