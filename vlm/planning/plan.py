"""`vlm plan`: what a recipe amounts to, before a weight is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from vlm.assembly import Source, blueprint
from vlm.errors import ConfigError, join
from vlm.images import ImageError
from vlm.model import VLM
from vlm.planning.costs import forward_costs
from vlm.planning.four_bit import PlannedFourBit
from vlm.planning.picture_sizes import picture_sizes
from vlm.planning.sample import ImageCount, PlanSample, choose_samples, count_images
from vlm.planning.shadow import META
from vlm.planning.shadow_batch import shadow_batch
from vlm.planning.stage import StageCost, StagePlanner
from vlm.quantising import lowered
from vlm.rates import settings
from vlm.recipe import Recipe
from vlm.stages import Sight, enter, own_sight, show, sight
from vlm.views import Size
from vlm.weights import planning


@dataclass
class Plan:
    """Counts of one recipe: parameters, tokens, FLOPs, bytes."""

    parameters: dict[str, int]
    """By part; tied weights count once."""
    stages: dict[str, dict[str, int]]
    """Trainable parameters by stage and part."""
    images: dict[str, ImageCount]
    """Visual tokens and the like by image."""
    unusable: dict[str, str]
    """Images that are not counted, and why."""
    sample: PlanSample | None = None
    """What FLOPs are counted of: one sample with the middle image."""
    largest: PlanSample | None = None
    """What memory is counted of: a micro batch with the largest image that fits into the LLM's context."""
    forward: dict[str, int] = field(default_factory=dict)
    """FLOPs of a forward pass of `sample` with all logits, by part."""
    cache: float | None = None
    """Bytes that a visual token takes in the LLM's cache (and the route's own); None where no sample tells."""
    training: dict[str, StageCost] = field(default_factory=dict)
    """By stage."""
    earlier: dict[str, dict[str, int]] = field(default_factory=dict)
    """Visual tokens by stage and image, of stages that see images otherwise than the last one."""
    notes: list[str] = field(default_factory=list)
    """What could not be counted, or was counted otherwise than written, and why."""

    @property
    def tokens(self) -> dict[str, int]:
        """Visual tokens by image."""
        return {name: image.tokens for name, image in self.images.items()}

    @property
    def positions(self) -> dict[str, int]:
        """Positions that each image takes in the LLM's sequence."""
        return {name: image.positions for name, image in self.images.items()}

    def cache_of(self, image: ImageCount) -> int | None:
        """Bytes that an image takes in the LLM's cache; None where no sample tells."""
        return None if self.cache is None else round(self.cache * image.tokens)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for programs; bytes and FLOPs as whole numbers."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("images", "cache")}
        training = {
            name: {**plain["training"][name], "per_device": cost.per_device(), "stage_flops": cost.stage_flops}
            for name, cost in self.training.items()
        }
        return {
            **plain,
            "training": training,
            "tokens": self.tokens,
            "positions": self.positions,
            "views": {name: image.views for name, image in self.images.items()},
            "cache_bytes": {name: self.cache_of(image) for name, image in self.images.items()},
        }


def plan(
    source: Source,
    overrides: Sequence[str] = (),
    *,
    images: Sequence[str] = (),
    per_sample: int = 1,
    text: int | None = None,
    devices: int = 1,
    costs: bool = True,
) -> Plan:
    """Parameters per part and stage, visual tokens, and what the model and each stage cost.

    Nothing but configs and the images' headers is read; everything is built and run on the meta device.

    Args:
        source: the recipe.
        overrides: changes to it.
        images: files, folders, globs, or sizes as WIDTHxHEIGHT; one of the encoder's own size if there are none.
        per_sample: images of a sample; 0 is text alone.
        text: tokens of a sample's answer; 256, or as many as there is room for, if absent.
        devices: over which a batch is spread.
        costs: FLOPs and memory too, which takes seconds; else parameters and tokens of the trained model alone.

    Raises:
        ConfigError: mistakes in the recipe; more text than fits; a batch that cannot be spread over the devices.
        ImageError: no image can be used.
    """
    recipe, model = blueprint(source, overrides)
    own = own_sight(recipe.model, model)
    sights = [sight(stage, own) for stage in recipe.stages]
    look(model, recipe, [own, *sights][-1])  # the trained model keeps what its last stage shows
    sizes, unusable = picture_sizes(images) if images else (_own_size(model), {})
    asked = _Asked(sizes, per_sample, text, devices)
    counts, refused = count_images(model, sizes, images=max(per_sample, 1))
    if not counts:
        raise ImageError("\n".join((unusable | refused).values()))
    found = Plan(
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()},
        stages=_trainable(recipe, model),
        images=counts,
        unusable=unusable | refused,
    )
    if not costs:
        return found
    found.sample, found.largest = choose_samples(model, counts, images=per_sample, text=text)
    if found.sample is None:
        found.notes.append(f"FLOPs and memory are not counted: {NO_ROOM}")
        return found
    _cost_forward(found, found.sample, model)
    for number, shown in enumerate(sights):
        if shown != sights[-1]:
            look(model, recipe, shown)
            _cost_stage(found, recipe, number, model, asked)
    look(model, recipe, [own, *sights][-1])
    for number, shown in enumerate(sights):
        if shown == sights[-1]:
            _cost_stage(found, recipe, number, model, asked)
    found.training = {stage.name: found.training[stage.name] for stage in recipe.stages if stage.name in found.training}
    return found


