"""Turns to ids: what the assistant says, and where images stand."""

from typing import Any

import pytest
import torch

from vlm.chat import ChatFormat, place_marks
from vlm.sample import IMAGE_MARK, Turn
from vlm.tokenizers import CHAT_TEMPLATES, load_tokenizer

QWEN = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    Turn("system", "Be brief."),
    Turn("user", "Hi é"),
    Turn("assistant", "Yes?"),
    Turn("user", "A or B"),
    Turn("assistant", "Né, B\n"),
]


def chat(template: str) -> ChatFormat:
    tokenizer = load_tokenizer("bytes")
    tokenizer.chat_template = CHAT_TEMPLATES.get(template, template)
    if template == QWEN:
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    return ChatFormat(tokenizer)


@pytest.mark.parametrize("template", [*CHAT_TEMPLATES, QWEN], ids=[*CHAT_TEMPLATES, "chatml"])
def test_labels_are_the_templates_own_generation_mask(template: str) -> None:
    """The reference: transformers' own mask from the `generation` marks in the template."""
    form = chat(template)
    found = form.encode(TALK, [])
    messages = [{"role": turn.role, "content": turn.text} for turn in TALK]
    wanted: Any = form.tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = torch.tensor(wanted["input_ids"]), torch.tensor(wanted["assistant_masks"]).bool()
    assert torch.equal(found.input_ids, ids)
    assert mask.any()
    assert torch.equal(found.labels, torch.where(mask, ids, -100))


def test_question_ends_with_the_prompt_for_an_answer() -> None:
    form = chat("vicuna")
    encoded = form.encode(TALK[:2], [])
    assert form.tokenizer.decode(encoded.input_ids).endswith("USER: Hi é ASSISTANT: ")
    assert (encoded.labels == -100).all()


def test_placeholders_are_expanded_where_the_marks_stand() -> None:
    form = chat("short")
    encoded = form.encode([Turn("user", f"a{IMAGE_MARK}b{IMAGE_MARK}c"), Turn("assistant", "x")], [[3], [2]])
    text = "".join(
        "#" if owner >= 0 else form.tokenizer.decode([token])
        for token, owner in zip(encoded.input_ids, encoded.owner, strict=True)
    )
    assert text == "<|start|><|user|>a###b##c<|assistant|>x<|end|>"
    assert encoded.owner.tolist() == [-1] * 3 + [0] * 3 + [-1] + [1] * 2 + [-1] * 4
    assert encoded.seen.tolist() == [-1] * 3 + [0] * 4 + [1] * 6
    none = form.encode([Turn("user", f"a{IMAGE_MARK}b{IMAGE_MARK}c"), Turn("assistant", "x")], [[0], [0]])
    assert form.tokenizer.decode(none.input_ids) == "<|start|><|user|>abc<|assistant|>x<|end|>"
    assert none.seen.tolist() == [-1, -1, -1, 0, 1, 1, 1, 1]


def test_marks_are_added_in_front_of_the_first_user_turn() -> None:
    turns = [Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a")]
    assert place_marks(turns, 2)[1].text == f"{IMAGE_MARK}{IMAGE_MARK}\nu"
    assert place_marks(turns, 0) == turns


@pytest.mark.parametrize(
    ("turns", "images", "message"),
    [
        ([Turn("user", f"{IMAGE_MARK}")], 2, "1 <image> marks for 2 images"),
        ([Turn("user", f"{IMAGE_MARK}")], 0, "1 <image> marks for 0 images"),
        ([Turn("assistant", "a")], 1, "no user turn"),
        ([], 0, "no turns"),
    ],
)
def test_marks_that_do_not_fit_the_images(turns: list[Turn], images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place_marks(turns, images)


def test_template_that_rewrites_earlier_turns_is_refused() -> None:
    content = "{% if loop.last or m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}"
    prompt = "{% if add_generation_prompt %}assistant:{% endif %}"
    strips = "{% for m in messages %}{{ m['role'] }}:" + content + ";{% endfor %}" + prompt
    with pytest.raises(ValueError, match="changes earlier turns"):
        chat(strips).encode(TALK, [])


def test_stop_tokens_come_from_the_template_too() -> None:
    tokenizer = load_tokenizer("bytes")
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|eot|>"]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<|eot|>{% endfor %}"
    assert set(ChatFormat(tokenizer, [77]).stop_ids) == {
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids("<|eot|>"),
        77,
    }


def test_bytes_tokenizer_keeps_any_text() -> None:
    tokenizer = load_tokenizer("bytes")
    for text in ("plain", "Grüße, 世界 🙂", "tab\tnew\nline", "  two  spaces "):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(text.encode())
        assert tokenizer.decode(ids) == text
