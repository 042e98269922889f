"""Loading a saved model."""

import json
from pathlib import Path
from typing import Any

from vlm.assembly import build
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.recipe import ModelSpec
from vlm.saving import CONFIG, TOKENIZER, WEIGHTS, load_weights
from vlm.schema import validate


def load(folder: str | Path) -> VLM:
    """The model saved in `folder` (or in the `model` folder of a run), in eval mode.

    Raises:
        ConfigError: the folder holds no model of the kit.
        WeightsError: parameters are missing, unexpected or of another shape.
    """
    folder = _model_folder(Path(folder))
    config = _read_config(folder / CONFIG)
    spec = config["model"]
    _refuse_own_code(spec, folder)
    spec = {**spec, "llm": {**spec["llm"], "tokenizer": str(folder / TOKENIZER)}}
    with _no_init():
        model = build(validate(ModelSpec, spec))
    model.llm.tie_weights()  # type: ignore[operator]  # part of the initialisation that was left out
    load_weights(model, folder / WEIGHTS)
    model.llm.tie_weights()  # type: ignore[operator]  # the file's tensors took the places of the tied ones
    return model.eval()


def _refuse_own_code(spec: Any, folder: Path) -> None:
    """A part from outside must be installed or lie where the user works; a folder of weights brings no code along."""
    if isinstance(spec, dict):
        module, colon, _ = str(spec.get("name", "")).partition(":")
        top = module.partition(".")[0]
        if colon and ((folder / f"{top}.py").exists() or (folder / top).is_dir()):
            name = f"`{spec['name']}`"
            raise ConfigError(f"{folder} names {name} and holds a `{top}` itself: code from a model folder is not run")
    for part in spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else []:
        _refuse_own_code(part, folder)


def _model_folder(folder: Path) -> Path:
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    raise ConfigError(f"`{folder}` holds no model: there is no {CONFIG} in it or in {folder / 'model'}")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict) or "model" not in config or "llm" not in config["model"]:
        raise ConfigError(f"{path} is not of this kit (no `model` in it); `vlm import` reads Hugging Face folders")
    return config


def _no_init() -> Any:
    """Weights are about to be read, so drawing random ones first would be a waste."""
    from transformers.initialization import no_init_weights

    return no_init_weights()
