"""Every shipped task on a toy folder in the benchmark's official layout, against plain loops; and submission files."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.errors import ConfigError
from vlm.eval.submissions import FORMATS, Given
from vlm.eval.task import load_task, shipped_tasks
from vlm.images import open_image
from vlm.recipe import read_yaml

from .layouts import LAYOUTS, text_recognition_lmdb
from .layouts_vqa import Want, paint

OWN = {"handwriting", "words", "lines", "receipts", "receipts_json", "charts", "tables", "mine"}


def wanted(sample: Any, asked: Any) -> Want:
    images = ["drawn" if isinstance(image, Image.Image) else image for image in sample.images]
    return Want(
        sample.id,
        asked.turns[-1].text,
        images,
        list(sample.answers),
        sample.category,
        list(sample.choices),
        sample.group,
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_task_reads_the_official_layout(name: str, tmp_path: Path) -> None:
    wants = LAYOUTS[name](tmp_path)
    task = load_task(name, data=str(tmp_path))
    source = task.open()
    found = [wanted(source[index], task.ask(source[index])) for index in range(len(source))]
    assert len(found) == len(wants) > 0
    for have, want in zip(found, wants, strict=True):
        if task.name in ("cord", "funsd"):  # their prompts are long, and the kit's own
            assert have.prompt.startswith(want.prompt)
            assert have.prompt == task.prompt
            want = want._replace(prompt=have.prompt)
        if want.category == "letters":
            want = want._replace(images=["drawn"])
        assert have == want
    assert source.missing_images() == []
    for index in range(len(source)):
        assert all(open_image(image) for image in source[index].images)
    assert task.hidden == all(not want.answers for want in wants)


def test_every_shipped_task_has_a_layout_here() -> None:
    with_files = {
        name
        for name in shipped_tasks()
        if load_task(name).on_hub() and "$DATA" in str(read_yaml(shipped_tasks()[name]))
    }
    assert with_files - {"mine"} <= {name.split("@")[0].split(":")[0] for name in LAYOUTS} | {"refcoco_plus"}


def test_lmdb(tmp_path: Path) -> None:
    folder = tmp_path / "SVT"
    wants = text_recognition_lmdb(folder)
    source = load_task("text_recognition", data=str(folder)).open()
    assert [(s.id, list(s.images), list(s.answers), s.category) for s in (source[0], source[1])] == [
        (want.id, want.images, want.answers, want.category) for want in wants
    ]
    several = load_task("text_recognition", data=str(tmp_path)).open()
    assert [several[index].category for index in range(2)] == ["SVT", "SVT"]


def test_letters_cover_the_texts_of_a_diagram(tmp_path: Path) -> None:
    LAYOUTS["ai2d"](tmp_path)
    source = load_task("ai2d", data=str(tmp_path)).open()
    plain, lettered = (open_image(source[index].images[0]) for index in (0, 1))
    assert plain.size == lettered.size
    changed = [(x, y) for x in range(80) for y in range(60) if plain.getpixel((x, y)) != lettered.getpixel((x, y))]
    assert changed
    assert all(10 <= x <= 40 and 10 <= y <= 30 for x, y in changed)
    colours = {lettered.getpixel(place) for place in changed}
    assert (25, 249, 255) in colours
    assert min(map(sum, colours)) < 200  # type: ignore[arg-type]


def test_splits_and_prompts_have_names(tmp_path: Path) -> None:
    task = load_task("textvqa@test:ocr", data=str(tmp_path))
    assert (task.name, task.split, task.variant, task.hidden) == ("textvqa@test", "test", "ocr", True)
    with pytest.raises(ConfigError, match=r"unknown split of task `textvqa` `tset`; did you mean `test`"):
        load_task("textvqa@tset")
    with pytest.raises(ConfigError, match=r"unknown prompt of task `textvqa` `orc`; did you mean `ocr`"):
        load_task("textvqa:orc")
    assert load_task("vqav2@test-dev").hub is None
    assert load_task("vqav2").on_hub().source.name == "hub"


@pytest.mark.parametrize("name", sorted(set(shipped_tasks()) - OWN))
def test_shipped_tasks_are_whole(name: str) -> None:
    task = load_task(name, data="somewhere")
    for variant in ["default", *task.prompts]:
        for split in ["", *task.splits]:
            load_task(name + (f"@{split}" if split else "") + f":{variant}", data="somewhere")
    assert task.split or name == "text_recognition"
    assert not task.submission or task.submission in FORMATS
    for part in ["", *task.splits]:
        beside = [item for item in task.published if item.split in ((part, "") if part else ("", task.split))]
        assert not beside or load_task(f"{name}@{part}" if part else name).size, "scores stand beside any number"
    for item in task.published:
        assert item.prompt in ("default", "own", *task.prompts), item
        assert item.split in ("", *task.splits), item


def test_submission_files() -> None:
    rows = [Given("12", "a.jpg", "Two, I think?"), Given("13", "b.jpg", "the dog's\n")]
    assert FORMATS["vqa"](rows) == [
        {"question_id": 12, "answer": "2 i think"},
        {"question_id": 13, "answer": "dog 's"},
    ]
    assert FORMATS["vizwiz"](rows) == [
        {"image": "a.jpg", "answer": "2 i think"},
        {"image": "b.jpg", "answer": "dog 's"},
    ]
    assert FORMATS["docvqa"](rows) == [
        {"questionId": 12, "answer": "Two, I think?"},
        {"questionId": 13, "answer": "the dog's"},
    ]
    assert FORMATS["stvqa"](rows)[0] == {"question_id": 12, "answer": "Two, I think?"}
    with pytest.raises(ConfigError, match="question 12 has two answers"):
        FORMATS["vqa"]([*rows, rows[0]])
    with pytest.raises(ConfigError, match="`x-1` is no number"):
        FORMATS["docvqa"]([Given("x-1", "", "a")])


def test_a_hidden_split_gives_a_submission(tmp_path: Path) -> None:
    LAYOUTS["vizwiz@test"](tmp_path)
    task = load_task("vizwiz@test", data=str(tmp_path))
    sample = task.open()[0]
    given = Given(sample.id, Path(str(sample.images[0])).name, "Green tea.")
    assert FORMATS[task.submission]([given]) == [{"image": "VizWiz_test_00000000.jpg", "answer": "green tea"}]


def test_the_task_in_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf8")
    (tmp_path / "signs.yaml").write_text(re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0])
    asked = [
        {"qid": 1, "text": "What?", "lang": "en", "photo": 7, "place": "the church"},
        {"qid": 2, "text": "Quoi?", "lang": "fr", "photo": 8, "place": None},
        {"qid": 3, "text": "Was?", "lang": "de", "photo": 9, "place": ""},
    ]
    for name in ("centre", "suburbs"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": {"questions": asked}}))
    (tmp_path / "answers.csv").write_text("question,answer\n1,STOP\n3,HALT\n1,stop\n")
    paint(tmp_path / "photos/000007.jpg")
    task = load_task(f"{tmp_path / 'signs.yaml'}", data=str(tmp_path))
    source = task.open()
    found = [wanted(source[index], task.ask(source[index])) for index in range(len(source))]
    photo = str(tmp_path / "photos/000007.jpg")
    end = "\nAnswer with the text of the sign."
    assert found[0] == Want("centre-1", f"Near the church.\nWhat?{end}", [photo], ["STOP", "stop"], "en")
    assert [want.id for want in found] == ["centre-1", "centre-3", "suburbs-1", "suburbs-3"]
    assert found[1].prompt == f"Was?{end}"
    assert source.missing_images() == [str(tmp_path / "photos/000009.jpg")]


def test_the_docs_name_every_task() -> None:
    page = (Path(__file__).parents[2] / "docs/tasks.md").read_text(encoding="utf8")
    for name in shipped_tasks():
        task = load_task(name)
        line = next(line for line in page.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"| {task.max_new_tokens} |" in line, name
        assert f"`{task.metric}`" in line, name
        assert all(f"`{split}`" in line for split in task.splits), name
        assert name == "mmbench" or all(f"`{prompt}`" in line for prompt in task.prompts) or name == "refcocog", name
