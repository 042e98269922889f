"""Towers read out of the folders of whole VLMs, and folders that hold something else."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import LLAMA, picture
from tests.encoders.toy_towers import ABSENT, CONFIGS, VIT
from vlm.encoders.sam import Sam
from vlm.encoders.tower import Tower
from vlm.encoders.vit import Clip, Siglip
from vlm.errors import ConfigError
from vlm.processor import skeleton
from vlm.weights import planning

TEXT = LLAMA | {"vocab_size": 40}
QWEN = {**TEXT, "model_type": "qwen2"}
SAM = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 64, "patch_size": 8,
    "output_channels": 8, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 64,
}  # fmt: skip
QFORMER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
QFORMER |= {"encoder_hidden_size": 32, "vocab_size": 20}
OPT = {"model_type": "opt", "hidden_size": 32, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OPT |= {"vocab_size": 40, "word_embed_proj_dim": 32, "max_position_embeddings": 64}


def vision(kind, **fields):
    return {"model_type": kind, **CONFIGS[kind], **fields}


VLMS = {
    "llava": ("clip_vision_model", {"vision_config": vision("clip_vision_model"), "text_config": TEXT}),
    "paligemma": (
        "siglip_vision_model",
        {
            "vision_config": vision("siglip_vision_model", vision_use_head=False),
            "text_config": TEXT | {"model_type": "gemma", "head_dim": 8},
            "projection_dim": 32,
        },
    ),
    "idefics2": (
        "idefics2_vision",
        {
            "vision_config": vision("idefics2_vision"),
            "text_config": TEXT | {"model_type": "mistral"},
            "perceiver_config": {"resampler_n_latents": 2, "resampler_depth": 1, "resampler_n_heads": 2}
            | {"resampler_head_dim": 8, "num_key_value_heads": 1, "hidden_size": 32},
        },
    ),
    "idefics3": ("idefics3_vision", {"vision_config": vision("idefics3_vision"), "text_config": TEXT}),
    "internvl": ("internvl_vision", {"vision_config": vision("internvl_vision"), "text_config": QWEN}),
    "blip-2": (
        "blip_2_vision_model",
        {"vision_config": vision("blip_2_vision_model"), "qformer_config": QFORMER, "text_config": OPT},
    ),
    "ovis2": (
        "ovis2_vision",
        {"vision_config": vision("ovis2_vision"), "text_config": QWEN, "visual_indicator_token_ids": [1, 2, 3, 4, 5]},
    ),
    "deepseek_vl_hybrid": (
        "siglip_vision_model",
        {
            "vision_config": vision("siglip_vision_model"),
            "high_res_vision_config": {"model_type": "sam_vision_model", **SAM},
            "text_config": TEXT,
        },
    ),
}


def whole(name, perturb):
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **VLMS[name][1])
    return perturb(AutoModelForImageTextToText.from_config(config))


def tower_of(model, kind):
    return next(part for part in model.modules() if getattr(part, "config", None) and part.config.model_type == kind)


@pytest.mark.parametrize("name", [name for name in VLMS if VLMS[name][0] not in ABSENT])
@pytest.mark.parametrize("shards", ["50GB", "30KB"])
def test_the_tower_of_a_vlm(name, shards, tmp_path, perturb, pixels, same):
    kind, model = VLMS[name][0], whole(name, perturb)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "30KB")
    image = {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    encoder = Tower(weights=str(tmp_path), image=image).eval()
    reference = tower_of(model, kind)
    expected = reference.state_dict()
    assert {f"model.{name}" for name in expected} == set(encoder.state_dict())  # nothing of it is lost
    for key, tensor in expected.items():
        same(encoder.state_dict()[f"model.{key}"], tensor, atol=0)
    with torch.no_grad():
        states = encoder(pixels(32))
        alone = Tower(**encoder.resolved()).eval()
        alone.load_state_dict(encoder.state_dict())
        same(alone(pixels(32)).tokens, states.tokens, atol=0)
    with planning():
        assert Tower(weights=str(tmp_path), image=image).shape() == encoder.shape()


def test_sam_of_a_hybrid(tmp_path, perturb, pixels, same, check_contract):
    """DeepSeek-VL's high resolution: the last layer and the first global one, each through its neck."""
    model = whole("deepseek_vl_hybrid", perturb)
    model.save_pretrained(tmp_path)
    encoder = Sam(weights=str(tmp_path), layers=(-1, 2), neck="each").eval()
    parts = model.model
    for name, parameter in parts.high_res_vision_neck.state_dict().items():
        encoder.state_dict()[f"necks.2.{name}"].copy_(parameter)
    alpha, project = parts.high_res_vision_alpha, parts.high_res_vision_proj
    with torch.no_grad():
        expected = parts.get_high_res_image_features(pixels(64), output_hidden_states=True).last_hidden_state
        features = encoder(pixels(64))
        maps = features.tokens.transpose(1, 2).unflatten(2, features.grid)
        found = project(maps[:, :8]) + alpha * project(maps[:, 8:])
        same(found.flatten(2).transpose(1, 2), expected)
    assert (encoder.width, set(encoder.necks)) == (16, {"2"})
    check_contract(encoder)


