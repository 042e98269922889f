"""What is fastest on this device: measured on it, never assumed."""

import time
from collections.abc import Callable
from functools import cache
from statistics import median

import torch
from torch import Tensor

from vlm.attention import Implementation, attend
from vlm.errors import ConfigError


def best_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def usable(device: str) -> str:
    """The device itself.

    Raises:
        ConfigError: torch knows no such device, or this machine has none.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise ConfigError(
            f"device: `{device}` cannot be used ({str(error).splitlines()[0]}); there is {found}"
        ) from error
    return device


WORTH = 0.9
"""A choice other than the plain one must take at most this share of its time, so that noise decides nothing."""


@cache
def fastest_attention(
    device: str, *, heads: int, head_width: int, tokens: int, rows: int, precision: str
) -> Implementation:
    """`sdpa` or `eager`, by timing forward and backward at the given sizes and precision.

    On some CPUs the fused kernel's backward is several times slower than that of two matrix products.
    """
    kind = torch.device(device).type
    low = precision in ("bf16-mixed", "bf16-true")

    def step(how: Implementation) -> Callable[[], None]:
        dtype = torch.bfloat16 if low else torch.float32
        shape = (rows, heads, tokens, head_width)
        q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
        ahead = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()

        def run() -> None:
            with torch.autocast(kind, torch.bfloat16, enabled=low):
                found = attend(q, k, v, ahead, how)
            found.float().sum().backward()

        return run

    if kind == "cuda":
        return "sdpa"  # never slower there, and it does not hold the scores in memory
    return "eager" if _seconds(step("eager"), device) < WORTH * _seconds(step("sdpa"), device) else "sdpa"


@cache
def fastest_precision(device: str, *, width: int, rows: int) -> str:
    """`bf16-mixed` or `32-true`, by timing a feed-forward block's forward and backward at the given sizes."""
    kind = torch.device(device).type
    if kind == "cuda" and not torch.cuda.is_bf16_supported():
        return "32-true"
    layers = torch.nn.Sequential(
        torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width)
    ).to(device)
    tokens = torch.randn(rows, width, device=device)

    def step(low: bool) -> None:
        with torch.autocast(kind, torch.bfloat16, enabled=low):
            output: Tensor = layers(tokens)
        output.float().sum().backward()

    faster = _seconds(lambda: step(True), device) < WORTH * _seconds(lambda: step(False), device)
    return "bf16-mixed" if faster else "32-true"


def _seconds(run: Callable[[], None], device: str) -> float:
    """Median of five runs after two that are not counted."""
    times = []
    for _ in range(7):
        start = time.perf_counter()
        run()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return median(times[2:])
