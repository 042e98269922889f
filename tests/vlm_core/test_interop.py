"""Recipes with holes, key maps, and what import and export refuse. Parity with the references is in tests/parity."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vlm
from tests.conftest import SIGLIP, picture, toy_recipe
from tests.parity.families import CLIP, FAMILIES, reference
from vlm.cli import app
from vlm.errors import ConfigError
from vlm.interop import export_folder, from_transformers, import_folder, to_transformers
from vlm.keymap import KeysError, find_keymap, load_keymap, shipped
from vlm.recipe import read_yaml
from vlm.template import fill, match

TEMPLATE = {
    "a": "$x.y",
    "b": ["$x.list|list", 3],
    "c": {"$": "$x.inner", "own": "$top"},
    "d": "$word|{one: 1, two: 2}",
    "e": "$ratio|inverse = 4",
    "f": "$x.pixels|cells(x.tile)",
    "g": "$x.y|double",
}
FACTS = {
    "x": {"y": 7, "list": -2, "inner": {"p": 1, "q": 2}, "pixels": [[32, 64]], "tile": 32},
    "top": True,
    "word": "two",
}
FILLED = {
    "a": 7,
    "b": [[-2], 3],
    "c": {"p": 1, "q": 2, "own": True},
    "d": 2,
    "e": 4,
    "f": [[1, 2]],
    "g": 14,
}


def test_holes_are_filled() -> None:
    assert fill(TEMPLATE, FACTS) == FILLED


def test_a_filled_template_gives_its_facts_back() -> None:
    found, problems = match(TEMPLATE, {**FILLED, "f": [[1, 2]]}, what="it")
    assert [problem.place for problem in problems] == ["f"], "a tile's side stands nowhere else in the template"
    without = {key: value for key, value in TEMPLATE.items() if key != "f"}
    found, problems = match(without, {key: value for key, value in FILLED.items() if key != "f"}, what="it")
    assert problems == []
    assert found == {"x": {"y": 7, "list": -2, "inner": {"p": 1, "q": 2}}, "top": True, "word": "two", "ratio": 0.25}


@pytest.mark.parametrize(
    ("change", "place", "message"),
    [
        ({"b": [[-2], 4]}, "b.1", "`4`, but it has `3`"),
        ({"g": 15}, "g", "`15`, but it has `14`"),
        ({"d": 3}, "d", "`3`"),
        ({"b": [[1, 2]]}, "b", "but it has"),
    ],
)
def test_what_does_not_match_is_named(change: dict[str, Any], place: str, message: str) -> None:
    without = {key: value for key, value in TEMPLATE.items() if key != "f"}
    found = {**{key: value for key, value in FILLED.items() if key != "f"}, **change}
    _, problems = match(without, found, what="it")
    assert place in {problem.place for problem in problems}
    assert any(message in str(problem) for problem in problems)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("$absent", "no field `absent`"),
        ("$a b", "no hole"),
        ("$top|nothing", "no change `nothing`; there are"),
        ("$word|{one: 1}", "`word` is `two`; the key map knows one"),
        ("$word|inverse", "`word` is `two`, which the key map cannot read"),
    ],
)
def test_holes_that_cannot_be_filled(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("|", r"\|")):
        fill({"key": template}, FACTS)


@pytest.mark.parametrize("name", shipped())
def test_every_key_map_is_whole(name: str) -> None:
    """Its reference exists here, it is the one found for it, and its templates survive the way there and back."""
    keymap = load_keymap(name)
    families = [family for family in FAMILIES.values() if family.config["model_type"] == keymap.when[0]["model_type"]]
    assert families, f"{name} is compared with no reference"


def test_unknown_keys_and_names() -> None:
    with pytest.raises(ConfigError, match="unknown key map `lava`; did you mean `llava`"):
        load_keymap("lava")
    with pytest.raises(ConfigError, match="unknown model type `llama`"):
        find_keymap({"model_type": "llama"})
    with pytest.raises(ConfigError, match=r"no key map fits this `llava`.*vision_config\.model_type = clip"):
        find_keymap({"model_type": "llava", "vision_config": {"model_type": "pixtral"}})


def test_a_key_map_of_ones_own(tmp_path: Path) -> None:
    """A new architecture is a file; given by its path it is the way back too."""
    text = shipped()["llava"].read_text().replace("views: crop", "views: squash")
    (tmp_path / "mine.yaml").write_text(text)
    encoder = {"name": "clip", "config": CLIP}
    model = vlm.assemble({"model": {**toy_recipe()["model"], "encoders": encoder, "views": "squash"}})
    with pytest.raises(ConfigError, match=r"views\.name: `squash`, but `llava` has `crop`"):
        to_transformers(model)
    assert (
        type(to_transformers(model, architecture=str(tmp_path / "mine.yaml"))).__name__
        == "LlavaForConditionalGeneration"
    )
    (tmp_path / "mine.yaml").write_text("whn: {}\nmodel: {}\n")
    with pytest.raises(ConfigError, match="unknown key `whn`; did you mean `when`"):
        load_keymap(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("connector", "slots"),
    [
        ({"name": "mlp", "depth": 3}, ["connector.0.depth: `3`, but `llava` has `2`"]),
        ("perceiver", ["connector.0.name: `perceiver`, but `llava` has `mlp`"]),
        (["norm", "mlp"], ["connector: `norm, mlp`, but `llava` has `mlp`"]),
        ({"name": "mlp", "hidden": 9}, ["connector.0.hidden: `9`, but `llava` has `None`"]),
    ],
)
def test_export_names_the_slots_that_do_not_fit(connector: Any, slots: list[str]) -> None:
    encoder = {"name": "clip", "config": CLIP}
    model = vlm.assemble({"model": {**toy_recipe(connector)["model"], "encoders": encoder, "views": "crop"}})
    with pytest.raises(ConfigError) as caught:
        to_transformers(model)
    assert [str(problem) for problem in caught.value.problems] == slots
    assert str(caught.value).startswith("no architecture of transformers is assembled so; the nearest of")


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """A Hugging Face folder of a toy LLaVA."""
    model = from_transformers(reference("llava-clip"))
    return export_folder(model, tmp_path / "hf")


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_checkpoints_that_lack_parameters_are_refused(hf: Path, tmp_path: Path) -> None:
    name = next(key for key in load_file(hf / "model.safetensors") if "linear_2.weight" in key)
    damage(hf, lambda state: state.update({"model.strange.weight": state.pop(name)}))
    with pytest.raises(ConfigError) as caught:
        import_folder(str(hf), tmp_path / "kit")
    assert "lacks 1 parameters: model.multi_modal_projector.linear_2.weight" in str(caught.value)
    assert "strange.weight" in str(caught.value)
    assert not (tmp_path / "kit").exists()


def test_checkpoints_of_other_shapes_are_refused(hf: Path, tmp_path: Path) -> None:
    name = next(key for key in load_file(hf / "model.safetensors") if "linear_2.weight" in key)
    damage(hf, lambda state: state.update({name: state[name][:-1].contiguous()}))
    with pytest.raises(ConfigError, match=r"linear_2\.weight"):
        import_folder(str(hf), tmp_path / "kit")


def test_folders_that_hold_no_such_model(tmp_path: Path, hf: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such folder"):
        import_folder(str(tmp_path / "nothing"), tmp_path / "kit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="nothing is replaced"):
        import_folder(str(hf), tmp_path / "mine")
    with pytest.raises(ConfigError, match="nothing is written over"):
        export_folder(from_transformers(reference("llava-clip")), tmp_path / "mine")
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"
    config = json.loads((hf / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageTextToText": "own.Model"}
    config["model_type"] = "its_own"
    (hf / "config.json").write_text(json.dumps(config))
    (hf / "own.py").write_text("raise SystemExit('code of a model folder ran')")
    with pytest.raises(ConfigError, match="cannot be read as a vision-language model"):
        import_folder(str(hf), tmp_path / "kit")


def test_parameters_that_no_rule_knows_are_named() -> None:
    keymap = load_keymap("llava")
    rules = {key: value for key, value in keymap.keys.items() if "linear_1" not in key}
    model = from_transformers(reference("llava-clip"))
    names = replace(keymap, keys=rules).names(model.llm)
    state, shapes = reference("llava-clip").state_dict(), {k: v.shape for k, v in model.state_dict().items()}
    with pytest.raises(KeysError) as caught:
        names.to_kit(state, shapes)
    assert "2 that the key map does not know: model.multi_modal_projector.linear_1.weight" in str(caught.value)
    assert "2 that nothing gives: connector.ops.0.layers.0.weight" in str(caught.value)
    with pytest.raises(KeysError) as caught:
        names.from_kit(model.state_dict(), {k: v.shape for k, v in state.items()})
    assert "2 that have no place there: connector.ops.0.layers.0.weight" in str(caught.value)
    assert "2 that are lacking here: model.multi_modal_projector.linear_1.weight" in str(caught.value)


def test_what_is_not_used_is_carried_along(tmp_path: Path) -> None:
    """Janus's image generation: kept in memory, in the saved model and on the way back, which fails without it."""
    other = reference("janus")
    model = from_transformers(other)
    assert model.origin is not None
    assert {name.split(".")[1] for name in model.origin.carried} == {
        "vqmodel",
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
    }
    again = vlm.load(model.save(tmp_path / "kit"))
    assert again.origin is not None
    assert all(torch.equal(again.origin.carried[name], tensor) for name, tensor in model.origin.carried.items())
    again.origin = None
    with pytest.raises(KeysError, match=r"lacking here: model\.vqmodel"):
        to_transformers(again)


