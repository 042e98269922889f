"""The command line. Each command imports what it needs when it runs, so that `vlm --help` answers at once."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.errors import Interrupted

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Assemble, train, evaluate and question vision-language models from one recipe file.",
)

Out = Annotated[Path | None, typer.Option(help="Folder to write to.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe, e.g. model.connector=perceiver."),
]
Recipe = Annotated[str, typer.Argument(help="A shipped recipe (see `vlm list recipes`) or the path of a YAML file.")]
Model = Annotated[Path, typer.Argument(help="A saved model or the folder of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; the fastest there is if absent.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions answered at a time.")]


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="encoders, connectors, merges, views, llms, recipes, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """What there is to choose from: parts, recipes, tasks, metrics."""
    with _errors():
        listing = import_module("vlm.listing").listing(kind)
        _show(listing, as_json, lambda: import_module("vlm.listing").tables(listing))


@app.command()
def plan(
    recipe: Recipe,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs, or sizes as WIDTHxHEIGHT; one of the encoder's size if absent."),
    ] = None,
    changes: Overrides = None,
    text: Annotated[int | None, typer.Option(min=1, help="Text tokens of a sample; 256 where there is room.")] = None,
    per_sample: Annotated[int, typer.Option(min=0, help="Images of a sample; 0 is text alone.")] = 1,
    devices: Annotated[int, typer.Option(min=1, help="Devices that a batch is spread over.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Parameters, visual tokens, FLOPs and memory, per part and stage; loads no weights."""
    with _errors():
        planning = import_module("vlm.planning.plan")
        sample = {"text": text, "per_sample": per_sample}
        planned = planning.plan(recipe, changes or [], images=images or [], **sample, devices=devices)
        _show(planned.to_dict(), as_json, lambda: import_module("vlm.planning.tables").tables(planned))


@app.command()
def train(
    recipe: Recipe,
    changes: Overrides = None,
    out: Out = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Devices of each node; all there are if absent.")] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Machines that train together.")] = None,
    strategy: Annotated[str | None, typer.Option(help="How the model is spread: auto, ddp, fsdp.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu, gpu, ...; the fastest there is if absent.")] = None,
) -> None:
    """Train all stages of a recipe and evaluate its tasks; the same command again continues where it was."""
    with _errors():
        machine = import_module("vlm.machine").Machine(devices, nodes, strategy, accelerator)
        running = import_module("vlm.running")
        folder = running.run(recipe, changes or [], out=out, console=_console(), machine=machine)
        if running.is_first():
            _console().print(f"Trained: {folder}", soft_wrap=True, markup=False)


@app.command()
def data(
    samples: Annotated[
        str,
        typer.Argument(help="A file, tar shards (`{000..127}.tar`), a folder, or a source as YAML or a YAML file."),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="A saved model, the folder of a run, or a recipe.")],
    out: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("data.html"),
    show: Annotated[int, typer.Option(min=1, help="Samples on the page.")] = 24,
    measure: Annotated[int, typer.Option(min=1, help="Samples that are looked at for the counts.")] = 500,
) -> None:
    """Show what a model will see of some data: views, tokens, what is learned, what is wrong."""
    with _errors():
        preview = import_module("vlm.train.preview.show")
        found = preview.preview(samples, model, out=out, show=show, measure=measure)
        console = _console()
        for line in [*preview.lines(found), *found.faults[:5]]:
            console.print(line, soft_wrap=True, markup=False)
        console.print(f"page: {out}", soft_wrap=True, markup=False)


