"""Chat templates in the forms that published models use: what is learned, and where images stand.

The templates are small ones of the same form. The reference is transformers' own mask of what the assistant says, from
the `generation` marks in the template.
"""

from typing import Any

import pytest
import torch

import vlm
from tests.conftest import picture, toy_recipe
from vlm.chat import ChatFormat, Template
from vlm.errors import ConfigError
from vlm.processor import SampleError
from vlm.sample import IMAGE_MARK, PLACEHOLDER, Sample, Turn, ask
from vlm.tokenizers import bytes_tokenizer

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<end_of_utterance>", "<image>", "<img>"]

TEXTS = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama-3": (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n\n"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
    ),
    "vicuna": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
        "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}ASSISTANT:"
        "{% generation %} {{ m['content'] }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns must alternate') }}"
        "{% endif %}"
        "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] | trim }}<end_of_turn>{% endgeneration %}"
        "{% else %}{{ m['content'] | trim }}<end_of_turn>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<turn>model\n{% endif %}"
    ),
}

_PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)
LISTS = {
    "idefics": (  # the space behind `Assistant:` is not in the prompt, so it is the assistant's to say
        "{% for m in messages %}{{ m['role'] | capitalize }}:"
        "{% if m['role'] == 'assistant' %}{% generation %} " + _PARTS + "<end_of_utterance>{% endgeneration %}"
        "{% else %}{% if m['content'][0]['type'] != 'image' %} {% endif %}" + _PARTS + "<end_of_utterance>{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ).replace("IMAGE", "<image>"),
    "qwen2-vl": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}" + _PARTS + "<|im_end|>{% endgeneration %}"
        "{% else %}" + _PARTS + "<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ).replace("IMAGE", "<see><pad></see>"),
    "llava-hf": (  # all images of a turn before all of its texts
        "{% for m in messages %}{{ m['role'] | upper }}: "
        "{% for part in m['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for part in m['content'] if part['type'] == 'text' %}"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ part['text'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    ),
}
BOTH = {
    "gemma-3": (
        "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}" + "CONTENT" + "<end_of_turn>{% endgeneration %}"
        "{% else %}CONTENT<end_of_turn>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
    ).replace(
        "CONTENT",
        "{% if m['content'] is string %}{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}"
        "{% if part['type'] == 'image' %}<img>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}{% endif %}",
    )
}
ENDS = {"chatml": "<|im_end|>", "qwen2-vl": "<|im_end|>", "llama-3": "<|eot_id|>", "idefics": "<end_of_utterance>"}
TALK = [
    Turn("user", "Hi é"),
    Turn("assistant", "Yes?"),
    Turn("user", "A or B"),
    Turn("assistant", "Né, B"),
]


def form(template: str, end: str | None = None, joint: str = "") -> ChatFormat:
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL}, replace_extra_special_tokens=False)
    if end:
        tokenizer.add_special_tokens({"eos_token": end})
    tokenizer.chat_template = template
    return ChatFormat(tokenizer, joint=joint)


def messages(turns: list[Turn], listed: bool) -> list[dict[str, Any]]:
    """As transformers' own processors want them."""
    if not listed:
        return [{"role": turn.role, "content": turn.text} for turn in turns]
    contents: list[list[dict[str, str]]] = []
    for turn in turns:
        parts: list[dict[str, str]] = []
        for number, text in enumerate(turn.text.split(IMAGE_MARK)):
            parts += [{"type": "image"}] * bool(number) + [{"type": "text", "text": text}] * bool(text)
        contents.append(parts)
    return [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]


