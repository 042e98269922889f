"""Evaluates a model on several tasks: what `vlm eval` calls."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlm.device import best_device
from vlm.errors import ConfigError
from vlm.images import open_image
from vlm.loading import load
from vlm.model import VLM

from .report import Pictures, write_report
from .results import Row, TaskResult, save_results
from .runner import Answerer, evaluate
from .task import Task, load_task


def run(
    model: str | Path | Answerer,
    tasks: Sequence[str],
    *,
    data: str | None = None,
    out: Path | None = None,
    batch_size: int = 16,
    device: str | None = None,
    progress: bool = True,
) -> list[TaskResult]:
    """Evaluate and write `results.json`, `report.html` and each task's answers to `out`; the results, a task each.

    Args:
        model: the folder of a saved model or run, or a model.
        tasks: names of shipped tasks or paths of YAML files.
        data: the path that `$DATA` stands for in a task, such as your own questions for `mine`.
        out: folder to write to; `eval` in the model's folder if absent (`runs/eval` for a model that has none).
        batch_size: samples per forward pass.
        device: where a model is loaded to; the fastest there is if absent.
        progress: show a bar on the terminal.

    Raises:
        ConfigError: a task or its data cannot be used; found before the model is loaded.
    """
    loaded = _load_tasks(tasks, data)
    for task in loaded:
        task.open()
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    if out is None:
        out = Path(model) / "eval" if isinstance(model, str | Path) else Path("runs/eval")
    answerer: Answerer = load(model, device or best_device()) if isinstance(model, str | Path) else model
    results: list[TaskResult] = []
    for task in loaded:
        results.append(evaluate(answerer, task, out=out, batch_size=batch_size, progress=progress))
        save_results(out / "results.json", results, model=name)  # a later task that fails costs no earlier one
    write_report(
        out / "report.html",
        results,
        [row for result in results for row in result.rows],
        title=f"Evaluation of {name}",
        curves=sorted(Path(model).glob("stages/*/loss.png")) if isinstance(model, str | Path) else [],
        pictures=pictures_of(answerer, loaded),
    )
    return results


def _load_tasks(names: Sequence[str], data: str | None) -> list[Task]:
    if not names:
        raise ConfigError("no task to run; name at least one")
    tasks = [load_task(name) for name in names]
    known = [task.name for task in tasks]
    twice = sorted({name for name in known if known.count(name) > 1})
    if twice:
        raise ConfigError(f"task `{twice[0]}` is named twice; its answers would overwrite each other")
    if data is not None and not any(task.needs_data for task in tasks):
        raise ConfigError(f"--data {data}: none of the tasks {', '.join(known)} reads your own file; `mine` does")
    return tasks if data is None else [task.with_data(data) for task in tasks]


def pictures_of(model: Answerer, tasks: Sequence[Task]) -> Pictures:
    """A function that gives the images of a row as the model's first encoder saw them."""
    sources = {task.name: task.open() for task in tasks}

    def pictures(row: Row) -> list[Image.Image]:
        sample = sources[row.task][row.index]
        if not isinstance(model, VLM):
            return [open_image(image) for image in sample.images]
        return [view for image in sample.images for view in model.processor.seen(image)[0]]

    return pictures
