"""Models of transformers as models of the kit, and back; in memory and on disk. See `vlm.keymap`."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.assembly import build
from vlm.errors import ConfigError, Problem
from vlm.keymap import KeyMap, find_keymap, load_keymap, shipped
from vlm.model import VLM
from vlm.recipe import ModelSpec
from vlm.sample import PLACEHOLDER
from vlm.saving import Origin
from vlm.schema import validate
from vlm.template import get, has, put
from vlm.weights import config_fields, no_init


def from_transformers(model: Any, *, tokenizer: Any = None, preprocessor: Mapping[str, Any] | None = None) -> VLM:
    """A transformers VLM as a model of the kit, with the same weights.

    Args:
        model: an `...ForConditionalGeneration`.
        tokenizer: its tokenizer; the embedded byte-level one if absent.
        preprocessor: the fields of its image processor; the class's defaults if absent.

    Raises:
        ConfigError: no key map fits the config.
        KeysError: a parameter on either side is left over.
    """
    facts = config_facts(model.config)
    facts["preprocessor"] = {**default_preprocessor(model.config.model_type), **(preprocessor or {})}
    keymap = find_keymap(facts)
    spec = keymap.spec(facts)
    kit = _built(spec, tokenizer, str(model.config._attn_implementation))
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in kit.state_dict().items()}
    found, carried = keymap.names(kit.llm).to_kit(state, shapes)
    kit.load_state_dict(found, strict=True, assign=True)
    kit.llm.tie_weights()  # type: ignore[operator]
    kit.set_attention(kit.attention)  # in the tower and the connector too
    kit.origin = Origin(facts, carried)
    return kit.train(model.training)


def to_transformers(model: VLM, *, architecture: str | None = None) -> Any:
    """A model of the kit as the transformers VLM of the same architecture, with the same weights.

    Args:
        model: of the kit.
        architecture: a key map's name; the one that fits if absent.

    Raises:
        ConfigError: transformers has no such architecture; names the slots that do not fit the nearest one.
        KeysError: a parameter on either side is left over.
    """
    if model.adapters:
        raise ConfigError(f"adapters on {', '.join(model.adapters)} have no place in the other model: merge them first")
    keymap, facts = _architecture(model, architecture)
    placeholder = model.processor.chat.placeholder_id
    if not has(facts, keymap.placeholder):
        put(facts, keymap.placeholder, placeholder)
    config = _config(facts)
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.origin is not None:
        state |= model.origin.carried
    wanted = {name: tensor.shape for name, tensor in _skeleton(config).state_dict().items()}
    renamed = keymap.names(model.llm).from_kit(state, wanted)
    other = _loaded(config, renamed, model.attention)
    if get(facts, keymap.placeholder) == placeholder >= other.get_input_embeddings().num_embeddings:
        other.resize_token_embeddings(placeholder + 1, mean_resizing=False)  # it is looked up there, and replaced
    return other.train(model.training)


def import_folder(folder: str, out: str | Path) -> Path:
    """A Hugging Face VLM (a folder or hub id) -> a saved model of the kit.

    Raises:
        ConfigError: the folder holds no such model, lacks parameters or has others; the first of each side are named.
    """
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    if not Path(folder).is_dir() and (
        Path(folder).is_absolute() or folder.startswith((".", "~")) or folder.count("/") > 1
    ):
        raise ConfigError(f"`{folder}`: there is no such folder")
    loader: Any = AutoModelForImageTextToText
    try:
        # no code of the folder runs, nothing is unpickled
        safe = {"trust_remote_code": False, "use_safetensors": True}
        model, info = loader.from_pretrained(
            folder, output_loading_info=True, dtype="auto", ignore_mismatched_sizes=True, **safe
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"`{folder}` cannot be read as a vision-language model: {_line(error)}") from error
    _check_info(folder, info)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _chat_template(folder)
    kit = from_transformers(model.eval(), tokenizer=tokenizer, preprocessor=read_preprocessor(folder))
    kit.origin = replace(kit.origin, files=_files(folder))  # type: ignore[type-var]
    return kit.save(out)


def export_folder(model: VLM, out: str | Path, *, architecture: str | None = None) -> Path:
    """A model of the kit -> a Hugging Face folder: config, weights, tokenizer, preprocessor.

    Raises:
        ConfigError, KeysError: see `to_transformers`.
    """
    if Path(out).is_dir() and any(Path(out).iterdir()):
        raise ConfigError(f"{out} is not empty: nothing is written over; give another folder")
    _, facts = _architecture(model, architecture)
    other = to_transformers(model, architecture=architecture)
    out = Path(out)
    other.save_pretrained(out)
    _without_placeholder(model.tokenizer).save_pretrained(out)
    files = model.origin.files if model.origin is not None else {}
    if not {"preprocessor_config.json", "processor_config.json"} & set(files):
        files = {**files, "preprocessor_config.json": json.dumps(facts["preprocessor"], indent=2)}
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf8")
    return out


def config_facts(config: Any) -> dict[str, Any]:
    """A transformers config as plain data, its inner configs too."""
    from transformers import PreTrainedConfig

    facts = config_fields(config)
    for name in facts:
        inner = getattr(config, name, None)
        if isinstance(inner, PreTrainedConfig):
            facts[name] = config_fields(inner)
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]


def default_preprocessor(model_type: str) -> dict[str, Any]:
    """The fields of a model type's image processor at their defaults; none where transformers has no such processor."""
    import transformers
    from transformers.models.auto.image_processing_auto import (  # type: ignore[attr-defined]
        IMAGE_PROCESSOR_MAPPING_NAMES as names,
    )

    known = names.get(model_type)
    options = (
        [known] if isinstance(known, str) else list((known or {}).values() if isinstance(known, dict) else known or ())
    )
    for name in options:
        found = getattr(transformers, name, None) if name else None
        if found is not None:
            try:
                return json.loads(found().to_json_string())  # type: ignore[no-any-return]
            except ImportError:
                continue
    return {}


