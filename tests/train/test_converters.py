"""Annotation files in their official layouts -> rows that the kit's own sources read; nothing dropped in silence."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.conftest import picture
from vlm.cli import app
from vlm.data import JsonSource
from vlm.errors import ConfigError
from vlm.images import open_image
from vlm.train.converters.convert import cause, convert
from vlm.train.converters.forms import Files
from vlm.train.sources.tars import Tars


def image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def told(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_readable(path: Path) -> None:
    source = JsonSource(path=str(path))
    for sample in source:
        assert open_image(sample.images[0]).size == (48, 40)
        assert sample.turns[-1].role == "assistant"
    assert source.missing_images() == []


def test_vqav2(tmp_path: Path) -> None:
    """Ten people's answers: the most frequent one is learned, all are kept."""
    said = [["red", "blue", "blue", "dark blue", "blue"], ["2"] * 5, ["yes", "no", "no", "yes"]]
    questions = [{"image_id": 9 + n, "question": f"Q{n}?", "question_id": 90 + n} for n in range(3)]
    answers = [
        {"question_id": 90 + n, "image_id": 9 + n, "answers": [{"answer": one, "answer_id": 1} for one in said[n]]}
        for n in range(3)
    ]
    asked = told(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    told(tmp_path / "v2_mscoco_train2014_annotations.json", {"annotations": answers})
    for n in range(3):
        image(tmp_path / f"train2014/COCO_train2014_{9 + n:012d}.jpg", n)
    files = Files(asked, answers=tmp_path / "v2_mscoco_train2014_annotations.json")
    found = convert("vqav2", files, tmp_path / "out.jsonl", prompt="{question}\nBriefly.")
    assert (found.written, found.faults) == (3, [])
    made = rows(tmp_path / "out.jsonl")
    assert made[0] == {
        "id": "90",
        "question": "Q0?\nBriefly.",
        "answers": ["blue", "blue", "blue", "red", "dark blue"],
        "image": "train2014/COCO_train2014_000000000009.jpg",
    }
    assert made[2]["answers"] == ["yes", "yes", "no", "no"]  # a tie: the first given
    check_readable(tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="answers: is missing"):
        convert("vqav2", Files(asked), tmp_path / "out.jsonl")


def test_coco_captions_are_a_row_each(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 6, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 5, "caption": "A cat."},
            {"id": 2, "image_id": 6, "caption": "A dog."},
            {"id": 3, "image_id": 5, "caption": "It sits."},
            {"id": 4, "image_id": 7, "caption": "Nobody's."},
        ],
    }
    data = told(tmp_path / "annotations/captions_train2017.json", content)
    image(tmp_path / "train2017/a.jpg")
    image(tmp_path / "train2017/b.jpg")
    found = convert("coco", Files(data), tmp_path / "out.jsonl")
    assert [(row["id"], row["caption"], row["image"]) for row in rows(tmp_path / "out.jsonl")] == [
        ("1", "A cat.", "train2017/a.jpg"),
        ("2", "A dog.", "train2017/b.jpg"),
        ("3", "It sits.", "train2017/a.jpg"),
    ]
    assert len(found.faults) == 1
    assert "row 4" in found.faults[0]
    assert "no row of" in found.faults[0]
    check_readable(tmp_path / "out.jsonl")


def test_textvqa_docvqa_and_chartqa(tmp_path: Path) -> None:
    text = {"data": [{"question_id": 1, "image_id": "ab", "question": "Q?", "answers": ["x", "y", "y"]}]}
    document = {"data": [{"questionId": 7, "question": "Q?", "image": "documents/p_1.png", "answers": ["z"]}]}
    chart = [{"imgname": "c.png", "query": "Q?", "label": "42"}, {"imgname": "c.png", "query": "R?", "label": 3}]
    image(tmp_path / "train_images/ab.jpg")
    image(tmp_path / "documents/p_1.png")
    image(tmp_path / "png/c.png")
    for form, name, content, wanted in (
        ("textvqa", "TextVQA_0.5.1_train.json", text, [("1", ["y", "y", "x"], "train_images/ab.jpg")]),
        ("docvqa", "train_v1.0.json", document, [("7", "z", "documents/p_1.png")]),
        (
            "chartqa",
            "train_human.json",
            chart,
            [("train_human-1", "42", "png/c.png"), ("train_human-2", "3", "png/c.png")],
        ),
    ):
        out = tmp_path / f"{form}.jsonl"
        convert(form, Files(told(tmp_path / name, content)), out)
        assert [(row["id"], row.get("answers", row.get("answer")), row["image"]) for row in rows(out)] == wanted
        check_readable(out)


