"""Where a vision model has its blocks, its final norm and its head: read off one run without data."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

T = TypeVar("T")
Dims = tuple[int, ...]


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that an encoder reads, as dotted names in it, and the shapes between them."""

    blocks: tuple[str, ...]
    """The blocks, or a pyramid's stages, in order."""
    states: tuple[Dims, ...]
    """Shapes of the hidden states: 0 is the input of block 0, i the output of block i - 1."""
    after: tuple[str | None, ...]
    """For each of `states` the module that is called first once it is there; None where none is."""
    norm: str | None
    """The norm after the last block."""
    norm_rank: int
    """Dimensions of what the norm is applied to: 2 pooled [N, C], 3 tokens [N, T, C], 4 a map; 0 without a norm."""
    heads: tuple[str, ...]
    """Modules with parameters that are called behind the last block, the norm aside: poolers, projections."""

    @property
    def plain(self) -> bool:
        """Whether all hidden states have one shape, as in a ViT."""
        return len(set(self.states)) == 1

    @property
    def layers(self) -> tuple[int, ...]:
        """Which of `states` the layers 0, 1, 2, ... are: each of them, unless single blocks form a pyramid (SAM 2's
        Hiera); then the ends of its stages, where the shape changes.
        """
        every = range(len(self.states))
        if self.plain or len(set(self.states)) >= len(self.blocks):
            return tuple(every)
        ends = [index for index in every[1:-1] if self.states[index] != self.states[index + 1]]
        return (0, *ends, len(self.blocks))


def channels_last(states: Sequence[Dims], size: tuple[int, int]) -> bool:
    """Whether hidden states are [N, T, C] or [N, H, W, C] rather than [N, C, H, W].

    A map has the aspect ratio of its pixels, of `size` = (height, width); width and channels beside each other do not.
    """
    if len(states[0]) != 4:
        return True
    wanted = math.log(size[0] / size[1])
    skews = [sum(abs(math.log(dims[axis] / dims[axis + 1]) - wanted) for dims in states) for axis in (1, 2)]
    return skews[0] < skews[1]


def without_data(module: nn.Module, function: Callable[[], T]) -> T:
    """`function()` with all tensors of `module` on the meta device: shapes come out right, no work is done.

    What `function` makes is made there too, since that is the default device meanwhile.
    """
    call = _Call(module, function)
    tensors = dict(call.named_parameters()) | dict(call.named_buffers())
    with torch.no_grad(), torch.device("meta"):
        result: T = functional_call(call, {name: tensor.to("meta") for name, tensor in tensors.items()}, ())
    return result


class _Call(nn.Module):
    """A function that uses `module`, as a module of its own, for `functional_call`."""

    def __init__(self, module: nn.Module, function: Callable[[], Any]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self) -> Any:
        return self._function()


