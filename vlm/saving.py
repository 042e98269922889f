"""A saved model: a folder that is all one needs to load it again.

`config.json` (the model part of the recipe, fully resolved, with the kit's version), `model.safetensors`, `tokenizer/`
(with the chat template); with adapters, `config.json` says which, and their weights stand beside the others.
Nothing in it is pickled, and missing or unexpected weights are refused by name.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vlm
from vlm.adapters import Adapted, plain
from vlm.errors import ConfigError, join

CONFIG, WEIGHTS, CARRIED, TOKENIZER = "config.json", "model.safetensors", "carried.safetensors", "tokenizer"


@dataclass
class Origin:
    """What an imported model brings along that the kit does not use and that the way back needs."""

    facts: dict[str, Any]
    """The other program's config as plain data; its preprocessor's under `preprocessor`."""
    carried: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parameters by their own names (Janus's image generation, say)."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts of the folder's other files by name: what its processor is."""


class WeightsError(ValueError):
    """A file of weights that does not fit the model; names the parameters."""


def save(
    folder: str | Path,
    module: nn.Module,
    *,
    spec: dict[str, Any],
    tokenizers: Mapping[str, Any],
    adapters: Mapping[str, Adapted] | None = None,
    origin: Origin | None = None,
) -> Path:
    """Write a model to `folder`. An older model there is replaced only once the new one is complete.

    Args:
        folder: where to.
        module: whose parameters and buffers are saved.
        spec: the resolved model part of its recipe.
        tokenizers: by the name of the folder that each gets; the LLM's is `TOKENIZER`, with its chat template.
        adapters: by part, those that it has.
        origin: of an imported model.

    Raises:
        ConfigError: the folder holds something else than a model.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds other files than a saved model: nothing is replaced; give another folder")
    fresh = folder.with_name(folder.name + ".writing")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config: dict[str, Any] = {"kit": vlm.__version__, "model": spec}
    if adapters:
        config["adapters"] = {part: adapted.to_dict() for part, adapted in adapters.items()}
    if origin is not None:
        config["origin"] = {"facts": origin.facts, "files": origin.files}
        if origin.carried:
            save_file(origin.carried, str(fresh / CARRIED), metadata={"format": "pt"})
    (fresh / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf8")
    save_file(weights(module), str(fresh / WEIGHTS), metadata={"format": "pt"})
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(str(fresh / name))
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)
    return folder


def saved_adapters(folder: Path) -> dict[str, Adapted]:
    """By part, the adapters of the model in `folder`.

    Raises:
        ConfigError: what stands there are no adapters.
    """
    file = folder / CONFIG
    saved = json.loads(file.read_text(encoding="utf8")).get("adapters", {})
    found: dict[str, Adapted] = {}
    for part, values in saved.items():
        try:
            found[part] = Adapted.from_dict(values)
        except ConfigError as error:
            raise ConfigError(error.under(join("adapters", part)).problems, source=str(file)) from error
    return found


def model_folder(folder: Path) -> Path:
    """Where the model lies: in `folder` itself, or in the `model` folder of a run.

    Raises:
        ConfigError: in neither.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / CONFIG).is_file():
            return candidate
    raise ConfigError(f"`{folder}` holds no model: there is no {CONFIG} in it or in {folder / 'model'}")


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, the same with adapters as without (see `vlm.adapters.plain`); of names that
    share one storage (tied embeddings) only the first."""
    kept: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {
        plain(name): tensor.detach().contiguous()
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
    names = {plain(name): name for name in model.state_dict()}
    model.load_state_dict({names[name]: tensor for name, tensor in found.items()}, strict=False, assign=True)


def _complaint(what: str, names: list[str]) -> str:
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"{len(names)} {what}: {shown}" if names else ""