def test_a_config_against_itself_is_refused() -> None:
    """What one field implies another must say: a resampler as wide as the LLM, say."""
    keymap = load_keymap("idefics2")
    from vlm.interop import config_facts

    facts = config_facts(reference("idefics2").config)
    facts["preprocessor"] = FAMILIES["idefics2"].preprocessor | {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 2,
    }
    facts["perceiver_config"]["hidden_size"] = 64
    with pytest.raises(ConfigError, match=r"perceiver_config\.hidden_size: `64`, but it must be `32`"):
        keymap.spec(facts)


def test_a_model_that_was_trained_here_is_exported(tmp_path: Path) -> None:
    """An assembly of the kit's own: its image token gets a row in the embedding, which has none for it."""
    encoder = {"name": "siglip", "config": SIGLIP, "norm": False, "prefix": "keep"}
    model = vlm.assemble({"model": {**toy_recipe()["model"], "encoders": encoder, "views": "crop"}}).eval()
    folder = export_folder(model, tmp_path / "hf")
    again = vlm.load(import_folder(str(folder), tmp_path / "kit"))
    batch = model.processor([vlm.sample.ask("What?", [picture(1)])])
    assert torch.allclose(again(batch).logits[..., : model.llm.config.vocab_size], model(batch).logits, atol=1e-5)


