"""LLMs and tokenizers from local folders, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, picture, toy_recipe
from vlm.assembly import blueprint
from vlm.errors import ConfigError
from vlm.llm import decoder_blocks
from vlm.sample import PLACEHOLDER, Sample, Turn, ask
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


def saved_llm(path: Path, *, tied: bool, family: str = "qwen2", rows: int = 259) -> Path:
    """A folder with an LLM of so many rows and the embedded tokenizer's words without its last ones."""
    fields = {**LLAMA, "model_type": family, "tie_word_embeddings": tied, "vocab_size": rows}
    perturb(AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))).save_pretrained(path)
    return path


@pytest.mark.parametrize("tied", [True, False])
def test_own_tokens_get_rows_and_old_ones_keep_theirs(folder: Path, tmp_path: Path, tied: bool) -> None:
    weights = saved_llm(tmp_path / "llm", tied=tied)
    spec = {"weights": str(weights), "tokenizer": str(folder), "tokens": ["<row_1_col_1>", "<|im_start|>", "<global>"]}
    recipe = toy_recipe(llm=spec, layout={"image": "<global>{views}<row_1_col_1>"})
    model = vlm.assemble(recipe)
    before = AutoModelForCausalLM.from_pretrained(weights)
    old = before.get_input_embeddings().weight
    new, head = model.llm.get_input_embeddings().weight, model.llm.lm_head.weight
    assert len(new) == len(head) == 261, "259 of the tokenizer, of which it has <|im_start|> already, and two more"
    assert torch.equal(new[:259], old)
    assert torch.equal(head[:259], before.lm_head.weight)
    assert (head is new) == tied
    assert 0 < (new[259:] - old.mean(0)).abs().max() < 0.1, "drawn about the mean of the others"
    assert model.llm.config.vocab_size == 261
    planned = {
        part: sum(p.numel() for p in module.parameters()) for part, module in blueprint(recipe)[1].parts().items()
    }
    assert planned == {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}

    batch = model.processor([Sample([Turn("user", "Hi"), Turn("assistant", "Yes")], [picture(1)])])
    ids = batch.input_ids[0][batch.owner[0] < 0].tolist()
    assert [ids.count(model.tokenizer.convert_tokens_to_ids(token)) for token in ("<global>", "<row_1_col_1>")] == [
        1,
        1,
    ]
    assert max(ids) < 261
    model.eval()
    loaded = vlm.load(model.save(tmp_path / "saved"))
    assert (loaded.llm.lm_head.weight is loaded.llm.get_input_embeddings().weight) == tied
    again = loaded.processor([Sample([Turn("user", "Hi"), Turn("assistant", "Yes")], [picture(1)])])
    assert torch.equal(again.input_ids, batch.input_ids)
    with torch.no_grad():
        assert torch.equal(loaded(again).logits, model(batch).logits)


def test_own_tokens_take_rows_that_are_left_over(folder: Path, tmp_path: Path) -> None:
    weights = saved_llm(tmp_path / "llm", tied=False, rows=300)
    llm = {"weights": str(weights), "tokenizer": str(folder), "tokens": ["<a>", "<b>"]}
    assert vlm.assemble(toy_recipe(llm=llm)).llm.get_input_embeddings().num_embeddings == 300


def test_vocabulary_of_a_config_follows_from_the_tokenizer_with_its_own_tokens() -> None:
    model = vlm.assemble(toy_recipe(llm={"config": LLAMA, "tokenizer": "bytes", "tokens": ["<a>", "<b>"]}))
    assert model.llm.config.vocab_size == len(bytes_tokenizer()) + 2
    assert model.tokenizer.convert_tokens_to_ids("<b>") == len(bytes_tokenizer()) + 1
    assert model.tokenizer("x<a>")["input_ids"][1:] == [len(bytes_tokenizer())]


def test_own_tokens_that_are_none() -> None:
    with pytest.raises(ConfigError) as caught:
        blueprint(
            toy_recipe(llm={"config": LLAMA, "tokenizer": "bytes", "tokens": ["<a>", "<b>", "<a>", " ", PLACEHOLDER]})
        )
    assert {problem.place: problem.message for problem in caught.value.problems} == {
        "model.llm.tokens.2": "`<a>` stands twice",
        "model.llm.tokens.3": "` ` cannot be a token of a recipe",
        "model.llm.tokens.4": f"`{PLACEHOLDER}` cannot be a token of a recipe",
    }
