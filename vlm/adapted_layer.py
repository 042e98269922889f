"""A linear layer with an adapter, and what it comes to as one matrix. Imported where the first adapter is put: peft is
slow to load."""

from typing import Any

import torch
from peft.tuners import lora
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor

from vlm.adapters import PEFT_NAME


class AdaptedLinear(lora.Linear):  # type: ignore[misc]
    """peft's layer, for which code that does not call it but takes its weight counts too (timm's BEiT, EVA and Swin V2
    compute queries, keys and values so): it would pass by the adapter, and nobody would notice."""

    @property
    def weight(self) -> Tensor:
        """W with its update, in W's precision; without dropout, which has no input to be of."""
        return updated(self)


def updated(layer: Any) -> Tensor:
    """The weight of a layer with its adapter's update, as the layer keeps it: computed in float32, rounded once."""
    weight, dtype = _sum(layer)
    if PEFT_NAME in layer.lora_magnitude_vector:
        # the norm is taken as a constant in the backward pass, as in the paper and in peft's forward
        factor = layer.lora_magnitude_vector[PEFT_NAME].weight.float() / _lengths(layer, weight.detach())
        weight = weight * factor.unsqueeze(_inputs(layer))
    return weight.to(dtype)


def begin_lengths(layer: Any) -> None:
    """Let DoRA's magnitudes begin as the float32 lengths that the forward pass divides them by: of half-precision
    weights peft rounds them, and the model would begin up to 0.4 % off."""
    if PEFT_NAME in layer.lora_magnitude_vector:
        with torch.no_grad():
            layer.lora_magnitude_vector[PEFT_NAME].weight.data = _lengths(layer, _sum(layer)[0])


def _sum(layer: Any) -> tuple[Tensor, torch.dtype]:
    """W + scale B A in float32, and the dtype of W."""
    base = dequantize_module_weight(layer.get_base_layer())
    down, up = (matrix[PEFT_NAME].weight.float() for matrix in (layer.lora_A, layer.lora_B))
    update: Tensor = (up @ down) * layer.scaling[PEFT_NAME]
    return base.float() + (update.T if layer.fan_in_fan_out else update), base.dtype


def _lengths(layer: Any, weight: Tensor) -> Tensor:
    """Of the vector of each output [out]."""
    found: Tensor = torch.linalg.norm(weight, dim=_inputs(layer))
    return found


def _inputs(layer: Any) -> int:
    """The dimension of a weight along which its inputs lie."""
    return 0 if layer.fan_in_fan_out else 1
