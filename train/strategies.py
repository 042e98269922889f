"""How a model is spread over several processes: whole in each (DDP), or a part of it in each (FSDP2)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from vlm import llm as llms
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.machine import Machine
from vlm.model import VLM
from vlm.recipe import StageSpec

from .batches import micro_batch

T = TypeVar("T")
STRATEGIES = ("auto", "ddp", "fsdp")
"""`--strategy`: `auto` is `ddp` where there are several devices."""


def options(machine: Machine) -> dict[str, Any]:
    """Keywords of Lightning's trainer for a machine.

    Raises:
        ConfigError: there is no such strategy.
    """
    name = machine.strategy
    if name is not None and name not in STRATEGIES:
        raise ConfigError(Problem("--strategy", _refusal(name)))
    strategies: dict[str, Callable[[], Any]] = {"ddp": DDPStrategy, "fsdp": Sharded}
    chosen = {"strategy": strategies[name]()} if name in strategies else {}
    return {**machine.given(), **chosen}


def check(machine: Machine, stages: Sequence[StageSpec]) -> None:
    """
    Raises:
        ConfigError: there is no such strategy, or stages do not run with it or do not divide by the devices.
    """
    options(machine)
    problems: list[Problem] = []
    for number, stage in enumerate(stages):
        place = join("stages", number)
        if machine.strategy == "fsdp" and stage.precision == "16-mixed":
            problems.append(Problem(join(place, "precision"), "`16-mixed` does not go with `fsdp`; take `bf16-mixed`"))
        try:
            micro_batch(stage, (machine.devices or 1) * (machine.nodes or 1))
        except ConfigError as error:
            problems += error.under(place).problems
    if problems:
        raise ConfigError(problems)


def _refusal(name: str) -> str:
    if not name.startswith("deepspeed"):
        return unknown("strategy", name, STRATEGIES)
    missing = "" if find_spec("deepspeed") else "deepspeed is not installed, and "
    return (
        f"`{name}`: {missing}DeepSpeed divides gradients before the number of supervised tokens of the whole batch is "
        f"known, so its loss would be another one; `fsdp` spreads weights, gradients and optimiser as ZeRO-3 does"
    )


def prepare(trainer: pl.Trainer) -> None:
    """Whatever chose DDP (an option, Lightning itself): a batch of text alone leaves parameters without a gradient in
    one process, and the others must not wait for it."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


class Sharded(ModelParallelStrategy):
    """FSDP2 (arXiv 2304.11277): each process keeps a part of every weight, its gradient and its optimiser state.

    Each decoder block of the LLM is gathered when its turn comes. What remains (encoders, connector, embedding, head)
    is gathered once a step and stays: how often an encoder is called depends on the sizes of a batch's images, which
    differ between processes, and one that gathers while the other does not would wait for ever.
    """

    def __init__(self) -> None:
        super().__init__(save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def shard(self, module: pl.LightningModule, model: VLM) -> None:
        """Spread a stage's parameters over all processes.

        Raises:
            ConfigError: trained parameters of several precisions, which cannot be reduced together.
        """
        blocks = llms.decoder_blocks(model.llm)
        inside = {id(parameter) for parameter in blocks.parameters()}
        rest = [parameter for parameter in module.parameters() if id(parameter) not in inside]
        kinds = {str(p.dtype).removeprefix("torch.") for p in rest if p.requires_grad}
        if len(kinds) > 1:
            found = f"`fsdp` needs one precision of all that trains, and there are {', '.join(sorted(kinds))}"
            raise ConfigError(Problem("--strategy", f"{found}; e.g. llm.dtype: float32 and precision: bf16-mixed"))
        if any(p.requires_grad for part in (model.encoders, model.connector) for p in part.parameters()):
            llms.embedding(model.llm).register_forward_hook(_differentiable)
        mesh = self.device_mesh["data_parallel"]
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Through the module's own forward, where weights are gathered."""
        module: Any = self.lightning_module
        with self.precision_plugin.train_step_context():
            return self._forward_redirection(module, module, "training_step", *args, **kwargs)


def _differentiable(_: nn.Module, __: Any, embeds: Tensor) -> Tensor:
    """Text alone, with a frozen LLM, goes backward through its blocks too: other processes gather them on the way to
    their images."""
    return embeds if embeds.requires_grad or not torch.is_grad_enabled() else embeds.requires_grad_()


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether no process has the whole model."""
    return isinstance(trainer.strategy, Sharded)


@contextmanager
def gathered(trainer: pl.Trainer) -> Iterator[None]:
    """The whole model can be used outside a training step; all processes have to do the same with it."""
    module: Any = trainer.lightning_module
    if not is_sharded(trainer):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        for one in module.modules():  # else the next step would be computed with today's weights
            if isinstance(one, torch.distributed.fsdp.FSDPModule):
                one.reshard()


def collect(model: nn.Module, *, keep: bool) -> None:
    """Put whole weights in the place of the parts that each process has, one at a time; all processes have to call.

    The model can be saved then, and nothing else.

    Args:
        model: trained with `Sharded`.
        keep: whether this process is to have them.
    """
    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in whole:
                full = parameter.full_tensor().detach()
                whole[id(parameter)] = nn.Parameter(full.cpu() if keep else full[:0], requires_grad=False)
            if keep:
                module._parameters[name] = whole[id(parameter)]


class Touch(torch.autograd.Function):
    """A total that is as it was, and a gradient of zero for parameters that it may not depend on."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return total.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:  # type: ignore[override]
        return scale, *(torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.like)
