"""All stages of a recipe, one after the other, in one run folder; the same call again continues where it was.

run/recipe.yaml                 what was asked for
run/stages/01-align/            metrics.csv, loss.png, tensorboard/, checkpoints/ while it runs, model/, done.json
run/model/                      the model after the last stage
"""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from rich.console import Console

from vlm import device as devices
from vlm import registry
from vlm.assembly import Source, assemble, blueprint, construct
from vlm.errors import ConfigError, Problem, join
from vlm.llm import width
from vlm.loading import load
from vlm.model import VLM
from vlm.recipe import Recipe, StageSpec, read_recipe, read_yaml

from .checkpoint import Checkpoints
from .mixture import Positions, loader, micro_batch, open_sources
from .module import StageModule
from .objectives import facts
from .plots import join_logs, plot_stage
from .progress import StageBar, quiet


class Run:
    """A run folder: what is finished, and where the rest goes on.

    Raises:
        ConfigError: the folder belongs to a run of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe = recipe
        self.folder = folder
        file = folder / "recipe.yaml"
        if file.exists():
            differ = _differences(read_recipe(read_yaml(file)).dump(), recipe.dump())
            if differ:
                raise ConfigError(
                    f"`{folder}` is a run of another recipe (different: {', '.join(differ)}); take another --out"
                )
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(recipe.dump(), sort_keys=False), encoding="utf8")

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
) -> Path:
    """Train all stages of a recipe and return the run folder.

    Raises:
        ConfigError: every mistake in the recipe, before anything heavy is loaded.
        TrainingError: a batch in which nothing is supervised, shown.
    """
    recipe, plan = blueprint(source, overrides or [])
    _check(recipe, plan)
    run = Run(recipe, Path(out or Path("runs") / _name(source)))
    finished = run.finished()
    if finished == len(recipe.stages):
        return run.folder
    model = load(run.model_after(finished - 1)) if finished else assemble(recipe)
    for number in range(finished, len(recipe.stages)):
        train_stage(run, number, model, console=console or Console(quiet=True))
    return run.folder


def train_stage(run: Run, number: int, model: VLM, *, console: Console) -> None:
    """Train stage `number`, from its last checkpoint if it has one, and write what it leaves."""
    stage, folder = run.recipe.stages[number], run.stage(number)
    folder.mkdir(parents=True, exist_ok=True)
    settings = _device_settings(folder, model, stage)
    model.set_attention(settings["attention"])  # type: ignore[arg-type]
    pl.seed_everything(run.recipe.seed + number, verbose=False)
    objective = construct(registry.objectives, stage.objective, facts(model))
    checkpoints = Checkpoints(folder / "checkpoints", stage.checkpoint_every)
    bar = StageBar(stage.name, stage.steps, batch_size=stage.batch_size, console=console)
    with quiet():
        trainer = _trainer(stage, folder, settings["precision"], [bar, checkpoints])
        positions = Positions(stage, start=0, rank=0, world=trainer.world_size)
        module = StageModule(model, objective, stage=stage, accumulate=positions.accumulate)
        trainer.accumulate_grad_batches = positions.accumulate
        data = StageData(stage, model, seed=run.recipe.seed + number)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoints.latest(), weights_only=True)
    _finish(run, number, model, trainer)
    checkpoints.clear()


class StageData(pl.LightningDataModule):
    """Asked for its batches after a checkpoint has been read, so that they start at the step that comes next."""

    def __init__(self, stage: StageSpec, model: VLM, *, seed: int) -> None:
        super().__init__()
        self.stage = stage
        self.processor = model.processor
        self.seed = seed

    def train_dataloader(self) -> Any:
        trainer: Any = self.trainer
        where = {"start": trainer.global_step, "rank": trainer.global_rank, "world": trainer.world_size}
        return loader(self.stage, self.processor, seed=self.seed, **where)


def _trainer(stage: StageSpec, folder: Path, precision: str, callbacks: list[pl.Callback]) -> pl.Trainer:
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
    )


def _csv(folder: Path) -> CSVLogger:
    """A file of its own for each time the stage is taken up, since Lightning empties one that exists."""
    taken_up = len(list((folder / "logs").glob("*"))) + 1
    return CSVLogger(folder, name="logs", version=f"{taken_up:03d}", flush_logs_every_n_steps=1)


def _finish(run: Run, number: int, model: VLM, trainer: pl.Trainer) -> None:
    folder, stage = run.stage(number), run.recipe.stages[number]
    model.save(run.model_after(number))
    metrics = join_logs(folder / "logs", folder / "metrics.csv")
    plot_stage(metrics, folder / "loss.png", title=f"{stage.name} ({stage.objective.name})")
    figures = {"steps": trainer.global_step, "loss": float(trainer.callback_metrics["loss"])}
    (folder / "done.json").write_text(json.dumps(figures), encoding="utf8")


def _device_settings(folder: Path, model: VLM, stage: StageSpec) -> dict[str, str]:
    """Attention and precision: as asked for, or measured once; a stage that goes on keeps what it began with."""
    file = folder / "device.json"
    if file.is_file():
        kept: dict[str, str] = json.loads(file.read_text(encoding="utf8"))
        return kept
    place = "cuda" if torch.cuda.is_available() else "cpu"
    attention, precision = model.spec["llm"]["attention"], stage.precision
    config: Any = model.llm.config.get_text_config()  # type: ignore[union-attr, operator]
    rows = micro_batch(stage, 1)
    if precision == "auto":
        precision = devices.fastest_precision(place, width=width(model.llm), rows=min(rows, 64) * 64)  # type: ignore[assignment]
    if attention == "auto":
        heads = config.num_attention_heads
        sizes = {"heads": heads, "head_width": width(model.llm) // heads, "tokens": 96, "rows": min(rows, 64)}
        attention = devices.fastest_attention(place, **sizes, precision=precision)
    settings = {"attention": str(attention), "precision": str(precision)}
    file.write_text(json.dumps(settings), encoding="utf8")
    return settings


def _check(recipe: Recipe, plan: VLM) -> None:
    """What only a run needs: stages, data that opens, objectives that build, batches that divide."""
    if not recipe.stages:
        raise ConfigError(Problem("stages", "is missing; a recipe without stages cannot be trained"))
    problems: list[Problem] = []
    for number, stage in enumerate(recipe.stages):
        for attempt in (
            lambda stage=stage: open_sources(stage.data),
            lambda stage=stage: micro_batch(stage, 1),
            lambda stage=stage: construct(registry.objectives, stage.objective, facts(plan)),
        ):
            try:
                attempt()  # type: ignore[no-untyped-call]
            except ConfigError as error:
                problems += error.under(join("stages", number)).problems
    names = [stage.name for stage in recipe.stages]
    problems += [
        Problem(join("stages", n, "name"), f"`{name}` stands twice")
        for n, name in enumerate(names)
        if name in names[:n]
    ]
    if problems:
        raise ConfigError(problems)


def _differences(old: dict[str, Any], new: dict[str, Any], place: str = "") -> list[str]:
    """Dotted places at which two recipes differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, join(place, key))
        elif a != b:
            found.append(join(place, key))
    return found


def _name(source: Source) -> str:
    return Path(source).stem if isinstance(source, (str, Path)) else "run"
