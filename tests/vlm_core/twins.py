"""A model on the meta device and the same one with weights, each with a batch: what a plan says beside what happens."""

import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import vlm
from tests.conftest import LLAMA, SIGLIP, picture, toy_recipe
from vlm.assembly import blueprint
from vlm.model import VLM
from vlm.parts import learning_rates, set_modes, set_trainable
from vlm.planning.shadow_batch import shadow_batch
from vlm.sample import Batch, Sample, Turn
from vlm.train.objectives import LanguageModelling

SIZE = (48, 40)
"""(width, height) of the pictures in pixels."""


@dataclass
class Twin:
    """A model, a batch for it, and what minimises its loss."""

    model: VLM
    batch: Batch

    def train(self, *parts: str) -> dict[str, float]:
        """Freeze all but `parts`, as a stage does; the learning rates."""
        rates = learning_rates([name for name, _ in self.model.named_parameters()], dict.fromkeys(parts, 1e-3))
        set_trainable(self.model, rates)
        set_modes(self.model)
        return rates

    def loss(self) -> Any:
        """The language-modelling loss of the batch, summed."""
        return LanguageModelling()(self.model, self.batch).total

    def step(self) -> None:
        """Forward and backward, as far as there is something to do."""
        loss = self.loss()
        if loss.requires_grad:
            loss.backward()


def twins(recipe: Mapping[str, Any], *, images: int = 1, text: int = 9, size: int = 2) -> tuple[Twin, Twin]:
    """(planned, real): the real one's batch is made by its own processor from pictures and text."""
    _, planned = blueprint(recipe)
    real = vlm.assemble(recipe)
    planned.set_attention(planned.attention)
    real.set_attention(real.attention)
    plans = [planned.processor.plan(*SIZE[::-1], images=images)] * images
    shadow = shadow_batch(planned, plans, text=text, size=size)
    turns = [Turn("user", ""), Turn("assistant", "x" * text)]  # a byte is a token
    batch = real.processor([Sample(turns, [picture(n, SIZE) for n in range(images)])] * size)
    assert shadow.input_ids.shape == batch.input_ids.shape
    assert shadow.supervised == batch.supervised
    assert [[p.shape for p in g.pixels] for g in shadow.groups] == [[p.shape for p in g.pixels] for g in batch.groups]
    return Twin(planned, shadow), Twin(real, batch)


def set_both(pair: Iterable[Twin], attention: str) -> None:
    """Choose how both compute attention."""
    for twin in pair:
        twin.model.set_attention(attention)


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes by storage."""
    return {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def saved_bytes(run: Any, module: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `run`, but for the module's own parameters and buffers."""
    own = storages([*module.parameters(), *module.buffers()])
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()  # what a graph within the forward pass kept goes with that graph

    def pack(tensor: torch.Tensor) -> Kept:
        kept.add(one := Kept(tensor))
        return one

    with saved_tensors_hooks(pack, lambda one: one.tensor):
        result = run()
    found = storages([one.tensor for one in kept])
    del result
    return sum(size for key, size in found.items() if key not in own)


def peak_bytes(run: Any) -> int:
    """The most that torch's CPU allocator holds at a time during `run`, beyond what it held before."""
    run()  # what is made once is made now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def batch_bytes(batch: Batch) -> int:
    """Bytes of the batch's own tensors."""
    own = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    return sum(storages([*own, *(t for group in batch.groups for t in [group.index, *group.pixels])]).values())


SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
    "output_channels": 16,
    "mlp_dim": 48,
}
ENCODERS: dict[str, Any] = {
    "siglip": {"name": "siglip", "config": SIGLIP},
    "sam": {"name": "sam", "config": SAM},
    "convnext": {"name": "timm", "model": "convnext_atto", "config": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}},
    "vit": {
        "name": "open_clip",
        "model": "x",
        "config": {
            "embed_dim": 16,
            "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
        },
    },
}
LLMS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen2": {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2": {**LLAMA, "model_type": "gemma2", "head_dim": 8, "sliding_window": 8},
    "gpt2": {
        **{"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48},
        **{"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    },
    "mixtral": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **{**LLAMA, "model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 24, "shared_expert_intermediate_size": 16, "mlp_only_layers": [1]},
    },
    "aria_text": {**LLAMA, "model_type": "aria_text", "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
}


def recipe(llm: str = "llama", encoder: str = "siglip", connector: Any = "mlp", **model: Any) -> dict[str, Any]:
    """A toy recipe of the parts above."""
    parts = {"encoders": ENCODERS[encoder], "llm": {"tokenizer": "bytes", "config": LLMS[llm]}}
    return toy_recipe(connector, **{**parts, **model})


TWO = {"encoders": [ENCODERS["siglip"], ENCODERS["sam"]], "merge": "channel"}
RECIPES: dict[str, dict[str, Any]] = {
    **{llm: recipe(llm) for llm in LLMS},
    "two_channel": recipe(**TWO),
    "two_sequence": recipe(**{**TWO, "merge": "sequence"}),
    "sam": recipe(encoder="sam"),
    "convnext": recipe(encoder="convnext"),
    "open_clip": recipe(encoder="vit"),
    "perceiver": recipe(connector={"name": "perceiver", "latents": 4}),
    "cross_attention": recipe(connector={"name": "cross_attention", "every": 2}),
    "adapters": recipe(**{**TWO, "encoders": [{**ENCODERS["siglip"], "adapter": "linear"}, ENCODERS["sam"]]}),
}