@dataclass(frozen=True)
class _Asked:
    """What a plan is asked for, for each stage anew."""

    sizes: dict[str, Size]
    per_sample: int
    text: int | None
    devices: int


NO_ROOM = "no image leaves room for text in the LLM's context"


def look(model: VLM, recipe: Recipe, shown: Sight) -> None:
    """Show the encoders this, on the meta device entirely, with the attention that `auto` comes to on a GPU."""
    with planning():
        show(model, recipe.model, shown)
    if not all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()]):
        model.to(META)  # some families draw a parameter where torch's default device does not reach
    model.set_attention(model.attention)  # the LLM's own, in the other parts too


def _own_size(model: VLM) -> dict[str, Size]:
    encoder: Any = model.encoders[0]
    height, width = encoder.image.size
    return {f"{width}x{height}": (height, width)}


def _trainable(recipe: Recipe, model: VLM) -> dict[str, dict[str, int]]:
    """An objective's own parameters are thrown away after the stage and not counted."""
    stages = {}
    for number, stage in enumerate(recipe.stages):
        enter(model, recipe, number)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        rates = settings(model, stage)
        stages[stage.name] = {
            part: sum(size for name, size in sizes.items() if name in rates and name.startswith(part + "."))
            for part in model.parts()
        }
    enter(model, recipe, -1)
    return stages


def _cost_forward(found: Plan, sample: PlanSample, model: VLM) -> None:
    with _noted(found, "the forward pass"):
        found.forward, _ = forward_costs(model, sample.batch(model))
        if sample.tokens:
            found.cache = _cache(model, sample) / sample.tokens


def _cost_stage(found: Plan, recipe: Recipe, number: int, model: VLM, asked: _Asked) -> None:
    """What a stage costs with the images as it sees them, which `model` does by now."""
    stage = recipe.stages[number]
    enter(model, recipe, number)
    counts, _ = count_images(model, asked.sizes, images=max(asked.per_sample, 1))
    tokens = {name: image.tokens for name, image in counts.items()}
    if tokens != found.tokens:
        found.earlier[stage.name] = tokens
    middle, largest = choose_samples(model, counts, images=asked.per_sample, text=asked.text)
    if middle is None or largest is None:
        found.notes.append(f"stage {stage.name} is not counted: {NO_ROOM}")
        return
    with _noted(found, f"stage {stage.name}"):
        try:
            with lowered(model, stage.quantize, make=PlannedFourBit):
                found.training[stage.name] = StagePlanner(model, middle, largest, asked.devices).cost(stage)
        except ConfigError as error:
            raise error.under(join("stages", number)) from error
        found.notes += found.training[stage.name].notes


def _cache(model: VLM, sample: PlanSample) -> int:
    """Bytes that a sample's images add to the LLM's cache; with little text, since a sliding window may fill up."""
    shown = shadow_batch(model, sample.plans(model), text=1)
    text = int((shown.owner < 0).sum())  # newlines and tags around an image are text
    alone = shadow_batch(model, [], text=text - shadow_batch(model, [], text=0).input_ids.shape[1])
    return forward_costs(model, shown)[1] - forward_costs(model, alone)[1]


@contextmanager
def _noted(found: Plan, what: str) -> Iterator[None]:
    """A model's code may ask for values, and there are none; what is known of it is worth having all the same."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of any library
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        found.notes.append(f"{what} is not counted, since it does not run without values ({reason[:200]})")
