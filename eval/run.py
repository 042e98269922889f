"""Evaluates a model on several tasks: what `vlm eval` calls."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from vlm.device import best_device
from vlm.errors import ConfigError, positive, unknown
from vlm.images import open_image
from vlm.loading import load
from vlm.model import VLM

from .answer_log import AnswerLog
from .metrics import metric_named
from .predictions import score_predictions
from .report.images import Pictures, Seen
from .report.page import write_report
from .results import Row, TaskResult, save_results, save_rows
from .task import Task, load_task
from .task_runner import Answerer, evaluate, identity_of
from .world import World


def run(
    model: str | Path | Answerer,
    tasks: str | Sequence[str],
    *,
    data: str | Mapping[str, str] | None = None,
    out: str | Path | None = None,
    metric: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    device: str | None = None,
    world: World | None = None,
) -> list[TaskResult]:
    """Evaluate and write `results.json`, `report.html` and each task's answers to `out`; the results, a task each.

    Run again, it goes on where it was stopped (see `vlm.eval.task_runner`).

    Args:
        model: the folder of a saved model or run, or a model.
        tasks: names of shipped tasks or paths of YAML files, each with `:NAME` behind it for another of its prompts; a
            single one may be given as it is.
        data: the path that `$DATA` stands for in the tasks, or a path by task.
        out: folder to write to; `eval` in the model's folder if absent (`runs/eval` for a model that has none).
        metric: takes the place of the tasks' own; a name, or one of your own as `package.module:NAME`.
        limit: ask only so many questions of each task.
        batch_size: samples per forward pass.
        device: where a model is loaded to; the fastest there is if absent.
        world: the processes that share the work.

    Raises:
        ConfigError: a task, its data, a number, `out` or the answers in it cannot be used; found before the model is
            loaded.
    """
    world = world or World()
    wrong = positive(batch_size=batch_size, **({} if limit is None else {"limit": limit}))
    if wrong:
        raise ConfigError(wrong)
    loaded = load_tasks([tasks] if isinstance(tasks, str) else tasks, data, metric)
    for task in loaded:
        missing = task.open().missing_images()
        if missing and world.is_first:
            said = f"{task.label}: {len(missing)} image files are missing, the first is {missing[0]}"
            Console(stderr=True, highlight=False).print(said, style="yellow", soft_wrap=True, markup=False)
    name = str(model) if isinstance(model, str | Path) else type(model).__name__
    if out is None:
        out = Path(model) / "eval" if isinstance(model, str | Path) else "runs/eval"
    out = Path(out)
    _check_writable(out)
    for task in loaded:
        AnswerLog(out / task.folder).read()  # a damaged log is told before the model is loaded
    place = device or world.device() or best_device()
    answerer: Answerer = load(model, place) if isinstance(model, str | Path) else model
    known_as = identity_of(answerer)
    results: list[TaskResult] = []
    for task in loaded:
        results.append(
            evaluate(answerer, task, out=out, identity=known_as, batch_size=batch_size, limit=limit, world=world)
        )
        if world.is_first:
            save_results(out / "results.json", results, model=name)  # a later task that fails costs no earlier one
    if world.is_first:
        curves = sorted(Path(model).glob("stages/*/loss.png")) if isinstance(model, str | Path) else []
        _write(out, results, name=name, pictures=pictures_of(answerer, loaded), curves=curves)
    return results


def score(
    answers: Path, task: str, *, data: str | None = None, metric: str | None = None, out: Path | None = None
) -> TaskResult:
    """Score a file of answers (see `vlm.eval.predictions`), and write `results.json` and `report.html` to `out`.

    Args:
        answers: a JSON list or JSONL of `{"question_id", "answer"}`.
        task: what they answer.
        data: the path that `$DATA` stands for.
        metric: takes the place of the task's own.
        out: where to write; nothing is written if absent.

    Raises:
        ConfigError: the task, the answers or `out` cannot be used.
    """
    if out is not None:
        _check_writable(out)
    (loaded,) = load_tasks([task], data, metric)
    result = score_predictions(loaded, answers)
    if out is not None:
        _write(out, [result], name=str(answers), pictures=pictures_of(None, [loaded]))
        save_rows(out / "samples.jsonl", result.rows)
    return result


def _check_writable(out: Path) -> None:
    """
    Raises:
        ConfigError: nothing can be written to the folder.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise ConfigError(f"out: `{out}` is no folder that can be written to: {error.strerror}") from error


def _write(
    out: Path, results: Sequence[TaskResult], *, name: str, pictures: Pictures, curves: Sequence[Path] = ()
) -> None:
    save_results(out / "results.json", results, model=name)
    write_report(out / "report.html", results, title=f"Evaluation of {name}", curves=curves, pictures=pictures)


def paths(data: Sequence[str]) -> str | dict[str, str] | None:
    """What `--data` says: one PATH for all tasks, or TASK=PATH for each.

    Raises:
        ConfigError: several paths of which one does not say whose it is.
    """
    if len(data) == 1 and ("=" not in data[0] or Path(data[0]).exists()):
        return data[0]
    for one in data:
        if "=" not in one:
            raise ConfigError(f"--data {one}: with several, each is TASK=PATH")
    return {task: path for task, _, path in (one.partition("=") for one in data)} or None


def load_tasks(names: Sequence[str], data: str | Mapping[str, str] | None, metric: str | None = None) -> list[Task]:
    """The tasks on their data.

    Raises:
        ConfigError: there is no such task or metric, one is named twice, or data is given that no task reads.
    """
    if not names:
        raise ConfigError("no task to run; name at least one")
    if metric is not None:
        metric_named(metric)
    bare = [load_task(name) for name in names]
    labels, known = [task.label for task in bare], [task.name for task in bare]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"task `{twice[0]}` is named twice; its answers would overwrite each other")
    paths = dict.fromkeys(known, data) if isinstance(data, str) else dict(data or {})
    for name, path in paths.items():
        if name not in known:
            raise ConfigError(unknown("task in --data", name, known))
        if isinstance(data, Mapping) and not bare[known.index(name)].takes_data:
            raise ConfigError(f"--data {name}={path}: task `{name}` reads no files of yours")
    if isinstance(data, str) and not any(task.takes_data for task in bare):
        raise ConfigError(f"--data {data}: none of the tasks {', '.join(known)} reads your own file; `mine` does")
    found = [_on(task, paths.get(task.name)) for task in bare]
    return [_scored_by(task, metric) for task in found] if metric else found


def _scored_by(task: Task, metric: str) -> Task:
    """The task with another metric, beside whose score its published ones must not stand."""
    return task if task.metric == metric else task.model_copy(update={"metric": metric, "published": ()})


def _on(task: Task, path: str | None) -> Task:
    return task.on_hub() if path is None else task.with_data(path)


def pictures_of(model: Answerer | None, tasks: Sequence[Task]) -> Pictures:
    """A function that gives the images of a row as the model's first encoder saw them."""
    sources = {task.label: task.open() for task in tasks}

    def pictures(row: Row) -> list[Seen]:
        images = [open_image(image) for image in sources[row.task][row.question.index].images]
        if not isinstance(model, VLM):
            return [Seen([image], original=image) for image in images]
        return [_seen(model, image, len(images)) for image in images]

    return pictures


def _seen(model: VLM, image: Image.Image, images: int) -> Seen:
    first: Any = model.encoders[0]
    look, spec = model.processor.look(image, images), first.image
    cells = [view.cell for view in look.plan.views[0]]
    return Seen([spec.denormalise(pixels[0]) for pixels in look.pixels], cells, image)
