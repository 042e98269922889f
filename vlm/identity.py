"""What a model is, in a few characters: two models of one identity give the same answers."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from vlm.model import VLM
from vlm.saving import weights

LENGTH = 16
"""Hexadecimal digits: 64 bits, so that no two models of a lifetime share them."""


def identity(model: VLM) -> str:
    """A digest of every parameter and buffer, of how the parts are put together, of the tokenizer, and of
    the tokens that end an answer.

    It is that of the content: a folder that is moved or renamed keeps it, one trained a step further does not. Where a
    model is loaded to, and how it computes attention, are not part of it; its precision is.
    """
    tensors = weights(model)
    with ThreadPoolExecutor() as pool:  # hashing releases Python's lock
        digests = list(pool.map(_digest, tensors.values()))
    facts = {
        "weights": dict(zip(tensors, digests, strict=True)),
        "spec": _built(model.spec),
        "tokenizer": _tokenizer(model.tokenizer),
        "template": str(model.tokenizer.chat_template),
        "stops": model.processor.chat.stop_ids,
    }
    if model.adapters:  # how much an update counts for stands in no weight
        facts["adapters"] = {part: adapted.to_dict() for part, adapted in model.adapters.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def sight_identity(model: VLM) -> str:
    """A digest of what the model makes of an image before its connector: the encoders' weights and make-up, and the
    view policy."""
    tensors = {name: tensor for name, tensor in weights(model).items() if name.startswith("encoders.")}
    facts = {
        "weights": {name: _digest(tensor) for name, tensor in tensors.items()},
        "spec": {key: _without(model.spec[key], "weights", "adapter") for key in ("encoders", "views")},
        "adapters": {
            part: adapted.to_dict() for part, adapted in model.adapters.items() if part.startswith("encoders")
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:LENGTH]


def _digest(tensor: Tensor) -> str:
    digest = hashlib.sha256(repr((tensor.dtype, tuple(tensor.shape))).encode())
    digest.update(tensor.reshape(-1).cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Any:
    """How text becomes tokens: vocabulary, merges, normalisation; without padding, which calls change."""
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        told = json.loads(tokenizer.backend_tokenizer.to_str())
        return _without(told, "padding", "truncation")
    return tokenizer.get_vocab()


def _built(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without what only says where something was read from or how it is computed."""
    parts = {key: _without(value, "weights", "tokenizer") for key, value in spec.items()}
    return {**parts, "llm": _without(parts["llm"], "attention")}


def _without(node: Any, *keys: str) -> Any:
    if isinstance(node, dict):
        return {key: _without(value, *keys) for key, value in node.items() if key not in keys}
    return [_without(item, *keys) for item in node] if isinstance(node, list) else node
