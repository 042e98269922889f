"""What a key of a stage's `train` may say."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, PositiveInt, Tag

LearningRate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class RateSpec(BaseModel):
    """How what a key of `train` matches trains."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    lr: LearningRate
    """Highest learning rate; 0 is frozen."""
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Of matrices; the stage's if absent."""
    warmup: float | None = Field(default=None, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero; the stage's if absent."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on the learning rate from each block to the one below it; what comes after the blocks has the full one."""
    last: PositiveInt | None = None
    """Only so many of the last blocks train, and what comes after them."""

    @property
    def by_depth(self) -> bool:
        """Whether it tells blocks apart."""
        return self.layer_decay is not None or self.last is not None


def _number_or_mapping(node: Any) -> str:
    return "mapping" if isinstance(node, (Mapping, RateSpec)) else "number"


Rate = Annotated[
    Annotated[LearningRate, Tag("number")] | Annotated[RateSpec, Tag("mapping")], Discriminator(_number_or_mapping)
]
