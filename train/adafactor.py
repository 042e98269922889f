"""transformers' Adafactor, with states that come back from a checkpoint as they were."""

from typing import Any

from torch import Tensor
from transformers.optimization import Adafactor


class ExactAdafactor(Adafactor):  # type: ignore[misc]
    """Adafactor keeps its states in float32 whatever the weights are in; torch would convert them to the weights' dtype
    when a checkpoint is read, and the run would go on from other numbers.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, in the dtypes of `state_dict`."""
        super().load_state_dict(state_dict)
        parameters = [p for group in self.param_groups for p in group["params"]]
        order = [number for group in state_dict["param_groups"] for number in group["params"]]
        for number, parameter in zip(order, parameters, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                own = value.to(parameter.device, copy=True) if isinstance(value, Tensor) else value
                self.state[parameter][name] = own