@app.command()
def convert(
    form: Annotated[str, typer.Argument(help="folder, labels, coco, vqav2, textvqa, docvqa or chartqa.")],
    source: Annotated[Path, typer.Argument(metavar="DATA", help="The official annotation file, or the folder.")],
    out: Annotated[Path, typer.Argument(help="A .jsonl file, or NAME.tar for shards NAME-000000.tar, ...")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images, where it is not the official one.")] = None,
    answers: Annotated[Path | None, typer.Option(help="The annotations beside VQAv2's questions.")] = None,
    columns: Annotated[str, typer.Option(help="In a table of labels: the columns of file and label.")] = "file,label",
    question: Annotated[str, typer.Option(help="Asked where only a label is known.")] = "What is in the picture?",
    prompt: Annotated[str, typer.Option(help="How a question reads.")] = "{question}",
    shard_size: Annotated[int, typer.Option(min=0, help="Samples of a tar shard.")] = 0,
) -> None:
    """Turn labelled images, COCO captions or a benchmark's training files into the kit's JSON lines or tar shards."""
    with _errors():
        converting, console = import_module("vlm.train.converters.convert"), _console()
        names = import_module("vlm.train.converters.forms").pair(columns)
        files = import_module("vlm.train.converters.forms").Files(source, images, answers, names)
        texts = {"question": question, "prompt": prompt.replace("\\n", "\n")}
        found = converting.convert(form, files, out, **texts, shard_size=shard_size)
        console.print(f"{found.written:,} rows: {out}", soft_wrap=True, markup=False)
        for cause, count in found.causes.most_common():
            console.print(f"{count:,} cannot be used: {cause}", soft_wrap=True, markup=False)
        if found.faults:
            console.print(f"each of them is named in {out}.faults.txt", soft_wrap=True, markup=False)


@app.command()
def ask(
    model: Model,
    images: Annotated[list[str], typer.Argument(help="Files, folders, globs, or a .jsonl of {image, question}.")],
    question: Annotated[str | None, typer.Option("--question", "-q", help="What to ask about each image.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the answers here, as JSON lines.")] = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where an answer is cut.")] = 64,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about images. One bad file is one error row; the rest is answered."""
    with _errors():
        asking = import_module("vlm.asking")
        questions = asking.questions(images, question)
        rows = asking.answers(model, questions, batch_size=batch_size, max_new_tokens=max_new_tokens, device=device)
        failed = asking.write(rows, total=len(questions), out=out, as_json=as_json)
    if failed:
        _console(stderr=True).print(f"{failed} of {len(questions)} could not be answered")
        raise typer.Exit(1)


@app.command("eval")
def eval_(
    model: Model,
    tasks: Annotated[list[str], typer.Argument(help="Tasks (`vlm list tasks`) or paths of task files; TASK:PROMPT.")],
    data: Annotated[list[str] | None, typer.Option(metavar="[TASK=]PATH", help="A task's files or folder.")] = None,
    out: Out = None,
    metric: Annotated[str | None, typer.Option(help="Another metric than the tasks' own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only so many questions, drawn by a fixed seed.")] = None,
    batch_size: BatchSize = 16,
    device: Device = None,
) -> None:
    """Evaluate a model: answers, scores, a report. The same command again goes on where it was stopped."""
    with _errors():
        folder = out or model / "eval"
        evaluation, share = import_module("vlm.eval.run"), import_module("vlm.eval.world").world()
        options = {"out": folder, "metric": metric, "limit": limit, "batch_size": batch_size, "device": device}
        results = evaluation.run(model, tasks, data=evaluation.paths(data or []), **options, world=share)
        if share.is_first:
            _console().print(import_module("vlm.eval.terminal").table(results))
            _console().print(f"report: {folder / 'report.html'}", soft_wrap=True)
    if any(result.counts.errors == result.counts.n for result in results):
        raise typer.Exit(1)  # not one answer: something else than the model is wrong


@app.command()
def score(
    answers: Annotated[
        Path, typer.Argument(help="Answers made elsewhere: a JSON list or .jsonl of {question_id, answer}.")
    ],
    task: Annotated[str, typer.Argument(help="The task that they answer.")],
    data: Annotated[str | None, typer.Option(help="The task's files or folder.")] = None,
    metric: Annotated[str | None, typer.Option(help="Another metric than the task's own.")] = None,
    out: Out = None,
) -> None:
    """Score answers of any program by a task's metric: an official results file, say."""
    with _errors():
        result = import_module("vlm.eval.run").score(answers, task, data=data, metric=metric, out=out)
        _console().print(import_module("vlm.eval.terminal").table([result]))


@app.command()
def compare(
    grid: Annotated[str, typer.Argument(help="A shipped study (`vlm list studies`) or the path of a YAML file.")],
    out: Out = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would run, and what it would take.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time; each gets its share of the cores.")] = 1,
) -> None:
    """Train and evaluate a grid of recipes at an equal budget and compare them; the same command again goes on."""
    with _errors():
        studies, console = import_module("vlm.compare.study"), _console()
        if not console.is_terminal:
            console.width = 160  # a file has no edge
        folder = out or Path("runs") / f"compare-{studies.name_of(grid)}"
        study = studies.study(grid, folder.resolve())
        if dry_run:
            console.print(*import_module("vlm.compare.show").dry_run(study), sep="\n")
            return
        result = studies.compare(study, folder.resolve(), at_once=jobs, console=console)
        console.print(import_module("vlm.eval.comparison.tables").tables(result, console.width))
        console.print(f"report: {folder / 'report.html'}", soft_wrap=True, markup=False)
    if result.failed:
        raise typer.Exit(1)


@app.command()
def doctor(
    model: Model,
    data: Annotated[
        str, typer.Option(help="Samples with answers: a .json or .jsonl file, or a data source.")
    ] = "words",
    samples: Annotated[int, typer.Option(min=2, help="How many of them.")] = 6,
    device: Device = None,
) -> None:
    """Prove on this model and data: batch = single, packed = unpacked, cached = uncached, reload = original."""
    with _errors():
        doctors, spec = import_module("vlm.train.doctor"), import_module("vlm.stagespec").DataSpec
        named = {"name": data} if data in import_module("vlm.registry").sources else {"path": data}
        (source,) = import_module("vlm.train.mixture").open_sources([spec(**named)])
        loaded = import_module("vlm.loading").load(model, device or "cpu")
        found = list(doctors.examine(loaded, source, samples=samples))
        _console().print(doctors.table(found))
    if not all(one.fine for one in found):
        raise typer.Exit(1)


@app.command()
def demo(
    connector: Annotated[str, typer.Option(help="Another connector, by one word.")] = "mlp",
    out: Out = None,
    fast: Annotated[bool, typer.Option(help="A few steps only: shows the way, learns nothing.")] = False,
) -> None:
    """Train a small model on real handwriting, evaluate it and ask it; on a CPU, nothing downloaded."""
    with _errors():
        import_module("vlm.demo").run(connector, out=out, fast=fast, console=_console())


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="A Hugging Face vision-language model: a folder or hub id.")],
    out: Annotated[Path, typer.Argument(help="Where the kit's model goes.")],
) -> None:
    """Turn a Hugging Face vision-language model into one of the kit, with the same weights."""
    with _errors():
        folder = import_module("vlm.interop").import_folder(source, out)
        _console().print(f"imported: {folder}", soft_wrap=True, markup=False)


