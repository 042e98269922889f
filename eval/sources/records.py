"""Annotation files of most benchmarks: rows of JSON, CSV or Parquet, of which some other program chose the keys."""

from abc import ABC
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlm.data import DataError, Source, absent
from vlm.errors import ConfigError, Problem
from vlm.images import ImageLike
from vlm.sample import Sample

from .field_paths import Missing, find, first_keys, is_nothing, is_template, render
from .fields import Fields
from .tables import Row, Table, open_tables

PRESENT = "*"
"""In `where`: any value but an empty one."""
Value = str | int | None
_PROBED = 20


class Join(BaseModel):
    """Further files whose rows belong to those of the first by a key: answers beside questions, captions of images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: str | tuple[str, ...]
    under: str = ""
    by: str
    """The first file's key."""
    key: str = ""
    """The same in these files; `by` if absent."""
    many: str = ""
    """Where several rows belong to one: the key under which they are, as a list; exactly one is due if empty."""
    optional: bool = False
    """The files may be absent, and rows may have no partner."""


class Joined:
    """The rows of a join by their key.

    Args:
        tables: not scanned yet.
        join: see there.
    """

    def __init__(self, tables: Sequence[Table], join: Join) -> None:
        self._tables, self._join = tables, join
        self._key = join.key or join.by
        self._places: dict[str, tuple[int, int]] = {}
        self._more: dict[str, list[tuple[int, int]]] = {}
        for number, table in enumerate(tables):
            for index, row in enumerate(table.scan({self._key})):
                self._note(row, (number, index))
        self._refuse_other_key()

    def _refuse_other_key(self) -> None:
        if self._places:
            return
        for table in self._tables:
            row = next((row for row in table.scan() if not isinstance(row, str)), None)
            if row is not None:
                has = ", ".join(key for key in row if not key.startswith("$"))
                raise ConfigError(f"no row of `{table.path}` has `{self._key}`; the first has {has}")

    def _note(self, row: Row | str, place: tuple[int, int]) -> None:
        if isinstance(row, str) or is_nothing(row.get(self._key)):
            return  # nobody's partner; a row that needed it will have none
        key = str(row[self._key])
        if self._places.setdefault(key, place) != place:
            self._more.setdefault(key, []).append(place)

    def partners(self, row: Row) -> Row:
        """What the join adds to a row of the first file.

        Raises:
            ValueError: none or several rows belong to it where one is due.
        """
        key = str(find(row, self._join.by))
        places = [self._places[key], *self._more.get(key, [])] if key in self._places else []
        if self._join.many and (places or self._join.optional):
            return {self._join.many: [self._tables[table].row(index) for table, index in places]}
        if not places and self._join.optional:
            return {}
        files = ", ".join(str(table.path) for table in self._tables)
        if not places:
            raise ValueError(f"no row of {files} has {self._key} {key}")
        if len(places) > 1:
            rows = " and ".join(f"row {index + 1}" for _, index in places[:2])
            raise ValueError(f"{self._key} {key} stands twice in {files}: {rows}")
        table, index = places[0]
        return self._tables[table].row(index)


