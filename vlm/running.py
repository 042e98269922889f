"""A whole recipe: train its stages, then evaluate its tasks. What `vlm train`, `vlm demo` and `vlm compare` do."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.assembly import Source
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.machine import Machine
from vlm.recipe import Recipe, StageSpec, inspect_recipe

if TYPE_CHECKING:
    from rich.console import Console


def run(
    source: Source, overrides: list[str], *, out: Path | None, console: "Console", machine: Machine | None = None
) -> Path:
    """Train all stages, evaluate the recipe's tasks, and return the run folder. Run again, it continues.

    Raises:
        ConfigError: every mistake in the recipe, its tasks' names included, before anything heavy is loaded.
    """
    recipe = check(source, overrides)
    training = import_module("vlm.train.run")
    folder = train(recipe, out=out or Path("runs") / training.name_of(source), console=console, machine=machine)
    results = evaluate(folder, recipe.eval)
    if results:
        console.print(import_module("vlm.eval.terminal").table(results))
        console.print(f"Look at it: {folder / 'eval' / 'report.html'}", soft_wrap=True, markup=False)
    return folder


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return bool(import_module("vlm.train.run").is_first())


# The wings know nothing of each other; here is where they are put to work together.


def check(source: Source, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe, once it is clear that it can be trained and that its tasks are there.

    Raises:
        ConfigError: all mistakes.
    """
    found = inspect_recipe(source, overrides)
    problems = task_problems(found.eval) + validation_problems(found.stages)
    return import_module("vlm.train.run").check(source, overrides, problems)  # type: ignore[no-any-return]


def train(recipe: Recipe, *, out: Path, console: "Console", machine: Machine | None = None) -> Path:
    """All stages of a checked recipe, from where they were left; the run folder."""
    training = import_module("vlm.train.run")
    return training.train(recipe, out=out, console=console, machine=machine, ask=ask)  # type: ignore[no-any-return]


def evaluate(
    folder: Path, tasks: Sequence[str], *, data: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Any]:
    """The results of a run's tasks, whose answers go to its `eval` folder; none in processes that only helped to train.

    Args:
        folder: the run.
        tasks: what is asked.
        data: paths of the files of tasks that read the user's.
        limit: ask only so many questions of each task.
    """
    if not tasks or not is_first():
        return []
    options = {"data": data or None, "limit": limit, "batch_size": 64}
    return import_module("vlm.eval.run").run(folder, tasks, out=folder / "eval", **options)  # type: ignore[no-any-return]


def ask(model: Any, tasks: Sequence[str], folder: Path, limit: int, batch_size: int) -> dict[str, float]:
    """Scores of a model that is being trained, as `val_TASK`; its answers go to `folder`.

    Args:
        model: a `VLM`.
        tasks: each `TASK` or `TASK=PATH`.
        folder: also what the model is called by: its weights are not looked at.
        limit: questions of each task.
        batch_size: questions at a time.
    """
    evaluation, runner = import_module("vlm.eval.run"), import_module("vlm.eval.task_runner")
    names, data = _with_paths(tasks)
    results = [
        runner.evaluate(
            model, task, out=folder, identity=folder.name, batch_size=batch_size, limit=limit, progress=False
        )
        for task in evaluation.load_tasks(names, data)
    ]
    import_module("vlm.eval.results").save_results(folder / "results.json", results, model=folder.name)
    return {f"val_{result.task}": result.score for result in results}


def validation_problems(stages: Sequence[StageSpec | None]) -> list[Problem]:
    """Tasks that stages ask during training and that are not there, cannot be opened, or have no score."""
    problems: list[Problem] = []
    for number, stage in enumerate(stages):
        if stage is not None and stage.validation is not None:
            names, data = _with_paths(stage.validation.tasks)
            place = join("stages", number, "validation", "tasks")
            found = task_problems(names, data, scored=True)
            problems += [Problem(problem.place.replace("eval", place, 1), problem.message) for problem in found]
    return problems


def _with_paths(tasks: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """`TASK` and `TASK=PATH` -> the names, and the paths by name."""
    pairs = [task.partition("=") for task in tasks]
    return [name for name, _, _ in pairs], {name.partition(":")[0]: path for name, equals, path in pairs if equals}


def task_problems(
    names: Sequence[str], data: Mapping[str, str] | None = None, *, scored: bool = False
) -> list[Problem]:
    """Tasks that are not there or cannot be opened, and data for a task that is not asked.

    Args:
        names: the tasks, each with its prompt if need be (`textvqa:ocr`).
        data: paths by the tasks' names alone, as `evaluate` takes them.
        scored: whether each must have a score, which those whose answers a server keeps have not.
    """
    tasks, data = import_module("vlm.eval.task"), data or {}
    problems: list[Problem] = []
    known: dict[str, bool] = {}  # whether it reads the user's files
    for number, name in enumerate(names):
        try:
            task = tasks.load_task(name)
            known[task.name] = task.takes_data
            if scored and task.hidden:
                hidden = f"the answers of `{name}` are kept by a server: there is no score to compare"
                problems.append(Problem(join("eval", number), hidden))
            (task.with_data(data[task.name]) if task.name in data else task.on_hub()).open()
        except ConfigError as error:
            problems += error.under(join("eval", number)).problems
    if problems:
        return problems
    strangers = [Problem(join("data", name), unknown("task", name, known)) for name in data if name not in known]
    return strangers + [
        Problem(join("data", name), "this task reads no files of yours") for name in data if known.get(name) is False
    ]