def test_class_folders(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/deep/2.jpg", "cat/10.png"):
        image(tmp_path / "data" / name)
    image(tmp_path / "data/loose.png")
    told(tmp_path / "data/dog/readme.txt", "no image")
    told(tmp_path / "data/cat/broken.png", "no image")
    told(tmp_path / "data/cat/.hidden", "passed over")
    found = convert("folder", Files(tmp_path / "data"), tmp_path / "out.jsonl", question="Which animal?")
    assert [(row["image"], row["question"], row["answer"]) for row in rows(tmp_path / "out.jsonl")] == [
        ("data/cat/1.png", "Which animal?", "cat"),
        ("data/cat/10.png", "Which animal?", "cat"),
        ("data/dog/deep/2.jpg", "Which animal?", "dog"),
    ]
    assert len(found.faults) == 3
    assert (tmp_path / "out.jsonl.faults.txt").read_text().splitlines() == found.faults
    for part in ("loose.png: it lies in no class folder", "readme.txt: `.txt` is no kind", "broken.png: "):
        assert any(part in fault for fault in found.faults)
    check_readable(tmp_path / "out.jsonl")


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_tables_of_labels_and_shards(tmp_path: Path, kind: str) -> None:
    items = [{"name": f"{n}.png", "class": f"kind {n % 2}"} for n in range(5)] + [{"name": "gone.png", "class": "x"}]
    text = {
        "csv": "name,class\n" + "".join(f"{item['name']},{item['class']}\n" for item in items),
        "json": json.dumps(items),
        "jsonl": "".join(json.dumps(item) + "\n" for item in items),
    }[kind]
    data = told(tmp_path / f"labels.{kind}", text)
    for n in range(5):
        image(tmp_path / f"{n}.png", n)
    files = Files(data, columns=("name", "class"))
    convert("labels", files, tmp_path / "out.jsonl")
    found = convert("labels", files, tmp_path / "out.tar", shard_size=2)
    assert found.written == 5
    assert "gone.png" in found.faults[0]
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [f"out-{n:06d}.tar" for n in range(3)]
    plain, tars = JsonSource(path=str(tmp_path / "out.jsonl")), Tars(path=str(tmp_path / "out-{000000..000002}.tar"))
    assert len(plain) == len(tars) == 5
    for n, (one, other) in enumerate(zip(plain, tars, strict=True)):
        assert (one.turns, one.id) == (other.turns, other.id)
        assert other.images == [(tmp_path / f"{n}.png").read_bytes()]
    with pytest.raises(ConfigError, match="is there already"):
        convert("labels", files, tmp_path / "out.tar", shard_size=2)
    with tarfile.open(tmp_path / "out-000000.tar") as archive:
        assert archive.getnames() == ["000000000.png", "000000000.json", "000000001.png", "000000001.json"]


def test_faults_are_counted_by_cause(tmp_path: Path) -> None:
    data = [
        {"questionId": n, "question": "Q?", "image": f"{n}.png", "answers": ["a"] if n % 3 else []} for n in range(9)
    ]
    for n in range(9):
        if n % 3 == 1:
            image(tmp_path / f"{n}.png")
    found = convert("docvqa", Files(told(tmp_path / "train_v1.0.json", {"data": data})), tmp_path / "out.jsonl")
    assert found.written == 3
    assert sorted(found.causes.values()) == [3, 3]
    assert found.causes.total() + found.written == 9
    assert len(set(found.faults)) == 6
    assert cause("/a/b.json, row 12 (line 3): no row of /c/d.json has question_id 7") == (
        "no row of … has question_id …"
    )


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    row = {"questionId": 1, "question": "Q", "image": "x", "answers": ["a"]}
    data = told(tmp_path / "train_v1.0.json", {"data": [row]})
    out = tmp_path / "out.jsonl"
    for form, files, options, message in (
        ("docvq", Files(data), {}, "did you mean `docvqa`"),
        ("docvqa", Files(tmp_path / "none.json"), {}, "there is no"),
        ("docvqa", Files(data, answers=data), {}, "in the same file"),
        ("docvqa", Files(data), {"shard_size": 5}, "shard-size"),
        ("docvqa", Files(data), {"prompt": "no place"}, "prompt"),
        ("docvqa", Files(data), {}, "none of 1 rows can be used"),
        ("docvqa", Files(data, images=tmp_path / "no"), {}, "images: there is no folder"),
        ("coco", Files(data), {}, "does not say of which part"),
        ("chartqa", Files(data, images=tmp_path), {}, "a row is an object, not list"),
        ("folder", Files(data), {}, "no class folders"),
    ):
        with pytest.raises(ConfigError, match=message):
            convert(form, files, out, **options)
        assert not list(tmp_path.glob("out*"))


def test_the_command(tmp_path: Path) -> None:
    image(tmp_path / "data/cat/1.png")
    told(tmp_path / "data/cat/2.txt", "")
    words = ["convert", "folder", str(tmp_path / "data"), str(tmp_path / "out.jsonl"), "--question", "Which?"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "1 rows: " in result.output
    assert "1 cannot be used: `.txt` is no kind of image" in result.output
    assert rows(tmp_path / "out.jsonl")[0]["question"] == "Which?"
    assert CliRunner().invoke(app, [*words[:1], "foldr", *words[2:]]).exit_code == 2
