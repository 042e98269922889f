"""What there is to choose from."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from vlm import registry
from vlm.errors import ConfigError, unknown
from vlm.recipe import read_yaml, shipped_recipes

_PARTS = {
    "encoders": registry.encoders,
    "connectors": registry.connectors,
    "merges": registry.merges,
    "packers": registry.packers,
    "views": registry.views,
    "sources": registry.sources,
    "objectives": registry.objectives,
    "optimisers": registry.optimisers,
}


def listing(kind: str | None = None) -> dict[str, dict[str, str]]:
    """Name -> one line, by kind; of all kinds but the long list of LLM families if none is named.

    Raises:
        ConfigError: there is no such kind.
    """
    makers: dict[str, Callable[[], dict[str, str]]] = {
        **{name: partial(_parts, kind) for name, kind in _PARTS.items()},
        "llms": _llms,
        "recipes": _recipes,
        "studies": _studies,
        "architectures": _architectures,
        "tasks": lambda: import_module("vlm.eval.task").descriptions(),
        "metrics": lambda: import_module("vlm.eval.metrics").descriptions(),
    }
    if kind is None:
        return {name: make() for name, make in makers.items() if name != "llms"}
    if kind not in makers:
        raise ConfigError(unknown("kind", kind, makers))
    return {kind: makers[kind]()}


def tables(found: dict[str, dict[str, str]]) -> list[Any]:
    """The listing as tables for a terminal."""
    from rich.table import Table

    shown = []
    for kind, entries in found.items():
        table = Table(title=kind, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for name, line in entries.items():
            table.add_row(name, line)
        shown.append(table)
    return shown


def _parts(kind: registry.Registry[Any]) -> dict[str, str]:
    return {name: _first_line(kind.get(name)) for name in kind}


def _first_line(part: type) -> str:
    return (part.__doc__ or "").strip().partition("\n")[0]


def _recipes() -> dict[str, str]:
    return {name: str(read_yaml(path).get("description", "")) for name, path in shipped_recipes().items()}


def _studies() -> dict[str, str]:
    files = import_module("vlm.compare.grid").shipped_studies()
    return {name: str(read_yaml(path).get("description", "")) for name, path in files.items()}


def _architectures() -> dict[str, str]:
    files = import_module("vlm.keymap").shipped()
    return {name: str(read_yaml(path).get("description", "")) for name, path in files.items()}


def _llms() -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {name: str(architecture) for name, architecture in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())}
