"""Cards: sizes of published weights, for planning without a download; and the check when weights are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

import vlm.cards
from tests.conftest import LLAMA, SIGLIP, toy_recipe
from vlm import registry
from vlm.assembly import blueprint
from vlm.cards import LENGTH, card, check_card
from vlm.encoders.tower import Tower
from vlm.errors import ConfigError
from vlm.planning.plan import plan
from vlm.weights import planning, transformers_config

# Parameters as published: in the safetensors metadata that the hub shows beside the weights, unless said otherwise.
# The same figures stand in public parameter listings of others, which is where they were checked.
PUBLISHED = {
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "Qwen/Qwen1.5-7B": 7_721_324_544,
    "Qwen/Qwen2-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2-72B-Instruct": 72_706_203_648,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "deepseek-ai/deepseek-llm-7b-base": 6_910_365_696,
    "microsoft/phi-1_5": 1_418_270_720,
    "microsoft/phi-2": 2_779_683_840,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "facebook/opt-2.7b": 2_651_596_800,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "openai/clip-vit-large-patch14-336": 303_507_456,  # the vision tower
    "google/siglip-so400m-patch14-384": 428_225_600,  # the vision tower with its pooling head
    "facebook/dinov2-with-registers-large": 304_372_736,
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": 1_842_777_344,  # open_clip's 1844.9 M less the projection, 1664 x 1280
    "Salesforce/blip2-opt-2.7b": 985_952_256,  # EVA-CLIP's ViT-g without its last block
    "facebook/sam-vit-base": 89_670_912,  # the image encoder; so do segment-anything's model tables
    "facebook/sam-vit-large": 308_278_272,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_equal_the_published_number(name: str) -> None:
    with planning():
        config = transformers_config(name, None)
        is_llm = "vocab_size" in (card(name) or {})
        model = AutoModelForCausalLM.from_config(config) if is_llm else Tower(weights=name)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_every_card_is_a_config_that_transformers_takes() -> None:
    with planning():
        for name, fields in vlm.cards._cards().items():
            if set(fields) != {LENGTH}:  # of a tokenizer alone
                assert transformers_config(name, None).model_type == fields["model_type"]


def test_planning_needs_no_file_for_hub_ids_with_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was asked for")

    monkeypatch.setattr("transformers.utils.hub.cached_file", refuse)
    monkeypatch.setattr("transformers.configuration_utils.cached_file", refuse)
    monkeypatch.setattr("transformers.image_processing_base.cached_file", refuse)
    monkeypatch.setattr("transformers.models.auto.tokenization_auto.cached_file", refuse)
    recipe = {
        "model": {
            "encoders": {"name": "clip", "weights": "openai/clip-vit-large-patch14-336"},
            "connector": "mlp",
            "llm": {"weights": "lmsys/vicuna-7b-v1.5", "chat_template": "vicuna"},
        }
    }
    found = plan(recipe)
    assert found.tokens == {"336x336": 576}
    assert found.parameters["llm"] == 6_738_415_616
    assert found.parameters["connector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096


def test_without_a_card_planning_reads_the_config_and_says_what_is_missing() -> None:
    recipe = toy_recipe(encoders={"name": "clip", "weights": "nobody/nothing"})
    with pytest.raises(ConfigError, match=r"model.encoders.weights: no model config at `nobody/nothing`"):
        blueprint(recipe)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a composite SigLIP config, found under the hub id `toy/siglip`, of which there is a card."""
    config = AutoConfig.for_model("siglip", vision_config=SIGLIP, text_config={"hidden_size": 32, "vocab_size": 9})
    config.save_pretrained(tmp_path / "siglip")
    (tmp_path / "siglip" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3]}))
    read = AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: read(tmp_path / str(name).removeprefix("toy/")))
    cards = {"toy/siglip": {"model_type": "siglip_vision_model", **SIGLIP}}
    monkeypatch.setattr(vlm.cards, "_cards", lambda: cards)
    return tmp_path


def test_card_may_be_of_the_vision_part_of_a_composite_config(shelf: Path) -> None:
    assert transformers_config("toy/siglip", None).model_type == "siglip"


def test_config_that_contradicts_its_card_is_an_error_that_names_the_fields(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"model_type": "siglip_vision_model", **SIGLIP, "hidden_size": 48, "patch_size": 4}
    monkeypatch.setattr(vlm.cards, "_cards", lambda: {"toy/siglip": wrong})
    with pytest.raises(ConfigError) as caught:
        transformers_config("toy/siglip", None)
    assert [problem.message for problem in caught.value.problems] == [
        "`toy/siglip` has hidden_size `32`, but its card (vlm/cards.yaml) says `48`",
        "`toy/siglip` has patch_size `8`, but its card (vlm/cards.yaml) says `4`",
    ]
    monkeypatch.setattr(vlm.cards, "_cards", lambda: {"toy/siglip": {"model_type": "clip_vision_model"}})
    with pytest.raises(ConfigError, match=r"has model_type `siglip`, but its card .* says `clip_vision_model`"):
        transformers_config("toy/siglip", None)


def test_lists_and_tuples_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"a": {"model_type": "sam_vision_model", "global_attn_indexes": [1]}}
    monkeypatch.setattr(vlm.cards, "_cards", lambda: cards)
    check_card("a", AutoConfig.for_model("sam_vision_model", global_attn_indexes=(1,)))
    with pytest.raises(ConfigError, match="global_attn_indexes"):
        check_card("a", AutoConfig.for_model("sam_vision_model", global_attn_indexes=(2,)))


def test_local_folder_of_the_same_name_comes_before_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "google/siglip-so400m-patch14-384"
    AutoConfig.for_model("siglip_vision_model", **SIGLIP).save_pretrained(tmp_path / name)
    with planning():
        assert registry.encoders.get("siglip")(weights=name).width == 32


def test_vocabulary_of_a_config_follows_from_the_named_tokenizer_while_planning() -> None:
    """Its tokens are counted from its card: nothing of it is read."""
    config = {**LLAMA, "tie_word_embeddings": True}
    found = plan(toy_recipe(llm={"config": config, "tokenizer": "deepseek-ai/deepseek-llm-7b-base", "tokens": ["<a>"]}))
    without = plan(toy_recipe(llm={"config": config, "tokenizer": "bytes"}))
    assert found.parameters["llm"] - without.parameters["llm"] == (100_015 + 1 - 262) * 32


@pytest.mark.parametrize(
    ("name", "added"),
    [("lmsys/vicuna-7b-v1.5", 2 * 2 * 4096), ("Qwen/Qwen2.5-0.5B-Instruct", 0), ("microsoft/phi-2", 0)],
)
def test_planned_rows_for_own_tokens_only_where_none_are_left(name: str, added: int) -> None:
    found = plan(toy_recipe(llm={"weights": name, "tokens": ["<tag>", "</tag>"]}))
    assert found.parameters["llm"] == PUBLISHED[name] + added
