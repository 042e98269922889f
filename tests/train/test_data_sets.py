"""Data sets of the `datasets` library: any of their forms on disk, the usual columns, streams."""

import io
import pickle
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.conftest import picture
from vlm.data import DataError
from vlm.errors import ConfigError
from vlm.images import open_image
from vlm.sample import IMAGE_MARK, Turn
from vlm.train.sources.data_sets import Datasets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "PNG")
    return stream.getvalue()


def cauldron(count: int = 4) -> datasets.Dataset:
    """Rows as The Cauldron has them: several images, several turns, text alone."""
    rows = [
        {
            "images": [{"bytes": png(number + k), "path": None} for k in range(number % 3)],
            "texts": [{"user": f"Q{number}-{k}", "assistant": f"A{k}", "source": "x"} for k in range(2)],
        }
        for number in range(count)
    ]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List({name: datasets.Value("string") for name in ("user", "assistant", "source")}),
        }
    )
    return datasets.Dataset.from_list(rows, features=features)


def check(source: Datasets, count: int = 4) -> None:
    assert len(source) == count
    for index in sorted(range(count), key=lambda number: -number) if not source.ordered else range(count):
        sample = source[index]
        wanted = [
            Turn(role, text) for k in range(2) for role, text in (("user", f"Q{index}-{k}"), ("assistant", f"A{k}"))
        ]
        assert sample.turns == wanted
        assert [open_image(image).tobytes() for image in sample.images] == [
            picture(index + k).tobytes() for k in range(index % 3)
        ]


def test_every_form_on_disk(tmp_path: Path) -> None:
    data = cauldron()
    data.to_parquet(tmp_path / "all.parquet")
    (tmp_path / "parts").mkdir()
    data.select([0, 1]).to_parquet(tmp_path / "parts/train-0.parquet")
    data.select([2, 3]).to_parquet(tmp_path / "parts/train-1.parquet")
    data.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "splits")
    check(Datasets(path=str(tmp_path / "all.parquet")))
    check(Datasets(path=str(tmp_path / "parts/train-*.parquet")))
    check(Datasets(path=str(tmp_path / "parts")))
    check(Datasets(path=str(tmp_path / "saved")))
    check(Datasets(path=str(next((tmp_path / "saved").glob("*.arrow")))))
    check(Datasets(path=str(tmp_path / "splits")))
    check(Datasets(path=str(tmp_path / "splits"), split="test"), 1)
    check(pickle.loads(pickle.dumps(Datasets(path=str(tmp_path / "saved")))))  # to a worker process


def source(folder: Path, *rows: dict[str, Any], **options: Any) -> Datasets:
    datasets.Dataset.from_list(list(rows)).to_parquet(folder / "rows.parquet")
    return Datasets(path=str(folder / "rows.parquet"), **options)


def test_usual_columns(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]},
        {"image": None, "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "y"}]},
    )
    assert [found[index].images for index in range(2)] == [[str(tmp_path / "a.png")], []]
    assert found[1].turns == [Turn("user", "Hi"), Turn("assistant", "y")]
    assert found.missing_images() == [str(tmp_path / "a.png")]
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "z"}]}]
    found = source(tmp_path, {"images": [png(1)], "messages": said})
    assert found[0].turns == [Turn("user", f"{IMAGE_MARK}What?"), Turn("assistant", "z")]
    assert found[0].images == [png(1)]
    found = source(tmp_path, {"image": png(2), "caption": "A cat.", "license": 3, "id": "c1"})
    assert (found[0].turns[1].text, found[0].id) == ("A cat.", "c1")


def test_columns_of_other_names(tmp_path: Path) -> None:
    row = {"img": png(0), "query": "How many?", "label": ["3", "three"], "caption": "not used"}
    names = {"image": "img", "question": "query", "answers": "label", "caption": ""}
    found = source(tmp_path, row, columns=names)
    assert found[0].turns == [Turn("user", "How many?"), Turn("assistant", "3")]
    assert (found[0].answers, found[0].images) == (["3", "three"], [png(0)])


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"img": "a", "query": "q"}, {}, r"columns: one column .*none \(its columns: img, query\)"),
        ({"question": "q", "caption": "c"}, {}, "found: question, caption"),
        ({"question": "q"}, {"columns": {"image": "img"}}, r"columns\.image: `img` is no column; .*question"),
        ({"question": "q"}, {"columns": {"imag": "question"}}, "did you mean `image`"),
        ({"question": "q"}, {"count": 3}, "count: `3` is for `streaming: true`"),
        ({"question": "q"}, {"streaming": True, "count": 3}, "count: `3`, but there are 1 rows"),
    ],
)
def test_columns_that_do_not_fit(tmp_path: Path, row: Any, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(tmp_path, row, **options)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    found = source(tmp_path, {"image": png(0), "caption": "x"}, {"image": png(0), "caption": None})
    assert found[0].images
    with pytest.raises(DataError, match=r"rows\.parquet, train, row 2: a row has one of .* this one has none"):
        found[1]
    found = source(tmp_path, {"image": 3, "caption": "x", "id": "r1"})
    with pytest.raises(DataError, match="row 1: an image is bytes or a path, not '3'") as caught:
        found[0]
    assert caught.value.id == "r1"


def test_what_is_no_data_set(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": cauldron(1)}).save_to_disk(tmp_path / "splits")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    for options, message in (
        ({"path": f"{tmp_path}/none.parquet"}, "there is no file"),
        ({"path": f"{tmp_path}/*.parquet.gz"}, "no file matches"),
        ({"path": f"{tmp_path}/broken.parquet"}, "cannot be loaded"),
        ({"path": f"{tmp_path}/splits", "split": "trian"}, "did you mean `train`"),
        ({"path": f"{tmp_path}/splits", "streaming": True}, "mapped into memory as it is"),
        ({"path": "nobody/nothing-there"}, "`nobody/nothing-there`, split `train` cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=message):
            Datasets(**options)


def test_streams_go_forward(tmp_path: Path) -> None:
    cauldron(4).to_parquet(tmp_path / "all.parquet")
    path = str(tmp_path / "all.parquet")
    stream = Datasets(path=path, streaming=True)
    assert stream.ordered
    check(stream)
    check(stream)  # a second pass
    assert stream[1].turns[0].text == "Q1-0"
    assert stream[3].turns[0].text == "Q3-0"  # those between are read over: another worker has them
    assert stream[2].turns[0].text == "Q2-0"  # back: it starts again
    check(pickle.loads(pickle.dumps(stream)))
    assert len(Datasets(path=path, streaming=True, count=3)) == 3


def test_shuffled_streams_are_the_same_each_time(tmp_path: Path) -> None:
    cauldron(40).to_parquet(tmp_path / "all.parquet")
    path = str(tmp_path / "all.parquet")
    first = Datasets(path=path, streaming=True, shuffle=16)
    texts = [sample.turns[0].text for sample in first]
    assert sorted(texts) == sorted(f"Q{number}-0" for number in range(40))
    assert texts != [f"Q{number}-0" for number in range(40)]
    later = Datasets(path=path, streaming=True, shuffle=16)
    assert [later[index].turns[0].text for index in range(25, 40)] == texts[25:]  # a run that goes on
