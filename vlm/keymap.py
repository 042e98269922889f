"""Key maps: how another program's model is one of the kit's, written as data, and read in both directions.

A key map is a YAML file in `vlm/keymaps` (or anywhere, given by its path):

    when:   fields of the other config that must have these values (or one of several) for the map to be the right one
    model:  the model part of a recipe, with holes for fields of the other config (see `vlm.template`)
    keys:   its parameter names -> ours; a name or the beginning of one up to a dot. `{n}` is a number, `{n+1}` the next
            one; `{llm}` and `{head}` on our side are the LLM's own names for its body and its output embedding.
            Several names on our side share its rows; `| rows 1/2` says that it is the first half of ours.
    placeholder: the field of the other config that holds the id of the token that stands for an image
    implied: fields of the other config that follow from others, as holes
    extra:  parameters (beginnings of names) that the kit does not use but carries along
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from torch import Tensor

from vlm import registry
from vlm.errors import ConfigError, Problem, unknown
from vlm.recipe import read_yaml
from vlm.schema import completed as defaulted
from vlm.schema import validate
from vlm.template import fill, get, is_there, match, put

Place = tuple[str, int, int]
"""(name of our parameter, number of the part of its rows, number of parts)."""


class KeysError(ValueError):
    """Parameters that do not fit; names the first on each side."""


@dataclass(frozen=True)
class KeyMap:
    """One architecture of another program."""

    name: str
    model: dict[str, Any]
    keys: dict[str, str | list[str]]
    placeholder: str
    implied: dict[str, Any] = field(default_factory=dict)
    when: list[dict[str, Any]] = field(default_factory=list)
    """Alternatives, each with all of its fields."""
    extra: tuple[str, ...] = ()

    def fits(self, facts: Mapping[str, Any]) -> bool:
        """Whether a config (as plain data) is of this architecture."""
        return any(all(_allows(value, get(facts, path)) for path, value in case.items()) for case in self.when)

    def spec(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The model part of a recipe for a config.

        Raises:
            ConfigError: the config lacks a field.
        """
        try:
            spec = dict(fill(self.model, facts))
            implied = {path: (fill(hole, facts), get(facts, path)) for path, hole in self.implied.items()}
        except ConfigError as error:
            raise ConfigError(f"key map `{self.name}`: {error}") from error
        wrong = [
            Problem(path, f"`{own}`, but it must be `{follows}`")
            for path, (follows, own) in implied.items()
            if follows != own
        ]
        if wrong:
            raise ConfigError(wrong, source=f"the config ({self.name})")
        return spec

    def facts(self, spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """The fields of the other config for a resolved spec, and the slots that this architecture has otherwise."""
        template, found = completed(self.model), completed(spec)
        for wanted, own in zip(template["encoders"], found["encoders"], strict=False):
            own["name"] = _same_kind(wanted["name"], own["name"])
        facts, problems = match(template, found, what=f"`{self.name}`")
        if not problems:
            for path, hole in self.implied.items():
                put(facts, path, fill(hole, facts))
        return facts, problems

    def conditions(self, facts: dict[str, Any]) -> list[Problem]:
        """What `when` wants of facts from `facts`, one alternative of which must hold; what they lack is put in."""
        missed = [
            {
                path: value
                for path, value in case.items()
                if not _allows(value, get(facts, path)) and is_there(get(facts, path))
            }
            for case in self.when
        ]
        best = min(range(len(missed)), key=lambda number: len(missed[number]))
        if missed[best]:
            return [
                Problem(path, f"`{get(facts, path)}`, but `{self.name}` has `{value}`")
                for path, value in missed[best].items()
            ]
        for path, value in self.when[best].items():
            if not is_there(get(facts, path)):
                put(facts, path, value[0] if isinstance(value, list) else value)
        return []

    def names(self, llm: Any) -> "Names":
        """The parameter names of this architecture for one LLM."""
        head = next(name for name, module in llm.named_modules() if module is llm.get_output_embeddings())
        words = {"llm": f"llm.{llm.base_model_prefix}", "head": f"llm.{head}"}
        return Names(self, words)


def _allows(allowed: Any, value: Any) -> bool:
    value = value if is_there(value) else None
    return value in allowed if isinstance(allowed, list) else value == allowed


def shipped() -> dict[str, Path]:
    """Name -> file of the key maps that come with the kit."""
    folder = Path(str(resources.files("vlm"))) / "keymaps"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _as_list(node: Any) -> Any:
    return node if isinstance(node, list) else [node]


def _as_parts(node: Any) -> Any:
    return [{"name": item} if isinstance(item, str) else item for item in _as_list(node)]


_Parts = Annotated[list[dict[str, Any]], BeforeValidator(_as_parts), Field(min_length=1)]


class _Model(BaseModel):
    """What is looked into before the recipe is made; the rest is checked as a recipe, once its holes are filled."""

    model_config = ConfigDict(extra="allow")

    encoders: _Parts
    connector: _Parts
    llm: dict[str, Any]


class _File(BaseModel):
    """What a key map's file holds."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    description: str | None = None
    when: Annotated[list[dict[str, Any]], BeforeValidator(_as_list), Field(min_length=1)]
    placeholder: str
    model: _Model
    keys: dict[str, Annotated[list[str], BeforeValidator(_as_list)]]
    implied: dict[str, Any] = {}
    extra: list[str] = []


def load_keymap(name: str) -> KeyMap:
    """A key map by its name or its path.

    Raises:
        ConfigError: there is none, or a key of it is not known, is missing or holds something else than it should.
    """
    path = shipped().get(name, Path(name))
    if not path.is_file():
        raise ConfigError(unknown("key map", name, shipped()) + ", or the path of a YAML file")
    data = read_yaml(path)
    try:
        validate(_File, data)
    except ConfigError as error:
        raise ConfigError(error.problems, source=str(path)) from error
    when = data["when"] if isinstance(data["when"], list) else [data["when"]]
    rest = {"implied": data.get("implied", {}), "when": when, "extra": tuple(data.get("extra", ()))}
    return KeyMap(path.stem, listed(data["model"]), data["keys"], data["placeholder"], **rest)


def find_keymap(facts: Mapping[str, Any]) -> KeyMap:
    """The shipped key map for a config.

    Raises:
        ConfigError: there is none; names those of the same model type, and all model types that there are.
    """
    maps = [load_keymap(name) for name in shipped()]
    for one in maps:
        if one.fits(facts):
            return one
    model_type = facts.get("model_type")
    near = [one for one in maps if any(case.get("model_type") == model_type for case in one.when)]
    if near:
        conditions = [f"{path} = {value}" for one in near for case in one.when for path, value in case.items()]
        raise ConfigError(f"no key map fits this `{model_type}`; those there are want: {', '.join(conditions)}")
    types = sorted({case["model_type"] for one in maps for case in one.when})
    raise ConfigError(unknown("model type", str(model_type), types) + "; docs/architectures.md says how to add one")


def listed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A model part in its full form: parts as mappings with a name, encoders and connector as lists."""

    def part(node: Any) -> Any:
        return {"name": node} if isinstance(node, str) and not node.startswith("$") else node

    def parts(node: Any) -> list[Any]:
        return [part(item) for item in (node if isinstance(node, list) else [node])]

    found = dict(spec)
    found["encoders"] = [
        {**one, "adapter": parts(one["adapter"]) if one.get("adapter") else []} for one in parts(spec["encoders"])
    ]
    found["connector"] = parts(spec["connector"])
    for slot in ("merge", "views", "packer"):
        if spec.get(slot) is not None:
            found[slot] = part(spec[slot])
    return found


_SLOTS = {"merge": registry.merges, "views": registry.views, "packer": registry.packers}


def completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec in its full form with every option of every part, at its default where it is not given."""
    from vlm.layout import Layout

    found = listed(spec)
    found.setdefault("views", {"name": "squash"})
    found["layout"] = {**Layout().model_dump(), **(found.get("layout") or {})}
    found["encoders"] = [
        {**_full(registry.encoders, one), "adapter": [_full(registry.connectors, op) for op in one["adapter"]]}
        for one in found["encoders"]
    ]
    found["connector"] = [_full(registry.connectors, op) for op in found["connector"]]
    for slot, kind in _SLOTS.items():
        found[slot] = _full(kind, found[slot]) if found.get(slot) is not None else None
    found["llm"] = {"config": found["llm"]["config"]}
    return found


def _full(kind: registry.Registry[Any], part: Mapping[str, Any]) -> dict[str, Any]:
    return defaulted(kind.get(part["name"]), part)


def _same_kind(wanted: str, name: str) -> str:
    """`wanted` where an encoder called `name` is one of that kind with other defaults (they are all written out)."""
    kinds = registry.encoders.get(wanted), registry.encoders.get(name)
    return wanted if issubclass(kinds[1], kinds[0]) else name


class Names:
    """Parameter names of an architecture, for one LLM: state dicts to the kit's form and back."""

    def __init__(self, keymap: KeyMap, words: Mapping[str, str]) -> None:
        self._extra = keymap.extra
        self._rules = [_Rule(theirs, ours, words) for theirs, ours in keymap.keys.items()]

    def to_kit(self, state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> tuple[dict[str, Tensor], ...]:
        """(our parameters, those carried along) from a state dict.

        Args:
            state: of the other model.
            shapes: of our parameters.

        Raises:
            KeysError: names that no rule knows, or that our model lacks; names of our model that are left without.
        """
        parts: dict[str, dict[int, Tensor]] = {}
        extra: dict[str, Tensor] = {}
        strange = []
        for name, tensor in state.items():
            places = self._places(name)
            unused = name.startswith(self._extra) and not any(ours in shapes for ours, _, _ in places)
            if unused:
                extra[name] = tensor
            elif places:
                for ours, number, part in _shared_out(places, tensor, shapes):
                    parts.setdefault(ours, {})[number] = part
            else:
                strange.append(name)
        beyond = [name for name in parts if name not in shapes]
        missing = [name for name in shapes if name not in parts]
        sides = {
            "the key map does not know": strange,
            "the kit's model does not have": beyond,
            "nothing gives": missing,
        }
        if strange or beyond or missing:
            raise KeysError(_complaint(sides))
        joined = {
            name: torch.cat([own[n] for n in sorted(own)]) if len(own) > 1 else own[min(own)]
            for name, own in parts.items()
        }
        return {name: _as(tensor, shapes[name], name) for name, tensor in joined.items()}, extra

    def from_kit(self, state: Mapping[str, Tensor], wanted: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The other model's state dict.

        Args:
            state: ours, with those carried along under their own names.
            wanted: names and shapes of the other model's.

        Raises:
            KeysError: names that are left over on either side.
        """
        found: dict[str, Tensor] = {}
        used: set[str] = set()
        for name, shape in wanted.items():
            places = [(name, 0, 1)] if name in state else self._places(name)
            if places and all(ours in state for ours, _, _ in places):
                parts = [state[ours].chunk(count)[number] for ours, number, count in places]
                flat = [part if part.ndim == len(shape) or len(parts) == 1 else part[None] for part in parts]
                found[name] = _as(torch.cat(flat) if len(flat) > 1 else flat[0], shape, name)
                used |= {ours for ours, _, _ in places}
        left, missing = [name for name in state if name not in used], [name for name in wanted if name not in found]
        if left or missing:
            raise KeysError(_complaint({"have no place there": left, "are lacking here": missing}))
        return found

    def _places(self, name: str) -> list[Place]:
        """Where the rows of one of their parameters are among ours; none if no rule knows it."""
        return next((places for rule in self._rules if (places := rule.places(name))), [])


class _Rule:
    def __init__(self, theirs: str, ours: str | list[str], words: Mapping[str, str]) -> None:
        self._ours = [_target(target, words) for target in ([ours] if isinstance(ours, str) else ours)]
        pattern = re.escape(theirs).replace(r"\{n\}", r"(?P<n>\d+)")
        self._pattern = re.compile(pattern + ("(?P<rest>.*)$" if theirs.endswith(".") else "$"))

    def places(self, name: str) -> list[Place]:
        found = self._pattern.match(name)
        if found is None:
            return []
        groups = found.groupdict()
        number = int(groups["n"]) if groups.get("n") else 0
        return [
            (ours.replace("{n}", str(number)).replace("{n+1}", str(number + 1)) + groups.get("rest", ""), part, count)
            for ours, part, count in self._ours
        ]


def _target(target: str, words: Mapping[str, str]) -> Place:
    """`name | rows 1/2` -> (name, 0, 2), with the LLM's own names put in."""
    name, _, rows = target.partition("| rows ")
    for word, own in words.items():
        name = name.replace(f"{{{word}}}", own)
    part, _, count = rows.partition("/")
    return (name.strip(), int(part) - 1, int(count)) if rows else (name.strip(), 0, 1)


def _shared_out(
    places: list[Place], tensor: Tensor, shapes: Mapping[str, torch.Size]
) -> Iterator[tuple[str, int, Tensor]]:
    """(our parameter, number of the part, the part) from one of theirs; several share its rows by our shapes."""
    if len(places) == 1:
        yield places[0][0], places[0][1], tensor
        return
    rows = [shapes[ours][0] if ours in shapes and len(shapes[ours]) == tensor.ndim else 1 for ours, _, _ in places]
    if sum(rows) != len(tensor):
        names = ", ".join(ours for ours, _, _ in places)
        raise KeysError(f"{names} have {rows} rows, and the parameter to share has {len(tensor)}")
    for (ours, number, _), part in zip(places, tensor.split(rows), strict=True):
        yield ours, number, part


def _as(tensor: Tensor, shape: torch.Size, name: str) -> Tensor:
    """The parameter in `shape`, which may have other axes of length 1.

    Raises:
        KeysError: it has another shape.
    """
    if [side for side in tensor.shape if side > 1] != [side for side in shape if side > 1]:
        raise KeysError(f"{name} is {tuple(shape)}, and what is given for it {tuple(tensor.shape)}")
    return tensor.reshape(shape)


def _complaint(sides: Mapping[str, Sequence[str]]) -> str:
    """The first names of each kind."""
    shown = [f"{len(names)} that {what}: {', '.join(names[:5])}" for what, names in sides.items() if names]
    return "parameters do not fit: " + "; ".join(shown)
