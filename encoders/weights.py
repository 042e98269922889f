"""Weights of vision parts, alone in their folder or inside a whole VLM."""

import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from vlm.errors import ConfigError, Problem
from vlm.weights import is_planning, transformers_model, transformers_part


def load_tower(
    made_by: Any, config: Any, weights: str | None, *, part: Collection[str], optional: tuple[str, ...] = ()
) -> Any:
    """The model: random from `config`, or with `weights`.

    Args:
        made_by: its class.
        config: its config.
        weights: a hub id or local folder.
        part: names of the model's parameters if it is only a part of what the folder holds; else empty.
        optional: modules whose parameters the folder may lack.

    Raises:
        ConfigError: see `transformers_model`; also where the folder holds no such part, or no safetensors.
    """
    if weights is None or is_planning():
        return transformers_model(made_by, config, None)
    tensors = _part_of(weights, part) if part else None
    return transformers_part(made_by, config, weights, tensors=tensors, optional=optional)


def _part_of(weights: str, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of one part of a composite folder, under the names that they have in the part alone.

    The part begins with the prefix under which most of its `names` are found: `model.vision_tower.`, or
    `vision_tower.vision_model.` in older folders.
    """
    from safetensors import safe_open

    files = _files(weights)
    prefixes = Counter(
        key[:start]
        for key in files
        for start in [0, *(index + 1 for index, letter in enumerate(key) if letter == ".")]
        if key[start:] in names
    )
    if not prefixes:
        raise ConfigError(Problem("weights", f"`{weights}` holds no parameters of its vision part"))
    prefix = prefixes.most_common(1)[0][0]
    own = {name.partition(".")[0] for name in names}  # without a prefix, the modules of other parts stand beside them
    wanted = [key for key in files if key.startswith(prefix) and (prefix or key.partition(".")[0] in own)]
    tensors: dict[str, Tensor] = {}
    for file in sorted({files[key] for key in wanted}):
        with safe_open(_cached(weights, file), framework="pt") as opened:
            tensors |= {key[len(prefix) :]: opened.get_tensor(key) for key in wanted if files[key] == file}
    return tensors


def _files(weights: str) -> dict[str, str]:
    """Name of each tensor of a folder -> its file."""
    from safetensors import safe_open
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

    index = _cached(weights, SAFE_WEIGHTS_INDEX_NAME)
    if index is not None:
        listed: dict[str, str] = json.loads(Path(index).read_text(encoding="utf8"))["weight_map"]
        return listed
    single = _cached(weights, SAFE_WEIGHTS_NAME)
    if single is None:
        raise ConfigError(Problem("weights", f"`{weights}` holds no {SAFE_WEIGHTS_NAME}"))
    with safe_open(single, framework="pt") as opened:
        return dict.fromkeys(opened.keys(), SAFE_WEIGHTS_NAME)


def _cached(weights: str, name: str) -> Any:
    """Path of a file of the folder or hub id; None where it has no such file."""
    from transformers.utils.hub import cached_file

    return cached_file(weights, name, _raise_exceptions_for_missing_entries=False)