class TableSource(Source, ABC):
    """Samples of rows. Opening reads all rows once, for their ids and places; a row is read again when it is asked for.

    A row that is no sample (a key is missing, its id stood before, it has no answer, ...) counts as a sample, and
    raises a `DataError` with its place when it is asked for.

    Args:
        tables: where the rows are.
        fields: how a row becomes a sample.
        images: what image paths start from; as they are if None.
        joins: what is added to a row by a key.
        where: path -> the value, or the values, that a row has to have; `*` for any. Others are left out.
        each: keys of lists of the same length: a row is as many samples as they have items.

    Raises:
        ConfigError: the files are of another format than `fields` are made for.
    """

    def __init__(
        self,
        tables: Sequence[Table],
        fields: Fields,
        *,
        images: Path | None = None,
        joins: Sequence[Joined] = (),
        where: Mapping[str, Value | Sequence[Value]] | None = None,
        each: Sequence[str] = (),
    ) -> None:
        self._tables, self._fields, self._images, self._joins = tables, fields, images, joins
        self._where = {path: _values(value) for path, value in (where or {}).items()}
        self._each = tuple(each)
        self._index = (array("l"), array("l"), array("l"))  # of each sample: table, row, item
        self._faults: dict[int, ValueError] = {}
        self._scan()
        self._probe()

    def __len__(self) -> int:
        return len(self._index[0])

    def __getitem__(self, index: int) -> Sample:
        number, row, item = (column[index] for column in self._index)
        table = self._tables[number]
        if index in self._faults:
            raise self.error(index, self._faults[index], self._id(table, row, item))
        try:
            return self._sample(self._item(table.row(row), item), self._name(table, row, item))
        except ValueError as error:
            raise self.error(index, error, self._id(table, row, item)) from error

    def error(self, index: int, message: object, id: str = "") -> DataError:
        number, row, _ = (column[index] for column in self._index)
        return self._tables[number].error(row, message, id)

    def _id(self, table: Table, row: int, item: int) -> str:
        """The id of a row that is no sample; empty where it has none."""
        with suppress(ValueError, LookupError, TypeError):
            return render(self._item(table.row(row), item), self._fields.id) if self._fields.id else ""
        return ""

    def missing_images(self) -> list[str]:
        return absent(path for path in self._image_paths() if path)

    def _sample(self, row: Row, name: str) -> Sample:
        for joined in self._joins:
            row = {**joined.partners(row), **row}
        return self._fields.sample(row, self._images, name=name)

    def _item(self, row: Row, item: int) -> Row:
        taken = {key: row[key][item] for key in self._each}
        return {**row, **taken, "$item": item + 1}

    def _name(self, table: Table, row: int, item: int) -> str:
        pieces = [table.label] * (len(self._tables) > 1) + [str(row + 1)] + [str(item + 1)] * bool(self._each)
        return "-".join(pieces)

    def _scan(self) -> None:
        """Note every sample's place, and what is wrong with those that can be told from their row alone."""
        first: dict[str, int] = {}
        keys = set().union(*map(first_keys, [self._fields.id, *self._where, *self._each]))
        for number, table in enumerate(self._tables):
            for row, values in enumerate(table.scan(keys)):
                for item, fault in self._items(values):
                    if fault is None and isinstance(values, dict):
                        fault = self._repeated(number, self._item(values, item), first)
                    if fault is not None:
                        self._faults[len(self)] = fault
                    for column, value in zip(self._index, (number, row, item), strict=True):
                        column.append(value)

    def _items(self, row: Row | str) -> Iterator[tuple[int, ValueError | None]]:
        """Each sample of a row, with what is wrong with it."""
        if isinstance(row, str):
            yield 0, ValueError(row)
            return
        try:
            if not all(_allowed(find(row, path), values) for path, values in self._where.items()):
                return
            count = _count(row, self._each)
        except ValueError as error:
            yield 0, error
            return
        yield from ((item, None) for item in range(count))

    def _repeated(self, number: int, row: Row, first: dict[str, int]) -> ValueError | None:
        """What is wrong with the id of the sample that is next; `first` has those of the others."""
        if not self._fields.id:
            return None
        try:
            name = render(row, self._fields.id)
        except Missing as error:
            return error
        except ValueError as error:
            return ValueError(f"it has no id: {error}")
        index = first.setdefault(name, len(self))
        if index == len(self):
            return None
        table, place = self._tables[self._index[0][index]], self._index[1][index]
        file = "" if table is self._tables[number] else f" of {table.path}"
        what = "id" if is_template(self._fields.id) else self._fields.id
        return ValueError(f"{what} {name} stands twice, first in row {place + 1}{file}")

    def _probe(self) -> None:
        """A file in which the first rows all lack a key is another file, not one with faulty rows."""
        fault: ValueError | None = None
        for index in range(min(len(self), _PROBED)):
            number, row, item = (column[index] for column in self._index)
            try:
                if index in self._faults:
                    raise self._faults[index]
                self._sample(self._item(self._tables[number].row(row), item), "")
            except Missing as error:
                fault = fault or error
            except ValueError:
                return
            else:
                return
        if fault is not None:
            path = self._tables[self._index[0][0]].path
            raise ConfigError(Problem("sample", f"`{path}` is of another format: {fault}")) from fault

    def _image_paths(self) -> Iterator[str]:
        if not self._has_paths():
            return
        index = 0
        for number, table in enumerate(self._tables):
            for row, values in enumerate(table.scan()):
                while index < len(self) and (self._index[0][index], self._index[1][index]) == (number, row):
                    if index not in self._faults and isinstance(values, dict):
                        yield from self._paths_of(values, index)
                    index += 1

    def _has_paths(self) -> bool:
        """Whether images are files; told by the first sample that can be read."""
        for index in range(len(self)):
            with suppress(DataError):
                return any(isinstance(image, str) for image in self[index].images)
        return False

    def _paths_of(self, row: Row, index: int) -> list[str]:
        images: Sequence[ImageLike] = ()
        try:
            images = self._fields.pictures(self._item(row, self._index[2][index]), self._images)
        except ValueError:  # the image may be in a joined row
            with suppress(DataError):
                images = self[index].images
        return [image for image in images if isinstance(image, str)]


