"""Adapters: low-rank updates of a part's linear layers, which train while the weights below them stay as they are."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt
from torch import nn

from vlm.errors import ConfigError, Problem
from vlm.schema import validate

PEFT_NAME = "default"
"""What peft calls the one adapter that a layer has."""


class AdapterSpec(BaseModel):
    """Adapters for a part: W + alpha / rank * B A in place of W (LoRA, arXiv 2106.09685)."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    rank: PositiveInt = 16
    """Rows of A and columns of B."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The update is multiplied by alpha / rank; twice the rank if absent."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what an adapter is given, while it trains."""
    targets: Annotated[list[str], BeforeValidator(lambda node: [node] if isinstance(node, str) else node)] = []
    """Globs over the names of the part's modules, or their last words; all linear layers of its blocks if absent."""
    dora: bool = False
    """Direction and length of each row of W change apart (DoRA, arXiv 2402.09353)."""
    rslora: bool = False
    """Multiplied by alpha / sqrt(rank) instead, so that a large rank is not slowed down (arXiv 2312.03732)."""
    init: Literal["kaiming", "gaussian", "orthogonal", "pissa", "olora"] = "kaiming"
    """What A and B begin as. The first two begin with no update (B is zero); `pissa` (arXiv 2404.02948) and `olora`
    (arXiv 2406.01775) take the largest directions out of W; `orthogonal` begins with a small random update."""

    @property
    def scale(self) -> float:
        """What alpha comes to."""
        return 2.0 * self.rank if self.alpha is None else self.alpha


@dataclass(frozen=True)
class Adapted:
    """The adapters that a part has."""

    spec: AdapterSpec
    modules: tuple[str, ...]
    """The layers that have one, by their dotted names in the part."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes."""
        return {**self.spec.model_dump(mode="json", exclude_none=True), "modules": list(self.modules)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Adapted":
        """
        Raises:
            ConfigError: these are no adapters.
        """
        fields = {key: value for key, value in values.items() if key != "modules"}
        return cls(validate(AdapterSpec, fields), tuple(values.get("modules", ())))


# --- names -----------------------------------------------------------------------------------------------------------

_INSIDE = re.compile(
    rf"\.(?:lora_(?P<matrix>[AB])\.{PEFT_NAME}\.weight|lora_(?P<length>magnitude)_vector\.{PEFT_NAME}\.weight)$"
)


def plain(name: str) -> str:
    """What peft calls `q_proj.base_layer.weight` is `q_proj.weight` in recipes and saved files, as without adapters;
    the adapter's own are `q_proj.lora.A`, `q_proj.lora.B` and, of DoRA, `q_proj.lora.magnitude`."""
    found = _INSIDE.search(name)
    if found is not None:
        return f"{name[: found.start()]}.lora.{found['matrix'] or found['length']}"
    return name.replace(".base_layer.", ".")


def adapted_layer(name: str) -> str | None:
    """The layer that a parameter is an adapter of, of whatever spelling of the parameter's name; else None."""
    layer, found, _ = plain(name).rpartition(".lora.")
    return layer if found else None


def is_adapter_of(part: str, name: str) -> bool:
    """Whether a parameter is an adapter's in `part`: a dotted prefix, or a glob over its modules."""
    layer = adapted_layer(name)
    if layer is None:
        return False
    return f"{layer}.".startswith(f"{part}.") or fnmatchcase(layer, part) or fnmatchcase(layer, f"{part}.*")


def doubled(names: Iterable[str]) -> list[str]:
    """Those of the parameters that are weights below an adapter which is among them too: either alone says what both
    could, and a base that trains by accident is no base."""
    names = list(names)
    layers = {adapted_layer(name) for name in names}
    return [
        name for name in names if name.endswith(".base_layer.weight") and name[: -len(".base_layer.weight")] in layers
    ]


# --- which layers ----------------------------------------------------------------------------------------------------


def choose(part: nn.Module, spec: AdapterSpec) -> Adapted:
    """The adapters that a part gets, by the spec (see `chosen`).

    Raises:
        ConfigError: layers that cannot have one, or for which the rank cannot begin so.
    """
    names = chosen(part, spec.targets)
    least = min(min(part.get_parameter(f"{name}.weight").shape) for name in names)
    if spec.init == "orthogonal" and spec.rank % 2:
        raise ConfigError(Problem("rank", f"`{spec.rank}`; `init: orthogonal` needs an even one"))
    if spec.init in ("pissa", "olora") and spec.rank > least:
        raise ConfigError(Problem("rank", f"`{spec.rank}`; for `init: {spec.init}` allowed here: {least} or less"))
    return Adapted(spec, tuple(names))


def chosen(part: nn.Module, targets: Sequence[str]) -> list[str]:
    """The layers of a part that get an adapter, by their dotted names in it.

    Args:
        part: without adapters.
        targets: globs; all linear layers of the blocks if there are none.

    Raises:
        ConfigError: a glob that matches no layer, or one with weights that cannot have an adapter; by name.
    """
    named = dict(part.named_modules())
    if not targets:
        found = block_layers(part)
        problems = [] if found else [Problem("targets", f"{type(part).__name__} has no linear layers in blocks")]
    else:
        found, problems = [], []
        for glob in targets:
            matching = [name for name in named if _means(glob, name) and _has_matrix(named[name])]
            found += [name for name in matching if name not in found]
            if not matching:
                problems.append(Problem("targets", f"`{glob}` matches no layer; {_known(named)}"))
    problems += [
        Problem("targets", f"`{name}` is of class {type(named[name]).__name__}; only linear layers can have an adapter")
        for name in found
        if not _is_linear(named[name])
    ]
    if problems:
        raise ConfigError(problems)
    if both := shared(part, found):
        told = "; ".join(f"`{name}` with `{other}`" for name, other in both.items())
        raise ConfigError(Problem("targets", f"weights that are shared cannot have an adapter of one side: {told}"))
    return found


def _is_linear(module: nn.Module) -> bool:
    """torch's attention reads the weights of a subclass of its own past the layer, and with them any adapter."""
    from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

    return (isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)) or _turned(
        module
    )


