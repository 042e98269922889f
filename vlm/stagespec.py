"""A stage of a recipe: what trains and how fast, on what, for how long."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from vlm.adapters import AdapterSpec
from vlm.ratespec import Rate
from vlm.spec import Part, PartSpec, Strict, as_list


class DataSpec(BaseModel):
    """One source of samples: `{path: file.json}` or `{name: source, ...its options}`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    name: str = "json"
    weight: float = Field(default=1.0, gt=0)
    """Share of the mixture, relative to the other sources."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _by_encoder(node: Any) -> Any:
    """`448` or `[448, 448]` means all encoders."""
    if not isinstance(node, (int, list, tuple, dict)):
        raise ValueError("give pixels, [height, width], or such by encoder: {encoders.0: 448}")
    sizes = node if isinstance(node, dict) else {"encoders": node}
    pairs = {name: [size, size] if isinstance(size, int) else size for name, size in sizes.items()}
    return {name: tuple(pair) if isinstance(pair, list) else pair for name, pair in pairs.items()}


PixelSizes = Annotated[dict[str, tuple[PositiveInt, PositiveInt]], BeforeValidator(_by_encoder)]


class CacheSpec(Strict):
    """Features of frozen encoders, kept on disk."""

    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """What they are kept in."""
    folder: str | None = None
    """Where; `features` in the run's folder if absent. Runs may share one."""


def _switch(node: Any) -> Any:
    return {} if node is True else None if node is False else node


Beta = Annotated[float, Field(ge=0, lt=1)]
Data = Annotated[DataSpec, BeforeValidator(lambda node: {"path": node} if isinstance(node, str) else node)]


class ValidationSpec(Strict):
    """The mean loss of samples and the scores of tasks, taken while a stage trains, without changing it."""

    every: PositiveInt = 500
    """Optimiser steps between two looks; there is one after the last step too."""
    data: Annotated[list[Data], BeforeValidator(as_list)] = []
    tasks: list[str] = []
    """Tasks that are asked, each as `TASK` or, with the user's own file, `TASK=PATH`."""
    limit: PositiveInt = 100
    """Samples of each source and questions of each task."""


def _recomputed(node: Any) -> Any:
    return ["encoders", "llm"] if node is True else [] if node is False else as_list(node)


class StageSpec(Strict):
    """Which parts train and how fast, on what, for how long."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    train: dict[str, Rate] = Field(min_length=1)
    """Part or glob over parameter names -> learning rate, or a mapping of it and more (`RateSpec`); the last match
    wins, what is not named (or 0) is frozen."""
    merge: Annotated[list[str], BeforeValidator(as_list)] = []
    """Parts whose adapters become one with their weights before the stage begins."""
    adapt: dict[str, AdapterSpec] = {}
    """Part -> adapters that it gets before the stage begins, and keeps."""
    quantize: dict[str, Literal["nf4", "fp4"]] = {}
    """Part -> how its blocks' linear layers, which do not train, are kept in 4 bit while the stage runs."""
    data: Annotated[list[Data], BeforeValidator(as_list), Field(min_length=1)]
    steps: PositiveInt
    """Optimiser steps."""
    batch_size: PositiveInt
    """Samples per optimiser step, over all devices and accumulated batches."""
    micro_batch_size: PositiveInt | None = None
    """Samples per device and forward pass; the whole batch if absent."""
    pack: PositiveInt | None = None
    """Positions of a row that several samples share, which know nothing of each other; batch sizes then count rows."""
    group_by_length: bool = False
    """Samples of like length in one forward pass, so that less of it is padding."""
    too_long: Literal["drop", "shorten"] = "drop"
    """Of a sample longer than the context or a row: leave it out, or its last turns; an image is never cut."""
    most_skipped: float = Field(default=0.05, ge=0, le=1)
    """The share of samples that may be left out (broken image, no answer, too long); the run stops beyond it."""
    cache: Annotated[CacheSpec | None, BeforeValidator(_switch)] = None
    """Compute the features of every image once, before the first step, and keep them on disk: `true`, or its options.
    All encoders must be frozen. Later stages and runs with the same encoders and views find them."""
    text_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the samples from sources without images, whatever their weights say."""
    objective: Part = PartSpec(name="language_modelling")
    size: PixelSizes | None = None
    """Pixels of the views in this stage, `448` or `[height, width]`, for all encoders, or by `encoders.0`, ...; the
    model's own where absent."""
    views: Part | None = None
    """View policy of this stage; the model's if absent. A trained model keeps the last stage's size and views."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which learning rates rise from zero."""
    final_lr: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end as a share of the peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Applied to matrices, not to biases, norms and gates."""
    optimiser: Part = PartSpec(name="adamw")
    """What makes the steps."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    clip: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 is no clipping."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true"] = "auto"
    """`auto` measures which is fastest on this device."""
    gradient_checkpointing: Annotated[list[str], BeforeValidator(_recomputed)] = []
    """Parts whose blocks keep their inputs alone and are computed a second time in the backward pass: `llm`,
    `encoders`, ...; `true` is both of these."""
    workers: int = Field(default=0, ge=0)
    """Processes that prepare data."""
    validation: ValidationSpec | None = None
    """Losses and scores on held-out data during training; none if absent."""
    checkpoint_every: PositiveInt = 500
    """Steps between checkpoints, from which an interrupted run continues."""
    checkpoint_minutes: float | None = Field(default=None, gt=0)
    """Write one after so many minutes too, whichever comes first."""
    checkpoint_keep: PositiveInt = 2
    """How many are kept: the last ones."""
