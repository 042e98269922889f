"""Text recognition: pictures of a word or line with their texts, in folders or LMDB files."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem

from .fields import Fields
from .records import TableSource
from .tables import CsvTable, Row, Table

LABELS = "gt.txt"
DATABASE = "data.mdb"


class TextLines(TableSource):
    """Pictures and their texts, as deep-text-recognition-benchmark has them (arXiv 1904.01906): a folder with a file
    `gt.txt` of lines `picture<TAB>text`, an LMDB folder (keys `num-samples`, `image-%09d`, `label-%09d`, from 1), or a
    folder of such folders at any depth, whose names are then the categories.

    Args:
        path: the folder.
    """

    def __init__(self, *, path: str) -> None:
        tables = [_table(folder, Path(path)) for folder in _folders(Path(path))]
        if not tables:
            raise ConfigError(Problem("path", f"`{path}` has neither {LABELS} nor {DATABASE}, nor has a folder in it"))
        fields = Fields(id="{$file}/{name}", answers="label", image="image", category="$file")
        super().__init__(tables, fields)


class _LabelTable(CsvTable):
    """Lines `picture<TAB>text`; the picture is named from the file's folder."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, label, ("name", "label"))

    def _named(self, values: list[str]) -> Row:
        row = dict(zip(self._columns, values, strict=True))  # `nan` and the like are texts here
        return {**row, "image": str(self.path.parent / row["name"])}


class _LmdbTable(Table):
    """An LMDB folder."""

    def __init__(self, folder: Path, label: str) -> None:
        super().__init__(folder, label)
        with self._open() as get:
            count = get("num-samples")
        if count is None or not count.isdigit():
            raise ConfigError(Problem("path", f"`{folder}` is no LMDB of text pictures: it has no key num-samples"))
        self._count = int(count)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """A function that looks a key up. The file is opened anew each time, so that processes may share the table."""
        try:
            import lmdb
        except ImportError as error:
            raise ConfigError(Problem("path", "LMDB files need the package `lmdb`: pip install lmdb")) from error
        try:
            with lmdb.open(str(self.path), readonly=True, lock=False, readahead=False) as file, file.begin() as reading:
                yield lambda key: reading.get(key.encode())
        except lmdb.Error as error:
            raise ConfigError(Problem("path", f"`{self.path}` is no LMDB: {error}")) from error

    def __len__(self) -> int:
        return self._count

    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        yield from (self._full(index, {"name": self._name(index)}) for index in range(self._count))

    def row(self, index: int) -> Row:
        name = self._name(index)
        with self._open() as get:
            label, image = get(f"label-{name}"), get(f"image-{name}")
        if label is None or image is None:
            raise ValueError(f"the key {'label' if label is None else 'image'}-{name} is missing")
        return self._full(index, {"name": name, "label": label.decode(), "image": bytes(image)})

    def _name(self, index: int) -> str:
        return f"{index + 1:09d}"


def _folders(path: Path) -> list[Path]:
    found = {file.parent for name in (LABELS, DATABASE) for file in path.rglob(name)}
    return sorted(found)


def _table(folder: Path, root: Path) -> Table:
    label = folder.relative_to(root).as_posix() if folder != root else folder.name
    return _LmdbTable(folder, label) if (folder / DATABASE).is_file() else _LabelTable(folder / LABELS, label)
