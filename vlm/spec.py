"""What the pieces of a recipe are made of: parts by name with their options."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


def bare_word(node: Any) -> Any:
    return {"name": node} if isinstance(node, str) else node


class PartSpec(BaseModel):
    """A part by name with its options; a bare word means `{name: word}`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    name: str
    """A registered short word, or `package.module:Class`."""

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


Part = Annotated[PartSpec, BeforeValidator(bare_word)]


def as_list(node: Any) -> Any:
    return node if isinstance(node, list) or node is None else [node]


Parts = Annotated[list[Part], BeforeValidator(as_list), Field(min_length=1)]
