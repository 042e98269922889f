"""Models of the kit inside lmms-eval: the adapter over a stand-in for it, and the real one where it is installed."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.conftest import picture
from vlm.errors import ConfigError
from vlm.eval.lmms import model as lmms
from vlm.eval.lmms.likelihood import likelihoods
from vlm.eval.lmms.requests import Pictures, chat_sample, settings_of, simple_sample
from vlm.sample import Sample, Turn, ask

ROOT = Path(__file__).parent.parent.parent
ENTRY = EntryPoint("vlm_kit", "vlm.eval.lmms.model:manifests", "lmms_eval.models")


class Base:
    """What lmms-eval's `lmms` gives to a model."""

    def __init__(self) -> None:
        self._rank = 0
        self.task_dict: dict[str, Any] = {}

    @property
    def rank(self) -> int:
        return self._rank


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package that goes by the name of lmms-eval."""
    modules = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Base},
        "lmms_eval.api.instance": {
            "GenerationResult": lambda text, token_counts=None: SimpleNamespace(text=text, token_counts=token_counts),
            "TokenCounts": SimpleNamespace,
        },
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": SimpleNamespace},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    lmms._classes.cache_clear()
    yield
    lmms._classes.cache_clear()


@pytest.fixture
def folder(toy: Callable[..., Any], tmp_path: Path) -> str:
    return str(toy().save(tmp_path / "model"))


DOCUMENTS = [
    {"text": "What is it?", "images": [picture(1)]},
    {"text": "Hello, no image here", "images": []},
    {"text": "Which of the two, the first one or the second?", "images": [picture(2), picture(3, (90, 20))]},
    {"text": "And this?", "images": [picture(4)]},
    {"text": "A?", "images": [picture(1)]},
]


def messages(document: dict[str, Any]) -> list[dict[str, Any]]:
    shown = [{"type": "image", "url": image} for image in document["images"]]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": document["text"]}]}]


def visuals(document: dict[str, Any]) -> list[Any]:
    return list(document["images"])


def request(number: int, *arguments: Any, task: str = "t") -> SimpleNamespace:
    return SimpleNamespace(args=(*arguments, number, task, "test"), task_name=task, doc_id=number)


def chat(number: int, task: str = "t", **settings: Any) -> SimpleNamespace:
    return request(number, "", messages, {"max_new_tokens": 6, **settings}, task=task)


def simple(number: int, **settings: Any) -> SimpleNamespace:
    return request(number, DOCUMENTS[number]["text"], {"max_new_tokens": 6, **settings}, visuals)


def adapter(kind: str, folder: str, **options: Any) -> Any:
    model = getattr(lmms, kind)(folder, **{"batch_size": 2, "device": "cpu", **options})
    model.task_dict = {name: {"test": DOCUMENTS} for name in ("t", "u")}
    return model


def texts(answers: Any) -> list[Any]:
    return [answer.text for answer in answers]


def wanted(model: Any, limit: int = 6) -> list[str]:
    """Each document asked by itself, with no adapter in between."""
    asked = [ask(document["text"], document["images"]) for document in DOCUMENTS]
    answers = [next(iter(model.model.answer([sample], max_new_tokens=limit, batch_size=1))) for sample in asked]
    assert len({answer.text for answer in answers}) > 1
    return [answer.text for answer in answers]


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize(("kind", "make"), [("Chat", chat), ("Simple", simple)])
def test_answers_are_the_models_own_in_order(folder: str, kind: str, make: Any) -> None:
    model = adapter(kind, folder)
    order = [3, 0, 2, 4, 1]
    answers = model.generate_until([make(number) for number in order])
    alone = wanted(model)
    assert texts(answers) == [alone[number] for number in order]
    assert [answer.token_counts.output_tokens for answer in answers] == [6] * 5
    assert issubclass(type(model), Base)
    assert model.is_simple == (kind == "Simple")


@pytest.mark.usefixtures("harness")
def test_tasks_of_different_lengths_in_one_list(folder: str) -> None:
    model = adapter("Chat", folder, max_new_tokens=3)
    requests = [chat(0, max_new_tokens=None), chat(2), chat(1, task="u", max_new_tokens=4), chat(3, task="u")]
    answers = model.generate_until(requests)
    expected = [wanted(model, 3)[0], wanted(model)[2], wanted(model, 4)[1], wanted(model)[3]]
    assert texts(answers) == expected


@pytest.mark.usefixtures("harness")
def test_an_answer_ends_before_the_first_of_the_strings(folder: str) -> None:
    model = adapter("Chat", folder)
    whole = wanted(model)[0]
    late, early = whole[4], whole[2:4]
    (answer,) = model.generate_until([chat(0, until=[late, early, "", "nowhere"])])
    assert answer.text == whole[: min(whole.index(late), whole.index(early))]
    assert texts(model.generate_until([chat(0, until=early)])) == [whole[: whole.index(early)]]
    assert texts(model.generate_until([chat(0, until=None)])) == [whole]


@pytest.mark.usefixtures("harness")
def test_each_answer_is_handed_over_before_the_next_batch_is_made(folder: str) -> None:
    """So that lmms-eval's cache keeps what a killed run had."""
    model = adapter("Simple", folder, batch_size=1)
    seen: list[int] = []
    requests = [simple(number % 5) for number in range(10)]
    for number, one in enumerate(requests):
        one.args = (one.args[0], one.args[1], partial(look, seen, number), *one.args[3:])
    answers = model.generate_until(requests)
    assert len(answers) == 10
    assert seen == []
    first = answers[0]
    assert seen == [0, 1, 2, 3]  # the window that questions of one image are looked for in
    assert answers[0] is first
    assert len(list(answers)) == 10


