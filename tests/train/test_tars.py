"""Tar shards: the same samples as the files that went in, any damage named with shard and stem."""

import io
import json
import os
import pickle
import random
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import picture
from vlm.data import DataError, JsonSource
from vlm.errors import ConfigError
from vlm.images import open_image
from vlm.sample import IMAGE_MARK, Turn
from vlm.train.sources import tar_index
from vlm.train.sources.shards import expanded, find_shards
from vlm.train.sources.tar_index import open_index
from vlm.train.sources.tars import Tars


def jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    picture(seed).save(stream, "JPEG")
    return stream.getvalue()


def shard(
    path: Path, files: Iterable[tuple[str, bytes | dict[str, Any] | str]], format: int = tarfile.PAX_FORMAT
) -> Path:
    with tarfile.open(path, "w", format=format) as archive:
        for name, content in files:
            text = json.dumps(content) if isinstance(content, dict) else content
            data = text.encode() if isinstance(text, str) else text
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def talk(text: str, **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "Yes."}], **more}


def pairs(count: int, first: int = 0) -> list[tuple[str, Any]]:
    return [
        item
        for number in range(first, first + count)
        for item in ((f"{number:03}.jpg", jpeg(number)), (f"{number:03}.json", talk(f"<image>{number}")))
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_the_files_that_went_in(tmp_path: Path, format: int) -> None:
    """The reference: tarfile reading every member."""
    long = "a/" * 40 + "x" * 60 if format == tarfile.USTAR_FORMAT else "a/" * 90 + "é" * 90
    files: list[tuple[str, Any]] = [
        *pairs(2),
        ("cap.webp", jpeg(7)),
        ("cap.txt", " A mat.\n"),
        ("cap.npz", b"\x00" * 700),
        (f"{long}.json", talk("no image")),
        ("two.10.jpg", jpeg(10)),
        ("two.2.jpg", jpeg(2)),
        ("two.json", {"question": "a <image> b <image>?", "answer": "c", "id": "q7"}),
        ("._two.jpg", b"of another system"),
    ]
    path = shard(tmp_path / "a.tar", files, format)
    with tarfile.open(path) as archive:
        held = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    source = Tars(path=str(path))
    order = list(range(len(source)))
    random.Random(0).shuffle(order)
    found = {index: source[index] for index in order}
    assert [found[index].images for index in range(5)] == [
        [held["000.jpg"]],
        [held["001.jpg"]],
        [held["cap.webp"]],
        [],
        [held["two.2.jpg"], held["two.10.jpg"]],
    ]
    assert found[0].turns == [Turn("user", "<image>0"), Turn("assistant", "Yes.")]
    assert found[2].turns == [Turn("user", IMAGE_MARK), Turn("assistant", "A mat.")]
    assert [found[0].id, found[3].id, found[4].id] == [f"{path}:000", f"{path}:{long}", "q7"]
    assert open_image(found[1].images[0]).size == (48, 40)


def test_index_reads_headers_alone_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.tar", [("a.jpg", os.urandom(3_000_000)), ("a.txt", "x"), *pairs(3)])
    read: list[int] = []
    opened = tar_index.opened_system

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            content = super().read(size)
            read.append(len(content))
            return content

    class System:
        def open(self, path: str, mode: str) -> io.FileIO:
            return Counting(path)

    monkeypatch.setattr(tar_index, "opened_system", lambda url: (System(), opened(url)[1]))
    first = open_index(str(path))
    assert 0 < sum(read) < 20_000
    read.clear()
    again = open_index(str(path))
    assert not read
    assert len(first) == len(again) == 4
    assert [again.members(n) for n in range(4)] == [first.members(n) for n in range(4)]
    shard(path, pairs(5))  # another version of the shard
    assert len(open_index(str(path))) == 5
    assert read
    index = Path(f"{path}.index")
    index.write_bytes(index.read_bytes()[:-7])  # killed while it was copied
    assert len(open_index(str(path))) == 5
    own = tmp_path / "own"
    index.unlink()
    assert len(Tars(path=str(path), index=str(own))) == 5
    assert not index.exists()
    assert len(list(own.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard(tmp_path / "a.tar", pairs(2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path(f"{path}.index").mkdir()
    assert Tars(path=str(path))[1].images
    assert len(list((tmp_path / "cache/vlm-kit/tar").iterdir())) == 1
    monkeypatch.setattr(tar_index, "_write", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert Tars(path=str(path))[1].turns[0].text == "<image>1"


def test_bad_stems_are_named_and_others_read(tmp_path: Path) -> None:
    files = [
        ("good.jpg", jpeg(0)),
        ("good.txt", "fine"),
        ("mute.jpg", jpeg(1)),
        ("blind.txt", "A cat."),
        ("lost.json", talk("<image>?", image="lost.jpg")),
        ("many.json", talk("<image>?", images=["a.jpg", "b.jpg"])),
        ("many.jpg", jpeg(1)),
        ("broken.json", "{"),
        ("broken.jpg", jpeg(1)),
        ("twice.jpg", jpeg(1)),
        ("twice.txt", "one"),
        ("other.jpg", jpeg(1)),
        ("other.txt", "between"),
        ("twice.txt", "two"),
        ("void.jpg", jpeg(1)),
        ("void.txt", " \n"),
        ("form.json", {"question": "q", "answer": ["a"], "id": "f1"}),
    ]
    path = shard(tmp_path / "a.tar", files)
    source = Tars(path=str(path))
    faults, ids = {}, {}
    for index in range(len(source)):
        try:
            source[index]
        except DataError as error:
            faults[index], ids[index] = str(error), error.id
    wanted = {
        1: "`mute`: no text; its files: mute.jpg",
        2: "`blind`: no image; its files: blind.txt",
        3: "`lost`: no image; its files: lost.json",
        4: "`many`: it names 2 images, but its files are many.json, many.jpg",
        5: "`broken`: Expecting property name",
        6: "`twice`: `twice.txt` stands twice",
        8: "`void`: its caption is empty",
        9: "`form`: answer is text, not ['a']",
    }
    assert {index for index in ids if ids[index]} == {9}
    assert ids[9] == "f1"
    assert set(faults) == set(wanted)
    for index, text in wanted.items():
        assert faults[index].startswith(f"{path}, {text}"), faults[index]
    assert source[7].turns[1].text == "between"


def test_any_cut_is_named_and_all_before_it_read(tmp_path: Path) -> None:
    """Cut at every kind of place: in a header, in a file, between two stems, before the end mark."""
    files = pairs(3)
    path = shard(tmp_path / "a.tar", files)
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        end = archive.offset
    assert len(Tars(path=str(path))) == 3
    last = members[4]  # 002.jpg
    cuts = {
        last.offset_data + 10: ("002", "cut off inside `002.jpg`, at 10 of"),
        last.offset + 100: ("001", f"cut off or damaged at byte {last.offset}, behind `001.json`"),
        last.offset: ("001", f"cut off or damaged at byte {last.offset}, behind `001.json`"),
        members[5].offset: ("002", "behind `002.jpg`, whose stem may have lost files"),
        members[5].offset_data: ("002", "cut off inside `002.json`, at 0 of"),
        end: ("002", "behind `002.json`"),
    }
    for number, (cut, (stem, text)) in enumerate(cuts.items()):
        part = tmp_path / f"{number}.tar"
        part.write_bytes(whole[:cut])
        source = Tars(path=str(part))
        good = [source[index].turns[0].text for index in range(len(source) - 1)]
        assert good == [f"<image>{index}" for index in range(len(source) - 1)]
        with pytest.raises(DataError) as caught:
            source[len(source) - 1]
        assert str(caught.value).startswith(f"{part}, `{stem}`: the shard ")
        assert text in str(caught.value)
    damaged = bytearray(whole)
    damaged[last.offset + 5] ^= 255  # a header whose checksum is wrong
    (tmp_path / "d.tar").write_bytes(damaged)
    with pytest.raises(DataError, match=f"damaged at byte {last.offset}"):
        Tars(path=str(tmp_path / "d.tar"))[1]
    (tmp_path / "two.tar").write_bytes(whole + b"\0" * 30000 + whole)
    with pytest.raises(DataError, match="goes on for"):
        Tars(path=str(tmp_path / "two.tar"))[2]


def test_a_shard_cut_after_it_was_indexed(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", pairs(2))
    source = Tars(path=str(path))
    os.truncate(path, 600)
    with pytest.raises(DataError, match=r"`001`: the shard is cut off inside `001\.jpg`: it is shorter"):
        source[1]
    path.unlink()
    with pytest.raises(DataError, match=r"`000`: .*No such file"):
        source[0]


def test_what_is_no_shard(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("x" * 2000)
    (tmp_path / "empty.tar").write_bytes(b"")
    with tarfile.open(tmp_path / "packed.tar", "w:gz"):
        pass
    (tmp_path / "folder.tar").mkdir()
    shard(tmp_path / "none.tar", [])
    for name, message in (
        ("text.tar", "is no tar file"),
        ("empty.tar", "is no tar file"),
        ("packed.tar", "is compressed"),
        ("folder.tar", "is a folder"),
        ("none.tar", "hold"),
        ("gone-*.tar", "no file matches"),
        ("{0..1}.tar", "there is no shard `.*0.tar`.*\n.*1.tar"),
        ("{none,none}.tar", "stands twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            Tars(path=str(tmp_path / name))
    with pytest.raises(ConfigError, match="nosuch"):
        Tars(path="nosuch://bucket/a.tar")


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"`a.jpg` is a link"):
        Tars(path=str(path))[0]


def test_patterns_are_expanded_as_a_shell_does(tmp_path: Path) -> None:
    assert list(expanded("a{08..11}.tar")) == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert list(expanded("{a,b{1..2}}/{x,y}")) == ["a/x", "a/y", "b1/x", "b1/y", "b2/x", "b2/y"]
    assert list(expanded("{3..1}")) == ["3", "2", "1"]
    assert list(expanded("plain")) == ["plain"]
    for name in ("b", "a", "c"):
        shard(tmp_path / f"{name}.tar", pairs(1))
    assert find_shards([str(tmp_path / "*.tar")]) == [str(tmp_path / f"{name}.tar") for name in "abc"]


def test_shards_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for number in range(2):
        path = shard(tmp_path / f"s-{number}.tar", pairs(2, 2 * number))
        memory.pipe(f"/bucket/s-{number}.tar", path.read_bytes())
    for pattern in ("memory://bucket/s-{0..1}.tar", "memory://bucket/s-*.tar"):
        source = Tars(path=pattern)
        assert [source[index].turns[0].text for index in range(4)] == [f"<image>{n}" for n in range(4)]
        assert source[3].images == [jpeg(3)]
        with pytest.raises(DataError, match=r"^memory://.*/s-1.tar, `002`: seen$"):
            raise source.error(2, "seen")
    copy = pickle.loads(pickle.dumps(source))  # to a worker process
    assert copy[2].images == [jpeg(2)]
    assert len(Tars(path=f"file://{tmp_path}/s-0.tar")) == 2


def test_same_samples_as_from_jsonl(tmp_path: Path) -> None:
    rows = [talk(f"<image> {number}", image=f"{number}.jpg", id=f"n{number}") for number in range(3)]
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = shard(
        tmp_path / "a.tar",
        [item for n, row in enumerate(rows) for item in ((f"{n}.json", row), (f"{n}.jpg", jpeg(n)))],
    )
    plain, tar = JsonSource(path=str(tmp_path / "rows.jsonl")), Tars(path=str(path))
    for one, other in zip(plain, tar, strict=True):
        assert (one.turns, one.id, one.answers) == (other.turns, other.id, other.answers)
        assert open_image(one.images[0]).tobytes() == open_image(other.images[0]).tobytes()
