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
    assert not task.takes_data


def test_handwriting_covers_all_kinds_evenly() -> None:
    source = load_task("handwriting").open()
    categories = [source[index].category for index in range(len(source))]
    counts = {category: categories.count(category) for category in categories}
    assert len(source) == 2100
    assert len(counts) == 7
    assert max(counts.values()) - min(counts.values()) <= 1


def test_mine_wants_data(mine: str) -> None:
    assert load_task("mine").takes_data
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
prompt: "{question} {question}"
open_prompt: 'As {"total": 1}: {question'
splits: {val: {source: {files: x}}}
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
        "open_prompt",
        "max_new_tokens",
    }
    assert "did you mean `version`?" in found["versoin"]
    assert "did you mean `path`?" in found["source.pth"]
    assert "did you mean `anls`?" in found["metric"]
    assert "more than once" in found["prompt"]
    assert "`{question` lacks its closing brace" in found["open_prompt"]
    assert "many" in found["max_new_tokens"]
    assert "task.yaml" in str(caught.value)


def test_splits_change_the_source_key_by_key(tmp_path: Path) -> None:
    text = GOOD.replace("{name: json, path: x.json}", "{name: json, path: $DATA/a.json, images: $DATA/img}")
    split = "splits: {test: {hidden: true, source: {path: $DATA/b.json, images: null}}}\n"
    task = load_task(write(tmp_path, text + split) + "@test", data="d")
    assert (task.name, task.split, task.hidden) == ("signs@test", "test", True)
    assert task.source.options == {"path": "d/b.json"}
    assert load_task(write(tmp_path, text + split), data="d").source.options == {"path": "d/a.json", "images": "d/img"}
    with pytest.raises(ConfigError, match=r"splits\.test\.source\.pth: unknown option of JsonSource `pth`"):
        load_task(write(tmp_path, text + split.replace("images:", "pth:").replace("null", "x")))


def test_open_questions_have_a_prompt_of_their_own(tmp_path: Path) -> None:
    text = GOOD + 'open_prompt: "{question} In a word."\nprompts: {bare: "{question}"}\n'
    task = load_task(write(tmp_path, text.replace("Read. {question}", "{question}\\n{options}")))
    with_choices = Sample([Turn("user", "What?")], choices=["x", "y"])
    without = Sample([Turn("user", "What?")])
    assert task.ask(with_choices).turns[-1].text == "What?\nA. x\nB. y"
    assert task.ask(without).turns[-1].text == "What? In a word."
    assert load_task(write(tmp_path, text) + ":bare").ask(without).turns[-1].text == "What?"


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


def test_fields_and_choices_go_into_the_prompt(tmp_path: Path) -> None:
    template = '"{question}\\n{options}\\nHint: {hint}"'
    task = load_task(write(tmp_path, GOOD.replace('"Read. {question}"', template)))
    sample = Sample([Turn("user", "Which {hint}?")], choices=["red {question}", "blue"], fields={"hint": "look"})
    text = task.ask(sample).turns[-1].text
    assert text == "Which {hint}?\nA. red {question}\nB. blue\nHint: look"  # what was put in is not filled again
    with pytest.raises(DataError, match=r"needs \{hint\}; this sample has question"):
        task.ask(Sample([Turn("user", "Which?")], choices=["red"]))


def test_a_prompt_may_not_swallow_the_question(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD.replace("Read. {question}", "Describe the image.")))
    assert task.ask(Sample([Turn("user", "<image>")])).turns[-1].text == "Describe the image."
    with pytest.raises(DataError, match=r"has no \{question\}, but the sample asks `Why\?`"):
        task.ask(Sample([Turn("user", "Why?")]))


def test_prompts_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + 'prompts: {short: "{question} Be short."}\n')
    assert load_task(path).template == "Read. {question}"
    short = load_task(path + ":short")
    assert (short.label, short.template) == ("signs:short", "{question} Be short.")
    with pytest.raises(ConfigError, match=r"unknown prompt of task `signs` `shor`; did you mean `short`"):
        load_task(path + ":shor")


def test_data_goes_wherever_it_is_named(tmp_path: Path) -> None:
    text = GOOD.replace("path: x.json", "path: $DATA/x.json, images: $DATA/pictures")
    task = load_task(write(tmp_path, text), data="here")
    assert task.source.options == {"path": "here/x.json", "images": "here/pictures"}
    on_hub = load_task(write(tmp_path, text + "hub: {name: json, path: hub.json}\n"))
    assert on_hub.on_hub().source.options == {"path": "hub.json"}


def test_a_source_is_opened_once_and_not_carried_to_another_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(f'[{{"question": "Who is {name}?", "answer": "x"}}]')
    text = f"name: own\nversion: 1\nsource: {{name: json, path: {tmp_path}/a.json}}\nmetric: anls\n"
    task = load_task(write(tmp_path, text + f"splits: {{b: {{source: {{path: {tmp_path}/b.json}}}}}}\n"))
    assert task.open() is task.open()
    assert task.on_split("b").open()[0].turns[0].text == "Who is b?"
    assert task.open()[0].turns[0].text == "Who is a?"
