"""All stages of a recipe, one after the other, in one run folder; the same call again continues where it was.

run/recipe.yaml                 what was asked for
run/stages/01-align/            metrics.csv, loss.png, tensorboard/, checkpoints/ while it runs, model/, done.json
run/model/                      the model after the last stage
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from vlm import device as devices
from vlm import registry
from vlm.adapting import begin_stage
from vlm.assembly import Source, assemble, draft
from vlm.errors import ConfigError, Problem, join
from vlm.files import replacing, write_json
from vlm.llm import has_sdpa, head_count, isolates_packed, width
from vlm.loading import load
from vlm.machine import Machine
from vlm.model import VLM
from vlm.quantising import check_available, lowered
from vlm.rates import settings
from vlm.recipe import Recipe, StageSpec, read_recipe, read_yaml
from vlm.schema import construct
from vlm.stages import own_sight, show, shows, sight
from vlm.weights import planning

from . import strategies
from .batches import accumulated, micro_batch
from .checkpoint import Checkpoints
from .durable import DurableIO, settle
from .mixture import mixture, open_sources
from .module import StageModule
from .objectives import facts
from .plots import join_logs, plot_stage, read_metrics
from .preemption import Preemption
from .progress import StageBar, quiet
from .reader import Reader
from .recompute import chosen, recomputed
from .stage_data import StageData, feature_store
from .validation import Ask, Validation


def has_begun(folder: Path) -> bool:
    """Whether a run folder holds something to go on from."""
    return any(folder.glob("stages/*/checkpoints/*.ckpt")) or any(folder.glob("stages/*/done.json"))


def refuse_another(recipe: Recipe, folder: Path) -> None:
    """
    Raises:
        ConfigError: what `folder` has begun is a run of another recipe.
    """
    file = folder / "recipe.yaml"
    if has_begun(folder) and file.exists():
        differ = _differences(read_recipe(read_yaml(file)).dump(), recipe.dump())
        if differ:
            raise ConfigError(
                f"`{folder}` is a run of another recipe (different: {', '.join(differ)}); take another --out"
            )


class Run:
    """A run folder: what is finished, and where the rest goes on.

    Raises:
        ConfigError: the folder belongs to a run of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        file = folder / "recipe.yaml"
        refuse_another(recipe, folder)
        if is_first():
            if not has_begun(folder):  # of a first attempt that left nothing to go on from, nothing must be taken over
                shutil.rmtree(folder / "stages", ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as fresh:
                yaml.safe_dump(recipe.dump(), fresh, sort_keys=False)

    @property
    def model(self) -> Path:
        """The model after the last stage."""
        return self.folder / "model"

    def stage(self, number: int) -> Path:
        """The folder of stage `number`."""
        return self.folder / "stages" / f"{number + 1:02d}-{self.recipe.stages[number].name}"

    def finished(self) -> int:
        """How many stages are complete."""
        done = [(self.stage(number) / "done.json").is_file() for number in range(len(self.recipe.stages))]
        return done.index(False) if False in done else len(done)

    def model_after(self, number: int) -> Path:
        """Where the model after stage `number` lies; the last one's is the run's own."""
        return self.model if number == len(self.recipe.stages) - 1 else self.stage(number) / "model"


def train(
    source: Source,
    overrides: list[str] | None = None,
    *,
    out: str | Path | None = None,
    console: Console | None = None,
    machine: Machine | None = None,
    ask: Ask | None = None,
) -> Path:
    """Train all stages of a recipe and return the run folder.

    Raises:
        ConfigError: every mistake in the recipe, before anything heavy is loaded.
        TrainingError: a batch in which nothing is supervised, shown.
        Interrupted: a signal asked the run to stop; it goes on when called again.
    """
    machine = machine or Machine()
    recipe, planned = _sound(source, overrides or [])
    strategies.check(machine, recipe.stages)
    run = Run(recipe, Path(out or Path("runs") / name_of(source)))
    finished = run.finished()
    if finished == len(recipe.stages):
        return run.folder
    model = load(run.model_after(finished - 1)) if finished else assemble(recipe)
    own = own_sight(recipe.model, planned)
    for number in range(finished, len(recipe.stages)):
        if any(shows(stage) for stage in recipe.stages):
            show(model, recipe.model, sight(recipe.stages[number], own))
        if not train_stage(run, number, model, console=console or Console(quiet=True), machine=machine, ask=ask):
            model = load(run.model_after(number))
    return run.folder


def train_stage(
    run: Run, number: int, model: VLM, *, console: Console, machine: Machine, ask: Ask | None = None
) -> bool:
    """Train stage `number`, from its last checkpoint if it has one, and write what it leaves; whether `model` can still
    be used."""
    stage, folder = run.recipe.stages[number], run.stage(number)
    folder.mkdir(parents=True, exist_ok=True)
    begin_stage(model, stage, run.recipe.seed + number)
    settings = _device_settings(folder, model, stage, run.recipe.model.llm.attention)
    model.set_attention(settings["attention"])
    if stage.pack and not isolates_packed(model.llm):
        family = type(model.llm).__name__
        problem = f"`{stage.pack}`: {family} does not keep samples in one row apart; leave it out, or group_by_length"
        raise ConfigError(Problem(join("stages", number, "pack"), problem))
    pl.seed_everything(run.recipe.seed + number, verbose=False)
    objective = construct(registry.objectives, stage.objective, facts(model))
    preemption = Preemption()
    checkpoints = Checkpoints.of(stage, folder / "checkpoints", preemption)
    bar = StageBar(stage.name, stage.steps, batch_size=stage.batch_size, console=console)
    with lowered(model, stage.quantize), recomputed(model, stage.gradient_checkpointing), quiet():
        callbacks = [bar, preemption, *_validations(stage, folder, ask), checkpoints]
        trainer = _trainer(stage, folder, settings["precision"], callbacks, **strategies.options(machine))
        strategies.prepare(trainer)
        place: dict[str, Any] = {"folder": folder, "rank": trainer.global_rank, "world": trainer.world_size}
        data = StageData(stage, model, seed=run.recipe.seed + number, answers=objective.learns_answers, **place)
        if stage.cache is not None:
            data.reader.store = feature_store(stage.cache, model, run.folder, precision=settings["precision"])
            trainer.callbacks.append(data.filling(data.reader.store, console))  # type: ignore[attr-defined]
        trainer.accumulate_grad_batches = accumulated(stage, trainer.world_size)
        module = StageModule(
            model, objective, stage=stage, accumulate=trainer.accumulate_grad_batches, skipped=data.skips
        )
        with checkpoints.stopping():
            trainer.fit(module, datamodule=data, ckpt_path=checkpoints.latest(), weights_only=True)
    if strategies.is_sharded(trainer):
        strategies.collect(model, keep=trainer.is_global_zero)
    if trainer.is_global_zero:
        _finish(run, number, model, trainer.global_step, skipped=data.skips.counts)
        settle(run.model_after(number))
        settle(folder / "done.json")
        checkpoints.clear()
    trainer.strategy.barrier("stage finished")
    return not strategies.is_sharded(trainer)


def _validations(stage: StageSpec, folder: Path, ask: Ask | None) -> list[pl.Callback]:
    """Before a checkpoint of the same step is written: a run that goes on from it has looked already."""
    spec = stage.validation
    return [] if spec is None else [Validation(spec, stage, folder, size=micro_batch(stage, 1), ask=ask)]


def _trainer(stage: StageSpec, folder: Path, precision: str, callbacks: list[pl.Callback], **spread: Any) -> pl.Trainer:
    return pl.Trainer(
        default_root_dir=folder,
        max_steps=stage.steps,
        precision=precision,  # type: ignore[arg-type]
        gradient_clip_val=stage.clip or None,
        enable_checkpointing=False,
        logger=[_csv(folder), TensorBoardLogger(folder, name="tensorboard", version="")],
        callbacks=callbacks,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=[DurableIO()],
        **spread,
    )


def _csv(folder: Path) -> CSVLogger:
    """A file of its own for each time the stage is taken up, since Lightning empties one that exists."""
    taken_up = len(list((folder / "logs").glob("*"))) + 1
    return CSVLogger(folder, name="logs", version=f"{taken_up:03d}", flush_logs_every_n_steps=1)


def _finish(run: Run, number: int, model: VLM, steps: int, *, skipped: dict[str, int]) -> None:
    folder, stage = run.stage(number), run.recipe.stages[number]
    model.save(run.model_after(number))
    metrics = join_logs(folder / "logs", folder / "metrics.csv")
    plot_stage(metrics, folder / "loss.png", title=f"{stage.name} ({stage.objective.name})")
    figures = {"steps": steps, "loss": read_metrics(metrics)["loss"][-1], "skipped": skipped}
    (folder / "done.json").write_text(json.dumps(figures), encoding="utf8")


def _device_settings(folder: Path, model: VLM, stage: StageSpec, attention: str) -> dict[str, str]:
    """Attention and precision: as asked for, or measured once; a stage that goes on keeps what it began with, and all
    processes take what the first one found."""
    file = folder / "device.json"
    if is_first() and not file.is_file():
        write_json(file, _measured(model, stage, attention))
    for _ in range(600):
        if file.is_file():
            return json.loads(file.read_text(encoding="utf8"))  # type: ignore[no-any-return]
        time.sleep(0.1)
    raise TimeoutError(f"the first process has not written {file} within a minute")


def _measured(model: VLM, stage: StageSpec, attention: str) -> dict[str, str]:
    """What `auto` comes to on this device, at the stage's own sizes."""
    place = "cuda" if torch.cuda.is_available() else "cpu"
    rows = min(micro_batch(stage, 1), 64)
    tokens = stage.pack or Reader(mixture(stage.data, seed=0), model.processor, answers=False).first().positions
    precision: str = stage.precision
    if precision == "auto":
        precision = devices.fastest_precision(place, width=width(model.llm), rows=rows * tokens)
    if attention == "flex_attention" and place == "cpu":
        problem = "`flex_attention`: torch trains with it on GPUs only; allowed here: auto, eager, sdpa"
        raise ConfigError(Problem("model.llm.attention", problem))
    if attention == "auto":
        heads = head_count(model.llm)
        sizes = {"heads": heads, "head_width": width(model.llm) // heads, "tokens": tokens, "rows": rows}
        attention = devices.fastest_attention(place, **sizes, precision=precision) if has_sdpa(model.llm) else "eager"
    return {"attention": attention, "precision": precision}


def check(source: Source, overrides: list[str], more: Sequence[Problem] = ()) -> Recipe:
    """The recipe, once it is clear that it can be run: parts that fit, stages, data that opens, batches that divide.

    Raises:
        ConfigError: all mistakes, and `more` that were found elsewhere.
    """
    return _sound(source, overrides, more)[0]


def _sound(source: Source, overrides: list[str], more: Sequence[Problem] = ()) -> tuple[Recipe, VLM]:
    """`check`, and the model of the recipe without weights."""
    found = draft(source, overrides)
    problems = [*found.problems, *more]
    if found.recipe is not None and not found.stages:
        problems.append(Problem("stages", "is missing; a recipe without stages cannot be trained"))
    for number, stage in enumerate(found.stages):
        problems += [] if stage is None else _stage_problems(stage, join("stages", number), found.model)
    names = [stage.name for stage in found.stages if stage is not None]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [Problem("stages", f"the name `{name}` stands twice") for name in twice]
    if found.recipe is None or found.model is None or problems:
        raise ConfigError(list(dict.fromkeys(problems)), source=found.source)
    return found.recipe, found.model


def _stage_problems(stage: StageSpec, place: str, model: VLM | None) -> list[Problem]:
    held = [] if stage.validation is None else stage.validation.data
    attempts: list[Callable[[], Any]] = [lambda: open_sources(stage.data), lambda: micro_batch(stage, 1)]
    attempts.append(lambda: check_available(stage.quantize))
    attempts.append(lambda: open_sources(held, join("validation", "data")))
    if model is not None:
        attempts.append(lambda: _check_objective(stage, model))
        attempts.append(lambda: _check_recomputed(stage, model))
    problems = [] if model is None or stage.cache is None else _cache_problems(stage, place, model)
    for attempt in attempts:
        try:
            attempt()
        except ConfigError as error:
            problems += error.under(place).problems
    return problems


def _cache_problems(stage: StageSpec, place: str, model: VLM) -> list[Problem]:
    """Why features on disk would not be what the stage sees."""
    try:
        trained = [name for name in settings(model, stage) if name.startswith("encoders.")]
        objective = registry.objectives.get(stage.objective.name)
    except ConfigError:
        return []  # said elsewhere
    if trained:
        return [Problem(join(place, "cache"), f"the encoders must be frozen, and `train` names {trained[0]}")]
    if objective.reads_pixels:
        return [Problem(join(place, "cache"), f"{stage.objective.name} needs the pixels themselves")]
    return []


def _check_recomputed(stage: StageSpec, model: VLM) -> None:
    """
    Raises:
        ConfigError: parts that are not there or have no blocks.
    """
    try:
        chosen(model, stage.gradient_checkpointing)
    except ConfigError as error:
        raise error.under("gradient_checkpointing") from error


def _check_objective(stage: StageSpec, model: VLM) -> None:
    """
    Raises:
        ConfigError: its options are wrong, or its batches must not be cut as the stage cuts them.
    """
    with planning():
        objective = construct(registry.objectives, stage.objective, facts(model))
    if objective.whole and stage.micro_batch_size not in (None, stage.batch_size):
        name = stage.objective.name
        message = f"`{stage.micro_batch_size}`, but {name} compares all samples of the batch: leave it out"
        raise ConfigError(Problem("micro_batch_size", f"{message}; `objective.chunk` saves memory"))


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Dotted places at which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [one for key in keys for one in _differences(old.get(key), new.get(key), join(place, key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [one for number, (a, b) in pairs for one in _differences(a, b, join(place, number))]
    return [] if old == new else [place]


def is_first() -> bool:
    """Whether this process is the one that writes, also before a trainer has joined it to others."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def name_of(source: Source) -> str:
    """What a run of this recipe is called."""
    return Path(source).stem if isinstance(source, (str, Path)) else "run"
