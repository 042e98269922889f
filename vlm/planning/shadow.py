"""Running a model for its shapes: weights and activations on the meta device, whole numbers real.

Nothing is computed and nothing is stored, but the model's own code runs, so that what is counted is what it does.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vlm.planning.shadow_results import Results
from vlm.planning.storages import tensors

META = torch.device("meta")
LARGEST = 2**22
"""Elements of a tensor that is real though larger than all that it could be made of, as an attention mask is; beyond,
only its shape is kept."""
CHOICES = 2**17
"""The same for the experts chosen by a router, which are many at each layer."""

aten = torch.ops.aten
_INDEXED = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}
_FILLED = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}


class Shadow(TorchDispatchMode):
    """Runs each operation on values where they are known and on shapes where they are not.

    Known are whole numbers and truth values that follow from the batch's own: positions, masks, counts. What depends
    on weights or pixels has a shape only. The one exception is the choice of the largest entries, as a router of
    experts makes it: which ones they are cannot be known, and they are taken to be spread evenly.

    Args:
        seen: called after each operation with it, its arguments and its result.
    """

    def __init__(self, seen: Callable[[Any, Sequence[Any], dict[str, Any], Any], None]) -> None:
        super().__init__()
        self._seen = seen
        self._results = Results()
        self._largest = LARGEST

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._run(func, args, kwargs)
        self._seen(func, args, kwargs, result)
        return result

    def _run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        given = list(tensors((args, kwargs)))
        unknown = [tensor.is_meta for tensor in given]
        if func in _FILLED and unknown[0] and _is_whole(kwargs.get("dtype")) and _filled(args) <= self._largest:
            # known, even where what it is like is not
            return func(torch.empty((), dtype=args[0].dtype).expand(args[0].shape), *args[1:], **_on_cpu(kwargs))
        if any(unknown):
            return self._on_shapes(func, args, kwargs, mixed=not all(unknown))
        self._largest = max(self._largest, *(tensor.numel() for tensor in given), 0)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]) == META:
            known = _is_whole(_dtype(func, args, kwargs, given)) and _made(args, given) <= self._largest
            return func(*args, **(_on_cpu(kwargs) if known else kwargs))
        if len(given) > 1 and _broadcast(given) > self._largest:
            return func(*_moved(args), **_moved(kwargs))
        try:
            return func(*args, **kwargs)
        except NotImplementedError:  # the CPU has no such operation on whole numbers (a histogram)
            return func(*_moved(args), **_moved(kwargs))

    def _on_shapes(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], *, mixed: bool) -> Any:
        if func is aten.masked_select.default and not args[1].is_meta:
            return args[0].new_empty(int(args[1].expand_as(args[0]).sum()))
        if mixed:
            args, kwargs = _without_values(func, args, kwargs)
        if kwargs.get("device") is not None:  # moved to where known numbers are: what is not known stays so
            kwargs = {**kwargs, "device": META}
        return _with_even_choice(func, self._results(func, args, kwargs), args)


class KnownNumbers(TorchFunctionMode):
    """`torch.tensor([1, 2], device="meta")` would lose its numbers before `Shadow` sees it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device) == META:
            made = func(*args, **_on_cpu(kwargs))
            return made if _is_whole(made.dtype) else made.to(META)
        return func(*args, **kwargs)


def _filled(args: Sequence[Any]) -> int:
    """Elements of what `zeros_like` or `new_zeros` makes."""
    return prod(args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else args[0].shape)


def _moved(node: Any) -> Any:
    """The same arguments with shapes in place of values."""
    if isinstance(node, Tensor):
        return node if node.is_meta else node.to(META)
    if isinstance(node, (list, tuple)):
        return type(node)([_moved(item) for item in node])
    if isinstance(node, dict):
        return {key: _moved(item) for key, item in node.items()}
    return node


def _without_values(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Arguments on the meta device; where a known mask picks entries, it becomes their numbers: the mask's shape alone
    would not say how many they are."""
    if func in _INDEXED:
        args = (args[0], [number for index in args[1] for number in _numbers(index)], *args[2:])
    return _moved(args), _moved(kwargs)


def _numbers(index: Tensor | None) -> Iterable[Tensor | None]:
    if index is None or index.is_meta or index.dtype != torch.bool:
        return [index]
    return index.nonzero().unbind(1)


def _dtype(func: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Tensor]) -> torch.dtype | None:
    """Of a tensor that is made or moved; None where torch's default decides."""
    if kwargs.get("dtype") is not None:
        return kwargs["dtype"]  # type: ignore[no-any-return]
    if given:
        return given[0].dtype
    whole = func._overloadpacket is aten.arange and all(isinstance(number, int) for number in args)
    return torch.int64 if whole else None


def _made(args: Sequence[Any], given: Sequence[Tensor]) -> int:
    """Elements of a tensor that is made or moved; a range's do not matter."""
    if given:
        return given[0].numel()
    return prod(args[0]) if args and isinstance(args[0], (list, tuple)) else 0


def _is_whole(dtype: torch.dtype | None) -> bool:
    return dtype is not None and not dtype.is_floating_point and not dtype.is_complex


def _on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "device": torch.device("cpu")}


def _broadcast(given: Sequence[Tensor]) -> int:
    """Elements of what an elementwise operation makes."""
    try:
        return int(prod(torch.broadcast_shapes(*(tensor.shape for tensor in given))))
    except RuntimeError:  # another kind of operation
        return 0


def _with_even_choice(func: Any, result: Any, args: Sequence[Any]) -> Any:
    if func is aten.topk.default and result[1].numel() <= CHOICES:
        dim = args[2] if len(args) > 2 else -1
        return result[0], _even(result[1].shape, args[0].shape[dim], dim)
    if func is aten.argmax.default and len(args) > 1 and args[1] is not None and result.numel() <= CHOICES:
        return _even(result.shape, args[0].shape[args[1]], -1)
    return result


def _even(shape: torch.Size, among: int, dim: int) -> Tensor:
    """Numbers of `among` things, in turn along `dim`, so that each comes as often as any other."""
    moved = [*shape]
    if moved:
        moved.append(moved.pop(dim))
    numbers = (torch.arange(prod(shape)) % among).reshape(moved)
    return numbers.movedim(-1, dim) if moved else numbers
