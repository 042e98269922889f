"""Tasks: the shipped ones, your own, and what is said about bad ones."""

from pathlib import Path

import pytest

from vlm.data import DataError
from vlm.errors import ConfigError
from vlm.eval.metrics import METRICS
from vlm.eval.task import load_task, references, shipped_tasks
from vlm.sample import Sample, Turn

GOOD = 'name: signs\nversion: 2\nsource: {name: json, path: x.json}\nmetric: anls\nprompt: "Read. {question}"\n'


def write(folder: Path, text: str) -> str:
    path = folder / "task.yaml"
    path.write_text(text, encoding="utf8")
    return str(path)


@pytest.mark.parametrize("name", shipped_tasks())
def test_shipped_tasks_load(name: str) -> None:
    task = load_task(name, data="some.json")
    assert task.name == name
    assert task.description
    assert task.metric in METRICS
    assert not task.needs_data


def test_handwriting_covers_all_kinds_evenly() -> None:
    source = load_task("handwriting").open()
    categories = [source[index].category for index in range(len(source))]
    counts = {category: categories.count(category) for category in categories}
    assert len(source) == 2100
    assert len(counts) == 7
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mine_wants_data(mine: str) -> None:
    assert load_task("mine").needs_data
    with pytest.raises(ConfigError, match="--data PATH"):
        load_task("mine").open()
    assert len(load_task("mine", data=mine).open()) == 6
    with pytest.raises(ConfigError, match=r"source\.path: `nowhere\.json` is not a file"):
        load_task("mine", data="nowhere.json").open()


def test_a_task_from_outside(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert (task.name, task.version, task.metric, task.max_new_tokens) == ("signs", 2, "anls", 64)
    assert task.source.options == {"path": "x.json"}


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean `handwriting`\? allowed: .*handwriting.*, mine"):
        load_task("handwritting")


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    bad = """
name: a/b
versoin: 1
source: {name: json, pth: x.json}
metric: anlz
prompt: no place
max_new_tokens: "many"
"""
    with pytest.raises(ConfigError) as caught:
        load_task(write(tmp_path, bad))
    found = {problem.place: problem.message for problem in caught.value.problems}
    assert set(found) == {
        "name",
        "version",
        "versoin",
        "source.path",
        "source.pth",
        "metric",
        "prompt",
        "max_new_tokens",
    }
    assert "did you mean `version`?" in found["versoin"]
    assert "did you mean `path`?" in found["source.pth"]
    assert "did you mean `anls`?" in found["metric"]
    assert "{question}" in found["prompt"]
    assert "many" in found["max_new_tokens"]
    assert "task.yaml" in str(caught.value)


def test_unknown_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.name: unknown data source `jsn`; did you mean `json`"):
        load_task(write(tmp_path, GOOD.replace("name: json", "name: jsn")))


@pytest.mark.parametrize("text", ["", "- a\n", "name: [\n", "name: a\nname: b\n"])
def test_no_yaml_mapping(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"task\.yaml"):
        load_task(write(tmp_path, text))


def test_the_prompt_goes_around_the_question(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    talk = [Turn("system", "Be brief."), Turn("user", "<image> What?"), Turn("assistant", "That.")]
    asked = task.ask(Sample(talk, ["a.png"], id="s", category="c"))
    assert list(asked.turns) == [Turn("system", "Be brief."), Turn("user", "Read. <image> What?")]
    assert (asked.id, asked.category, asked.images) == ("s", "c", ["a.png"])
    assert asked.answers == ("That.",)


def test_references() -> None:
    talk = [Turn("user", "What?"), Turn("assistant", "That.")]
    assert references(Sample(talk)) == ("That.",)
    assert references(Sample(talk, answers=["this", "that"])) == ("this", "that")
    assert references(Sample(talk[:1])) == ()


def test_a_sample_that_asks_nothing() -> None:
    with pytest.raises(DataError, match="asks nothing"):
        load_task("mine").ask(Sample([Turn("assistant", "hello")]))
