"""How each parameter trains in a stage: its learning rate, decay and warm-up, by the keys of `train`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vlm.blocks import parts_of, passed, stack_of
from vlm.errors import ConfigError, Problem, join
from vlm.model import VLM
from vlm.parts import refuse_both, winners
from vlm.ratespec import RateSpec
from vlm.recipe import StageSpec


@dataclass(frozen=True)
class Setting:
    """How a parameter trains."""

    key: str
    """The key of `train` that won it."""
    lr: float
    """Its highest learning rate."""
    weight_decay: float
    """Of matrices; vectors do not decay."""
    warmup: float
    """Share of the steps over which its learning rate rises from zero."""


@dataclass(frozen=True)
class _Depth:
    """Where a parameter lies in its part."""

    part: str
    blocks: int
    """Of the part; 0 where it has none."""
    passed: int
    """See `vlm.blocks.passed`."""


def settings(model: VLM, stage: StageSpec, others: Iterable[str] = ("objective.*",)) -> dict[str, Setting]:
    """Parameter name -> how it trains, for those that do; what is missing is frozen.

    Layer-wise decay is BEiT's (arXiv 2106.08254) and MAE's (arXiv 2111.06377): with n blocks, what comes after them has
    the full rate, block i (from 0) that times decay ** (n - i), what comes before them that times decay ** (n + 1).

    Args:
        model: whose parameters these are.
        stage: the stage.
        others: names of parameters that are not the model's; by default any that an objective may bring.

    Raises:
        ConfigError: keys that match no parameter; blocks asked for where there are none or not so many; weights that
            would train beside an adapter of them.
    """
    names = [*(name for name, _ in model.named_parameters()), *others]
    specs = {key: rate if isinstance(rate, RateSpec) else RateSpec(lr=rate) for key, rate in stage.train.items()}
    won = winners(names, specs)
    deep = {key: spec for key, spec in specs.items() if spec.by_depth}
    depths = _depths(model, {name for name, key in won.items() if key in deep}) if deep else {}
    problems = [problem for key, spec in deep.items() for problem in _problems(key, spec, won, depths)]
    if problems:
        raise ConfigError(problems)
    found: dict[str, Setting] = {}
    for name, key in won.items():
        spec = specs[key]
        rate = spec.lr * (_scale(spec, depths[name]) if key in deep else 1.0)
        if rate > 0:
            decay = stage.weight_decay if spec.weight_decay is None else spec.weight_decay
            found[name] = Setting(key, rate, decay, stage.warmup if spec.warmup is None else spec.warmup)
    refuse_both(found, stage.train)
    return found


def _scale(spec: RateSpec, depth: _Depth) -> float:
    """Factor on the key's rate; 0 is frozen."""
    above = depth.blocks + 1 - depth.passed  # 0 after the last block, 1 in it
    if spec.last is not None and above > spec.last:
        return 0.0
    return 1.0 if spec.layer_decay is None else spec.layer_decay**above


def _depths(model: VLM, names: set[str]) -> dict[str, _Depth]:
    found = {name: _Depth("objective", 0, 1) for name in names}
    for part, module in parts_of(model).items():
        mine = {name for name in names if name.startswith(part + ".")}
        if mine:
            stack = stack_of(part, module)
            place = passed(module, stack)
            found |= {
                name: _Depth(part, stack.running, place[name.removeprefix(part + ".")] if stack.blocks else 1)
                for name in mine
            }
    return found


def _problems(key: str, spec: RateSpec, won: Mapping[str, str], depths: Mapping[str, _Depth]) -> list[Problem]:
    """Parts without blocks, or with fewer than the key asks for."""
    parts = {depths[name].part: depths[name].blocks for name, winner in won.items() if winner == key}
    option = "last" if spec.last is not None else "layer_decay"
    problems = [
        Problem(join(key, option), f"`{part}` has no list of blocks to count depth in")
        for part, blocks in parts.items()
        if not blocks
    ]
    least = min((blocks for blocks in parts.values() if blocks), default=0)
    if spec.last is not None and least and spec.last > least:
        part = min((part for part in parts if parts[part]), key=lambda one: parts[one])
        what = f"`{spec.last}`; allowed: 1 to {least}, the blocks of `{part}` that run"
        problems.append(Problem(join(key, "last"), what))
    return problems
