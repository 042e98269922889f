"""LLMs and tokenizers from local folders, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.llm import decoder_blocks
from vlm.sample import Sample, Turn, ask
from vlm.tokenizers import bytes_tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a hub repository would be: tied Qwen2 in bf16, and a tokenizer with a chat template of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=own,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHATML,
    )
    config = AutoConfig.for_model(**{**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True, "vocab_size": 259})
    llm = perturb(AutoModelForCausalLM.from_config(config)).to(torch.bfloat16)
    path = tmp_path / "qwen"
    llm.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_folder_gives_weights_precision_tokenizer_and_template(folder: Path, tmp_path: Path) -> None:
    model = vlm.assemble(toy_recipe(llm={"weights": str(folder)}))
    reference = AutoModelForCausalLM.from_pretrained(folder)
    assert model.llm.dtype == reference.dtype == torch.bfloat16
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    for name, wanted in reference.state_dict().items():
        assert torch.equal(model.llm.state_dict()[name], wanted), name
    turns = [Turn("user", "Hi"), Turn("assistant", "Yes")]
    batch = model.processor([Sample(turns, [picture(1)])])
    text = "<|im_start|>user\n\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
    assert model.tokenizer.decode(batch.input_ids[0][batch.owner[0] < 0]) == text
    assert model.tokenizer.decode(batch.labels[0][batch.labels[0] != -100]) == "Yes<|im_end|>"
    assert model.processor.chat.stop_ids == [model.tokenizer.eos_token_id]
    loaded = vlm.load(model.save(tmp_path / "saved"))
    with torch.no_grad():
        assert torch.equal(loaded(batch).logits, model(batch).logits)


def test_placeholder_needs_no_row_in_the_embedding(folder: Path) -> None:
    """It is added to the tokenizer beyond the vocabulary; the weights' own embedding stays as it is."""
    model = vlm.assemble(toy_recipe(llm={"weights": str(folder)}))
    rows = model.llm.get_input_embeddings().num_embeddings
    assert model.processor.chat.placeholder_id >= rows == 259
    assert isinstance(model.ask(picture(1), "What?", max_new_tokens=4), str)


def test_missing_weights_are_refused_by_name(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    found.pop("model.layers.1.mlp.up_proj.weight")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 parameters of the model: model\.layers\.1\.mlp\.up_proj\.weight"):
        vlm.assemble(toy_recipe(llm={"weights": str(folder)}))


def test_unexpected_weights_are_refused_by_name(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    save_file({**found, "model.extra.weight": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has 1 parameters that the model has not: model\.extra\.weight"):
        vlm.assemble(toy_recipe(llm={"weights": str(folder)}))


def test_damaged_weights_are_one_clear_error(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ConfigError, match=r"model\.llm\.weights|weights: .*cannot be loaded"):
        vlm.assemble(toy_recipe(llm={"weights": str(folder)}))


def test_weights_and_config_together_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.llm\.config: stands beside `weights`"):
        vlm.assemble(toy_recipe(llm={"weights": str(folder), "config": LLAMA, "tokenizer": "bytes"}))


def test_template_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% for m in messages %}[{{ m['content'] }}]{% endfor %}")
    spec = {"weights": str(folder), "chat_template": str(tmp_path / "own.jinja")}
    model = vlm.assemble(toy_recipe(llm=spec))
    batch = model.processor([ask("Hi")])
    assert model.tokenizer.decode(batch.input_ids[0]) == "[Hi]"
    with pytest.raises(ConfigError, match=r"model\.llm\.chat_template: `vicunna`.*did you mean `vicuna`"):
        vlm.assemble(toy_recipe(llm={**spec, "chat_template": "vicunna"}))


def test_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    bytes_tokenizer().save_pretrained(folder)  # 262 tokens for 259 rows
    with pytest.raises(ConfigError, match=r"model\.llm\.config\.vocab_size: 259 rows are fewer than"):
        vlm.assemble(toy_recipe(llm={"weights": str(folder)}))


def test_both_encoder_and_llm_from_folders_as_in_a_real_recipe(folder: Path, tmp_path: Path) -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    tower = perturb(SiglipVisionModel(SiglipVisionConfig(**SIGLIP)))
    tower.save_pretrained(tmp_path / "siglip")
    recipe = {
        "model": {
            "encoders": {"name": "siglip", "weights": str(tmp_path / "siglip")},
            "connector": "mlp",
            "llm": {"weights": str(folder), "dtype": "float32"},
        }
    }
    model = vlm.assemble(recipe)
    pixels = model.processor([ask("x", [picture(1)])]).groups[0].pixels[0]
    with torch.no_grad():
        wanted = tower(pixel_values=pixels).last_hidden_state
        assert torch.allclose(model.encoders[0](pixels).tokens, wanted, atol=1e-6)
    assert model.llm.dtype == torch.float32


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_decoder_blocks_are_found(name: str) -> None:
    from tests.connectors.test_cross_attention import FAMILIES

    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(**FAMILIES[name]))
    blocks = decoder_blocks(llm)
    assert len(blocks) == 4
    assert all("Layer" in type(block).__name__ or "Block" in type(block).__name__ for block in blocks)
