"""Sources of rows on bad input: each mistake is named with its file and place, and counts as a sample that is none."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from vlm.data import DataError, JsonSource, Source
from vlm.errors import ConfigError
from vlm.eval.questions import read_questions
from vlm.eval.sources.fields import Fields
from vlm.eval.sources.records import Join, Records
from vlm.eval.task import load_task

FIELDS = {"id": "id", "question": "q", "answers": "a"}


def rows(folder: Path, content: Any, name: str = "rows.json", **options: Any) -> Records:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return Records(files=str(path), sample=Fields(**{**FIELDS, **options.pop("sample", {})}), **options)


def faults(source: Source) -> dict[int, str]:
    found = {}
    for index in range(len(source)):
        try:
            source[index]
        except DataError as error:
            found[index] = str(error)
    return found


def row(number: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "q": f"what {number}?", "a": "that", **more}


def test_ids_that_stand_twice_or_lack(tmp_path: Path) -> None:
    source = rows(tmp_path, [row(17), row(3), {"q": "?", "a": "x"}, row(17), row(None), row(4)])
    path = tmp_path / "rows.json"
    assert len(source) == 6
    assert faults(source) == {
        2: f"{path}, row 3 (line 12): `id` is missing; its keys: q, a",
        3: f"{path}, row 4 (line 16): id 17 stands twice, first in row 1",
        4: f"{path}, row 5 (line 21): it has no id: `id` is empty",
    }
    lines = path.read_text().splitlines()
    assert [lines[number - 1] for number in (12, 16, 21)] == [" {"] * 3
    assert source[5].id == "4"


def test_ids_of_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps([row(1), row(name)]))
    files = {"one": str(tmp_path / "a.json"), "two": str(tmp_path / "b.json")}
    found = faults(Records(files=files, sample=Fields(**FIELDS)))
    assert found == {
        2: f"{tmp_path / 'b.json'}, row 1 (line 1): id 1 stands twice, first in row 1 of {tmp_path / 'a.json'}"
    }
    assert not faults(Records(files=files, sample=Fields(**{**FIELDS, "id": "{$file}-{id}"})))
    unnamed = Records(files=files, sample=Fields(question="q", answers="a"))
    assert [unnamed[index].id for index in range(4)] == ["one-1", "one-2", "two-1", "two-2"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(2, a=""), "there is no answer: `a` is empty"),
        (row(2, a=[]), "there is no answer: `a` is empty"),
        (row(2, a=["", " "]), "there is no answer: `a` is empty"),
        (row(2, a=None), "there is no answer: `a` is empty"),
        (row(2, a=float("nan")), "there is no answer: `a` is empty"),
        (row(2, a=["x", float("nan")]), "NaN is no text"),
        (row(2, a={"total": float("nan")}), "NaN is no text"),
        (row(2, q=float("nan")), "`q` is empty"),
        (row(2, q=None), "`q` is empty"),
        ({"id": 2, "a": "x"}, "`q` is missing; its keys: id, a"),
        ("text", "a row is an object, not str"),
        ([1], "a row is an object, not list"),
    ],
)
def test_values_that_are_none(bad: Any, message: str, tmp_path: Path) -> None:
    source = rows(tmp_path, [row(1), bad])
    assert source[0].answers == ["that"]
    assert list(faults(source)) == [1]
    assert message in faults(source)[1]
    assert f"{tmp_path / 'rows.json'}, row 2 (line 7): " in faults(source)[1]


def test_one_empty_answer_of_several_stays(tmp_path: Path) -> None:
    assert rows(tmp_path, [row(1, a=["x", "", "y"])])[0].answers == ["x", "", "y"]


def test_lines_of_json(tmp_path: Path) -> None:
    text = f"{json.dumps(row(1))}\n\n{{broken\n{json.dumps(row(1))}\n"
    found = faults(rows(tmp_path, text, "rows.jsonl"))
    assert list(found) == [1, 2]
    assert found[1].startswith(f"{tmp_path / 'rows.jsonl'}, row 2 (line 3): is no JSON: ")
    assert found[2] == f"{tmp_path / 'rows.jsonl'}, row 3 (line 4): id 1 stands twice, first in row 1"


def test_values_between_commas(tmp_path: Path) -> None:
    text = '\ufeffid,q,a\r\n1,"two\nlines, and ""quotes""",x\r\n2,nan,y\r\n3,what?,NaN\r\n'
    text += "4,only two\r\n5,what?,banana\r\n1,q,z\r\n"
    source = rows(tmp_path, text, "rows.csv")
    assert source[0].turns[0].text == 'two\nlines, and "quotes"'
    assert source[4].answers == ["banana"]
    path = tmp_path / "rows.csv"
    assert faults(source) == {
        1: f"{path}, row 2 (line 4): `q` is empty",
        2: f"{path}, row 3 (line 5): there is no answer: `a` is empty",
        3: f"{path}, row 4 (line 6): 2 values where there are 3 columns (id, q, a)",
        5: f"{path}, row 6 (line 8): id 1 stands twice, first in row 1",
    }


