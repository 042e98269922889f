"""`vlm plan`: what a recipe amounts to, before a weight is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlm.assembly import Source, blueprint
from vlm.images import find_images, open_image
from vlm.model import VLM
from vlm.parts import learning_rates
from vlm.recipe import Recipe
from vlm.stages import Sight, own_sight, show, sight
from vlm.views import Size
from vlm.weights import planning


@dataclass(frozen=True)
class Plan:
    """Counts of one recipe."""

    parameters: dict[str, int]
    """By part; tied weights count once."""
    stages: dict[str, dict[str, int]]
    """Trainable parameters by stage and part."""
    tokens: dict[str, int]
    """Visual tokens by image, for the trained model: as its last stage sees them."""
    positions: dict[str, int]
    """Positions that each image takes in the LLM's sequence."""
    earlier: dict[str, dict[str, int]] = field(default_factory=dict)
    """Visual tokens by stage and image, of stages in which any differ."""

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
        for stage in self.earlier:
            images.add_column(f"tokens in {stage}", justify="right")
        for name, tokens in self.tokens.items():
            others = (f"{counts[name]:,}" for counts in self.earlier.values())
            images.add_row(name, f"{tokens:,}", f"{self.positions[name]:,}", *others)
        return [parts, images]


def plan(source: Source, overrides: Sequence[str] = (), *, images: Sequence[str] = ()) -> Plan:
    """Parameters per part and stage, and visual tokens of `images` (or of one of the encoder's own size).

    The model is counted as it is when its stages are done.

    Nothing but configs is read; everything is built on the meta device.

    Raises:
        ConfigError: mistakes in the recipe. ImageError: an image that cannot be opened.
    """
    recipe, model = blueprint(source, overrides)
    seen = _seen(recipe, model)
    sizes = _sizes(seen[-1], images)
    counts = [_tokens(recipe, model, shown, sizes) for shown in seen]  # the last stage's last: the model keeps it
    stages = zip(recipe.stages, counts, strict=False)
    return Plan(
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()},
        stages=_trainable(recipe, model),
        tokens=counts[-1],
        positions={name: model.processor.positions(*size) for name, size in sizes.items()},
        earlier={stage.name: count for stage, count in stages if count != counts[-1]},
    )


def _seen(recipe: Recipe, model: VLM) -> list[Sight]:
    """What each stage shows the encoders; the model's own if there are no stages."""
    own = own_sight(recipe.model, model)
    return [sight(stage, own) for stage in recipe.stages] or [own]


def _tokens(recipe: Recipe, model: VLM, shown: Sight, sizes: dict[str, Size]) -> dict[str, int]:
    with planning():
        show(model, recipe.model, shown)
    return {name: model.processor.tokens(*size) for name, size in sizes.items()}


def _sizes(last: Sight, images: Sequence[str]) -> dict[str, Size]:
    if not images:
        height, width = last.sizes[0]
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