def test_tokenizer_and_processor_survive_the_way_there_and_back(tmp_path: Path) -> None:
    """A real processor of transformers on the exported folder gives the ids, pixels and logits that the kit has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        CLIPImageProcessorPil,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<pad>", "<s>", "</s>", "<unk>", "USER:", "ASSISTANT:", "What", "is", "it", "?", "<image>"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, extra_special_tokens={"image_token": "<image>"}, chat_template=template, **special
    )
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(**sizes),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    other = reference("llava-clip")
    other.config.image_token_index = tokenizer.convert_tokens_to_ids("<image>")
    other.save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")

    kit = vlm.load(import_folder(str(tmp_path / "hf"), tmp_path / "kit"))
    back = export_folder(kit, tmp_path / "back")
    again, model = (
        AutoProcessor.from_pretrained(back, use_fast=False),
        AutoModelForImageTextToText.from_pretrained(back),
    )
    assert len(again.tokenizer) == len(tokenizer), "the kit's own token stays here"
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    text = again.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    given = again(images=[picture(1)], text=text, return_tensors="pt", add_special_tokens=False)
    batch = kit.processor([vlm.sample.ask("What is it?", [picture(1)])])
    ids = batch.input_ids.masked_fill(batch.owner >= 0, other.config.image_token_index)
    assert torch.equal(ids[ids != 3], given["input_ids"][given["input_ids"] != 3])
    assert torch.allclose(batch.groups[0].pixels[0], given["pixel_values"], atol=1e-5)
    with torch.no_grad():
        kit.set_attention("sdpa")
        assert torch.allclose(kit(batch).logits, model(**given).logits, atol=1e-4)


def test_commands(hf: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["import", str(hf), str(tmp_path / "kit")]).exit_code == 0
    assert runner.invoke(app, ["export", str(tmp_path / "kit"), str(tmp_path / "back")]).exit_code == 0
    wrong = runner.invoke(app, ["export", str(tmp_path / "kit"), str(tmp_path / "no"), "--architecture", "idefics3"])
    assert wrong.exit_code == 2
    assert "connector" in wrong.output
    assert not (tmp_path / "no").exists()
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("hf", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"when": 5}, "when"),
        ({"when": []}, "when"),
        ({"model": None}, "model"),
        ({"model": {"views": "squash"}}, "model.encoders"),
        ({"model": {"encoders": [5], "connector": "mlp", "llm": {}}}, "model.encoders"),
        ({"keys": []}, "keys"),
        ({"keys": {"a.": 5}}, "keys.a."),
        ({"placeholder": 5}, "placeholder"),
        ({"implied": 3}, "implied"),
        ({"extra": "lm_head."}, "extra"),  # each letter would be the beginning of names that are carried along
    ],
)
def test_a_key_map_of_another_form(change: dict[str, Any], place: str, tmp_path: Path) -> None:
    whole = read_yaml(shipped()["llava"])
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps({**whole, **change}), encoding="utf8")
    with pytest.raises(ConfigError) as caught:
        load_keymap(str(path))
    assert caught.value.problems[0].place.startswith(place), caught.value
