"""Many questions: shared images, batches of like length, and failures that stay with their own sample."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from tests.conftest import picture
from vlm.answering import Answer, in_order
from vlm.identity import identity
from vlm.loading import load
from vlm.sample import Sample, Turn, ask

ROUTES = ["mlp", {"name": "perceiver", "latents": 5}, {"name": "cross_attention", "every": 2}]
QUESTIONS = ["What is it?", "How many of them are there, all in all, and of which colour?", "Why?", "x" * 40]


def about(images: list[Any], count: int = 4) -> list[Sample]:
    """`count` questions of different lengths about each image."""
    return [
        ask(QUESTIONS[k % 4] + str(k), [image], id=f"{n}-{k}") for n, image in enumerate(images) for k in range(count)
    ]


def plainly(model: Any, sample: Sample, max_new_tokens: int) -> str:
    """The slow loop: one sample at a time, its image encoded for it alone."""
    batch = model.processor([sample.question()], side="left")
    ids = model.generate(batch, max_new_tokens=max_new_tokens)[0].tolist()
    stops = model.processor.chat.stop_ids
    end = next((n for n, token in enumerate(ids) if token in stops), len(ids))
    return str(model.processor.chat.decode(ids[:end]))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("connector", ROUTES, ids=lambda value: value if isinstance(value, str) else value["name"])
def test_the_same_answers_as_a_plain_loop(toy: Callable[..., Any], connector: Any, batch_size: int) -> None:
    """Whatever is shared, sorted and batched; images of two sizes, several in a sample, and none."""
    model = toy(connector)
    shared = picture(7)
    samples = about([picture(1), picture(2, (90, 20)), picture(3)], 4)
    samples.insert(5, ask("No image here.", id="none"))
    samples.append(Sample([Turn("user", "a <image> and <image>?")], [shared, picture(1)], id="two"))
    samples.append(Sample([Turn("user", "again <image> and <image>?")], [shared, shared], id="twice"))
    answers = list(model.answer(samples, max_new_tokens=7, batch_size=batch_size))
    assert [answer.id for answer in answers] == [sample.id for sample in samples]
    assert [answer.text for answer in answers] == [plainly(model, sample, 7) for sample in samples]
    assert len({answer.text for answer in answers}) > 5  # a model that always says one thing would prove nothing


def counting(model: Any, monkeypatch: Any) -> list[int]:
    """How many views each encoder call gets."""
    calls: list[int] = []
    encoder = model.encoders[0]
    forward = encoder.forward

    def counted(pixels: Any) -> Any:
        calls.append(len(pixels))
        return forward(pixels)

    monkeypatch.setattr(encoder, "forward", counted)
    return calls


def test_an_image_is_opened_and_encoded_once(toy: Callable[..., Any], monkeypatch: Any, tmp_path: Any) -> None:
    model = toy("mlp")
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        picture(number).save(path)
    calls = counting(model, monkeypatch)
    opened: list[Any] = []
    look = model.processor.look
    monkeypatch.setattr(model.processor, "look", lambda *given: opened.append(given[0]) or look(*given))
    assert len(list(model.answer(about(paths), max_new_tokens=2, batch_size=3))) == 12
    assert sum(calls) == 3
    assert sorted(opened) == sorted(paths)


def test_images_of_a_table_are_encoded_once_too(toy: Callable[..., Any], monkeypatch: Any, tmp_path: Any) -> None:
    """A Parquet file has the picture in each of its questions' rows: other objects of the same content."""
    model = toy("mlp")
    samples = []
    for number in range(3):
        picture(number).save(path := tmp_path / f"{number}.png")
        samples += [ask(QUESTIONS[k], [path.read_bytes()], id=f"{number}-{k}") for k in range(4)]
    calls = counting(model, monkeypatch)
    assert len(list(model.answer(samples, max_new_tokens=2, batch_size=3))) == 12
    assert sum(calls) == 3


SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 262}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
LLMS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen3": GROUPED,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 512, "vocab_size": 262},
    "bloom": {"hidden_size": 32, "n_layer": 3, "n_head": 4, "vocab_size": 262},
    "mpt": {"d_model": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 262, "max_seq_len": 512},
    "mistral": {**GROUPED, "sliding_window": 24},
    "gemma3_text": {**GROUPED, "sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2},
}


