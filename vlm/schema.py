"""A part's own typed `__init__` is its schema: the options a recipe gives are checked against the signature."""

import inspect
import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Protocol, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from vlm.errors import ConfigError, Problem, choices, join, unknown
from vlm.registry import Registry


class Named(Protocol):
    """A part as a recipe has it."""

    name: str

    @property
    def options(self) -> dict[str, Any]: ...


@cache
def signature(part: type) -> inspect.Signature:
    """The signature of a part's `__init__` without `self`."""
    parameters = list(inspect.signature(part.__init__).parameters.values())[1:]  # type: ignore[misc]
    return inspect.Signature(parameters)


def given(part: type) -> list[str]:
    """The positional parameters, which the kit supplies by name (`in_width`, ...)."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in signature(part).parameters.items() if parameter.kind in kinds]


def options(part: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters, which are the part's options in a recipe."""
    return {
        name: parameter
        for name, parameter in signature(part).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


@cache
def _schema(part: type) -> type[BaseModel]:
    hints = get_type_hints(part.__init__)  # type: ignore[misc]
    fields: dict[str, Any] = {}
    for name, parameter in options(part).items():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[name] = (hints.get(name, Any), default)
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature(part).parameters.values())
    config = ConfigDict(
        extra="allow" if open_ended else "forbid",
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )
    model: type[BaseModel] = create_model(part.__name__, __config__=config, **fields)
    return model


def check_options(part: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the types that `part` declares (a YAML list becomes a tuple); nothing is filled in.

    Raises:
        ConfigError: all options that are unknown, missing or of a wrong type, each with what is allowed.
    """
    checked = validate(_schema(part), dict(values), what=f"option of {part.__name__}")
    return {name: getattr(checked, name) for name in values}


def completed(part: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` beside the defaults of all options that they leave out, as plain data; options of options too."""
    return _completed(_schema(part), values)


def _completed(schema: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for name, item in schema.model_fields.items():
        inner = _nested(item.annotation)
        if name not in found and not item.is_required():
            found[name] = item.get_default()
        if inner is not None and isinstance(found.get(name), Mapping):
            found[name] = _completed(inner, found[name])
    return {name: _plain(value) for name, value in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def construct(kind: Registry[Any], part: Named, facts: Mapping[str, Any]) -> Any:
    """A part from its name and options, with the positional parameters it asks for taken from `facts`.

    Raises:
        ConfigError: unknown name or options, or a positional parameter that the kit does not supply.
    """
    found = kind.get(part.name)
    asked = given(found)
    missing = [name for name in asked if name not in facts]
    if missing:
        raise ConfigError(f"{found.__name__} asks for {missing}, but a {kind.kind} is given {sorted(facts)}")
    own = {name: value for name, value in part.options.items() if name not in asked or name in options(found)}
    return found(**{name: facts[name] for name in asked}, **check_options(found, own))


def validate(schema: type[BaseModel], values: Any, *, what: str = "key") -> Any:
    """`values` as an instance of a pydantic model, read as strictly as JSON: "2" is no integer, 1 is a float.

    Raises:
        ConfigError: every mistake, with its dotted place, the value, what is allowed and the nearest word.
    """
    try:
        text = json.dumps(values)
    except TypeError as error:
        raise ConfigError(f"holds something that is no YAML value: {error}") from error
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise ConfigError([_problem(schema, values, dict(item), what) for item in error.errors()]) from error


def _problem(schema: type[BaseModel], values: Any, item: dict[str, Any], what: str) -> Problem:
    location = _location(values, item)
    place = join(*location)
    value = item.get("input")
    describe: Callable[[], str] = {
        "extra_forbidden": lambda: unknown(what, str(location[-1]), _known(schema, location[:-1])),
        "missing": lambda: f"is missing; {_lacking(schema, location)}",
        "literal_error": lambda: f"`{value}` is not allowed;{_literal(value, item)}",
    }.get(item["type"], lambda: f"`{value}` is wrong: {item['msg']}")
    return Problem(place, describe())


def _location(values: Any, item: dict[str, Any]) -> list[str | int]:
    """pydantic's place without what is not in the data: members of unions (`list[int]`), the 0 of a bare item."""
    found: list[str | int] = []
    for number, piece in enumerate(item["loc"]):
        index = isinstance(values, list) and isinstance(piece, int)
        there = index or (isinstance(values, dict) and piece in values)
        if there:
            values = None if index and piece >= len(values) else values[piece]  # a pair of which the second is missing
        if there or (item["type"] == "missing" and number == len(item["loc"]) - 1):
            found.append(piece)
    return found


def _lacking(schema: type[BaseModel], location: list[Any]) -> str:
    """A list that is too short lacks an item, a mapping a key."""
    if isinstance(location[-1], int):
        return f"the list is too short, it needs at least {location[-1] + 1} items"
    return f"keys here: {', '.join(_known(schema, location[:-1]))}"


def _literal(value: Any, item: dict[str, Any]) -> str:
    allowed = [word.strip().strip("'") for word in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]
    return choices(str(value), allowed)


def _known(schema: type[BaseModel], location: list[Any]) -> list[str]:
    """The names allowed at `location`, following nested models."""
    for piece in location:
        if isinstance(piece, str) and piece in schema.model_fields:
            nested = _nested(schema.model_fields[piece].annotation)
            if nested is None:
                break
            schema = nested
    return list(schema.model_fields)


def _nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested(argument)
        if found is not None:
            return found
    return None