@pytest.mark.parametrize("own_end", [True, False], ids=["end is eos", "another eos"])
@pytest.mark.parametrize("name", [*TEXTS, *LISTS, *BOTH])
def test_labels_are_what_the_assistant_says(name: str, own_end: bool) -> None:
    template = {**TEXTS, **LISTS, **BOTH}[name]
    found_in = form(template, ENDS.get(name) if own_end else None)
    found = found_in.encode(TALK, [])
    made = messages(TALK, name in LISTS)
    tokenizer: Any = found_in.tokenizer
    wanted = tokenizer.apply_chat_template(made, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = torch.tensor(wanted["input_ids"]), torch.tensor(wanted["assistant_masks"]).bool()
    assert torch.equal(found.input_ids, ids)
    assert mask.any()
    assert torch.equal(found.labels, torch.where(mask, ids, -100))
    assert "Yes?" in tokenizer.decode(found.labels[found.labels >= 0])


@pytest.mark.parametrize("name", [*TEXTS, *LISTS, *BOTH])
def test_system_turns_are_shown_or_refused(name: str) -> None:
    found_in = form({**TEXTS, **LISTS, **BOTH}[name])
    turns = [Turn("system", "Be brief."), *TALK]
    if name == "gemma":
        with pytest.raises(ValueError, match="does not show what the system says"):
            found_in.encode(turns, [])
    else:
        assert "Be brief." in found_in.tokenizer.decode(found_in.encode(turns, []).input_ids)


IN_THE_MIDDLE = [
    Turn("user", f"{IMAGE_MARK}a {IMAGE_MARK} b{IMAGE_MARK}"),
    Turn("assistant", "c"),
    Turn("user", f"d {IMAGE_MARK}"),
]
OWN_MARKS = {"idefics": "<image>", "qwen2-vl": "<see><pad></see>"}
PIECES: list[list[str | int]] = [["<img>", 2], [3, "</img>"], [1], ["[", 1, "|", 1, "]"]]
WRITTEN = ["<img>##", "###</img>", "#", "[#|#]"]


@pytest.mark.parametrize("name", [*TEXTS, *LISTS, *BOTH])
def test_images_stand_where_they_are_written(name: str) -> None:
    """The reference: the template with its own marks in a list, or with marks in the text, filled afterwards."""
    found_in = form({**TEXTS, **LISTS, **BOTH}[name])
    found = found_in.encode(IN_THE_MIDDLE, PIECES)
    mark = OWN_MARKS.get(name, "@@")
    turns = [
        Turn(turn.role, turn.text if mark != "@@" else turn.text.replace(IMAGE_MARK, mark)) for turn in IN_THE_MIDDLE
    ]
    made = messages(turns, name in LISTS)
    text, *rest = found_in.tokenizer.apply_chat_template(made, tokenize=False, add_generation_prompt=True).split(mark)
    expected = text + "".join(layout + piece for layout, piece in zip(WRITTEN, rest, strict=True))
    shown = found_in.tokenizer.decode(found.input_ids).replace(PLACEHOLDER, "#")
    assert shown == expected
    owners = found.owner[found.owner >= 0].tolist()
    assert owners == [0, 0, 1, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("name", [*TEXTS, *LISTS, *BOTH])
def test_whitespace_of_a_layout_is_its_own(name: str) -> None:
    """Templates that trim a turn's text trim nothing of an image's."""
    found_in = form({**TEXTS, **LISTS, **BOTH}[name])
    found = found_in.encode([Turn("user", f"a{IMAGE_MARK}")], [["\n\n", 2, "\n\n"]])
    assert "a\n\n##\n\n" in found_in.tokenizer.decode(found.input_ids).replace(PLACEHOLDER, "#")


@pytest.mark.parametrize("name", [*TEXTS, *LISTS, *BOTH])
def test_joint_between_neighbours_only(name: str) -> None:
    layout: list[str | int] = ["<|", 1, "<|"]
    turns = [Turn("user", f"{IMAGE_MARK}{IMAGE_MARK}{IMAGE_MARK}a<|<|b{IMAGE_MARK} {IMAGE_MARK}<|{IMAGE_MARK}")]
    found_in = form({**TEXTS, **LISTS, **BOTH}[name], joint="<|")
    shown = found_in.tokenizer.decode(found_in.encode(turns, [layout] * 6).input_ids).replace(PLACEHOLDER, "#")
    assert "<|#<|#<|#<|a<|<|b<|#<| <|#<|<|<|#<|" in shown  # what the user wrote is left alone


def test_joint_that_is_the_whole_image() -> None:
    found_in = form(TEXTS["chatml"], joint="|")
    shown = found_in.tokenizer.decode(
        found_in.encode([Turn("user", IMAGE_MARK * 3)], [["|"], ["|", 1], [1, "|"]]).input_ids
    )
    assert "user\n|##|<|im_end|>" in shown.replace(PLACEHOLDER, "#")


@pytest.mark.parametrize(
    ("name", "text", "held"),
    [
        ("qwen2-vl", "what is <see><pad></see>?", "<see><pad></see>"),
        ("qwen2-vl", f"what is {PLACEHOLDER}?", PLACEHOLDER),
        ("chatml", f"what is {PLACEHOLDER}?", PLACEHOLDER),
        ("llava-hf", f"what is {PLACEHOLDER}?", PLACEHOLDER),
    ],
)
def test_text_that_holds_an_images_mark_is_refused(name: str, text: str, held: str) -> None:
    found_in = form({**TEXTS, **LISTS}[name])
    for turns in ([Turn("user", text)], [Turn("user", "a"), Turn("assistant", text)]):
        with pytest.raises(ValueError, match="which stands for an image") as caught:
            found_in.encode(turns, [])
        assert f"`{held}`" in str(caught.value)


def test_a_template_without_that_mark_takes_the_text() -> None:
    found_in = form(TEXTS["chatml"])
    assert "<see><pad></see>" in found_in.tokenizer.decode(
        found_in.encode([Turn("user", "<see><pad></see>")], []).input_ids
    )


NUMBERED = LISTS["qwen2-vl"].replace("<see><pad></see>", "<image {{ loop.index }}>")
PROSE_ASSISTANT = LISTS["qwen2-vl"].replace(
    "{% generation %}" + _PARTS.replace("IMAGE", "<see><pad></see>"), "{% generation %}{{ m['content'] }}"
)
NO_SYSTEM = TEXTS["chatml"].replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
BROKEN = TEXTS["chatml"].replace("m['content']", "'nothing'")
FIRST_ONLY = LISTS["qwen2-vl"].replace("in m['content'] %}", "in m['content'][:1] %}")


def test_marks_that_differ_are_no_mark() -> None:
    """Images numbered by the template: an error, not images in wrong places."""
    with pytest.raises(ValueError, match="shows 0 of 1 images"):
        form(NUMBERED).encode([Turn("user", f"{IMAGE_MARK}b")], [[1]])


def test_what_stands_between_texts_is_no_mark() -> None:
    """A template that passes over images and parts its texts by a sign of its own."""
    parted = LISTS["llava-hf"].replace("<image>\n", "").replace("{{ part['text'] }} ", "{{ part['text'] }} / ")
    found = form(parted).encode([Turn("user", f"a/b{IMAGE_MARK}c")], [[2]])
    assert form(parted).tokenizer.decode(found.input_ids).replace(PLACEHOLDER, "#") == "USER: a/b##c / ASSISTANT: "


def test_roles_may_differ_in_form() -> None:
    """A user's turn as a list, the assistant's as a text: as a list it would be printed as Python writes it."""
    found_in = form(PROSE_ASSISTANT)
    found = found_in.encode([Turn("user", f"a{IMAGE_MARK}"), Turn("assistant", "It's.")], [[2]])
    shown = found_in.tokenizer.decode(found.input_ids).replace(PLACEHOLDER, "#")
    assert shown == "<|im_start|>user\na##<|im_end|>\n<|im_start|>assistant\nIt's.<|im_end|>\n"


def test_a_turn_that_is_not_shown_is_refused() -> None:
    with pytest.raises(ValueError, match="does not show what the system says"):
        form(NO_SYSTEM).encode([Turn("system", "Be brief."), *TALK], [])


def test_turns_that_the_template_refuses() -> None:
    with pytest.raises(ValueError, match="the chat template refuses the turns: turns must alternate"):
        form(TEXTS["gemma"]).encode([Turn("user", "a"), Turn("user", "b")], [])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (BROKEN, "chat_template: shows a user's turn neither as a text nor as a list of texts"),
        (FIRST_ONLY, "chat_template: shows only one of two texts in a user's turn"),
        ("{% for m in messages", "chat_template: shows a user's turn neither"),
    ],
)
def test_templates_that_lose_text_are_refused(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Template(form_tokenizer(template))


def form_tokenizer(template: str) -> Any:
    tokenizer = bytes_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_mistakes_reach_the_recipe_and_the_sample(tmp_path: Any) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text(BROKEN)
    recipe = toy_recipe()
    recipe["model"]["llm"]["chat_template"] = str(path)
    with pytest.raises(ConfigError, match=r"model\.llm\.chat_template: shows a user's turn neither"):
        vlm.assemble(recipe)
    path.write_text(TEXTS["gemma"])
    model = vlm.assemble(recipe)
    with pytest.raises(SampleError, match="sample 7: the chat template does not show what the system says"):
        model.processor.encode(Sample([Turn("system", "s"), Turn("user", "u")], id="7"))
    (answer,) = model.answer([ask(f"{PLACEHOLDER}?", [picture()], id="8")])
    assert answer.error is not None
    assert "which stands for an image" in answer.error
