"""`vlm plan`: what a recipe amounts to, before a weight is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm.assembly import Source, blueprint
from vlm.images import find_images, open_image
from vlm.model import VLM
from vlm.parts import learning_rates
from vlm.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """Counts of one recipe."""

    parameters: dict[str, int]
    """By part; tied weights count once."""
    stages: dict[str, dict[str, int]]
    """Trainable parameters by stage and part."""
    tokens: dict[str, int]
    """Visual tokens by image."""
    positions: dict[str, int]
    """Positions that each image takes in the LLM's sequence."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def tables(self) -> list[Any]:
        """The plan for a terminal."""
        from rich.table import Table

        parts = Table(title="parameters", title_justify="left", title_style="bold")
        parts.add_column("part")
        for name in ("all", *self.stages):
            parts.add_column(name, justify="right")
        total = {
            part: [count, *(stage[part] for stage in self.stages.values())] for part, count in self.parameters.items()
        }
        for part, counts in total.items():
            parts.add_row(part, *(_count(count) for count in counts))
        parts.add_section()
        parts.add_row("sum", *(_count(sum(column)) for column in zip(*total.values(), strict=True)))
        images = Table(title="visual tokens", title_justify="left", title_style="bold")
        images.add_column("image")
        images.add_column("tokens", justify="right")
        images.add_column("positions in the sequence", justify="right")
        for name, tokens in self.tokens.items():
            images.add_row(name, f"{tokens:,}", f"{self.positions[name]:,}")
        return [parts, images]


def plan(source: Source, overrides: Sequence[str] = (), *, images: Sequence[str] = ()) -> Plan:
    """Parameters per part and stage, and visual tokens of `images` (or of one of the encoder's own size).

    Nothing but configs is read; everything is built on the meta device.

    Raises:
        ConfigError: mistakes in the recipe. ImageError: an image that cannot be opened.
    """
    recipe, model = blueprint(source, overrides)
    sizes = _sizes(model, images)
    return Plan(
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()},
        stages=_trainable(recipe, model),
        tokens={name: model.processor.tokens(*size) for name, size in sizes.items()},
        positions={name: model.processor.positions(*size) for name, size in sizes.items()},
    )


def _sizes(model: VLM, images: Sequence[str]) -> dict[str, tuple[int, int]]:
    if not images:
        encoder: Any = model.encoders[0]
        height, width = encoder.image.size
        return {f"{height} x {width} px": (height, width)}
    opened = {str(path): open_image(path) for path in find_images(images)}
    return {name: (image.height, image.width) for name, image in opened.items()}


def _trainable(recipe: Recipe, model: VLM) -> dict[str, dict[str, int]]:
    """An objective's own parameters are thrown away after the stage and not counted."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    stages = {}
    for stage in recipe.stages:
        rates = learning_rates([*sizes, "objective.*"], stage.train)
        stages[stage.name] = {
            part: sum(size for name, size in sizes.items() if name in rates and name.startswith(part + "."))
            for part in model.parts()
        }
    return stages


def _count(number: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return str(number)
