"""Results of operations on the meta device, remembered: a model's blocks are alike, and torch takes its time each."""

from typing import Any

import torch
from torch import Tensor

from vlm.planning.storages import key_of, tensors

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Results:
    """Runs operations on meta tensors; one of the same kind on the same shapes is not run again."""

    def __init__(self) -> None:
        self._results: dict[Any, Any] = {}
        self._fresh: dict[Any, bool] = {}

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """`func(*args, **kwargs)`, all of whose tensors are on the meta device."""
        if func is torch.ops.aten._grouped_mm.default:
            return _grouped(args, kwargs)
        if not self._makes_fresh(func):
            return func(*args, **kwargs)
        try:
            key = (func, _signature(args), _signature(tuple(kwargs.items())))
        except _Unknown:
            return func(*args, **kwargs)
        if key in self._results:
            return _made(self._results[key])
        result = func(*args, **kwargs)
        if _shares(result, (args, kwargs)):
            self._fresh[func] = False
        else:
            self._results[key] = _shapes(result)
        return result

    def _makes_fresh(self, func: Any) -> bool:
        """Whether its results are new tensors, neither views of what it is given nor changed in place."""
        if func not in self._fresh:
            schema = func._schema
            self._fresh[func] = not schema.is_mutable and all(value.alias_info is None for value in schema.returns)
        return self._fresh[func]


def _grouped(args: Any, kwargs: dict[str, Any]) -> Any:
    """A grouped product, which older releases of torch (2.11) have in bfloat16 alone; shapes know no precision."""
    low = [item.to(torch.bfloat16) if isinstance(item, Tensor) and item.is_floating_point() else item for item in args]
    return torch.ops.aten._grouped_mm.default(*low, **kwargs).to(args[0].dtype)


def _shares(result: Any, given: Any) -> bool:
    """Whether a result shares memory with an argument or another result; not every schema that should say so does."""
    results = [key_of(tensor) for tensor in tensors(result)]
    return len(set(results)) < len(results) or not set(results).isdisjoint(key_of(tensor) for tensor in tensors(given))


class _Unknown(Exception):
    """An argument of a kind that cannot be told from others."""


def _signature(node: Any) -> Any:
    if isinstance(node, Tensor):
        return node.shape, node.stride(), node.dtype
    if isinstance(node, (list, tuple)):
        return tuple([_signature(item) for item in node])
    if isinstance(node, _PLAIN):
        return type(node), node
    raise _Unknown


def _shapes(result: Any) -> Any:
    if isinstance(result, Tensor):
        return result.shape, result.stride(), result.dtype
    return [_shapes(item) for item in result] if isinstance(result, (list, tuple)) else None


def _made(shapes: Any) -> Any:
    if isinstance(shapes, list):
        return tuple(_made(item) for item in shapes)
    if shapes is None:
        return None
    size, stride, dtype = shapes
    return torch.empty_strided(size, stride, dtype=dtype, device="meta")