class Records(TableSource):
    """Rows of JSON (`.json`, `.jsonl`), of values between commas or tabs (`.csv`, `.tsv`, `.txt`) or of Parquet files.

    Args:
        files: a path, a pattern such as `questions/*.json`, several, or label -> path; the label is `$file`.
        sample: which of a row's values is the question, which the answers, and so on.
        under: in JSON, the dotted keys that lead to the list or mapping of rows; `.` if each file is one row.
        columns: in files of values, the names of the columns; the first line has them if absent.
        join: files whose rows belong to these by a key.
        where: path -> the value that a row has to have, or a list of values; `*` for any. Others are left out.
        each: keys of lists of the same length: a row is as many samples as they have items.
        images: the folder that image paths start from; the first file's own if absent.

    Raises:
        ConfigError: the files are of another format, or an option has no use.
    """

    def __init__(
        self,
        *,
        files: str | list[str] | dict[str, str],
        sample: Fields,
        under: str = "",
        columns: tuple[str, ...] = (),
        join: tuple[Join, ...] = (),
        where: dict[str, Value | list[Value]] | None = None,
        each: tuple[str, ...] = (),
        images: str = "",
    ) -> None:
        if images and not sample.images():
            raise ConfigError(Problem("sample", f"names no `image`, so that `images` ({images}) would not be used"))
        try:
            tables = open_tables(files, under=under, columns=columns)
            folder = Path(images) if images else tables[0].path.parent
            joins = [joined for spec in join if (joined := _joined(spec)) is not None]
            super().__init__(tables, sample, images=folder, joins=joins, where=where, each=each)
        except ConfigError as error:
            raise error if error.problems[0].place else error.under("files") from error


def _joined(join: Join) -> Joined | None:
    files = join.files if isinstance(join.files, str) else list(join.files)
    try:
        tables = open_tables(files, under=join.under, columns=())
    except ConfigError as error:
        if join.optional:
            return None
        raise error.under("join") from error
    try:
        return Joined(tables, join)
    except ConfigError as error:
        raise error.under("join") from error


def _values(value: Value | Sequence[Value]) -> tuple[str, ...]:
    return tuple(map(str, value if isinstance(value, (list, tuple)) else [value]))


def _allowed(value: Any, values: tuple[str, ...]) -> bool:
    return (PRESENT in values and not is_nothing(value)) or str(value) in values


def _count(row: Row, each: Sequence[str]) -> int:
    lengths = {}
    for key in each:
        if key not in row:
            raise Missing(key, row)
        if not isinstance(row[key], list):
            raise ValueError(f"`{key}` is no list")
        lengths[key] = len(row[key])
    if len(set(lengths.values())) > 1:
        raise ValueError("its lists differ in length: " + ", ".join(f"{key} has {n}" for key, n in lengths.items()))
    return next(iter(lengths.values()), 1)
