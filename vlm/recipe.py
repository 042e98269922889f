"""The recipe: one validated YAML with the model, the stages, the data and the evaluation."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field

from vlm import registry
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.layout import Layout
from vlm.schema import check_options, validate
from vlm.spec import Part, Parts, Strict, as_list, bare_word
from vlm.spec import PartSpec as PartSpec
from vlm.stagespec import CacheSpec as CacheSpec
from vlm.stagespec import DataSpec as DataSpec
from vlm.stagespec import StageSpec as StageSpec
from vlm.stagespec import ValidationSpec as ValidationSpec

T = TypeVar("T", bound=BaseModel)


class LlmSpec(Strict):
    """The decoder: any Hugging Face causal LM as it is."""

    weights: str | None = None
    """A hub id or local folder."""
    config: dict[str, Any] | None = None
    """The fields of a transformers config incl. `model_type`, for random weights."""
    tokenizer: str | None = None
    """`bytes` (embedded), a hub id or a folder; the weights' own if absent."""
    chat_template: str | None = None
    """`plain`, `vicuna`, `short` or a path to a Jinja file; the tokenizer's own if absent."""
    tokens: list[str] = []
    """Special tokens (tags of the layout) that the tokenizer gets where it lacks them, each with a row in the embedding
    where there is none left."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """`auto` measures which of `eager` and `sdpa` is fastest on this device. `flex_attention` passes over what packed
    samples do not see of each other; torch trains with it on GPUs only."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto` is the weights' own, float32 for random weights."""


class EncoderSpec(PartSpec):
    """An encoder, and what its features pass before they meet those of other encoders."""

    adapter: Annotated[list[Part], BeforeValidator(as_list)] = []
    """Connector ops of this encoder alone, applied in order before the merge."""


Encoders = Annotated[
    list[Annotated[EncoderSpec, BeforeValidator(bare_word)]], BeforeValidator(as_list), Field(min_length=1)
]


class ModelSpec(Strict):
    """Which parts make the model."""

    encoders: Encoders
    merge: Part | None = None
    """How several encoders' features become one; needed with two or more."""
    views: Part = PartSpec(name="squash")
    connector: Parts
    packer: Part | None = None
    """How the tokens of an image's views become one sequence, where they are not just put side by side."""
    layout: Layout = Layout()
    """What stands around an image's tokens in the text."""
    llm: LlmSpec


class Recipe(Strict):
    """Everything `vlm train` needs, in one file."""

    model: ModelSpec
    stages: list[StageSpec] = []
    start: dict[str, str] = {}
    """Part (`encoders.0`, `connector`, `llm`, ...) -> saved model or run whose part's weights it begins with."""
    eval: list[str] = []
    """Tasks that `vlm train` evaluates when all stages are done."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    description: str = ""

    def dump(self) -> dict[str, Any]:
        """Plain data that reads back as the same recipe."""
        return self.model_dump(mode="json", exclude_defaults=True)


def read_recipe(source: "str | Path | Mapping[str, Any] | Recipe", overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a shipped name, a path or plain data, with `a.b.0.c=value` overrides.

    Raises:
        ConfigError: every mistake that can be seen without building a part: unknown names and options, wrong types,
            missing keys; each with place, value, what is allowed and the nearest word.
    """
    found = inspect_recipe(source, overrides)
    if found.recipe is None or found.problems:
        raise ConfigError(found.problems, source=str(source) if isinstance(source, (str, Path)) else "recipe")
    return found.recipe


@dataclass(frozen=True)
class Inspection:
    """What is sound in a recipe and what is not, so that a mistake in one place does not hide those in another."""

    recipe: Recipe | None
    """The whole, if its outline has no mistake."""
    model: ModelSpec | None
    stages: list[StageSpec | None]
    eval: list[str]
    problems: list[Problem]


def inspect_recipe(source: "str | Path | Mapping[str, Any] | Recipe", overrides: Sequence[str] = ()) -> Inspection:
    """Every problem of a recipe that can be seen without building a part, and what is sound; see `read_recipe`.

    Raises:
        ConfigError: there is no such recipe, or overrides cannot be applied.
    """
    if isinstance(source, Recipe):
        source = source.dump()
    raw = dict(source) if isinstance(source, Mapping) else _load(str(source))
    problems = []
    for override in overrides:
        try:
            raw = _override(raw, override)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return _checked(raw)