def look(seen: list[int], number: int, document: Any) -> list[Any]:
    seen.append(number)
    return visuals(document)


@pytest.mark.usefixtures("harness")
def test_a_sample_without_an_answer_stops_the_run_by_name(folder: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n nothing")
    documents = [*DOCUMENTS[:2], {"text": "What?", "images": [str(tmp_path / "broken.png")]}, DOCUMENTS[3]]
    model = adapter("Chat", folder)
    model.task_dict = {"t": {"test": documents}}
    requests = [chat(number) for number in range(4)]
    with pytest.raises(lmms.Unanswered, match=r"task t, document 2: .*broken.png: .*on_error=empty"):
        list(model.generate_until(requests))
    with pytest.raises(lmms.Unanswered, match=r"document 2 to .*document 3: .*broken.png"):
        list(model.loglikelihood([request(number, "What?", " A", visuals) for number in (2, 3)]))


@pytest.mark.usefixtures("harness")
def test_empty_answers_are_given_only_where_asked_for_and_counted(
    folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapter("Chat", folder, on_error="empty")
    long = {"text": "no" * 100_000, "images": []}
    model.model.processor.max_length = 500
    model.task_dict = {"t": {"test": [*DOCUMENTS[:2], long, DOCUMENTS[3]]}}
    answers = texts(model.generate_until([chat(number) for number in range(4)]))
    assert answers == [*wanted(model)[:2], "", wanted(model)[3]]
    assert "task t, document 2 has no answer: 200003 positions" in caplog.text
    assert "1 of 4 questions had no answer and count as empty" in caplog.text
    assert "3 of 4 questions were cut at the token limit" in caplog.text


@pytest.mark.usefixtures("harness")
def test_a_model_that_fails_does_not_pass_for_the_end_of_the_list(folder: str, monkeypatch: Any) -> None:
    model = adapter("Chat", folder)
    monkeypatch.setattr(model.model, "answer", lambda samples, **_: (one for one in [][0]))
    with pytest.raises(IndexError):
        list(model.generate_until([chat(0)]))


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"do_sample": True, "temperature": 0.7}, "do_sample"),
        ({"temperature": 0.2}, "temperature"),
        ({"num_beams": 5}, "num_beams"),
        ({"repetition_penalty": 1.2}, "repetition_penalty"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"until": [3]}, "until"),
        ({"visual_cot": True}, "visual_cot"),
    ],
)
def test_what_is_not_the_one_greedy_answer_is_refused(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError, match=f"{place}: ") as caught:
        settings_of(settings, limit=9, task="docvqa")
    assert "generation_kwargs of task docvqa; `--gen_kwargs` changes them" in str(caught.value)


