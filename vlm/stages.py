"""What a stage trains, and what it shows: the size of each encoder's views and the view policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlm import registry
from vlm.adapting import begin_stage
from vlm.encoder import Encoder
from vlm.errors import ConfigError, Problem, choices, join
from vlm.model import VLM
from vlm.quantising import lowered_layers, trained_problems
from vlm.rates import settings
from vlm.recipe import EncoderSpec, Inspection, LlmSpec, ModelSpec, PartSpec, Recipe, StageSpec
from vlm.schema import construct, given
from vlm.starting import put_adapters
from vlm.views import Size
from vlm.weights import config_fields

PARTS = ("encoders", "connector", "llm", "objective")
"""What a key of `train` may begin with; `objective` stands for parameters that an objective brings itself."""


@dataclass(frozen=True)
class Sight:
    """What the encoders are shown."""

    sizes: tuple[Size, ...]
    """Of each encoder's views, in pixels."""
    views: PartSpec


def own_sight(spec: ModelSpec, model: VLM) -> Sight:
    """What a model shows its encoders when no stage says otherwise."""
    encoders: Any = model.encoders
    return Sight(tuple(encoder.image.size for encoder in encoders), spec.views)


def sight(stage: StageSpec, own: Sight) -> Sight:
    """What a stage shows; where it says nothing, the model's own.

    Raises:
        ConfigError: it gives a size for an encoder that is not there.
    """
    views = own.views if stage.views is None else stage.views
    if stage.size is None:
        return Sight(own.sizes, views)
    sizes = dict(zip((join("encoders", number) for number in range(len(own.sizes))), own.sizes, strict=True))
    for name, size in stage.size.items():
        if name not in ("encoders", *sizes):
            raise ConfigError(Problem(join("size", name), f"no such encoder;{choices(name, ['encoders', *sizes])}"))
        sizes.update({name: size} if name in sizes else dict.fromkeys(sizes, size))
    return Sight(tuple(sizes.values()), views)


def show(model: VLM, spec: ModelSpec, shown: Sight) -> None:
    """Make `model` show its encoders this from now on; saved, it keeps it.

    Args:
        model: whose weights stay as they are, but for position embeddings that a library interpolates once and for all.
        spec: the recipe that the model is of.
        shown: what.

    Raises:
        ConfigError: an encoder cannot take the size.
    """
    encoders: Any = model.encoders
    for number, (encoder, size) in enumerate(zip(encoders, shown.sizes, strict=True)):
        if size != encoder.image.size:
            try:
                encoder.resize(size)
            except ConfigError as error:
                message = "; ".join(problem.message for problem in error.problems)
                raise ConfigError(Problem("size", f"encoder {number}: {message}")) from error
    now = resolved(spec.model_copy(update={"views": shown.views}), encoders, model.llm)
    if now != model.spec:
        model.see(construct(registry.views, shown.views, {}), now)


def stage_problems(found: Inspection, model: VLM | None) -> list[Problem]:
    """What the stages of a recipe train or show that the model has not, or cannot.

    Args:
        found: the recipe.
        model: its model on the meta device; None where it could not be built.
    """
    problems: list[Problem] = []
    for number, stage in enumerate(found.stages):
        if stage is None:
            continue
        place = join("stages", number)
        mine = _adapt_problems(stage, model) or _train_problems(stage, model)
        if not any(problem.place.startswith(join(place, "optimiser")) for problem in found.problems):
            mine += _optimiser_problems(stage)
        known = any(problem.place.startswith(join(place, "views")) for problem in found.problems)
        if found.model is not None and model is not None and shows(stage) and not known:
            mine += _sight_problems(found.model, stage, model)
        problems += [problem.under(place) for problem in mine]
    if model is not None:
        model.merge()
    return problems


def enter(model: VLM, recipe: Recipe, number: int) -> None:
    """Give a model the adapters that it has while stage `number` trains, whatever it has now.

    Args:
        model: on the meta device, where to merge adapters is to forget them.
        recipe: sound.
        number: of the stage; -1 is before the first.
    """
    model.merge()
    put_adapters(model, recipe.start)
    for stage in recipe.stages[: number + 1]:
        begin_stage(model, stage)


def _adapt_problems(stage: StageSpec, model: VLM | None) -> list[Problem]:
    """What stands against a stage's adapters; the model, on the meta device, then has them for the stages to come."""
    if model is None:
        return []
    try:
        begin_stage(model, stage)
    except ConfigError as error:
        return error.problems
    return []


def shows(stage: StageSpec) -> bool:
    """Whether a stage shows something else than the model's own."""
    return stage.size is not None or stage.views is not None


def _train_problems(stage: StageSpec, model: VLM | None) -> list[Problem]:
    """Keys of `train` that match nothing; of a model that could not be built, those that begin with no part."""
    if model is None:
        words = {key: key.partition(".")[0] for key in stage.train if not set(key) & set("*?[")}
        wrong = [(key, word) for key, word in words.items() if word not in PARTS]
        return [Problem(join("train", key), f"matches no parameter;{choices(word, PARTS)}") for key, word in wrong]
    try:
        rates = settings(model, stage)
    except ConfigError as error:
        return error.under("train").problems
    try:
        low = trained_problems(lowered_layers(model, stage.quantize), {name: one.lr for name, one in rates.items()})
    except ConfigError as error:
        return error.problems
    return low if rates else [*low, Problem("train", "trains nothing: every rate is 0")]


def _optimiser_problems(stage: StageSpec) -> list[Problem]:
    """Options that it refuses, what it needs and is not installed, and numbers of the stage that it would not use."""
    try:
        construct(registry.optimisers, stage.optimiser, {"betas": stage.betas})
    except ConfigError as error:
        return error.under("optimiser").problems
    used = given(registry.optimisers.get(stage.optimiser.name))
    if "betas" in stage.model_fields_set and "betas" not in used:
        return [Problem("betas", f"`{stage.optimiser.name}` takes none, so they would do nothing; leave them out")]
    return []


def _sight_problems(spec: ModelSpec, stage: StageSpec, model: VLM) -> list[Problem]:
    """Tried on an image of the first encoder's size; the model is put back as it was."""
    own = own_sight(spec, model)
    try:
        shown = sight(stage, own)
        try:
            show(model, spec, shown)
            model.processor.positions(*shown.sizes[0])
        except ConfigError as error:
            return [_placed(problem, stage) for problem in error.problems]
        finally:
            show(model, spec, own)
    except ConfigError as error:
        return error.problems
    return []


def _placed(problem: Problem, stage: StageSpec) -> Problem:
    """Under `size`, or under `views` where the stage says nothing of the size."""
    key = "views" if stage.size is None else "size"
    if problem.place == key:
        return problem
    return Problem(key, f"{problem.place}: {problem.message}" if problem.place else problem.message)


def resolved(spec: ModelSpec, encoders: Sequence[Encoder], llm: Any) -> dict[str, Any]:
    """The model part of the recipe with sizes in place of weights: what a saved model carries."""
    found = spec.model_copy(
        update={
            "encoders": [
                EncoderSpec(name=part.name, adapter=part.adapter, **encoder.resolved())
                for part, encoder in zip(spec.encoders, encoders, strict=True)
            ],
            "llm": LlmSpec(config=config_fields(llm.config), attention=spec.llm.attention),
        }
    )
    return found.model_dump(mode="json", exclude_none=True)