def changed(source: "str | Path | Mapping[str, Any]", changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A recipe as plain data with values put at dotted places (`stages.0.steps`), one after the other.

    Raises:
        ConfigError: there is no such recipe, or a place leads nowhere; nothing else is checked.
    """
    raw = dict(source) if isinstance(source, Mapping) else _load(str(source))
    problems = []
    for place, value in changes:
        try:
            raw = _put(raw, place.split("."), value, place)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return raw


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the kit."""
    folder = Path(str(resources.files("vlm"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _load(source: str) -> dict[str, Any]:
    shipped = shipped_recipes()
    path = shipped.get(source, Path(source))
    if not path.is_file():
        raise ConfigError(unknown("recipe", source, shipped) + ", or the path of a YAML file")
    return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; `1e-3` is a number, a key written twice is an error.

    Raises:
        ConfigError: not YAML, not a mapping, or a key twice; with file and line.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if data is None:
        raise ConfigError(f"{path} is empty")
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {type(data).__name__}, not a mapping of keys to values")
    return data


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it takes `1e-3` for text and keeps the last of two equal keys in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        for key in keys:
            if not isinstance(key, str):
                what = f"key `{key}` is {type(key).__name__}, not text; put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, what, node.start_mark)
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key `{key}` stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _override(raw: Any, text: str) -> Any:
    """`raw` with one `a.b.0.c=value` applied; the value is read as YAML."""
    place, equals, value = text.partition("=")
    if not equals or not place:
        raise ConfigError(f"`{text}` is not of the form key.key=value")
    try:
        return _put(raw, place.split("."), yaml.load(value, Loader=_Loader), place)
    except yaml.YAMLError as error:
        raise ConfigError(Problem(place, f"`{value}` is not YAML: {' '.join(str(error).split())}")) from error


def _put(node: Any, keys: list[str], value: Any, place: str) -> Any:
    if not keys:
        return value
    if isinstance(node, list):
        if not keys[0].isdigit() or int(keys[0]) >= len(node):
            raise ConfigError(Problem(place, f"`{keys[0]}` is no index of a list of {len(node)}"))
        index = int(keys[0])
        return [*node[:index], _put(node[index], keys[1:], value, place), *node[index + 1 :]]
    node = bare_word(node) if isinstance(node, str) else node
    if not isinstance(node, dict):
        raise ConfigError(Problem(place, f"there is no `{keys[0]}` in {node!r}"))
    return {**node, keys[0]: _put(node.get(keys[0], {}), keys[1:], value, place)}


def _checked(raw: dict[str, Any]) -> Inspection:
    recipe, problems = _attempt(Recipe, raw)
    for place, kind, node in _parts(raw):
        try:
            check_options(kind.get(node["name"]), _options(node))
        except ConfigError as error:
            problems += error.under(place).problems
    stages = raw.get("stages")
    sound = [_attempt(StageSpec, stage)[0] for stage in stages] if isinstance(stages, list) else []
    tasks = raw.get("eval")
    named = [name for name in tasks if isinstance(name, str)] if isinstance(tasks, list) else []
    return Inspection(recipe, _attempt(ModelSpec, raw.get("model"))[0], sound, named, list(dict.fromkeys(problems)))


def _attempt(schema: type[T], values: Any) -> tuple[T | None, list[Problem]]:
    try:
        return validate(schema, values), []
    except ConfigError as error:
        return None, error.problems


def _options(node: dict[str, Any]) -> dict[str, Any]:
    """`out_width` is the kit's to give, but an op in the middle of a chain may be told; `weight` is the mixture's,
    `adapter` a list of parts itself."""
    return {key: value for key, value in node.items() if key not in ("name", "out_width", "weight", "adapter")}


def _parts(raw: dict[str, Any]) -> Iterator[tuple[str, registry.Registry[Any], dict[str, Any]]]:
    """(place, registry, node) of every part that is well-formed enough to be looked at."""
    model = raw.get("model")
    model = model if isinstance(model, dict) else {}
    slots = {
        "encoders": registry.encoders,
        "merge": registry.merges,
        "views": registry.views,
        "connector": registry.connectors,
        "packer": registry.packers,
    }
    for key, kind in slots.items():
        yield from _listed(model.get(key), join("model", key), kind)
    for place, _, encoder in _listed(model.get("encoders"), "model.encoders", registry.encoders):
        yield from _listed(encoder.get("adapter"), join(place, "adapter"), registry.connectors)
    stages = raw.get("stages")
    for number, stage in enumerate(stages if isinstance(stages, list) else []):
        if isinstance(stage, dict):
            place = join("stages", number)
            yield from _listed(stage.get("objective"), join(place, "objective"), registry.objectives)
            yield from _listed(stage.get("views"), join(place, "views"), registry.views)
            yield from _listed(stage.get("optimiser"), join(place, "optimiser"), registry.optimisers)
            for key, node in (("data", stage), ("validation.data", stage.get("validation"))):
                data = node.get("data") if isinstance(node, dict) else None
                for source_place, kind, one in _listed(data, join(place, key), registry.sources, "path"):
                    yield source_place, kind, {"name": "json", **one}


def _listed(
    node: Any, place: str, kind: registry.Registry[Any], word: str = "name"
) -> Iterator[tuple[str, registry.Registry[Any], dict[str, Any]]]:
    several = isinstance(node, list)
    for number, item in enumerate(node if several else [node]):
        item = {word: item} if isinstance(item, str) else item
        if isinstance(item, dict) and (word == "path" or isinstance(item.get("name"), str)):
            yield join(place, number) if several else place, kind, item