def block_layers(part: nn.Module) -> list[str]:
    """The linear layers of a part's blocks, those below adapters too: which stand in a list of modules."""
    named = dict(part.named_modules())
    inside = [name for name in named if _in_list(name) and not re.search(r"\.lora_[A-Za-z_]+(\.|$)", name)]
    return [name for name in inside if _is_linear(named[name])]


def _turned(module: nn.Module) -> bool:
    """Whether a linear layer keeps its weight as [in, out]: GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _in_list(name: str) -> bool:
    return any(piece.isdigit() for piece in name.split("."))


def _means(glob: str, name: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name.rpartition(".")[2], glob)


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _known(named: Mapping[str, nn.Module]) -> str:
    words = {name.rpartition(".")[2] for name, module in named.items() if _is_linear(module)}
    return f"linear layers here: {', '.join(sorted(words)) or 'none'}"


def shared(part: nn.Module, names: Sequence[str]) -> dict[str, str]:
    """Layer -> another name of its weight."""
    owners: dict[int, list[str]] = {}
    for name, parameter in part.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    weights = {name: f"{name}.weight" for name in names}
    pairs = {name: owners[id(part.get_parameter(weight))] for name, weight in weights.items()}
    return {name: next(o for o in them if o != weights[name]) for name, them in pairs.items() if len(them) > 1}


# --- in and out ------------------------------------------------------------------------------------------------------


def insert(part: nn.Module, adapted: Adapted, *, drawn: bool = True) -> None:
    """Put adapters into a part, in place: all other modules stay where they are.

    Raises:
        ConfigError: the part has not all of the layers.

    Args:
        part: whose parameters and modes are left as they are.
        adapted: what it gets.
        drawn: whether they begin as the spec says; if not, their weights are about to be read.
    """
    from vlm.adapted_layer import AdaptedLinear, begin_lengths

    named = dict(part.named_modules())
    if lacking := [name for name in adapted.modules if name not in named]:
        raise ConfigError(f"there is no {', '.join(lacking[:5])} in {type(part).__name__}")
    before = [(parameter, parameter.requires_grad) for parameter in part.parameters()]
    place = before[0][0].device
    turned = {name for name in adapted.modules if _turned(part.get_submodule(name))}
    for fan_in_fan_out in (False, True):
        names = [name for name in adapted.modules if (name in turned) == fan_in_fan_out]
        if names:
            with torch.device(place if place.type == "meta" else "cpu"):
                _inject(part, names, _config(adapted.spec, fan_in_fan_out, drawn=drawn))
    for name in adapted.modules:
        layer: Any = part.get_submodule(name)
        layer.train(part.training)
        layer.__class__ = AdaptedLinear
        for own in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            own.float()  # steps of a small learning rate are lost in bfloat16
        if drawn:
            begin_lengths(layer)
    for parameter, trains in before:  # peft freezes them all; here, a stage says what trains
        parameter.requires_grad_(trains)


def _config(spec: AdapterSpec, fan_in_fan_out: bool, *, drawn: bool) -> Any:
    from peft import LoraConfig

    init: Any = True if spec.init == "kaiming" or not drawn else spec.init
    return LoraConfig(
        r=spec.rank,
        lora_alpha=spec.scale,  # type: ignore[arg-type]  # peft divides it, whatever number it is
        lora_dropout=spec.dropout,
        use_dora=spec.dora,
        use_rslora=spec.rslora,
        init_lora_weights=init,
        fan_in_fan_out=fan_in_fan_out,
    )


def _inject(part: nn.Module, names: Sequence[str], config: Any) -> None:
    """Named in full and seen from outside of the part, so that peft applies no rules of its own for its family."""
    from peft import inject_adapter_in_model

    config.target_modules = "|".join(re.escape(f"0.{name}") for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about heads and embeddings that are tied, which are refused before
        inject_adapter_in_model(config, nn.ModuleList([part]), adapter_name=PEFT_NAME)


def absorb(part: nn.Module, adapted: Adapted) -> None:
    """Put the updates into the weights, in their own precision and rounded once, and take the adapters away."""
    from vlm.adapted_layer import updated

    for name in adapted.modules:
        layer: Any = part.get_submodule(name)
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight.data = updated(layer)
        base.train(layer.training)
        part.set_submodule(name, base)