@app.command()
def merge(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Where the merged model goes.")],
    parts: Annotated[list[str] | None, typer.Option("--part", help="Of this part alone: llm, encoders.0, ...")] = None,
) -> None:
    """Put the adapters of a model into its weights: the same answers, from a model without adapters."""
    with _errors():
        folder = import_module("vlm.loading").merge_folder(model, out, parts or [])
        _console().print(f"merged: {folder}", soft_wrap=True, markup=False)


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(help="Where the Hugging Face folder goes.")],
    architecture: Annotated[str | None, typer.Option(help="A key map by name (`vlm list architectures`).")] = None,
) -> None:
    """Turn a model of the kit into a Hugging Face folder, where transformers has its architecture."""
    with _errors():
        loaded = import_module("vlm.loading").load(model)
        folder = import_module("vlm.interop").export_folder(loaded, out, architecture=architecture)
        _console().print(f"exported: {folder}", soft_wrap=True, markup=False)


def main() -> None:
    """The `vlm` command."""
    app()


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _show(data: Any, as_json: bool, tables: Callable[[], list[Any]]) -> None:
    if as_json:
        import json

        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        _console().print(*tables(), sep="\n")


@contextmanager
def _errors() -> Iterator[None]:
    """What the user can mend is one clear message and exit status 2; anything else keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt as error:
        _console(stderr=True).print(
            "interrupted; the same command again continues a training or an evaluation where it was"
        )
        raise typer.Exit(130) from error
    except Interrupted as stop:
        _console(stderr=True).print(str(stop), soft_wrap=True, markup=False)
        raise typer.Exit(stop.status) from stop
    except (ValueError, RuntimeError, OSError) as error:
        if type(error).__name__ not in _MENDABLE:
            raise
        from rich.markup import escape

        _console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(2) from error


_MENDABLE = {
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "KeysError",
    "SampleError",
    "TooManySkipped",
    "TrainingError",
    "WeightsError",
}
