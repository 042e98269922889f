"""What is learned, in eight tokenizer families: exactly what the assistant says, as the template itself marks it."""

import random
from functools import cache
from typing import Any

import pytest
import torch

from tests.vlm_core.chat_families import CORPUS, FAMILIES, family_tokenizer
from vlm.chat import ChatFormat
from vlm.sample import IMAGE_MARK, PLACEHOLDER, Role, Turn

_SAID = [
    "Yes.",
    " leading space",
    "  two, and a trailing one ",
    "naïve cafe\u0301, 日本語 🙂",
    "👩‍👩‍👧",
    "two\nlines\n",
    "\n\nstarts below",
    "",
    "A",
    "I say <assistant> and USER: and [/INST] in my answer",
    f"here {IMAGE_MARK} it is",
]
_ASKED = [*CORPUS[:4], f"{IMAGE_MARK}\nWhat?", f"{IMAGE_MARK}{IMAGE_MARK} same? {IMAGE_MARK}", " ", f"end {IMAGE_MARK}"]
RUNS = [3, 1, 2, 5, 4, 2, 7, 1, 2, 3, 1, 2, 2, 2]


@cache
def form(family: str) -> ChatFormat:
    return ChatFormat(family_tokenizer(family))


def reference(family: str, turns: list[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels by transformers, from the marks in the template."""
    messages = [{"role": turn.role, "content": turn.text.replace(IMAGE_MARK, PLACEHOLDER)} for turn in turns]
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    prompt = turns[-1].role != "assistant"
    found: Any = form(family).tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, **options)
    ids, mask = torch.tensor(found["input_ids"]), torch.tensor(found["assistant_masks"]).bool()
    return ids, torch.where(mask & (ids != form(family).placeholder_id), ids, -100)


def folded(family: str, turns: list[Turn]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and labels by the kit, each run of placeholders as one again."""
    images = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    encoded = form(family).encode(turns, [[RUNS[number]] for number in range(images)])
    owner, before = encoded.owner, torch.cat([torch.tensor([-1]), encoded.owner[:-1]])
    assert [int((owner == number).sum()) for number in range(images)] == RUNS[:images]
    assert (encoded.labels[owner >= 0] == -100).all()
    kept = (owner < 0) | (owner != before)
    return encoded.input_ids[kept], encoded.labels[kept]


def conversations(family: str, count: int) -> list[list[Turn]]:
    rng = random.Random(family)
    found = []
    for _ in range(count):
        turns = [Turn("system", rng.choice(CORPUS))] * (FAMILIES[family].system and rng.random() < 0.5)
        for _ in range(rng.randint(1, 4)):
            turns += [Turn("user", rng.choice(_ASKED)), Turn("assistant", rng.choice(_SAID))]
        found.append(turns[: len(turns) - (rng.random() < 0.2)])
    return found


def phi3_swallows(turns: list[Turn]) -> bool:
    """Phi-3's `<|assistant|>` takes white space behind it into itself, and with it the mark of the answer's start."""
    return any(turn.role == "assistant" and turn.text[:1].isspace() for turn in turns)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_the_templates_own_mask(family: str) -> None:
    checked, learned = 0, 0
    for turns in conversations(family, 60):
        if family == "phi3" and phi3_swallows(turns):
            continue  # see below
        ids, labels = folded(family, turns)
        wanted_ids, wanted = reference(family, turns)
        assert torch.equal(ids, wanted_ids), turns
        assert torch.equal(labels, wanted), (turns, form(family).tokenizer.convert_ids_to_tokens(ids.tolist()))
        checked, learned = checked + 1, learned + int((labels != -100).sum())
    assert checked > 20
    assert learned > 100


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_reads_as_what_was_said(family: str) -> None:
    """Independent of any mask: the learned tokens, decoded, are the answers and the ends of turns, and no more."""
    said = ["The number, it is 42.", "The red bus  turns left"]
    turns = [Turn("user", "number?"), Turn("assistant", said[0]), Turn("user", "which?"), Turn("assistant", said[1])]
    _, labels = folded(family, turns)
    tokenizer = form(family).tokenizer
    runs, run = [], []
    for label in [*labels.tolist(), -100]:
        if label >= 0:
            run.append(label)
        elif run:
            runs.append(run)
            run = []
    assert [tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs] == said
    ends = {tokenizer.convert_ids_to_tokens(run[-1]) for run in runs}
    assert len(ends) == 1
    assert {tokenizer.convert_tokens_to_ids(end) for end in ends} <= set(form(family).stop_ids)
    for run in runs:
        assert sum(token in tokenizer.all_special_ids for token in run) == 1


def test_a_speakers_mark_is_not_learned_even_if_it_swallows_the_answers_first_space() -> None:
    """There transformers' mask has `<|assistant|>` in it, which the model would learn to say."""
    turns = [Turn("user", "number?"), Turn("assistant", "  42.")]
    ids, labels = folded("phi3", turns)
    _, wanted = reference("phi3", turns)
    assistant = form("phi3").tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert assistant in wanted.tolist()
    assert assistant not in labels.tolist()
    assert torch.equal(labels, torch.where(wanted == assistant, -100, wanted))
    assert form("phi3").tokenizer.decode(labels[labels >= 0], skip_special_tokens=True).strip() == "42."
    assert assistant in ids.tolist()


@pytest.mark.parametrize("family", [name for name in FAMILIES if not FAMILIES[name].system])
def test_a_system_turn_that_a_family_lacks_is_refused(family: str) -> None:
    with pytest.raises(ValueError, match="does not show what the system says"):
        form(family).encode([Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a")], [])


ROLES: tuple[Role, ...] = ("user", "assistant")


def test_templates_that_move_the_system_turn_are_refused_not_mislabelled() -> None:
    """Mistral v0.3 puts what the system says into the last user turn, so a prefix of the talk reads differently."""
    tokenizer = family_tokenizer("mistral")
    tokenizer.chat_template = (
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        "{% for message in messages if message['role'] != 'system' %}{% if message['role'] == 'user' %}[INST] "
        "{% if loop.revindex <= 2 %}{{ system }}{% endif %}{{ message['content'] }}[/INST]"
        "{% else %} {{ message['content'] }}</s>{% endif %}{% endfor %}"
    )
    chat = ChatFormat(tokenizer)
    two = [Turn(role, text) for text in ("a", "b") for role in ROLES]
    assert chat.encode(two, []).labels.max() > 0
    with pytest.raises(ValueError, match="changes earlier turns"):
        chat.encode([Turn("system", "s"), *two], [])
