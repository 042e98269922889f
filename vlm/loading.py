"""Loading a saved model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.adapters import insert
from vlm.assembly import build
from vlm.device import usable
from vlm.errors import ConfigError, choices, join
from vlm.model import VLM
from vlm.processor import Processor
from vlm.recipe import ModelSpec
from vlm.saving import CARRIED, CONFIG, TOKENIZER, WEIGHTS, Origin, load_weights, model_folder, saved_adapters
from vlm.schema import validate
from vlm.weights import no_init, planning


def load(folder: str | Path, device: str = "cpu") -> VLM:
    """The model saved in `folder` (or in the `model` folder of a run), in eval mode, on `device`.

    Raises:
        ConfigError: the folder holds no model of the kit, or the device cannot be used.
        WeightsError: parameters are missing, unexpected or of another shape.
    """
    folder, device = model_folder(Path(folder)), usable(device)
    config, spec = _read_spec(folder)
    try:
        with no_init():
            model = build(validate(ModelSpec, spec))
    except ConfigError as error:
        raise ConfigError(error.under("model").problems, source=str(folder / CONFIG)) from error
    model.llm.tie_weights()  # type: ignore[operator]  # part of the initialisation that was left out
    _put_adapters(model, folder / CONFIG)
    load_weights(model, folder / WEIGHTS)
    model.origin = _origin(config, folder)
    model.llm.tie_weights()  # type: ignore[operator]  # the file's tensors took the places of the tied ones
    model.set_attention(model.attention)  # what the LLM was built with, in the other parts too
    return model.eval().to(device)


def load_processor(folder: str | Path) -> Processor:
    """The processor of a saved model, without a weight read.

    Raises:
        ConfigError: the folder holds no model of the kit.
    """
    folder = model_folder(Path(folder))
    _, spec = _read_spec(folder)
    try:
        with planning():
            return build(validate(ModelSpec, spec)).processor
    except ConfigError as error:
        raise ConfigError(error.under("model").problems, source=str(folder / CONFIG)) from error


def _read_spec(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the folder's config holds, and the model's spec with tokenizers of the folder."""
    config = _read_config(folder / CONFIG)
    _refuse_own_code(config["model"], folder)
    _check_files(folder)
    return config, _with_tokenizers(config["model"], folder)


def merge_folder(folder: str | Path, out: str | Path, parts: Sequence[str] = ()) -> Path:
    """Save the model in `folder` to `out` with its adapters merged.

    Args:
        folder: of a saved model or a run.
        out: where to.
        parts: whose adapters; all if there are none.

    Raises:
        ConfigError: there are no such adapters, or see `load` and `VLM.save`.
    """
    model = load(folder)
    lacking = [part for part in parts if part not in model.adapters]
    if lacking or not model.adapters:
        raise ConfigError(f"`{folder}` has no adapters on {', '.join(lacking) or 'any part'}")
    model.merge(parts)
    return model.save(out)


def _put_adapters(model: VLM, file: Path) -> None:
    """The adapters that the model was saved with, their weights still to be read."""
    parts = model.parts()
    for part, adapted in saved_adapters(file.parent).items():
        try:
            if part not in parts:
                raise ConfigError(f"there is no such part;{choices(part, list(parts))}")
            insert(parts[part], adapted, drawn=False)
        except ConfigError as error:
            raise ConfigError(error.under(join("adapters", part)).problems, source=str(file)) from error
        model.adapters[part] = adapted


def _with_tokenizers(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The LLM, and ops that read the question too, take their tokenizers from the folder."""
    spec = {**spec, "llm": {**spec["llm"], "tokenizer": str((folder / TOKENIZER).resolve())}}
    for number, op in enumerate(spec["connector"]):
        own = folder / f"{TOKENIZER}_{number}"
        if own.is_dir():
            op["text"]["tokenizer"] = str(own.resolve())
    return spec


def _origin(config: dict[str, Any], folder: Path) -> Origin | None:
    """What an imported model carries along."""
    from safetensors.torch import load_file

    if "origin" not in config:
        return None
    carried = folder / CARRIED
    return Origin(**config["origin"], carried=load_file(str(carried)) if carried.is_file() else {})


def _refuse_own_code(spec: Any, folder: Path) -> None:
    """A part from outside must be installed or lie where the user works; a folder of weights brings no code along."""
    if isinstance(spec, dict):
        module, colon, _ = str(spec.get("name", "")).partition(":")
        if colon and _found_at(module).is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder} names `{spec['name']}`, which lies in it: code from a model folder is not run")
    for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else []:
        _refuse_own_code(part, folder)


def _found_at(module: str) -> Path:
    """Where Python would take a module from, without importing anything; the root if nowhere."""
    for root in [*sys.path, "."]:
        path = Path(root or ".", *module.split("."))
        if path.is_dir() or path.with_suffix(".py").is_file():
            return path.resolve()
    return Path("/")


def _check_files(folder: Path) -> None:
    """Without them something else would be taken: random weights, another tokenizer, another way to talk.

    Raises:
        ConfigError: all that are missing.
    """
    files = [WEIGHTS, f"{TOKENIZER}/tokenizer.json", f"{TOKENIZER}/tokenizer_config.json"]
    missing = [name for name in files if not (folder / name).is_file()]
    template = (folder / TOKENIZER / "chat_template.jinja").is_file()
    if not missing and not template and "chat_template" not in (folder / files[2]).read_text(encoding="utf8"):
        missing = [f"{TOKENIZER}/chat_template.jinja"]
    if missing:
        raise ConfigError(f"{folder} is not complete: there is no {', '.join(missing)}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("llm"), dict):
        raise ConfigError(f"{path} is not of this kit: there is no `model` with an `llm` in it")
    return config  # type: ignore[no-any-return]