def test_a_mapping_of_rows(tmp_path: Path) -> None:
    source = rows(tmp_path, {"x": {"q": "?", "a": "1"}, "y": {"q": "?", "a": ""}}, sample={"id": "$key"})
    assert source[0].id == "x"
    assert faults(source)[1].startswith(f"{tmp_path / 'rows.json'}, row 2 `y` (line 6): there is no answer")


def test_rows_without_or_with_two_partners(tmp_path: Path) -> None:
    answers = [{"id": 1, "a": "one"}, {"id": 3, "a": "x"}, {"id": 3, "a": "y"}, {"id": 9, "a": "z"}, "text", {"a": 1}]
    (tmp_path / "answers.json").write_text(json.dumps({"annotations": answers}))
    join = Join(files=str(tmp_path / "answers.json"), under="annotations", by="id")
    asked = [{"id": number, "q": "?"} for number in (1, 2, 3)]
    source = rows(tmp_path, asked, join=(join,))
    assert source[0].answers == ["one"]
    path = tmp_path / "answers.json"
    assert [message.partition(": ")[2] for message in faults(source).values()] == [
        f"no row of {path} has id 2",
        f"id 3 stands twice in {path}: row 2 and row 3",
    ]
    many = rows(tmp_path, asked, join=(join.model_copy(update={"many": "them"}),), sample={"answers": "them[].a"})
    assert many[2].answers == ["x", "y"]
    assert "no row of" in faults(many)[1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.json", '{"questions": [], "info": 1}', "has nothing under `data`; its keys: questions, info"),
        ("rows.json", "[1, 2]", "holds a list where an object with `data` is expected"),
        ("rows.json", '{"data": [{"id": 1, ]}', "is no JSON, line 1"),
        (
            "rows.json",
            '{"data": [{"id": 1, "question": "?"}]}',
            r"is of another format: `q` is missing; its keys: id, question",
        ),
        ("rows.json", '{"data": [{"qid": 1}, {"qid": 2}]}', "is of another format: `id` is missing; its keys: qid"),
        ("rows.csv", "a,b\n1,2\n", "is of another format: `id` is missing; its keys: a, b"),
        ("rows.jsonl", '{"b": 1}\n', "is of another format: `id` is missing; its keys: b"),
        ("rows.csv", b"a\n\xff\n", "is no table, line 2"),
        ("rows.csv", 'id,q,a\n1,?,x\n2,"?,y\n3,?,z\n', "is no table, line 3: a quote is opened and never closed"),
        ("rows.tsv", 'id\tq\ta\n1\t"?" so\tx\n', "is no table, line 2: a value goes on after its closing quote"),
        ("rows.parquet", "PAR?", "is no Parquet file"),
        ("rows.xlsx", "x", "allowed: .json, .jsonl, .csv, .tsv, .txt, .parquet"),
    ],
)
def test_a_file_of_another_format(name: str, text: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message) as caught:
        Records(files=str(path), under="data", sample=Fields(**FIELDS))
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"files: `.*/test\.json` is not there; `.*` has val\.json"):
        Records(files=str(tmp_path / "test.json"), sample=Fields(**FIELDS))
    with pytest.raises(ConfigError, match=r"files: nothing matches `.*/sub/\*\.json`; `.*` has val\.json"):
        Records(files=str(tmp_path / "sub/*.json"), sample=Fields(**FIELDS))
    with pytest.raises(ConfigError, match=r"join: `.*/a\.json` is not there"):
        rows(tmp_path, [row(1)], join=(Join(files=str(tmp_path / "a.json"), by="id"),))
    optional = Join(files=str(tmp_path / "a.json"), by="id", optional=True)
    assert len(rows(tmp_path, [row(1)], join=(optional,))) == 1


def test_choices(tmp_path: Path) -> None:
    sample = {"choices": ("A", "B", "C"), "answers": "a"}
    four = [
        row(1, A="x", B="y", C=None, a="B"),
        row(2, A="x", B="y", C="z", a="D"),
        row(3, A="x", B=None, C="z", a="A"),
        row(4, A=1, B=2.5, C="", a="y"),
    ]
    source = rows(tmp_path, four, sample=sample)
    assert (source[0].choices, source[0].answers) == (["x", "y"], ["B"])
    assert [message.partition(": ")[2] for message in faults(source).values()] == [
        "the answer `D` is none of the letters A, B, C",
        "choice B is empty",
        "the answer `y` is none of the letters A, B",
    ]
    numbers = [row(n, options=["x", "y"], a=a) for n, a in enumerate([1, "0", 2, None, True, -1, "B"])]
    source = rows(tmp_path, numbers, sample={"choices": "options", "correct": "a"})
    assert (source[0].answers, source[1].answers) == (["B"], ["A"])
    assert list(faults(source)) == [2, 3, 4, 5, 6]
    assert "`a` is 2; allowed: 0 to 1, the number of a choice" in faults(source)[2]


