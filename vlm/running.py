"""A whole recipe: train its stages, then evaluate its tasks. What `vlm train` and `vlm demo` do."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.assembly import Source
from vlm.errors import ConfigError, Problem, join
from vlm.recipe import inspect_recipe

if TYPE_CHECKING:
    from rich.console import Console


def run(source: Source, overrides: list[str], *, out: Path | None, console: "Console") -> Path:
    """Train all stages, evaluate the recipe's tasks, and return the run folder. Run again, it continues.

    Raises:
        ConfigError: every mistake in the recipe, its tasks' names included, before anything heavy is loaded.
    """
    # The wings know nothing of each other; here is where they are put to work together.
    training, tasks = import_module("vlm.train.run"), import_module("vlm.eval.task")
    problems = _task_problems(source, overrides, tasks)
    recipe = training.check(source, overrides, problems)
    folder: Path = training.train(recipe, out=out or Path("runs") / training.name_of(source), console=console)
    if recipe.eval and training.is_first():
        evaluation, tables = import_module("vlm.eval.run"), import_module("vlm.eval.tables")
        console.print(tables.table(evaluation.run(folder, recipe.eval, out=folder / "eval", batch_size=64)))
        console.print(f"Look at it: {folder / 'eval' / 'report.html'}", soft_wrap=True, markup=False)
    return folder


def _task_problems(source: Source, overrides: list[str], tasks: Any) -> list[Problem]:
    problems: list[Problem] = []
    for number, name in enumerate(inspect_recipe(source, overrides).eval):
        try:
            tasks.load_task(name).on_hub().open()
        except ConfigError as error:
            problems += error.under(join("eval", number)).problems
    return problems
