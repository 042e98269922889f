"""From what the command line names to samples and to a processor."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from vlm import registry
from vlm.assembly import blueprint
from vlm.chat import ChatFormat
from vlm.data import Source
from vlm.errors import ConfigError, Problem
from vlm.loading import load_processor
from vlm.processor import Processor
from vlm.recipe import DataSpec, Recipe
from vlm.schema import construct
from vlm.tokenizers import load_tokenizer

_KINDS = {".json": "json", ".jsonl": "json", ".tar": "tar", ".parquet": "datasets", ".arrow": "datasets"}


def open_samples(text: str) -> tuple[str, Source]:
    """The samples that a text names, and what they are called.

    Args:
        text: a file (`.json`, `.jsonl`, `.parquet`, `.arrow`), tar shards (`shards/{000..127}.tar`), a folder that the
            `datasets` library reads, the path of a YAML file that holds a source as a stage has it, or such YAML.

    Raises:
        ConfigError: it is none of these, or what it names cannot be opened.
    """
    name, spec = _spec(text)
    try:
        checked = DataSpec(**spec)
    except (ValidationError, TypeError) as error:
        raise ConfigError(f"`{name}` is no source: {error}") from error
    return name, construct(registry.sources, checked, {})


def _spec(text: str) -> tuple[str, dict[str, Any]]:
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"there is no file `{text}`")
        return text, _mapping(text, path.read_text(encoding="utf8"))
    if path.suffix in _KINDS:
        return text, {"name": _KINDS[path.suffix], "path": text}
    if path.is_dir():
        return text, {"name": "datasets", "path": text}
    if ":" in text:
        return text, _mapping(text, text)
    allowed = ", ".join((*_KINDS, ".yaml", "a folder"))
    raise ConfigError(f"`{text}` names no samples; allowed: {allowed}, or a source as YAML: {{name: words, count: 9}}")


def _mapping(name: str, text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"`{name}` is no YAML: {error}") from error
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        raise ConfigError(f"`{name}` holds {type(found).__name__}, not one source as {{name: ..., its options}}")
    return found


def open_processor(model: str) -> tuple[str, Processor]:
    """What prepares samples for a model, and what it is called; no weight is read.

    Args:
        model: the folder of a saved model or a run, or a recipe.

    Raises:
        ConfigError: there is no such model or recipe, or its tokenizer is not at hand.
    """
    if Path(model).is_dir():
        return model, load_processor(model)
    recipe, planned = blueprint(model)
    processor = planned.processor
    processor.chat = ChatFormat(_tokenizer(recipe), joint=processor.layout.joint)
    return model, processor


def _tokenizer(recipe: Recipe) -> Any:
    """The recipe's own, for which a stand-in is enough to plan."""
    llm = recipe.model.llm
    name = llm.tokenizer or llm.weights
    if name is None:
        raise ConfigError(Problem("model.llm.tokenizer", "is missing"))
    try:
        return load_tokenizer(name, llm.chat_template, llm.tokens)
    except ConfigError as error:
        raise error.under("model.llm") from error
