"""What a stage's precision does to a model on the meta device: the dtypes of its weights and of its activations."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LOW = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Precisions that leave the weights as they are and lower the matrix products."""
WHOLE = {"bf16-true": torch.bfloat16}
"""Precisions that convert the weights themselves."""

# As on a CUDA device (the lists are in torch's autocast documentation), by the names of the functions in Python.
_LOWERED = set(
    """
    linear matmul __matmul__ __rmatmul__ mm bmm mv addmm addmv addbmm baddbmm einsum chain_matmul multi_dot prelu
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d scaled_dot_product_attention
    multi_head_attention_forward
    """.split()  # noqa: SIM905
)
_RAISED = set(
    """
    layer_norm rms_norm group_norm norm vector_norm softmax log_softmax exp expm1 log log10 log2 log1p pow __pow__
    __rpow__ rsqrt reciprocal softplus sum prod cumsum cumprod logsumexp interpolate cross_entropy nll_loss l1_loss
    mse_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy_with_logits cosine_similarity cdist dist
    """.split()  # noqa: SIM905
)


class Autocast(TorchFunctionMode):
    """`torch.autocast` for meta tensors, which the real one passes over: matrix products take low precision, sums and
    norms take float32, and the low copy of a trained weight is made once.

    Args:
        dtype: the low precision.
        copied: called with each copy of a weight, and whether that trains.
    """

    def __init__(self, dtype: torch.dtype, copied: Callable[[Tensor, bool], None]) -> None:
        super().__init__()
        self._dtype = dtype
        self._copied = copied
        self._copies: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _LOWERED:
            args, kwargs = _changed(args, self._low), _changed(kwargs or {}, self._low)
        elif name in _RAISED:
            args, kwargs = _changed(args, _raised), _changed(kwargs or {}, _raised)
        return func(*args, **(kwargs or {}))

    def _low(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == self._dtype:
            return tensor
        if not isinstance(tensor, nn.Parameter):
            return tensor.to(self._dtype)
        if id(tensor) in self._copies:
            return self._copies[id(tensor)]
        copy = tensor.to(self._dtype)
        self._copied(copy, tensor.requires_grad)
        if tensor.requires_grad:
            self._copies[id(tensor)] = copy
        return copy


def _raised(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _changed(node: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(node, Tensor):
        return change(node)
    if isinstance(node, (list, tuple)):
        return type(node)([_changed(item, change) for item in node])
    return {key: _changed(item, change) for key, item in node.items()} if isinstance(node, dict) else node


@contextmanager
def stored(modules: nn.Module, precision: str) -> Iterator[None]:
    """The modules' weights in the dtypes that they have while a stage of this precision runs."""
    if precision not in WHOLE:
        yield
        return
    changed = [t for t in [*modules.parameters(), *modules.buffers()] if t.is_floating_point()]
    before = [tensor.dtype for tensor in changed]
    for tensor in changed:
        tensor.data = tensor.data.to(WHOLE[precision])
    try:
        yield
    finally:
        for tensor, dtype in zip(changed, before, strict=True):
            tensor.data = tensor.data.to(dtype)
