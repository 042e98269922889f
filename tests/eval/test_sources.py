"""The sources with a form of their own, and the hub's: on local files, and on bad ones."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from vlm.data import DataError
from vlm.errors import ConfigError
from vlm.eval.sources.fields import Fields
from vlm.eval.sources.folders import Ai2d, Funsd, Mme
from vlm.eval.sources.hub import Hub, HubJoin
from vlm.eval.sources.refcoco import RefCoco
from vlm.eval.sources.text_lines import TextLines
from vlm.images import open_image

from .layouts import ai2d, funsd, mme, refcoco, text_recognition, text_recognition_lmdb
from .layouts_vqa import dump, paint, png
from .test_records import faults


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def data_set(folder: Path, **configs: list[dict[str, Any]]) -> str:
    """A local data set with a split `test` of each configuration."""
    listed = []
    for name, rows in configs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        table = pyarrow.Table.from_pylist(rows)
        features = {key: {"_type": "Image"} for key in rows[0] if key == "image"}
        if features:
            others = {key: {"dtype": "string", "_type": "Value"} for key in rows[0] if isinstance(rows[0][key], str)}
            numbers = {key: {"dtype": "int64", "_type": "Value"} for key in rows[0] if isinstance(rows[0][key], int)}
            if set(features) | set(others) | set(numbers) == set(rows[0]):
                info = {"info": {"features": {**others, **numbers, **features}}}
                table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        parquet.write_table(table, folder / name / "test-00000.parquet")
        listed.append(f"- config_name: {name}\n  data_files: [{{split: test, path: '{name}/test-*.parquet'}}]")
    (folder / "README.md").write_text("---\nconfigs:\n" + "\n".join(listed) + "\n---\n")
    return str(folder)


@pytest.mark.usefixtures("cache")
def test_a_local_data_set(tmp_path: Path) -> None:
    rows = [
        {"id": number, "question": f"what {number}?", "answer": "x", "image": {"bytes": png(), "path": "a.png"}}
        for number in (1, 2, 2)
    ]
    path = data_set(tmp_path / "set", default=rows)
    fields = Fields(id="id", question="question", answers="answer", image="image", category="$file")
    source = Hub(path=path, split="test", sample=fields)
    assert len(source) == 3
    sample = source[1]
    assert (sample.id, sample.turns[0].text, sample.answers, sample.category) == ("2", "what 2?", ["x"], "test")
    assert sample.images == [png()]  # not decoded before somebody looks
    assert open_image(sample.images[0]).size == (8, 6)
    assert faults(source) == {2: f"{path}, test, row 3: id 2 stands twice, first in row 2"}
    assert source.missing_images() == []
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


@pytest.mark.usefixtures("cache")
def test_configurations_are_joined_and_lists_are_each_a_sample(tmp_path: Path) -> None:
    asked = [{"id": "q1", "imageId": "n1", "answer": ["left man", "man"], "bbox": [2.0, 3.0, 4.0, 3.0]}]
    asked += [{**asked[0], "id": "q2", "imageId": "n9"}]
    pictures = [{"id": name, "image": {"bytes": png(), "path": None}} for name in ("n0", "n1")]
    path = data_set(tmp_path / "set", questions=asked, pictures=pictures)
    fields = Fields(id="{id}-{$item}", question="answer", box="bbox", image="image")
    join = HubJoin(config="pictures", by="imageId", key="id")
    source = Hub(path=path, config="questions", split="test", join=(join,), each=("answer",), sample=fields)
    assert len(source) == 4
    assert (source[1].id, source[1].turns[0].text) == ("q1-2", "man")
    assert json.loads(source[1].answers[0]) == [2 / 8, 3 / 6, 6 / 8, 6 / 6]
    assert source[1].images == [png()]
    assert [message.partition(": ")[2] for message in faults(source).values()] == [
        f"no row of {path} (pictures), test has id n9"
    ] * 2


@pytest.mark.usefixtures("cache")
def test_texts_that_mean_nothing(tmp_path: Path) -> None:
    rows = [{"q": "?", "hint": "nan", "A": "x", "B": "y", "C": "nan", "answer": "B"}]
    rows += [{**rows[0], "hint": "look", "C": "z"}]
    path = data_set(tmp_path / "set", default=rows)
    fields = {"question": "q", "choices": ("A", "B", "C"), "answers": "answer", "texts": {"hint": "{hint}\n"}}
    source = Hub(path=path, split="test", sample=Fields(**fields, missing=("nan",)))
    assert [(source[index].choices, source[index].fields["hint"]) for index in (0, 1)] == [
        (["x", "y"], ""),
        (["x", "y", "z"], "look\n"),
    ]


@pytest.mark.usefixtures("cache")
def test_data_sets_that_cannot_be_loaded(tmp_path: Path) -> None:
    path = data_set(tmp_path / "set", default=[{"q": "?"}])
    with pytest.raises(ConfigError, match="another format: `question` is missing; its keys: q"):
        Hub(path=path, split="test", sample=Fields(question="question"))
    with pytest.raises(ConfigError, match=r"path: `.*`, split `val` cannot be loaded: .* give --data PATH instead"):
        Hub(path=path, split="val", sample=Fields(question="q"))
    with pytest.raises(ConfigError, match=r"`no/such-set`, configuration `en`, split `test` cannot be loaded"):
        Hub(path="no/such-set", config="en", split="test", sample=Fields(question="q"))


def test_mme_names_file_and_line(tmp_path: Path) -> None:
    mme(tmp_path)
    path = tmp_path / "color/0001.txt"
    path.write_bytes(b"Is it?\tYes\nIs it not? No\nIs it?\tMaybe\nCaf\xe9?\tYes\n")
    (tmp_path / "color/0001.png").unlink()
    found = faults(source := Mme(folder=str(tmp_path)))
    assert found == {
        5: f"{path}, row 6 (line 2): a line is a question, a tab, and Yes or No, not `Is it not? No`",
        6: f"{path}, row 7 (line 3): a line is a question, a tab, and Yes or No, not `Is it?\tMaybe`",
        7: f"{path}, row 8 (line 4): is no UTF-8: invalid continuation byte",
    }
    assert source.missing_images() == [str(tmp_path / "color/0001.jpg")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no subtask"):
        Mme(folder=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="folder: `nowhere` is no folder"):
        Mme(folder="nowhere")


def test_ai2d_on_bad_files(tmp_path: Path) -> None:
    ai2d(tmp_path)
    (tmp_path / "questions/2.png.json").write_text("{")
    dump(tmp_path / "questions/10.png.json", {"imageName": "10.png", "questions": ["a"]})
    (tmp_path / "annotations/0.png.json").unlink()
    found = faults(Ai2d(folder=str(tmp_path)))
    assert list(found) == [1, 2, 3]
    assert "the letters of `0.png` are not known: " in found[1]
    assert found[2].startswith(f"{tmp_path / 'questions/2.png.json'}, row 3: ")
    assert "`questions` is no mapping of questions to objects" in found[3]
    (tmp_path / "ids.csv").write_text("99\n")
    with pytest.raises(ConfigError, match=r"test: `.*ids.csv` names none of the images"):
        Ai2d(folder=str(tmp_path), test=str(tmp_path / "ids.csv"))
    with pytest.raises(ConfigError, match=r"has no questions/\*\.json"):
        Ai2d(folder=str(tmp_path / "images"))


def test_funsd_on_bad_files(tmp_path: Path) -> None:
    funsd(tmp_path)
    dump(tmp_path / "annotations/9000.json", {"forms": []})
    dump(tmp_path / "annotations/9001.json", {"form": [{"label": "other", "text": "x"}]})
    dump(tmp_path / "annotations/9002.json", {"form": [{"label": "answer"}]})
    found = faults(Funsd(folder=str(tmp_path)))
    assert [message.partition(": ")[2] for message in found.values()] == [
        "'form' is missing",
        "it has no header, question or answer",
        "'text' is missing",
    ]
    with pytest.raises(ConfigError, match="has no annotations"):
        Funsd(folder=str(tmp_path / "images"))


def test_lines_of_text_on_bad_files(tmp_path: Path) -> None:
    text_recognition(tmp_path)
    (tmp_path / "CUTE80/gt.txt").write_text("word_1.png\tOK\nno tab\nword_3.png\t\nword_1.png\tOK\n")
    source = TextLines(path=str(tmp_path / "CUTE80"))
    path = tmp_path / "CUTE80/gt.txt"
    assert faults(source) == {
        1: f"{path}, row 2 (line 2): 1 values where there are 2 columns (name, label)",
        2: f"{path}, row 3 (line 3): there is no answer: `label` is empty",
        3: f"{path}, row 4 (line 4): id CUTE80/word_1.png stands twice, first in row 1",
    }
    assert source.missing_images() == [str(tmp_path / "CUTE80/word_3.png")]
    with pytest.raises(ConfigError, match=r"has neither gt\.txt nor data\.mdb"):
        TextLines(path=str(tmp_path / "CUTE80/sub"))


def test_lmdb_on_bad_files(tmp_path: Path) -> None:
    import lmdb

    text_recognition_lmdb(tmp_path / "a")
    with lmdb.open(str(tmp_path / "a")) as file, file.begin(write=True) as writing:
        writing.delete(b"label-%09d" % 2)
    source = TextLines(path=str(tmp_path / "a"))
    assert faults(source) == {1: f"{tmp_path / 'a'}, row 2: the key label-000000002 is missing"}
    assert pickle.loads(pickle.dumps(source))[0] == source[0]
    with lmdb.open(str(tmp_path / "a")) as file, file.begin(write=True) as writing:
        writing.delete(b"num-samples")
    with pytest.raises(ConfigError, match="has no key num-samples"):
        TextLines(path=str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/data.mdb").write_bytes(b"x" * 9000)
    with pytest.raises(ConfigError, match="is no LMDB"):
        TextLines(path=str(tmp_path / "b"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def region_source(folder: Path, **options: Any) -> RefCoco:
    images = folder / "images/mscoco/images/train2014"
    return RefCoco(folder=str(folder / "refcoco"), images=str(images), **options)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    refcoco(tmp_path)
    path = tmp_path / "refcoco/refs(unc).p"
    target = tmp_path / "made"
    bad = [{"split": "val", "sentences": [Malicious(target)]}]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(bad, protocol=protocol))
        with pytest.raises(ConfigError, match=r"is refused: it asks for (posix|nt)\.mkdir; a file of phrases has"):
            region_source(tmp_path)
    assert not target.exists()
    pickle.loads(path.read_bytes())  # what an ordinary reader would have done
    assert target.exists()
    for content in (pickle.dumps(sys.modules["os"].path.join), b"cos\nsystem\n(S'true'\ntR.", b"c__main__\nx\n."):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is refused: it asks for"):
            region_source(tmp_path)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    refcoco(tmp_path)
    path = tmp_path / "refcoco/refs(unc).p"
    wanted = [region_source(tmp_path)[index] for index in range(4)]
    content = path.read_bytes().replace(b"X\x05\x00\x00\x00split", b"U\x05split")  # as Python 2 writes its `str`
    path.write_bytes(content.replace(b"X\x04\x00\x00\x00sent", b"U\x04sent"))
    assert b"U\x05split" in path.read_bytes()
    assert [region_source(tmp_path)[index] for index in range(4)] == wanted


def test_regions_on_bad_files(tmp_path: Path) -> None:
    refcoco(tmp_path)
    folder = tmp_path / "refcoco"
    with pytest.raises(ConfigError, match=r"split: `.*` has no split `test`; allowed: train, val"):
        region_source(tmp_path, split="test")
    with pytest.raises(ConfigError, match=r"`.*refs\(google\)\.p` cannot be read"):
        region_source(tmp_path, by="google")
    dump(folder / "instances.json", {"annotations": [], "images": [{"id": 58, "width": 80, "height": 40}]})
    found = faults(region_source(tmp_path))
    assert list(found) == [0, 1, 2, 3]
    assert "instances.json has no annotation 100, which region 0 is in" in found[0]
    dump(folder / "instances.json", {"boxes": []})
    with pytest.raises(ConfigError, match="has nothing under `annotations`; its keys: boxes"):
        region_source(tmp_path)
    (folder / "refs(unc).p").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="holds no list of regions"):
        region_source(tmp_path)
    (folder / "refs(unc).p").write_bytes(b"\x80\x02]q\x00")
    with pytest.raises(ConfigError, match="is no pickle of phrases"):
        region_source(tmp_path)


def test_a_picture_that_is_not_there_keeps_its_path(tmp_path: Path) -> None:
    ai2d(tmp_path)
    (tmp_path / "images/0.png").unlink()
    source = Ai2d(folder=str(tmp_path), test=str(tmp_path / "ai2d_test_ids.csv"))
    assert source.missing_images() == [str(tmp_path / "images/0.png")]
    assert [source[index].images for index in (0, 1)] == [[str(tmp_path / "images/0.png")]] * 2
    paint(tmp_path / "images/0.png", (80, 60))
    dump(tmp_path / "annotations/0.png.json", {"text": {"T": {"rectangle": [1]}}})
    with pytest.raises(DataError, match="the letters of"):
        source[1]
