"""Recipe -> model. Everything is built once without weights first, so that mistakes are found before anything loads."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from vlm import registry
from vlm.connector import Chain, Connector, Merge
from vlm.encoder import Encoder
from vlm.errors import ConfigError, Problem, join
from vlm.features import Shape
from vlm.llm import build_llm, build_tokenizer, embedding, layer_count, width
from vlm.model import VLM
from vlm.recipe import ModelSpec, PartSpec, Recipe, StageSpec, inspect_recipe
from vlm.routes import SequenceRoute
from vlm.schema import construct, given
from vlm.stages import resolved, stage_problems
from vlm.starting import begin, put_adapters, start_problems
from vlm.weights import planning

Source = str | Path | Mapping[str, Any] | Recipe
T = TypeVar("T")


def assemble(source: Source, overrides: Sequence[str] = ()) -> VLM:
    """The model of a recipe (a shipped name, a path, or plain data), with weights.

    Parts without weights are random, by the recipe's seed; those in its `start` are another model's.

    Raises:
        ConfigError: all mistakes at once, each with its place, before any weight is read.
    """
    recipe, _ = blueprint(source, overrides)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = build(recipe.model)
    put_adapters(model, recipe.start)
    begin(model, recipe.start)
    return model


def blueprint(source: Source, overrides: Sequence[str] = ()) -> tuple[Recipe, VLM]:
    """The checked recipe and its model on the meta device: every shape, no weight.

    Raises:
        ConfigError: all mistakes at once: those of `read_recipe`, and sizes that do not fit together.
    """
    found = draft(source, overrides)
    if found.recipe is None or found.model is None or found.problems:
        raise ConfigError(found.problems, source=found.source)
    return found.recipe, found.model


@dataclass(frozen=True)
class Draft:
    """A recipe with what could be built of it, and all its problems so far."""

    source: str
    recipe: Recipe | None
    stages: list[StageSpec | None]
    model: VLM | None
    problems: list[Problem]


def draft(source: Source, overrides: Sequence[str] = ()) -> Draft:
    """`blueprint` for those who have more to check: problems are handed back, none hides another.

    Raises:
        ConfigError: there is no such recipe, or overrides cannot be applied.
    """
    found = inspect_recipe(source, overrides)
    builder = _Builder(bad_places=[problem.place for problem in found.problems])
    with planning():
        model = None if found.model is None else builder.model(found.model)
        written_well = not any(problem.place.startswith("model.layout") for problem in builder.problems)
        images = _image_problems(model) if model is not None and written_well else []
        started = found.recipe.start if found.recipe is not None else {}
        if model is not None:
            put_adapters(model, started)
        start = start_problems(started, model)
        stages = stage_problems(found, model)
    problems = [*found.problems, *builder.problems, *images, *stages, *start]
    name = "recipe" if isinstance(source, (Mapping, Recipe)) else str(source)
    return Draft(name, found.recipe, found.stages, model, list(dict.fromkeys(problems)))


def build(spec: ModelSpec) -> VLM:
    """The model of a checked spec, with weights.

    Raises:
        ConfigError: a part refuses its options or its weights.
    """
    builder = _Builder()
    model = builder.model(spec)
    if model is None or builder.problems:
        raise ConfigError(builder.problems)
    return model


class _Builder:
    """Builds parts in order and collects what goes wrong, each under its place in the recipe."""

    def __init__(self, bad_places: Sequence[str] = ()) -> None:
        self.problems: list[Problem] = []
        self._bad_places = bad_places

    def model(self, spec: ModelSpec) -> VLM | None:
        encoders = [
            self._part(registry.encoders, part, _place("model.encoders", spec.encoders, number))
            for number, part in enumerate(spec.encoders)
        ]
        views = self._part(registry.views, spec.views, "model.views")
        tokenizer = self._try("model.llm", lambda: build_tokenizer(spec.llm))
        llm = tokenizer and self._try("model.llm", lambda: build_llm(spec.llm, tokenizer))
        self._try("model.layout", spec.layout.check)
        if llm is None or any(encoder is None for encoder in encoders):
            return None
        chain = self._chain(spec, encoders, llm)
        if chain is None or views is None:
            return None
        parts = {"tokenizer": tokenizer, "views": views, "layout": spec.layout, "spec": resolved(spec, encoders, llm)}
        return self._try("model.connector", lambda: VLM(encoders, chain, llm=llm, **parts))

    def _chain(self, spec: ModelSpec, encoders: list[Encoder], llm: Any) -> Chain | None:
        facts = {"llm_width": width(llm), "llm_layers": layer_count(llm)}
        end = embedding(llm).embedding_dim
        adapters, shapes = [], []
        for number, (part, encoder) in enumerate(zip(spec.encoders, encoders, strict=True)):
            place = join(_place("model.encoders", spec.encoders, number), "adapter")
            own, shape = self._ops(part.adapter, encoder.shape(), place, facts)
            if shape is None:
                return None
            adapters.append(own)
            shapes.append(shape)
        merge, merged = self._merge(spec, shapes)
        if merged is None:
            return None
        ops, shape = self._ops(spec.connector, merged, "model.connector", facts, end)
        packer = None
        if spec.packer is not None:
            packer = self._part(registry.packers, spec.packer, "model.packer", {"width": end})
        if shape is None or (spec.packer is not None and packer is None):
            return None
        self._check_end(ops, shape, end)
        return Chain(adapters, merge, ops, packer)

    def _ops(
        self, parts: Sequence[PartSpec], shape: Shape, place: str, llm: Mapping[str, Any], end: int | None = None
    ) -> tuple[list[Connector], Shape | None]:
        """The ops in order and the shape behind them; None where one has a mistake.

        Args:
            parts: their specs.
            shape: of what the first one gets.
            place: in the recipe.
            llm: what an op may ask of the LLM.
            end: width of the last one's output; its input's if absent.
        """
        ops: list[Connector] = []
        found: Shape | None = shape
        for number, part in enumerate(parts):
            where = _place(place, parts, number)
            last = number == len(parts) - 1
            told = part.options.get("out_width", shape.width if end is None or _widened(parts[number + 1 :]) else end)
            if not isinstance(told, int) or told < 1:
                self.problems.append(Problem(join(where, "out_width"), f"`{told}`; allowed: 1 or more"))
                return ops, None
            facts = {"in_width": shape.width, "out_width": told, "grid": shape.grid, **llm}
            op = self._part(registry.connectors, part, where, facts)
            if op is None:
                return ops, None
            if not (last and end is not None) and not isinstance(op.route(), SequenceRoute):
                self.problems.append(Problem(where, f"`{part.name}` leads into the LLM, so it must be the last op"))
            found = self._try(where, lambda op=op, before=shape: op.shape(before))  # type: ignore[misc]
            if found is None:
                return ops, None
            shape = found
            ops.append(op)
        return ops, found

    def _check_end(self, ops: list[Connector], shape: Shape | None, wanted: int) -> None:
        if shape is not None and isinstance(ops[-1].route(), SequenceRoute) and shape.width != wanted:
            message = f"ends at width {shape.width}, but the LLM's is {wanted}; end with `linear` or `mlp`"
            self.problems.append(Problem("model.connector", message))

    def _merge(self, spec: ModelSpec, shapes: list[Shape]) -> tuple[Merge | None, Shape | None]:
        allowed = ", ".join(registry.merges)
        if len(shapes) == 1:
            if spec.merge is not None:
                self.problems.append(Problem("model.merge", "is for two or more encoders, and there is one"))
            return None, shapes[0]
        if spec.merge is None:
            self.problems.append(Problem("model.merge", f"is missing with {len(shapes)} encoders; allowed: {allowed}"))
            return None, None
        merge = self._part(registry.merges, spec.merge, "model.merge", {"shapes": shapes})
        return merge, None if merge is None else merge.shape(shapes)

    def _part(
        self, kind: registry.Registry[Any], part: PartSpec, place: str, facts: Mapping[str, Any] | None = None
    ) -> Any:
        """The part, or None where it (or its options, which were checked before) has a mistake."""
        if any(bad == place or bad.startswith(place + ".") for bad in self._bad_places):
            return None
        return self._try(place, lambda: construct(kind, part, facts or {}))

    def _try(self, place: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except ConfigError as error:
            self.problems += error.under(place).problems
            return None


def _widened(following: Sequence[PartSpec]) -> bool:
    """Whether one of the ops that follow has a say in the width, so that this one need not reach the LLM's."""
    known = [registry.connectors.get(part.name) for part in following if part.name in registry.connectors]
    return len(known) < len(following) or any({"out_width", "llm_width"} & set(given(op)) for op in known)


def _place(place: str, parts: Sequence[PartSpec], number: int) -> str:
    """Where a part of a list stands in the recipe; a list of one may be written without its brackets."""
    return join(place, number if len(parts) > 1 else "")


def _image_problems(model: VLM) -> list[Problem]:
    """What the chat template, the packer and the layout refuse: images of a few shapes are laid out as in a sample.

    An image that the views or the ops refuse is passed over: another one may be fine, and a sample says so itself.
    """
    try:
        processor = model.processor
    except ConfigError as error:
        return error.under("model.llm").problems
    problems: list[Problem] = []
    encoder: Any = model.encoders[0]
    height, width = encoder.image.size
    for rows, columns in ((1, 1), (2, 3), (4, 1)):
        try:
            image = processor.plan(rows * height, columns * width)
            processor.shapes(image)
        except ConfigError:
            continue
        try:
            processor.render(image)
        except ConfigError as error:
            problems += error.under("model").problems
    return list(dict.fromkeys(problems))
