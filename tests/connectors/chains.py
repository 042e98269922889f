"""Chains of ops as a recipe's `connector` list makes them, and weights of a reference put into them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import perturb
from vlm import registry
from vlm.connector import Chain, Connector
from vlm.features import Features, Grid, Shape
from vlm.schema import check_options, given

Op = str | dict[str, Any]


class Line(Chain):
    """A chain behind one encoder, called with that encoder's features alone."""

    def __init__(self, ops: Sequence[Connector]) -> None:
        super().__init__([[]], None, ops)

    def forward(self, features: Features) -> Features:  # type: ignore[override]
        return super().forward([features], features.question)

    def shape(self, shape: Shape) -> Shape:  # type: ignore[override]
        return super().shape([shape])


def chain(ops: Sequence[Op], shape: Shape, out_width: int) -> Line:
    """Ops in order for features of `shape`; options go through the schema, as those of a recipe do."""
    made: list[Connector] = []
    for number, node in enumerate(ops):
        options = {"name": node} if isinstance(node, str) else dict(node)
        kind = registry.connectors.get(options.pop("name"))
        told = options.pop("out_width", out_width if number == len(ops) - 1 else shape.width)
        facts = {"in_width": shape.width, "out_width": told, "grid": shape.grid}
        facts |= {"llm_width": out_width, "llm_layers": 4}
        made.append(kind(**{name: facts[name] for name in given(kind)}, **check_options(kind, options)))
        shape = made[-1].shape(shape)
    return Line(made)


Source = str | Callable[[Mapping[str, Tensor]], Tensor]


class Reference:
    """A reference module with every parameter perturbed, whose weights are copied over by name.

    Args:
        module: any module.
        unused: parameters that have no counterpart, each named.
    """

    def __init__(self, module: nn.Module, unused: Sequence[str] = ()) -> None:
        for seed in range(6):  # far from the initial values, so that results are of a size where differences show
            perturb(module, seed)
        self.module = module.eval()
        self.unused = set(unused)

    def fill(self, kit: nn.Module, names: Mapping[str, Source]) -> nn.Module:
        """Kit's parameter name -> the reference's, or a function of all of them. All are used, all are filled."""
        weights = _Watched(dict(self.module.named_parameters()))
        found = {own: weights[other] if isinstance(other, str) else other(weights) for own, other in names.items()}
        kit.load_state_dict({own: tensor.detach() for own, tensor in found.items()}, strict=True)
        left = set(weights) - weights.read
        assert left == self.unused, f"parameters of the reference that are not copied: {left}"
        return kit.eval()


class _Watched(dict[str, Tensor]):
    """Remembers which keys were read."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return super().__getitem__(key)


def both(own: str, other: str, kinds: Sequence[str] = ("weight", "bias")) -> dict[str, Source]:
    """Names of a layer's weight and bias: `ops.0.layers.0` and `linear_1`."""
    return {f"{own}.{kind}": f"{other}.{kind}" for kind in kinds}


def third(name: str, number: int) -> Source:
    """One of the three equal parts of a packed projection."""
    return lambda weights: weights[name].chunk(3)[number]


def stacked(*names: str) -> Source:
    """Several maps above each other, as the kit keeps a gated linear unit's two."""
    return lambda weights: torch.cat([weights[name] for name in names])


def tokens(grid: Grid, width: int, views: int = 2, seed: int = 0) -> Features:
    """Random features on a grid."""
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.randn(views, grid[0] * grid[1], width, generator=generator), grid)


def same(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` (absolute, and relative to the largest), and not by being constant."""
    assert found.shape == wanted.shape
    largest = float(wanted.abs().max())
    assert (found - wanted).abs().max() <= tolerance * min(largest, 1.0), float((found - wanted).abs().max())
    assert (wanted - wanted.mean(dim=1, keepdim=True)).abs().max() > 0.01, "all tokens are the same"
    assert (wanted - wanted[:1]).abs().max() > 0.01, "all views are the same"