def test_each_item_is_a_sample(tmp_path: Path) -> None:
    two = [
        {"id": 1, "q": ["?", "!"], "a": ["x", ""]},
        {"id": 2, "q": ["?"], "a": ["x", "y"]},
        {"id": 3, "q": 1, "a": []},
    ]
    source = rows(tmp_path, two, each=("q", "a"), sample={"id": "{id}-{$item}"})
    assert len(source) == 4
    assert (source[0].id, source[0].turns[0].text, source[0].answers) == ("1-1", "?", ["x"])
    assert [message.partition(": ")[2] for message in faults(source).values()] == [
        "there is no answer: `a` is empty",
        "its lists differ in length: q has 1, a has 2",
        "`q` is no list",
    ]
    one_id = faults(rows(tmp_path, two[:1], each=("q", "a")))
    assert list(one_id.values()) == [f"{tmp_path / 'rows.json'}, row 1 (line 2): id 1 stands twice, first in row 1"]


def test_which_rows_are_asked(tmp_path: Path) -> None:
    three = [row(1, split="test", n=3), row(2, split="val", n=None), row(3, split="test", n=None)]
    assert len(rows(tmp_path, three, where={"split": "test"})) == 2
    assert len(rows(tmp_path, three, where={"split": ["val", "test"]})) == 3
    assert [rows(tmp_path, three, where={"split": "test", "n": "*"})[0].id] == ["1"]
    with pytest.raises(ConfigError, match="`splt` is missing"):
        rows(tmp_path, three, where={"splt": "test"})


def test_missing_images_are_found_without_opening_any(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/1.jpg").write_text("not opened")
    asked = [row(number, image=f"{number % 3}.jpg") for number in range(6)] + [row(9, image=None)]
    source = rows(tmp_path, asked, images=str(tmp_path / "img"), sample={"image": "image"})
    assert source.missing_images() == [str(tmp_path / "img/0.jpg"), str(tmp_path / "img/2.jpg")]
    assert source[0].images == [str(tmp_path / "img/0.jpg")]  # the path stays: whoever opens it says so
    assert faults(source)[6].endswith("there is no image: `image` is empty")
    nowhere = rows(tmp_path, asked, images=str(tmp_path / "none"), sample={"image": "{image}"})
    assert len(nowhere.missing_images()) == 3


def test_a_source_goes_to_other_processes(tmp_path: Path) -> None:
    source = rows(tmp_path, [row(1), row(1)])
    again = pickle.loads(pickle.dumps(source))
    assert (again[0], faults(again)) == (source[0], faults(source))


def test_boxes(tmp_path: Path) -> None:
    sample = {"answers": "", "box": "bbox", "size": ("w", "h"), "image": "image"}
    three = [
        row(1, bbox=[10, 5, 20, 10], w=40, h=20, image="x.png"),
        row(2, bbox=[10, 5, 0, 10], w=40, h=20, image="x.png"),
        row(3, bbox=[10, 5, 20], w=40, h=20, image="x.png"),
        row(4, bbox=[10, 5, 20, float("nan")], w=40, h=20, image="x.png"),
    ]
    source = rows(tmp_path, three, sample=sample)
    assert source[0].answers == ["[0.25, 0.25, 0.75, 0.75]"]
    assert list(faults(source)) == [1, 2, 3]
    assert "allowed: 4 numbers, width and height above 0" in faults(source)[1]


def test_mine_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    ones = [
        {"id": 1, "image": "a.png", "question": "?", "answer": "x"},
        {"id": 1, "image": "b.png", "question": "?", "answer": "x"},
        {"id": 2, "question": "?", "answers": ["", " "]},
        {"id": 3, "question": "?", "answer": float("nan")},
    ]
    path.write_text("\n" + "\n".join(map(json.dumps, ones)))
    (tmp_path / "b.png").write_text("x")
    assert faults_as_asked(path) == {
        1: f"{path}, row 2 (line 3): id `1` stands twice, first as sample 1",
        2: f"{path}, row 3 (line 4): there is no answer to compare with",
        3: f"{path}, row 4 (line 5): answer is nan, which is no text",
    }
    source = JsonSource(path=str(path))
    assert source.missing_images() == [str(tmp_path / "a.png")]
    assert list(faults(source)) == [3]
    (tmp_path / "mine.json").write_text(json.dumps(ones, indent=2))
    listed = faults_as_asked(tmp_path / "mine.json")
    assert listed[1].startswith(f"{tmp_path / 'mine.json'}, row 2 (line 8): id `1` stands twice")


def faults_as_asked(path: Path) -> dict[int, str]:
    """What is wrong with the rows of one's own, as an evaluation finds it."""
    task = load_task("mine", data=str(path))
    questions = read_questions(task, task.open(), model="", settings={})
    return {one.index: one.fault for one in questions if one.fault is not None}


def test_a_join_by_a_key_that_no_row_has(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(["text", {"qid": 1, "a": "x"}]))
    with pytest.raises(ConfigError, match=r"join: no row of `.*a\.json` has `id`; the first has qid, a"):
        rows(tmp_path, [row(1)], join=(Join(files=str(tmp_path / "a.json"), by="id"),))


def test_a_folder_of_images_that_no_sample_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sample: names no `image`, so that `images` .* would not be used"):
        rows(tmp_path, [row(1)], images=str(tmp_path))
