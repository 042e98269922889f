"""Shipped recipes at toy size, by rule: widths and depths shrink; geometry, layers, ops, views and layouts stay."""

from typing import Any

from vlm.cards import card

WIDTH = 32
NARROW: dict[str, Any] = {
    **{"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "mlp_ratio": 1},
    **{"output_channels": 8, "global_attn_indexes": [2]},
}
"""Fields of vision configs."""
SMALL: dict[str, Any] = {
    **{"hidden_size": WIDTH, "intermediate_size": WIDTH, "ffn_dim": WIDTH, "word_embed_proj_dim": WIDTH},
    **{"num_hidden_layers": 2, "num_attention_heads": 2},
    **{"moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1},
}
"""Fields of LLM configs."""
OPS: dict[str, Any] = {"out_width": WIDTH, "hidden": WIDTH, "heads": 2, "kv_heads": 1, "head_width": 8}
DEFAULTS: dict[str, dict[str, Any]] = {"qformer": {"width": 16, "depth": 2, "heads": 2}, "abstractor": {"width": 16}}
"""Options that a recipe leaves at their defaults, which are not of toy size."""


def toy(raw: dict[str, Any]) -> dict[str, Any]:
    """The recipe with random weights of toy size and the embedded tokenizer."""
    model = dict(raw["model"])
    encoders = model["encoders"] if isinstance(model["encoders"], list) else [model["encoders"]]
    model["encoders"] = [_encoder(dict(encoder)) for encoder in encoders]
    model["connector"] = _ops(model["connector"])
    model["llm"] = _llm(dict(model["llm"]))
    return {**raw, "model": model}


def _shrunk(fields: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    return {name: small.get(name, value) for name, value in fields.items()}


def _encoder(encoder: dict[str, Any]) -> dict[str, Any]:
    if "adapter" in encoder:
        encoder["adapter"] = _ops(encoder["adapter"])
    encoder.pop("pretrained", None)
    weights = encoder.pop("weights", None)
    if weights is not None:
        encoder["config"] = {**_shrunk(card(weights) or {}, NARROW), "num_hidden_layers": _depth(encoder)}
    elif encoder["name"] == "open_clip":
        import open_clip

        vision = open_clip.get_model_config(encoder["model"])["vision_cfg"]
        encoder["config"] = {
            "embed_dim": 8,
            "vision_cfg": {**vision, "layers": _depth(encoder) - 1, "width": 16, "head_width": 16},
        }
    elif encoder["name"] == "timm":
        pyramid = encoder["model"].startswith("convnext")
        sizes = {"depths": [1] * 4, "dims": [8] * 4} if pyramid else {"depth": 2, "embed_dim": 16, "num_heads": 1}
        encoder["config"] = {**sizes, "num_classes": 0}
    return encoder


def _depth(encoder: dict[str, Any]) -> int:
    """One block more than the selected layers need, or SAM's first global one."""
    deepest = max((layer if layer >= 0 else -layer for layer in encoder.get("layers", [-1])), default=1)
    return int(deepest) + 1


def _ops(ops: Any) -> Any:
    if isinstance(ops, list):
        return [_ops(op) for op in ops]
    if isinstance(ops, str):
        return _ops({"name": ops})
    found = {**DEFAULTS.get(ops["name"], {}), **_shrunk(ops, OPS)}
    return {key: _shrunk(value, OPS) if isinstance(value, dict) else value for key, value in found.items()}


def _llm(llm: dict[str, Any]) -> dict[str, Any]:
    weights = llm.pop("weights", "")
    whole = dict(llm.get("config") or card(weights) or {})
    config = {**_shrunk(whole, SMALL), "max_position_embeddings": 8192}
    config.pop("vocab_size", None)  # the tokenizer's
    if "num_key_value_heads" in whole:
        config["num_key_value_heads"] = 1 if whole["num_key_value_heads"] < whole["num_attention_heads"] else 2
    return {**llm, "config": config, "tokenizer": "bytes"}
