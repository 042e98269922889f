"""Rows of JSON and JSONL: the documented forms, and that nothing in a row is passed over or made up."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from vlm.data import DataError, JsonSource
from vlm.errors import ConfigError
from vlm.sample import IMAGE_MARK, Turn


def source(folder: Path, *rows: Any, name: str = "rows.jsonl") -> JsonSource:
    path = folder / name
    text = json.dumps(list(rows)) if name.endswith(".json") else "\n".join(map(json.dumps, rows)) + "\n"
    path.write_text(text, encoding="utf-8-sig")  # with the mark that some editors write
    return JsonSource(path=str(path))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_documented_forms(tmp_path: Path, name: str) -> None:
    llava = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    rows = source(
        tmp_path,
        {"id": "a", "image": "a.jpg", "conversations": llava},
        {"image": "b.jpg", "question": "How many?", "answer": 3, "category": "count"},
        {"images": ["b.jpg", "c.jpg"], "question": "Same?", "answers": ["yes", "y"]},
        {"image": "d.jpg", "caption": "A mat."},
        {"messages": messages},
        {"image": "e.jpg", "question": "What is it?"},
        name=name,
    )
    samples = [rows[index] for index in range(len(rows))]
    assert [len(sample.images) for sample in samples] == [1, 1, 2, 1, 0, 1]
    assert samples[0].images == [str(tmp_path / "a.jpg")]
    assert [sample.id for sample in samples[:2]] == ["a", f"{name}:2"]
    assert samples[0].turns == [Turn("user", "<image>\nWhat?"), Turn("assistant", "A cat.")]
    assert samples[1].turns[1] == Turn("assistant", "3")
    assert (samples[1].category, samples[2].answers) == ("count", ["yes", "y"])
    assert samples[3].turns == [Turn("user", IMAGE_MARK), Turn("assistant", "A mat.")]
    assert samples[5].turns == [Turn("user", "What is it?")]
    assert samples[5].answers == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "answer": None}, "answer is text, not None"),
        ({"image": "a", "caption": None}, "caption is text, not None"),
        ({"question": "q", "answers": "yes"}, "`answers` is a list, not 'yes'"),
        ({"question": "q", "answer": "a", "answers": ["b"]}, "`answer` and `answers` are both there"),
        ({"image": "a", "images": ["b"], "question": "q"}, "`image` and `images` are both there"),
        ({"image": 3, "question": "q"}, "an image is a path, not 3"),
        ({"image": "", "question": "q"}, "an image is a path, not ''"),
        ({"image": "a", "caption": "c", "question": "q"}, "this one has question, caption"),
        ({"image": "a"}, "this one has none"),
        ({"imgaes": ["a"], "question": "q"}, "`imgaes`: did you mean `images`"),
        ({"question": "q", "targets": 3}, "`targets` is lists of class numbers by field, not 3"),
        ({"conversations": "hello"}, "`conversations` is a list of turns, not 'hello'"),
        ({"conversations": ["hello"]}, "a turn is an object, not 'hello'"),
        ({"conversations": [{"from": "cat", "value": "m"}]}, "speaker `cat`; allowed: human"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "a turn's text is text, not"),
        ([1], "a row is an object, not list"),
    ],
)
def test_wrong_rows_are_named_with_file_and_row(tmp_path: Path, row: Any, message: str) -> None:
    rows = source(tmp_path, {"question": "fine"}, row)
    assert rows[0].turns
    with pytest.raises(DataError) as caught:
        rows[1]
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}, row 2 (line 2): ")
    assert message in str(caught.value)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    for name, text, message in (
        ("a.json", "{}", "not a list"),
        ("b.json", "[1", "is no JSON, line 1"),
        ("c.jsonl", "\n", "no sample"),
        ("d.csv", "image,question\n", "is of another kind; allowed: a .json or .jsonl file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=message):
            JsonSource(path=str(tmp_path / name))
    with pytest.raises(ConfigError, match="is not a file"):
        JsonSource(path=str(tmp_path / "gone.json"))


def test_jsonl_is_read_by_offset(tmp_path: Path) -> None:
    """Blank lines and characters of several bytes do not shift the rows."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "é世🙂"}\n\n   \n{"question": "two"}\n{"question": "three"}', encoding="utf8")
    rows = JsonSource(path=str(path))
    assert [rows[index].turns[0].text for index in (2, 0, 1)] == ["three", "é世🙂", "two"]


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_images_anywhere_in_all_forms(tmp_path: Path, name: str, images: int) -> None:
    """Marks stay where the row has them, in any turn of either speaker; without marks, images are only listed."""
    marks = [IMAGE_MARK] * images + [""] * 3
    files = [f"{number}.jpg" for number in range(images)]
    said = talk(f"a{marks[0]}b", f"c{marks[1]}", f"{marks[2]}d?", "e")
    parts = [{"type": "text", "text": "x "}, *[{"type": "image"}] * images, {"type": "text", "text": "?"}]
    rows = source(
        tmp_path,
        {"images": files, "conversations": said},
        {"image": files, "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "y"}]},
        {"images": files, "question": f"{'<image> and '.join(['', *[''] * images])}now?", "answer": "z"},
        {"images": files, "question": "none marked?", "answer": "z"},
        {"images": files, "caption": "w"},
        name=name,
    )
    found = [rows[index] for index in range(5)]
    assert all(sample.images == [str(tmp_path / file) for file in files] for sample in found)
    assert [turn.text for turn in found[0].turns] == [item["value"] for item in said]
    assert found[1].turns == [Turn("user", f"x {IMAGE_MARK * images}?"), Turn("assistant", "y")]
    assert found[2].turns[0].text.count(IMAGE_MARK) == images
    assert found[3].turns[0].text == "none marked?"
    assert found[4].turns == [Turn("user", IMAGE_MARK * max(1, images)), Turn("assistant", "w")]


@pytest.mark.parametrize("part", [{"type": "image", "image": "a.jpg"}, {"type": "video"}, "text", {"text": "a"}])
def test_parts_of_a_turn_that_would_be_lost(tmp_path: Path, part: Any) -> None:
    rows = source(tmp_path, {"messages": [{"role": "user", "content": [part]}]})
    with pytest.raises(DataError, match="a part of a turn is"):
        rows[0]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_rows_cost_no_memory(tmp_path: Path, name: str) -> None:
    text = "x" * 5000
    path = source(tmp_path, *[{"question": text, "answer": str(number)} for number in range(2000)], name=name).path
    tracemalloc.start()
    rows = JsonSource(path=str(path))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 2000
    assert rows[1234].answers == ["1234"]
    assert held < 2000 * 100  # 10 MB of text


def test_json_by_offset_names_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('\ufeff[{"question": "é世"},\n\n {"question": 5, "answer":\n null}, {"question": "three"}]', "utf8")
    rows = JsonSource(path=str(path))
    assert [rows[index].turns[0].text for index in (2, 0)] == ["three", "é世"]
    with pytest.raises(DataError, match=r"row 2 \(line 3\): answer is text, not None"):
        rows[1]
