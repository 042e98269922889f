"""A saved model: a folder that is all one needs to load it again.

`config.json` (the model part of the recipe, fully resolved, with the kit's version), `model.safetensors`, `tokenizer/`
(with the chat template). Nothing in it is pickled, and missing or unexpected weights are refused by name.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vlm
from vlm.assembly import build
from vlm.errors import ConfigError
from vlm.model import VLM
from vlm.recipe import ModelSpec
from vlm.schema import validate

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"


class WeightsError(ValueError):
    """A file of weights that does not fit the model; names the parameters."""


def save(model: VLM, folder: str | Path) -> Path:
    """Write `model` to `folder`. An older model there is replaced only once the new one is complete."""
    from safetensors.torch import save_file

    folder = Path(folder)
    fresh = folder.with_name(folder.name + ".writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config = {"kit": vlm.__version__, "model": model.spec}
    (fresh / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf8")
    save_file(weights(model), str(fresh / WEIGHTS), metadata={"format": "pt"})
    model.tokenizer.save_pretrained(str(fresh / TOKENIZER))
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    return folder


def load(folder: str | Path) -> VLM:
    """The model saved in `folder` (or in the `model` folder of a run), in eval mode.

    Raises:
        ConfigError: the folder holds no model of the kit.
        WeightsError: parameters are missing, unexpected or of another shape.
    """
    folder = _model_folder(Path(folder))
    config = _read_config(folder / CONFIG)
    spec = config["model"]
    spec = {**spec, "llm": {**spec["llm"], "tokenizer": str(folder / TOKENIZER)}}
    with _no_init():
        model = build(validate(ModelSpec, spec))
    model.llm.tie_weights()  # type: ignore[operator]  # part of the initialisation that was left out
    load_weights(model, folder / WEIGHTS)
    return model.eval()


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; of names that share one storage (tied embeddings) only the first."""
    kept: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        name: tensor.detach().contiguous()
        for name, tensor in state.items()
        if kept.setdefault(id(tensor), name) == name
    }


def load_weights(model: nn.Module, path: Path) -> None:
    """Put the weights of a safetensors file into `model`, in the file's own precision.

    Raises:
        WeightsError: names missing, unexpected, or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    wanted = weights(model)
    complaints = [
        _complaint("missing", sorted(wanted.keys() - found.keys())),
        _complaint("unexpected", sorted(found.keys() - wanted.keys())),
        _complaint(
            "of another shape",
            [
                f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
                for name in sorted(wanted.keys() & found.keys())
                if found[name].shape != wanted[name].shape
            ],
        ),
    ]
    if any(complaints):
        raise WeightsError(f"{path}: " + "; ".join(complaint for complaint in complaints if complaint))
    model.load_state_dict(found, strict=False, assign=True)
    if isinstance(model, VLM):
        model.llm.tie_weights()  # type: ignore[operator]


def _complaint(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{len(names)} {what}: {shown}" if names else ""


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