@pytest.mark.parametrize("family", LLMS)
def test_what_questions_share_is_read_once(toy: Callable[..., Any], family: str) -> None:
    """Where a cache is one key and value a position; in every family the logits are those of a batch without it."""
    config = {"model_type": family, **LLMS[family]}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:3]
    model = toy("mlp", llm={"tokenizer": "bytes", "config": config})
    pictures = [picture(1), picture(2), picture(3)]
    samples = [
        ask(f"{'Look closely. ' * 3}{question}", [image], id=f"{number}{question}")
        for number, image in enumerate(pictures)
        for question in ("A?", "Which of them?", "A?!", "A")
    ]
    read: list[int] = []

    def count(_: Any, args: Any, given: dict[str, Any]) -> None:
        if given.get("inputs_embeds") is not None:
            read.append(given["inputs_embeds"].shape[0] * given["inputs_embeds"].shape[1])

    model.llm.register_forward_pre_hook(count, with_kwargs=True)

    def scores(groups: list[int] | None) -> torch.Tensor:
        read.clear()
        batch = model.processor(samples, side="left")
        settings = {"output_scores": True, "return_dict_in_generate": True, "max_new_tokens": 4, "groups": groups}
        return torch.stack(model.generate(batch, **settings).scores)  # [steps, B, V]

    wanted = scores(None)
    positions = sum(read)
    found = scores([number // 4 for number in range(12)])
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-5
    assert (sum(read) < 0.6 * positions) == (family not in ("mistral", "gemma3_text"))
    assert all(float((wanted[0, 0] - wanted[0, row]).abs().max()) > 1e-3 for row in range(1, 12))


def test_a_connector_that_reads_the_question_sees_each(toy: Callable[..., Any], monkeypatch: Any) -> None:
    """What InstructBLIP's Q-Former makes of an image depends on what is asked."""
    text = {"tokenizer": "bytes", "vocabulary": 300, "length": 128}
    model = toy({"name": "qformer", "latents": 4, "depth": 2, "width": 32, "heads": 4, "text": text})
    calls = counting(model, monkeypatch)
    samples = about([picture(1)], 3)
    answers = [answer.text for answer in model.answer(samples, max_new_tokens=3)]
    assert sum(calls) == 3
    assert answers == [plainly(model, sample, 3) for sample in samples]


def test_a_failing_sample_costs_no_other(toy: Callable[..., Any], monkeypatch: Any) -> None:
    """An exception in the middle of a batch (out of memory, say) is the error of the sample that raises it alone."""
    model = toy("mlp")
    samples = about([picture(1), picture(2)])
    wanted = {answer.id: answer for answer in model.answer(samples, max_new_tokens=4)}
    generate = model.generate

    def fails(batch: Any, **options: Any) -> Any:
        if "1-2" in batch.ids:
            raise RuntimeError("out of memory")
        return generate(batch, **options)

    monkeypatch.setattr(model, "generate", fails)
    answers = list(model.answer(samples, max_new_tokens=4, batch_size=8))
    failed = [answer for answer in answers if answer.error is not None]
    assert [(answer.id, answer.error, answer.text) for answer in failed] == [("1-2", "RuntimeError: out of memory", "")]
    assert all(answer == wanted[answer.id] for answer in answers if answer.error is None)


def test_an_image_that_cannot_be_used_fails_each_of_its_questions(toy: Callable[..., Any]) -> None:
    samples = about(["missing.png", picture(1)], 2)
    answers = list(toy("mlp").answer(samples, max_new_tokens=2))
    assert ["no such file" in str(answer.error) for answer in answers] == [True, True, False, False]


def test_room_at_the_end_of_the_context_is_ones_own(toy: Callable[..., Any]) -> None:
    """A sample whose answer would leave the context is cut where it would be cut alone."""
    model = toy("mlp")
    lengths = [len(model.processor.encode(sample).input_ids) for sample in about([picture(1)], 4)]
    model.processor.max_length = max(lengths) + 2
    samples = about([picture(1)], 4)
    together = list(model.answer(samples, max_new_tokens=9, batch_size=4))
    alone = [next(iter(model.answer([sample], max_new_tokens=9))) for sample in samples]
    assert together == alone
    assert any(answer.truncated for answer in together)


def test_answers_come_as_soon_as_their_batch_is_done(toy: Callable[..., Any]) -> None:
    model = toy("mlp")
    replies = model.replies(about([picture(1), picture(2)]), max_new_tokens=2, batch_size=2)
    first = [next(replies), next(replies)]
    assert {answer.id[-1] for _, answer in first} <= {"1", "3"}  # the longest questions of the window
    assert sorted(number for number, _ in [*first, *replies]) == list(range(8))


def test_in_order() -> None:
    answers = [Answer(str(number), "") for number in range(4)]
    found = in_order(iter([(2, answers[2]), (0, answers[0]), (1, answers[1]), (3, answers[3])]))
    assert [answer.id for answer in found] == ["0", "1", "2", "3"]


def test_samples_are_read_when_they_are_needed(toy: Callable[..., Any]) -> None:
    """A data set is not held in memory: two batches of one are answered from a window of four."""
    read: list[int] = []

    def samples() -> Any:
        for number in range(20):
            read.append(number)
            yield ask("Why?", id=str(number))

    replies = toy("mlp").replies(samples(), max_new_tokens=1, batch_size=1)
    next(replies), next(replies)
    assert len(read) == 4


def test_identity(toy: Callable[..., Any], tmp_path: Any) -> None:
    model = toy("mlp")
    known = identity(model)
    model.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert identity(load(tmp_path / "moved")) == known
    assert identity(toy("linear")) != known
    with torch.no_grad():
        next(model.connector.parameters()).view(-1)[0] += 1e-3
    assert identity(model) != known
    assert identity(toy("mlp", views="pad")) != known
    other = toy("mlp")
    other.tokenizer.chat_template += " "
    assert identity(other) != known
    assert identity(toy("mlp").to(torch.bfloat16)) != known
    longer = toy("mlp")
    longer.processor.chat.stop_ids = [*longer.processor.chat.stop_ids, 65]
    assert identity(longer) != known


def test_merges_are_part_of_the_identity(toy: Callable[..., Any]) -> None:
    """Two tokenizers of one vocabulary may cut the same text differently."""
    model = toy("mlp")
    known = {identity(model)}
    vocabulary = {text: number for number, text in enumerate([*map(chr, range(97, 123)), "ab", "bc"])}
    for merges in ([("a", "b"), ("b", "c")], [("b", "c"), ("a", "b")]):
        model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocabulary, merges)))
        known.add(identity(model))
        model.tokenizer("abc", truncation=True, max_length=2)
        known.add(identity(model))
    assert len(known) == 3