def test_settings() -> None:
    greedy = {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "num_beams": 1, "image_aspect_ratio": "pad"}
    found = settings_of({**greedy, "until": "\n\n", "stop_sequences": ["Q:"]}, limit=9, task="t")
    assert (found.max_new_tokens, found.until) == (9, ("\n\n", "Q:"))
    assert settings_of({"max_gen_toks": 5, "temperature": None, "until": []}, limit=9, task="t").max_new_tokens == 5


@pytest.mark.usefixtures("harness")
def test_nothing_is_generated_when_a_later_task_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="num_beams"):
        adapter("Chat", folder).generate_until([chat(0), chat(1, task="u", num_beams=3)])


def test_images_stand_where_the_messages_have_them() -> None:
    pictures, (one, two) = Pictures(8), (picture(1), picture(2))
    text, first, second = ({"type": "text", "text": "Which?"}, *({"type": "image", "url": p} for p in (one, two)))
    ahead = chat_sample([{"role": "user", "content": [first, second, text]}], pictures, "s")
    assert ahead == Sample([Turn("user", "Which?")], [one, two], id="s")
    assert ahead == simple_sample("Which?", [one, two], pictures, "s")
    between = chat_sample([{"role": "user", "content": [first, text, second, text]}], pictures, "s")
    assert between.turns == [Turn("user", "<image>Which?<image>Which?")]
    talk = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [first, text]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat"}]},
        {"role": "user", "content": [second, {"type": "text", "text": "And?"}]},
    ]
    assert [turn.text for turn in chat_sample(talk, pictures, "s").turns] == [
        "Be brief.",
        "<image>Which?",
        "A cat",
        "<image>And?",
    ]
    marked = {"type": "text", "text": "<image> or <image>?"}
    assert chat_sample([{"role": "user", "content": [first, second, marked]}], pictures, "s").turns == [
        Turn("user", "<image> or <image>?")
    ]


def test_what_is_no_image_is_refused() -> None:
    pictures = Pictures(8)
    for video in ("clip.mp4", {"type": "video"}, [picture(1)]):
        with pytest.raises(ConfigError, match=r"task t, document 3 shows .*take images"):
            simple_sample("What?", [video], pictures, "task t, document 3")
    content = [{"type": "video", "url": "clip.mp4"}, {"type": "text", "text": "What?"}]
    with pytest.raises(ConfigError, match="shows video"):
        chat_sample([{"role": "user", "content": content}], pictures, "s")
    with pytest.raises(ConfigError, match="role `tool`"):
        chat_sample([{"role": "tool", "content": "x"}], pictures, "s")
    with pytest.raises(ConfigError, match="not the user's"):
        chat_sample([{"role": "user", "content": "x"}, {"role": "assistant", "content": "The"}], pictures, "s")


@pytest.mark.usefixtures("harness")
def test_questions_about_one_image_share_its_encoding(folder: str) -> None:
    """lmms-eval reads the document, and so the image, anew for each question."""
    model, seen = adapter("Simple", folder), list[int]()
    model.model.encoders[0].register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    requests = [simple(0) for _ in range(6)] + [simple(3)]
    for one in requests:
        one.args = (*one.args[:2], lambda document: [image.copy() for image in document["images"]], *one.args[3:])
    assert texts(model.generate_until(requests)) == [wanted(model)[0]] * 6 + [wanted(model)[3]]
    assert sum(seen[:2]) == 2


def test_equal_pictures_are_one() -> None:
    pictures = Pictures(2)
    first, again, other = picture(1), picture(1), picture(2)
    assert pictures.one(first, "s") is first
    assert pictures.one(again, "s") is first
    assert pictures.one(other, "s") is other
    turned = picture(1)
    turned.info["exif"] = b"turned"
    assert pictures.one(turned, "s") is turned
    assert pictures.one(picture(1), "s") is not first  # two others came since
    grey = Image.new("P", (4, 4))
    assert pictures.one(grey, "s") is grey


