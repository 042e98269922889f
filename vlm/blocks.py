"""The blocks of any part, and how deep each of its parameters lies among them."""

from collections.abc import Iterator

from torch import nn

from vlm.encoder import Encoder, Stack
from vlm.llm import decoder_blocks
from vlm.model import VLM


def parts_of(model: VLM) -> dict[str, nn.Module]:
    """The parts that depth is counted in: `encoders.0`, ..., `connector`, `llm`."""
    encoders = {f"encoders.{number}": encoder for number, encoder in enumerate(model.encoders)}
    return {**encoders, "connector": model.connector, "llm": model.llm}


def stack_of(name: str, part: nn.Module) -> Stack:
    """The blocks of the part `name`, or a pyramid's stages: of an LLM the decoder blocks, of another part the outermost
    lists of like modules, of the kind with the most parameters, unless an encoder knows better.

    Empty where a part has no such list (an MLP).
    """
    found = tuple(decoder_blocks(part) if name == "llm" else _repeated(part))
    return part.stack(found) if isinstance(part, Encoder) else Stack(found, len(found))


def passed(part: nn.Module, stack: Stack) -> dict[str, int]:
    """Parameter name in `part` -> its place among the blocks that run: 0 before the first one, i + 1 inside block i,
    and one more than there are after the last one.

    Before and after are told by the order in which the part has its modules. What stands between two blocks counts as
    the next one; blocks that do not run learn nothing and count as before the first one.
    """
    known = {id(p): stack.running + 1 for one in stack.after for p in one.parameters()}
    for number, block in enumerate(stack.blocks, start=1):
        known |= {id(p): number if number <= stack.running else 0 for p in block.parameters()}
    found: dict[str, int] = {}
    reached = 0
    for name, parameter in part.named_parameters():
        own = known.get(id(parameter))
        if own is None:
            own = reached + 1 if reached else 0
        elif own <= stack.running:
            reached = max(reached, own)
        found[name] = own
    return found


def _repeated(part: nn.Module) -> list[nn.Module]:
    lists = list(_lists(part))
    if not lists:
        return []
    sizes: dict[type, int] = {}
    for items in lists:
        sizes[type(items[0])] = sizes.get(type(items[0]), 0) + sum(p.numel() for one in items for p in one.parameters())
    kind = max(sizes, key=lambda one: sizes[one])
    return [item for items in lists if type(items[0]) is kind for item in items]


def _lists(module: nn.Module) -> Iterator[list[nn.Module]]:
    """Outermost lists of two or more modules of one class that are made of modules themselves."""
    items = list(module.children())
    listed = isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(item) for item in items}) == 1
    if listed and len(items) > 1 and not isinstance(items[0], nn.ModuleList) and any(True for _ in items[0].children()):
        yield items
        return
    for item in items:
        yield from _lists(item)
