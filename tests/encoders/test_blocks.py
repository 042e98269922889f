"""Depth in every kind of tower: what lies before and after the blocks, told by running it."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.encoders.test_timms import MODELS
from tests.encoders.toy_towers import ABSENT, CONFIGS, SIZES
from vlm.blocks import passed, stack_of
from vlm.encoders.timms import Timm
from vlm.encoders.tower import Tower

ELSEWHERE = {
    "florence_vision": "model.convs.",  # each stage's own embedding: listed together in front of all stages
    "qwen3_vl_vision": "model.deepstack_merger_list.",  # further outputs, called on the way
    "qwen3_vl_moe_vision": "model.deepstack_merger_list.",
}
KINDS = [*(kind for kind in CONFIGS if kind not in ABSENT), *(f"timm {kind}" for kind in MODELS if kind != "resnet")]


def build(kind, layers):
    if kind.startswith("timm "):
        name, config, size, _ = MODELS[kind.removeprefix("timm ")]
        return Timm(model=name, config=config, size=size, layers=layers)
    return Tower(config={"model_type": kind, **CONFIGS[kind]}, size=SIZES.get(kind, 32), layers=layers)


@contextmanager
def watched(encoder, blocks) -> Iterator[dict[str, int]]:
    """Parameter name -> when its module is called first: 0 before the first block, i + 1 in block i, then after."""
    now, found, handles = [0], {}, []
    owners = {id(module): number for number, block in enumerate(blocks, 1) for module in block.modules()}
    for number, block in enumerate(blocks, 1):

        def enter(*_, number=number):
            now[0] = max(now[0], number)

        def leave(*_, number=number):
            now[0] = max(now[0], number + 1)

        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    for name, module in encoder.named_modules():
        if not list(module.children()):  # of others, a parameter is used at any time of their forward

            def note(module, *_, name=name):
                for own, _ in module.named_parameters(recurse=False):
                    found.setdefault(f"{name}.{own}", owners.get(id(module), now[0]))

            handles.append(module.register_forward_pre_hook(note))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_places_are_those_of_use(kind):
    encoder = build(kind, (-1,))
    stack = stack_of("encoders.0", encoder)
    assert len(stack.blocks) == stack.running > 1
    place = passed(encoder, stack)
    assert place.keys() == dict(encoder.named_parameters()).keys()
    with watched(encoder, stack.blocks) as seen, torch.no_grad():
        encoder(torch.rand(2, 3, *encoder.image.size))
    assert set(seen.values()) >= {1, len(stack.blocks)}
    odd = {name for name in seen if place[name] != seen[name]}
    assert all(name.startswith(ELSEWHERE.get(kind, "nowhere")) for name in odd), sorted(odd)
    assert bool(odd) == (kind in ELSEWHERE)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_above_the_selected_layer_do_not_count(kind):
    """Which ones run is seen by running it."""
    encoder = build(kind, (-2,))
    stack = stack_of("encoders.0", encoder)
    ran = set()
    for number, block in enumerate(stack.blocks):
        block.register_forward_hook(lambda *_, number=number: ran.add(number))
    with torch.no_grad():
        encoder(torch.rand(2, 3, *encoder.image.size))
    assert ran == set(range(stack.running))
    assert stack.running < len(stack.blocks)
    place = passed(encoder, stack)
    idle = {id(p) for block in stack.blocks[stack.running :] for p in block.parameters()}
    assert {place[name] for name, p in encoder.named_parameters() if id(p) in idle} == {0}
