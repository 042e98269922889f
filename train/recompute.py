"""Gradient checkpointing of any part: activations inside a block are computed a second time in the backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlm.blocks import parts_of, stack_of
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.model import VLM


@contextmanager
def recomputed(model: VLM, parts: Sequence[str]) -> Iterator[None]:
    """Keep of each block of some parts what goes into it and nothing else (arXiv 1604.06174), for a while.

    Random numbers are the same both times, so losses and gradients are those without it, to the bit. What hangs on a
    block from outside (cross-attention before it) is not part of it.

    Args:
        model: whose parts.
        parts: `encoders` (all), `encoders.0`, `connector`, `llm`.

    Raises:
        ConfigError: there is no such part, or it has no blocks.
    """
    blocks = chosen(model, parts)
    for block in blocks:
        block.forward = partial(_twice, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def chosen(model: VLM, parts: Sequence[str]) -> list[nn.Module]:
    """The blocks of the parts.

    Raises:
        ConfigError: every part that is not there or has no blocks.
    """
    known = parts_of(model)
    problems: list[Problem] = []
    found: list[nn.Module] = []
    for number, name in enumerate(parts):
        mine = [one for one in known if one == name or one.startswith(f"{name}.")]
        blocks = [block for one in mine for block in stack_of(one, known[one]).blocks]
        if not mine:
            problems.append(Problem(join("", number), unknown("part", name, ["encoders", *known])))
        elif not blocks:
            problems.append(Problem(join("", number), f"`{name}` has no list of blocks"))
        found += blocks
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(found))


def _twice(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
