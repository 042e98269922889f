"""FLOPs and bytes of a model, found by running it for its shapes (see `vlm.planning.shadow`)."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from vlm.llm import decoder_blocks
from vlm.model import VLM
from vlm.parts import set_modes, set_trainable
from vlm.planning.memory import Memory, nbytes, trainable_bytes
from vlm.planning.meter import Meter
from vlm.planning.precision import LOW, Autocast, stored
from vlm.planning.storages import tensors
from vlm.sample import Batch


@dataclass(frozen=True)
class Flops:
    """Of one sample in a stage. A multiplication and an addition are two."""

    forward: int
    backward: int
    recomputed: int
    """On top of both when each block is checkpointed: its forward pass a second time."""


def forward_costs(model: VLM, batch: Batch) -> tuple[dict[str, int], int]:
    """FLOPs of `model(batch)` by part, for the whole batch; and the bytes that stay in memory after it has been read,
    while its answers are written.

    Blocks that the connector has put into the LLM are the connector's. What stays are keys, values and states, as the
    LLM's cache and the route hold them.
    """
    model.eval()
    _know_grids(model, batch)
    given: dict[str, Any] = {}
    handle = model.llm.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    meter = Meter(parts=_parts(model))
    try:
        with torch.no_grad(), meter.running():
            result = model(batch, use_cache=True)
    finally:
        handle.remove()
    flops = dict.fromkeys(model.parts(), 0) | {"connector": meter.flops.pop("", 0)}
    for name, count in meter.flops.items():
        flops[name] += count
    passing = {"inputs_embeds", "attention_mask", "position_ids", "logits"}
    kept = [value for key, value in [*given.items(), *result.items()] if key not in passing]
    return flops, sum(tensor.numel() * tensor.element_size() for tensor in _reached(kept, {}))


def _know_grids(model: Any, batch: Batch) -> None:
    """An encoder may find its grid at a new size by a run without data, once: that is no part of the model's work."""
    for group in batch.groups:
        for encoder, pixels in zip(model.encoders, group.pixels, strict=True):
            encoder.grid((pixels.shape[-2], pixels.shape[-1]))


def _parts(model: VLM) -> Iterator[tuple[str, nn.Module]]:
    """The parts' modules as they are called; the connector is entered by any of its modules."""
    yield from ((name, part) for name, part in model.parts().items() if name != "connector")
    yield from (("connector", module) for module in model.connector.modules())


def _reached(node: Any, seen: dict[int, Any]) -> Iterator[Tensor]:
    """Tensors that hang on an object, each once: caches are of many classes."""
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _reached(item, seen)
    elif isinstance(node, Mapping):
        yield from _reached(list(node.values()), seen)
    elif id(node) not in seen and not isinstance(node, (type, nn.Module)):
        seen[id(node)] = node  # kept, so that no other object gets its number
        if isinstance(node, Tensor):
            yield node
        else:
            yield from _reached(getattr(node, "__dict__", {}), seen)


def stage_costs(
    model: VLM,
    objective: Any,
    batch: Batch,
    *,
    rates: Mapping[str, float],
    precision: str,
    footprint: Callable[[], tuple[int, int] | None] = lambda: None,
) -> tuple[Flops, Memory]:
    """FLOPs of a sample and bytes of a micro batch on one device, of a stage that trains what is in `rates`.

    Gradients reach no further down than the lowest trained part, frozen weights get none, and parts are in the modes
    that training gives them: all of that is as the model itself does it.

    Args:
        model: on the meta device.
        objective: what the stage minimises; its parameters are called `objective.*`.
        batch: one micro batch.
        rates: names of the parameters that train.
        precision: Lightning's word for it.
        footprint: bytes that the optimiser keeps, and that its step takes, asked when gradients are there; those of
            torch's AdamW with `foreach` if it knows none.
    """
    set_trainable(model, rates)
    set_trainable(objective, {name.removeprefix("objective."): rate for name, rate in rates.items()})
    set_modes(model)
    set_modes(objective)
    whole = nn.ModuleList([model, objective])
    with stored(whole, precision):
        for parameter in whole.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        blocks = checkpointed_blocks(model)
        flops, run = _measured(whole, blocks, batch, precision)
        trained = trainable_bytes(whole)
        state, step = (footprint() if trained else None) or (2 * trained, trained)
        memory = _memory(whole, blocks, {**run, "optimiser": state, "step": step})
    whole.zero_grad()
    return Flops(*(getattr(flops, item.name) // len(batch) for item in fields(Flops))), memory


def _measured(
    whole: nn.ModuleList, blocks: list[nn.Module], batch: Batch, precision: str
) -> tuple[Flops, dict[str, int]]:
    model: Any = whole[0]
    objective = whole[1]
    _know_grids(model, batch)
    gradients = [parameter.grad for parameter in whole.parameters() if parameter.grad is not None]
    meter = Meter(blocks=blocks, persistent=[*whole.parameters(), *whole.buffers(), *gradients])
    storages = meter.storages
    for tensor in tensors([vars(batch), [group.pixels for group in batch.groups]]):
        storages.add(tensor)
    with meter.running():
        with ExitStack() as stack:
            if precision in LOW:
                stack.enter_context(
                    Autocast(LOW[precision], lambda copy, trained: storages.copy(copy, trained=trained))
                )
            total = objective(model, batch).total
        forward = meter.total
        kept = {"activations": storages.saved(), "checkpointed": storages.checkpointed()}
        kept |= {"copies": storages.copied(), "trained_copies": storages.copied(trained=True)}
        again = sum(meter.recomputed.values())
        if total.requires_grad:  # text alone passes through no encoder and no connector
            total.backward()
    flops = Flops(forward, meter.total - forward, again)
    return flops, kept | {"temporary": storages.peak - kept["activations"] - kept["copies"]}


def _memory(whole: nn.ModuleList, blocks: list[nn.Module], run: dict[str, int]) -> Memory:
    inside = [nbytes(block) for block in blocks]
    return Memory(
        weights=nbytes(whole),
        gradients=trainable_bytes(whole),
        block=max(inside, default=0),
        rest=nbytes(whole) - sum(inside),
        **run,
    )


def checkpointed_blocks(model: VLM) -> list[nn.Module]:
    """The decoder blocks, and of the other parts the modules that follow each other in a list and are of one class."""
    found: list[nn.Module] = list(decoder_blocks(model.llm))
    for name, part in model.parts().items():
        found += [] if name == "llm" else _repeated(part)
    return found


def _repeated(module: nn.Module) -> Iterator[nn.Module]:
    items = list(module.children())
    several = isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(item) for item in items}) == 1
    if several and len(items) > 1 and any(True for _ in items[0].children()):
        yield from items
        return
    for item in items:
        yield from _repeated(item)
