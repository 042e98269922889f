"""One stage as a Lightning module."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlm import registry
from vlm.errors import TrainingError as TrainingError
from vlm.model import VLM
from vlm.parts import evaluating, set_modes, set_trainable
from vlm.rates import settings
from vlm.recipe import StageSpec
from vlm.sample import Batch, Skipped
from vlm.schema import construct

from . import rng
from .checkpoint import Checkpoints
from .groups import kinds, learning_rates_of, parameter_groups
from .objectives import Beginning, Loss, Objective
from .optimisers import facts
from .schedule import schedule
from .strategies import Sharded, Touch, is_sharded

SHOWN = 8
"""Samples that an error names."""


@dataclass(frozen=True)
class Piece:
    """What is kept of a micro-batch until its step is taken, to name its samples if something is wrong: no pixels."""

    total: Tensor
    ids: list[str]
    tokens: Tensor
    """long [T]: of the first row."""
    real: Tensor
    """bool [T]: neither padding nor placeholder."""

    @classmethod
    def of(cls, batch: Batch, total: Tensor) -> "Piece":
        real = (batch.attention_mask[0] == 1) & (batch.owner[0] < 0)
        return cls(total.detach(), batch.ids, batch.input_ids[0], real)

    def text(self, tokenizer: Any) -> str:
        """The first row as the model reads it."""
        return str(tokenizer.decode(self.tokens[self.real].tolist()))


class StageModule(pl.LightningModule):
    """Trains what a stage names and freezes everything else: `requires_grad` off and eval mode.

    The loss is a mean over the terms (supervised tokens) of the global batch, however it was cut into micro-batches
    and devices: gradients of sums are accumulated and divided by the global count just before the optimiser's step.

    Args:
        model: the VLM, handed on from stage to stage.
        objective: what is minimised.
        stage: the stage.
        accumulate: micro-batches per optimiser step.
        skipped: told of samples that were left out of batches.
    """

    def __init__(
        self,
        model: VLM,
        objective: Objective,
        *,
        stage: StageSpec,
        accumulate: int,
        skipped: Callable[[Sequence[Skipped]], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self.vlm = model
        self.objective = objective
        self.stage = stage
        self.accumulate = accumulate
        self.skipped = skipped
        named = [(_recipe_name(name), parameter) for name, parameter in self.named_parameters()]
        self.settings = settings(model, stage, [name for name, _ in named if name.startswith("objective.")])
        self.rates = {name: setting.lr for name, setting in self.settings.items()}
        self.kinds = kinds(model, objective)
        set_trainable(model, self.rates)
        set_trainable(objective, {name.removeprefix("objective."): rate for name, rate in self.rates.items()})
        self._count = 0
        self._images = 0
        self._sum = torch.zeros(())
        self._figures = self._no_figures()
        self._pieces: list[Piece] = []
        self._left_out: list[Skipped] = []
        self._rng: list[dict[str, Any]] | None = None
        self.train()  # Lightning leaves modes as they are, and a loaded model is in eval mode

    def train(self, mode: bool = True) -> "StageModule":
        """Lightning calls this as it likes; frozen modules stay in eval mode all the same."""
        super().train(mode)
        if mode:
            set_modes(self.vlm)
            set_modes(self.objective)
        return self

    def setup(self, stage: str) -> None:
        """Lightning calls this before it reads a checkpoint, so that the model is as it was when the stage began."""
        if not self.objective.begins:
            return
        self.trainer.precision_plugin.convert_module(self)
        self.to(self.trainer.strategy.root_device)
        with torch.no_grad(), evaluating(self), self.trainer.precision_plugin.forward_context():
            self.objective.begin(self.vlm, self._beginning())

    def _no_figures(self) -> dict[str, Tensor]:
        return {name: torch.zeros((), dtype=torch.float32) for name in self.objective.figures}

    def _beginning(self) -> Beginning:
        trainer: Any = self.trainer
        return Beginning(
            folder=Path(trainer.default_root_dir),
            again=any(isinstance(one, Checkpoints) and one.latest() is not None for one in trainer.callbacks),
            batches=lambda: (batch.to(self.device) for batch in trainer.datamodule.survey()),
            wait=lambda: trainer.strategy.barrier("objective"),
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.skipped(batch.skipped)
        nothing = Loss(torch.zeros((), device=batch.input_ids.device), 0)
        loss = self.objective(self.vlm, batch) if batch.ids else nothing
        self._count += loss.count
        self._sum = self._sum.to(loss.total.device) + loss.total.detach()
        for name, figure in loss.figures.items():
            self._figures[name] = self._figures[name].to(figure.device) + figure.detach().float()
        if batch.ids:
            self._pieces.append(Piece.of(batch, loss.total))
        self._left_out = batch.skipped
        self._images += len(batch.images)
        total = loss.total
        if is_sharded(self.trainer):  # what one process has a gradient of, all must have
            held = (p for p in self.parameters() if p.requires_grad and not isinstance(p, DTensor))
            total = Touch.apply(total, *held)  # type: ignore[no-untyped-call]
        elif not total.requires_grad:  # text alone does not pass through an encoder or a connector: a gradient of zero
            total = total + sum(p.sum() * 0.0 for p in self.parameters() if p.requires_grad)
        # Lightning divides by the accumulated batches and DDP by the devices; the true divisor comes later.
        return total * (self.accumulate * self.trainer.world_size)  # type: ignore[no-any-return]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Sum of gradients -> gradient of the mean; Lightning clips after this."""
        sums = torch.stack([self._sum, *torch.tensor([self._count, self._images]).to(self._sum)])
        sums = torch.cat([sums, *(figure.to(sums).reshape(1) for figure in self._figures.values())])
        total, count, images, *figures = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not count:
            raise TrainingError(f"no supervised token in this batch, so there is nothing to learn: {self._show()}")
        if not math.isfinite(total):  # the same for all processes, so all stop, and none has taken the step
            raise TrainingError(f"the loss is {total} at step {self.global_step}: {self._show(alone=True)}")
        if not images:  # no gradient, whatever was made up for one above: neither decay nor momentum moves them
            for parameter in (*self.vlm.encoders.parameters(), *self.vlm.connector.parameters()):
                parameter.grad = None
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            torch._foreach_div_(gradients, count)
        means = {name: figure / count for name, figure in zip(self._figures, figures, strict=True)}
        self._report({"loss": total / count, **learning_rates_of(optimizer), **means})
        self._count, self._images, self._sum, self._figures = 0, 0, torch.zeros(()), self._no_figures()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm of the whole gradient, also where each process has a part of it.

        Raises:
            TrainingError: the gradient is not finite though the loss is; but in float16, whose scaler skips the step.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        if self.trainer.precision != "16-mixed" and not torch.isfinite(norm):
            found = f"the gradient's norm is {norm.item()} at step {self.global_step}, though the loss is finite"
            raise TrainingError(f"{found}: {self._show()}")
        if gradient_clip_val and gradients:
            torch._foreach_mul_(gradients, min(1.0, gradient_clip_val / (float(norm) + 1e-6)))
        self._pieces = []

    def configure_model(self) -> None:
        """Called by Lightning once the processes know of each other."""
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded):
            strategy.shard(self, self.vlm)

    def configure_optimizers(self) -> Any:
        named = {_recipe_name(name): parameter for name, parameter in self.named_parameters()}
        optimiser = construct(registry.optimisers, self.stage.optimiser, facts(self.stage.betas))
        optimizer = optimiser.build(parameter_groups(named, self.settings, self.kinds))
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, [self._schedule(group["warmup"]) for group in optimizer.param_groups]
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _schedule(self, warmup: float) -> Callable[[int], float]:
        return schedule(self.stage.schedule, self.stage.steps, warmup=warmup, final=self.stage.final_lr)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["rng"] = rng.of_all(self.trainer.world_size)
        checkpoint["accumulate"] = self.accumulate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._rng = checkpoint["rng"]
        more = checkpoint["global_step"] * (self.accumulate - checkpoint["accumulate"])
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for kind in ("total", "current"):  # Lightning ends a step by these, and other devices cut a batch otherwise
            progress[kind] = {name: value + more for name, value in progress[kind].items()}

    def on_train_start(self) -> None:
        rng.begin(self.trainer.global_rank, self.trainer.world_size, self._rng)

    def _report(self, figures: dict[str, float]) -> None:
        """To the loggers at once: Lightning would do so after a checkpoint of this step, and lose it in between."""
        self.log_dict(figures, logger=False, rank_zero_only=True)
        for logger in self.trainer.loggers:
            logger.log_metrics(figures, step=self.global_step)

    def _show(self, alone: bool = False) -> str:
        """The samples of this step in all processes, or those `alone` whose loss is no number; with the first one's
        text as the model sees it."""
        pieces = [one for one in self._pieces if not alone or not math.isfinite(float(one.total))]
        mine = [(one.ids, one.text(self.vlm.tokenizer)) for one in pieces]
        found = [mine]
        if self.trainer.world_size > 1:
            found = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(found, mine)
        ids = [name for one in found for names, _ in one for name in names]
        if not ids:
            return "all its samples were left out: " + "; ".join(one.why for one in self._left_out[:SHOWN])
        first, text = next(((names[0] if names else "", text) for one in found for names, text in one), ("", ""))
        more = f", and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        return f"samples {', '.join(ids[:SHOWN])}{more}; the first ({first}) reads {text!r}"


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes share, as each of them has it whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _recipe_name(name: str) -> str:
    """`vlm.llm.x` of this module is `llm.x` in a recipe; the objective's parameters keep their prefix."""
    return name.removeprefix("vlm.")