@pytest.mark.usefixtures("harness")
def test_the_likeliest_choice_has_the_smallest_value(folder: str) -> None:
    """lmms-eval 0.7.3 takes the argmin over choices, and exp(-mean) of targets."""
    model = adapter("Simple", folder)
    choices = [request(0, "What is it?", f" {choice}", visuals) for choice in ("ship", "A", "a long sentence")]
    target = request(0, "What is it?", lambda document: "ship", visuals)
    values = texts(model.loglikelihood([*choices, target]))
    samples = [
        Sample([Turn("user", "What is it?"), Turn("assistant", choice)], [picture(1)])
        for choice in ("ship", "A", "a long sentence")
    ]
    likely = [likelihoods(model.model, [sample])[0].value for sample in samples]
    assert [value for value, _ in values] == pytest.approx([*(-one for one in likely), likely[0]], abs=1e-4)
    assert all(isinstance(greedy, bool) for _, greedy in values)
    with pytest.raises(ConfigError, match="acc_mutual_info"):
        list(model.loglikelihood([SimpleNamespace(args=("", "A"), task_name="t", doc_id=0)]))


@pytest.mark.usefixtures("harness")
def test_arguments_that_cannot_be_used(folder: str) -> None:
    for options, message in (
        ({"batch_size": "auto"}, "batch_size: `auto`; allowed: a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"on_error": "ignore"}, "on_error: `ignore`; allowed: stop, empty"),
        ({"identity": "id-0"}, f"identity: `id-0`; {folder} holds the model `id-[0-9a-f]{{16}}`"),
    ):
        with pytest.raises(ConfigError, match=message):
            adapter("Chat", folder, **options)
    with pytest.raises(ConfigError, match="holds no model"):
        adapter("Chat", folder + "-not")
    with pytest.raises(ConfigError, match="task t, document 0: questions in several rounds"):
        adapter("Chat", folder).generate_until_multi_round([chat(0)])


@pytest.mark.usefixtures("harness")
def test_weights_that_were_trained_on_are_another_model(folder: str) -> None:
    first = adapter("Chat", folder)
    named = f"id-{first.identity}"
    assert named in repr(adapter("Chat", folder, identity=named))
    with torch.no_grad():
        next(first.model.parameters()).add_(1.0)
    first.model.save(folder)
    with pytest.raises(ConfigError, match="identity"):
        adapter("Chat", folder, identity=named)
    assert repr(adapter("Chat", folder)) != repr(first)


def test_the_module_loads_without_lmms_eval() -> None:
    code = "import sys; sys.modules['lmms_eval'] = None; import vlm.eval.lmms.model as m; print(m.manifests.__name__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "manifests"
    with pytest.raises(AttributeError, match="no attribute 'Other'"):
        _ = lmms.Other


@pytest.mark.usefixtures("harness")
def test_the_manifest_names_classes_that_are_there() -> None:
    (manifest,) = ENTRY.load()()
    assert (manifest.model_id, manifest.aliases) == ("vlm_kit", ("vlm-kit",))
    for path, simple in ((manifest.chat_class_path, False), (manifest.simple_class_path, True)):
        found = EntryPoint("x", ":".join(path.rsplit(".", 1)), "x").load()
        assert issubclass(found, Base)
        assert found.is_simple is simple


def test_the_project_says_where_the_entry_point_is() -> None:
    import tomllib

    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared == {ENTRY.group: {ENTRY.name: ENTRY.value}}
    installed = [point for point in entry_points(group=ENTRY.group) if point.name == ENTRY.name]
    if not installed:
        pytest.skip("installed before the entry point was there; `pip install -e .` once more")
    assert installed[0].value == ENTRY.value
    assert installed[0].load() is lmms.manifests


def test_lmms_eval_itself_finds_the_model() -> None:
    models = pytest.importorskip("lmms_eval.models")
    from lmms_eval.api.model import lmms as base

    lmms._classes.cache_clear()
    assert "vlm_kit" in models.list_available_models()
    for force_simple in (False, True):
        found = models.get_model("vlm_kit", force_simple)
        assert issubclass(found, base)
        assert found.is_simple is force_simple
        assert not found.__abstractmethods__