def test_names_of_older_releases(tmp_path, perturb, pixels, same):
    """Hub files still say `vision_tower.vision_model.encoder...`; the library itself says it without."""
    model = whole("llava", perturb)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in load_file(file).items()
    }
    assert any("vision_tower.vision_model.encoder" in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    encoder = Clip(weights=str(tmp_path), layers=(-1,)).eval()
    with torch.no_grad():
        expected = tower_of(model, "clip_vision_model")(pixels(32)).last_hidden_state
        same(encoder(pixels(32)).tokens, expected[:, 1:])


def test_half_precision(tmp_path, perturb):
    whole("llava", perturb).to(torch.bfloat16).save_pretrained(tmp_path)
    encoder = Clip(weights=str(tmp_path))
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert encoder.resolved()["config"]["dtype"] == "bfloat16"


def damaged(folder: Path, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_what_does_not_fit_is_named(tmp_path, perturb):
    whole("idefics3", perturb).save_pretrained(tmp_path)
    image = {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    key = "model.vision_model.encoder.layers.1.mlp.fc1.bias"
    damaged(tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(ConfigError, match=r"lacks 1 parameters of the model: encoder\.layers\.1\.mlp\.fc1\.bias"):
        Tower(weights=str(tmp_path), image=image)
    damaged(
        tmp_path, lambda tensors: tensors.update({key: torch.zeros(48), "model.vision_model.extra": torch.zeros(1)})
    )
    with pytest.raises(ConfigError, match=r"has 1 parameters that the model has not: extra"):
        Tower(weights=str(tmp_path), image=image)
    with pytest.raises(ConfigError, match="is a `idefics3_vision`; allowed: siglip_vision_model"):
        Siglip(weights=str(tmp_path))
    damaged(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if "vision_model" in name])
    with pytest.raises(ConfigError, match="holds no parameters of its vision part"):
        Tower(weights=str(tmp_path), image=image)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"holds no model\.safetensors"):
        Tower(weights=str(tmp_path), image=image)


def test_a_folder_without_statistics(tmp_path, perturb, same):
    """Those of a family in the table are known; for any other they must be told."""
    Tower(config={"model_type": "clip_vision_model", **VIT}).model.save_pretrained(tmp_path / "known")
    assert Tower(weights=str(tmp_path / "known")).image.mean[0] > 0.48
    Tower(config={"model_type": "ijepa", **VIT}).model.save_pretrained(tmp_path / "unknown")
    with pytest.raises(ConfigError, match="does not tell its mean and std") as caught:
        Tower(weights=str(tmp_path / "unknown"))
    assert caught.value.problems[0].place == "image"
    file = tmp_path / "unknown" / "preprocessor_config.json"
    file.write_text(json.dumps({"image_processor_type": "ViTImageProcessor", "do_normalize": False}))
    assert Tower(weights=str(tmp_path / "unknown")).image.std == (1.0, 1.0, 1.0)


def test_a_folder_without_the_head(tmp_path, perturb, pixels, same):
    """A classifier's folder has no pooler; a tower that needs none takes it."""
    from transformers import AutoModelForImageClassification, ViTConfig

    model = perturb(AutoModelForImageClassification.from_config(ViTConfig(**VIT)))
    model.save_pretrained(tmp_path)
    image = {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    with pytest.raises(ConfigError, match=r"(?s)lacks 2 parameters .*head: `false` builds it without `pooler`"):
        Tower(weights=str(tmp_path), image=image)
    encoder = Tower(weights=str(tmp_path), image=image, head=False).eval()
    with torch.no_grad():
        same(encoder(pixels(32)).tokens, model.vit(pixels(32)).last_hidden_state[:, 1:])


def test_a_processors_copy(perturb):
    """Worker processes get encoders without weights, by pickle; they count tokens of any size."""
    for kind in ("idefics2_vision", "siglip2_vision_model", "dinov3_vit", "swin"):
        encoder = Tower(config=vision(kind), size=64 if kind == "swin" else 32)
        copy = pickle.loads(pickle.dumps(skeleton(encoder)))
        assert all(parameter.is_meta for parameter in copy.parameters())
        assert copy.shape((64, 96)) == encoder.shape((64, 96))


@pytest.mark.parametrize("kind", ["idefics2_vision", "qwen2_vl_vision", "llama4_vision_model"])
def test_in_a_model(kind, toy, tmp_path):
    """A recipe with a tower: answers survive saving, and every part of the tower is saved."""
    import vlm

    encoder = {"name": "tower", "config": vision(kind), "size": 32, "layers": [1, -1]}
    model = toy(encoders=encoder, connector="mlp")
    said = model.ask(picture(), "What is it?", max_new_tokens=4)
    model.save(tmp_path)
    again = vlm.load(tmp_path)
    assert again.ask(picture(), "What is it?", max_new_tokens=4) == said
    assert again.state_dict().keys() == model.state_dict().keys()
    assert again.spec["encoders"][0]["layers"] == [1, -1]
