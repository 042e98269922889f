"""Weights that do not train in 4 bit while a stage runs: QLoRA (arXiv 2305.14314), where adapters train on top of them.

A saved model has the values that the 4 bits stand for, in the precision that the weights had before: it loads anywhere,
gives the same answers, and what merges into it is what the adapters were trained on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.adapters import block_layers, shared
from vlm.adapting import Adaptable, spread
from vlm.errors import ConfigError, Problem, join

FourBit = Literal["nf4", "fp4"]
Make = Callable[[nn.Linear, FourBit], nn.Module]


def lowered_layers(model: Adaptable, quantize: Mapping[str, FourBit]) -> dict[str, tuple[nn.Linear, FourBit]]:
    """The layers of a model that are kept in 4 bit, by their dotted names in it: all plain ones of the parts' blocks.

    Raises:
        ConfigError: there is no such part, or no such layer in it.
    """
    problems: list[Problem] = []
    parts = model.parts()
    found: dict[str, tuple[nn.Linear, FourBit]] = {}
    for key, how in quantize.items():
        for part in spread([key], list(parts), "quantize", problems):
            layers = {name: parts[part].get_submodule(name) for name in block_layers(parts[part])}
            mine = {join(part, n): (layer, how) for n, layer in layers.items() if isinstance(layer, nn.Linear)}
            if not mine:
                problems.append(Problem(join("quantize", key), f"`{part}` has no linear layers in blocks"))
            if both := shared(parts[part], list(layers)):
                problems.append(Problem(join("quantize", key), f"weights that are shared: {', '.join(both)}"))
            found |= mine
    if problems:
        raise ConfigError(problems)
    return found


def trained_problems(layers: Mapping[str, Any], rates: Mapping[str, float]) -> list[Problem]:
    """Four bits cannot train.

    Args:
        layers: those in 4 bit, by name.
        rates: names of the parameters that train.
    """
    both = [f"{name}.weight" for name in layers if f"{name}.weight" in rates or f"{name}.bias" in rates]
    told = f"{len(both)} weights in 4 bit (`{both[0]}`, ...) are to train; adapters can: `adapt`" if both else ""
    return [Problem("train", told)] if both else []


def check_available(quantize: Mapping[str, FourBit]) -> None:
    """
    Raises:
        ConfigError: bitsandbytes is not installed, or there is no CUDA device for it.
    """
    lacking = "bitsandbytes is not installed" if find_spec("bitsandbytes") is None else ""
    lacking = lacking or ("" if torch.cuda.is_available() else "there is no CUDA device here")
    if quantize and lacking:
        raise ConfigError(Problem("quantize", f"{lacking}; without `quantize` the weights stay in their own precision"))


@contextmanager
def lowered(model: Any, quantize: Mapping[str, FourBit], make: Make | None = None) -> Iterator[None]:
    """In here the blocks' linear layers are in 4 bit; afterwards they have the values that these stood for.

    A checkpoint that is written meanwhile leaves them out, since they do not change: the model that the stage begins
    with has them.

    Args:
        model: a `vlm.model.VLM`.
        quantize: part -> how.
        make: a layer -> the same in 4 bit; bitsandbytes' if absent.

    Raises:
        ConfigError: see `lowered_layers`.
    """
    kept: dict[str, tuple[nn.Linear, torch.dtype]] = {}
    for name, (layer, how) in lowered_layers(model, quantize).items():
        low = (make or four_bit)(layer, how)
        _leave_out(low, name)
        low.train(layer.training)
        kept[name] = layer, layer.weight.dtype
        layer.weight.data = layer.weight.data.new_empty(0)  # room for others
        at(model, name, low)
    try:
        yield
    finally:
        for name, (layer, dtype) in kept.items():
            low = at(model, name, layer)
            layer.weight.data = values(low).to(layer.weight.device, dtype)


def at(model: Any, name: str, module: nn.Module) -> nn.Module:
    """Put a module at a place by its dotted name in the model's parts, and hand back what stood there."""
    part, found = next((part, one) for part, one in model.parts().items() if name.startswith(part + "."))
    inside = name.removeprefix(part + ".")
    before: nn.Module = found.get_submodule(inside)
    found.set_submodule(inside, module)
    return before


def four_bit(layer: nn.Linear, how: FourBit) -> nn.Module:
    """bitsandbytes' layer with the same weights, which become 4 bit when it is moved to a GPU. Blocks' scales stay in
    float32 (no double quantisation), so that to quantise what has been quantised changes nothing."""
    import bitsandbytes as bnb

    sizes = {"input_features": layer.in_features, "output_features": layer.out_features}
    low = bnb.nn.Linear4bit(**sizes, bias=False, compress_statistics=False, quant_type=how, device="meta")
    low.weight = bnb.nn.Params4bit(
        layer.weight.data, requires_grad=False, compress_statistics=False, quant_type=how, module=low
    )
    if layer.bias is not None:  # a copy, since the layer converts its bias in place to what it computes in
        low.bias = nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
    return low  # type: ignore[no-any-return]


def values(low: nn.Module) -> Tensor:
    """What the 4 bits of a layer stand for; its own weights where it never came to a GPU."""
    from peft.utils.integrations import dequantize_module_weight

    weight: Any = low.weight
    if not weight.is_floating_point():
        low = low.to("cuda")  # to which Lightning's end of a fit has put an end
        weight = dequantize_module_weight(low)
    return weight.detach()  # type: ignore[no-any-return]


def _leave_out(low: nn.Module, name: str) -> None:
    """The layer's own tensors neither go into a state dict nor are they missing from one."""

    def written(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            del state[key]

    def read(_: nn.Module, incompatible: Any) -> None:
        lacking = incompatible.missing_keys
        lacking[:] = [key for key in lacking if f".{name}." not in f".{key}"]

    low.register_state_dict_post_hook(written)
    low.register_load_state_dict_post_hook(read)