def hidden_states(
    call: Callable[[], Any], blocks: Sequence[nn.Module], wanted: Collection[int], after: nn.Module | None
) -> dict[int, Tensor]:
    """Hidden states while `call` runs the model, by number (see `Anatomy.states`), as the model has them.

    The run is ended by a hook, in front of what comes after the deepest one and never inside a block: gradient
    checkpointing would not survive that.

    Args:
        call: runs the model.
        blocks: its blocks.
        wanted: numbers of hidden states.
        after: what is called after the deepest of them; None runs to the end.
    """
    found: dict[int, Tensor] = {}
    deepest = max(wanted)

    def first(_: nn.Module, args: Any, kwargs: Any) -> None:
        found[0] = _tensor((*args, *kwargs.values()))

    def keep(number: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[number] = _tensor(output)

        return hook

    def stop(_: nn.Module, __: Any) -> None:
        if deepest in found:
            raise _Reached

    handles = [blocks[number - 1].register_forward_hook(keep(number)) for number in wanted if number]
    if 0 in wanted:
        handles.append(blocks[0].register_forward_pre_hook(first, with_kwargs=True))
    if after is not None:
        handles.append(after.register_forward_pre_hook(stop))
    with _hooked(handles), suppress(_Reached):
        call()
    return found


class _Reached(Exception):
    """All that is wanted has been seen: the rest of the model need not run."""


@contextmanager
def _hooked(handles: Iterable[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(values: Any) -> Tensor:
    """The hidden state among a block's arguments, or in its output."""
    return values if isinstance(values, Tensor) else next(value for value in values if isinstance(value, Tensor))


def plain_anatomy(
    tokens: int, width: int, depth: int, *, blocks: str, norm: str | None = None, heads: Sequence[str] = ()
) -> Anatomy:
    """The anatomy of a ViT without prefix tokens, told rather than found.

    Args:
        tokens: of an image.
        width: of a token.
        depth: number of blocks.
        blocks: name of the list of blocks.
        norm: name of the final norm.
        heads: what else is called behind the last block.
    """
    names = tuple(f"{blocks}.{index}" for index in range(depth))
    states = ((1, tokens, width),) * (depth + 1)
    behind = next((name for name in (norm, *heads) if name), None)
    return Anatomy(names, states, (*names, behind), norm, 3 if norm else 0, tuple(heads))


@dataclass
class _Visit:
    """One call of a module."""

    name: str
    given: Dims
    """Shape of its first tensor."""
    yields: Dims = ()


def anatomy(model: nn.Module, call: Callable[[], Any]) -> Anatomy | None:
    """The parts of `model`, found by what is called in which order; None where its blocks are not called one by one.

    The blocks are the list of modules with the most parameters; the final norm is the first module called after the
    last of them that stands beside them or further out and is a norm by its class or its name.

    Args:
        model: on any device.
        call: runs it.
    """
    blocks = _blocks(model)
    visits = _visits(model, call)
    first = {visit.name: number for number, visit in reversed(list(enumerate(visits)))}
    if not blocks or not all(name in first for name in blocks):
        return None
    outside = {".".join(blocks[0].split(".")[:length]) for length in range(blocks[0].count(".") + 1)}
    starts = [first[name] for name in blocks]
    behind = [visit for visit in visits[starts[-1] :] if not _within(visit.name, blocks[-1])]
    norm = next((visit for visit in behind if _is_norm(model, visit.name, outside)), _Visit("", ()))
    branches = dict.fromkeys(_branch(visit.name, outside) for visit in behind if visit.name != norm.name)
    earlier = {_branch(visit.name, outside) for visit in visits[: starts[-1]] if visit.name not in outside}
    return Anatomy(
        blocks=blocks,
        states=(visits[starts[0]].given, *(visits[start].yields for start in starts)),
        after=(blocks[0], *(_next(visits, start) for start in starts)),
        norm=norm.name or None,
        norm_rank=len(norm.given),
        heads=tuple(name for name in branches if name not in earlier and _has_parameters(model, name)),
    )


def _blocks(model: nn.Module) -> tuple[str, ...]:
    """The members of the list with the most parameters, the outermost of equals; lists in it are taken apart."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    sizes = {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in lists.items()}
    largest = max(lists, key=lambda name: (sizes[name], -name.count(".")), default="")
    return _members(largest, lists)


def _members(name: str, lists: dict[str, nn.ModuleList]) -> tuple[str, ...]:
    if name not in lists:
        return (name,) if name else ()
    return tuple(member for key, _ in lists[name].named_children() for member in _members(f"{name}.{key}", lists))


def _visits(model: nn.Module, call: Callable[[], Any]) -> list[_Visit]:
    """Every call of a module inside `model`, in the order of their starts."""
    visits: list[_Visit] = []
    running: list[_Visit] = []

    def before(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visits.append(_Visit(name, _dims((*args, *kwargs.values()))))
            running.append(visits[-1])

        return hook

    def behind(_: nn.Module, __: Any, output: Any) -> None:
        running.pop().yields = _dims(output)

    modules = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(before(name), with_kwargs=True) for name, module in modules]
    handles += [module.register_forward_hook(behind) for _, module in modules]
    with _hooked(handles):
        call()
    return visits


def _dims(values: Any) -> Dims:
    found = values if isinstance(values, (tuple, list)) else [values]
    return next((tuple(value.shape) for value in found if isinstance(value, Tensor)), ())


def _within(name: str, outer: str) -> bool:
    return f"{name}.".startswith(f"{outer}.")


def _next(visits: Sequence[_Visit], start: int) -> str | None:
    """What is called first after the call number `start`, those inside it aside."""
    return next((visit.name for visit in visits[start:] if not _within(visit.name, visits[start].name)), None)


def _is_norm(model: nn.Module, name: str, outside: Collection[str]) -> bool:
    """Beside the blocks or further out, and a norm: by its name too, since a config may make it an `Identity`."""
    parent, _, own = name.rpartition(".")
    kind = type(model.get_submodule(name)).__name__
    return parent in outside and ("norm" in kind.lower() or "norm" in own.lower())


def _branch(name: str, outside: Collection[str]) -> str:
    """The outermost module around `name` that does not hold the blocks."""
    while name.rpartition(".")[0] not in outside:
        name = name.rpartition(".")[0]
    return name


def _has_parameters(model: nn.Module, name: str) -> bool:
    return next(model.get_submodule(name).parameters(), None) is not None