def read_preprocessor(folder: str) -> dict[str, Any]:
    """The fields of a folder's image processor."""
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        found: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(folder)[0]
    except OSError:
        return {}
    inner = found.get("image_processor")
    return inner if isinstance(inner, dict) else found


def _built(spec: dict[str, Any], tokenizer: Any, attention: str) -> VLM:
    with tempfile.TemporaryDirectory() as place:
        if tokenizer is not None:
            tokenizer.save_pretrained(place)
        llm = {**spec["llm"], "tokenizer": "bytes" if tokenizer is None else place, "attention": attention}
        with no_init():
            return build(validate(ModelSpec, {**spec, "llm": llm}))


def _architecture(model: VLM, architecture: str | None) -> tuple[KeyMap, dict[str, Any]]:
    """The key map that fits, and the other config's fields."""
    base = model.origin.facts if model.origin is not None else {}
    maps = [load_keymap(name) for name in ([architecture] if architecture else shipped())]
    nearest: list[Problem] | None = None
    for keymap in sorted(maps, key=lambda one: not one.fits(base)):  # where it came from is the first that is tried
        facts, problems = keymap.facts(model.spec)
        facts = _merged(base if keymap.fits(base) else {}, facts)
        if not problems:
            problems = keymap.conditions(facts)
        if not problems:
            return keymap, facts
        if nearest is None or len(problems) < len(nearest):
            nearest = problems
    message = f"no architecture of transformers is assembled so; the nearest of {len(maps)} differs in"
    raise ConfigError(nearest or [], headline=message)


def _merged(base: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in facts.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _config(facts: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    fields = {key: value for key, value in facts.items() if key not in ("preprocessor", "model_type")}
    return AutoConfig.for_model(facts["model_type"], **fields)


def _class(config: Any) -> Any:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText._model_mapping[type(config)]  # type: ignore[attr-defined]


def _skeleton(config: Any) -> Any:
    import torch

    with torch.device("meta"):
        return _class(config)(config)


def _loaded(config: Any, state: dict[str, Tensor], attention: str) -> Any:
    dtype = next(iter(state.values())).dtype
    found, info = _class(config).from_pretrained(
        None, config=config, state_dict=state, output_loading_info=True, dtype=dtype, attn_implementation=attention
    )
    _check_info("the exported model", info)
    return found


def _check_info(name: str, info: Mapping[str, Any]) -> None:
    sides = {"lacks": sorted(info["missing_keys"]), "has beyond the model's": sorted(info["unexpected_keys"])}
    sides["has in another shape"] = sorted(str(key) for key in info["mismatched_keys"])
    problems = [f"{name} {what} {len(keys)} parameters: {', '.join(keys[:5])}" for what, keys in sides.items() if keys]
    if problems:
        raise ConfigError("; ".join(problems))


_FILES = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json")


def _files(folder: str) -> dict[str, str]:
    """The texts of the files that say what a folder's processor is."""
    from transformers.utils.hub import cached_file

    found = {name: cached_file(folder, name, _raise_exceptions_for_missing_entries=False) for name in _FILES}
    return {name: Path(path).read_text(encoding="utf8") for name, path in found.items() if path is not None}


def _without_placeholder(tokenizer: Any) -> Any:
    """A copy of the tokenizer as it was before the kit gave it a token of its own, unless it is of the vocabulary."""
    with tempfile.TemporaryDirectory() as place:
        tokenizer.save_pretrained(place)
        file = Path(place) / "tokenizer.json"
        state = json.loads(file.read_text(encoding="utf8"))
        if PLACEHOLDER in state["model"].get("vocab", {}):
            return tokenizer
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != PLACEHOLDER]
        file.write_text(json.dumps(state), encoding="utf8")
        settings = Path(place) / "tokenizer_config.json"
        config = json.loads(settings.read_text(encoding="utf8"))
        config["extra_special_tokens"] = _others(config.get("extra_special_tokens", []))
        settings.write_text(json.dumps(config), encoding="utf8")
        return type(tokenizer).from_pretrained(place)


def _others(tokens: Any) -> Any:
    """Special tokens but the kit's own."""
    if isinstance(tokens, dict):
        return {name: token for name, token in tokens.items() if token != PLACEHOLDER}
    return [token for token in tokens if token != PLACEHOLDER]


def _chat_template(folder: str) -> str | None:
    """A processor's own template, which newer folders keep beside the tokenizer."""
    from transformers.utils.hub import cached_file

    for name in ("chat_template.jinja", "chat_template.json"):
        path = cached_file(folder, name, _raise_exceptions_for_missing_entries=False)
        if path is not None:
            text = Path(path).read_text(encoding="utf8")
            return text if name.endswith(".jinja") else str(json.loads(text)["chat_template"])
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
