"""Tables: rows of annotation files by number. Opening a file notes where its rows stand; each is read when used."""

import csv
import io
import json
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from vlm.data import DataError, data_error
from vlm.errors import ConfigError
from vlm.rows import Found, Span, json_rows, line_rows, read_span

Row = dict[str, Any]
"""A row's values; `$file` (its file's label), `$row` (its number there, from 1) and `$key` (in a mapping) are added."""
_LONGEST_LINE = 1 << 20
WHOLE = "."
"""As `under`: the file is one row."""


class Table(ABC):
    """The rows of one file. `scan` has to be run to its end before anything else is asked."""

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label = path, label

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        """Every row, in order; a text instead says what is wrong with that row.

        Args:
            keys: those that are needed, where reading them all costs much; all if None.

        Raises:
            ConfigError: the file is of another format.
        """

    @abstractmethod
    def row(self, index: int) -> Row:
        """Row number `index`, from 0.

        Raises:
            ValueError: it cannot be read.
        """

    def line(self, index: int) -> int | None:
        """Where the row begins in the file, from 1; None for a file without lines."""
        return None

    def key(self, index: int) -> str:
        """The row's key in a mapping."""
        return ""

    def error(self, index: int, message: object, id: str = "") -> DataError:
        """What is wrong with a row, with its place, and the id of the sample that it would be."""
        return data_error(self.path, message, row=index + 1, line=self.line(index), key=self.key(index), id=id)

    def _full(self, index: int, row: Any) -> Row:
        if not isinstance(row, dict):
            raise ValueError(f"a row is an object, not {type(row).__name__}")
        return {**row, "$file": self.label, "$row": index + 1, "$key": self.key(index)}

    def _checked(self, index: int, row: Any) -> Row | str:
        try:
            return self._full(index, row)
        except ValueError as error:
            return str(error)


class SpanTable(Table):
    """A file of which each row is a stretch of bytes."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, label)
        self._spans = (array("q"), array("q"), array("q"))
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._spans[0])

    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        for column in self._spans:
            del column[:]
        self._names.clear()
        for index, found in enumerate(self._found()):
            for column, value in zip(self._spans, (found.span.start, found.span.length, found.span.line), strict=True):
                column.append(value)
            if found.key is not None:
                self._names.append(found.key)
            yield found.fault or self._checked(index, found.value)

    @abstractmethod
    def _found(self) -> Iterator[Found]: ...

    def row(self, index: int) -> Row:
        return self._full(index, read_span(self.path, self._span(index)))

    def line(self, index: int) -> int:
        return self._span(index).line

    def key(self, index: int) -> str:
        return self._names[index] if self._names else ""

    def _span(self, index: int) -> Span:
        return Span(*(column[index] for column in self._spans))


class JsonTable(SpanTable):
    """A JSON file: the list, or the mapping, that it holds under some keys."""

    def __init__(self, path: Path, label: str, under: str = "") -> None:
        super().__init__(path, label)
        self._under = under

    def _found(self) -> Iterator[Found]:
        return json_rows(self.path, self._under)


class LinesTable(SpanTable):
    """A JSON lines file."""

    def _found(self) -> Iterator[Found]:
        return line_rows(self.path)


class CsvTable(SpanTable):
    """Values between commas (`.csv`) or tabs. An empty value and a bare `nan`, as pandas may write it, are None.

    Args:
        path: the file; in a `.txt` file quotes are part of a value, in the others they stand around it.
        label: see `Table`.
        columns: their names; the first line has them if absent.
    """

    def __init__(self, path: Path, label: str, columns: Sequence[str] = ()) -> None:
        super().__init__(path, label)
        self._columns = list(columns)
        self._format: dict[str, Any] = {
            "delimiter": "," if path.suffix == ".csv" else "\t",
            "quoting": csv.QUOTE_NONE if path.suffix == ".txt" else csv.QUOTE_MINIMAL,
            "strict": True,  # or a quote that is never closed takes all rows up to the next one into its value
        }
        csv.field_size_limit(sys.maxsize)  # pictures in base64 are longer than the module allows by default

    def _found(self) -> Iterator[Found]:
        columns = self._columns
        for span, values in self._records():
            if not columns:
                columns = self._columns = values
            elif len(values) != len(columns):
                fault = f"{len(values)} values where there are {len(columns)} columns ({', '.join(columns)})"
                yield Found(span, None, fault=fault)
            else:
                yield Found(span, self._named(values))

    def _records(self) -> Iterator[tuple[Span, list[str]]]:
        """Every record that is not blank, which may run over several lines."""
        counted = _Counted(self.path)
        start, line = 0, 1
        try:
            for values in csv.reader(counted, **self._format):
                if values:
                    yield Span(start, counted.bytes - start, line), values
                start, line = counted.bytes, counted.lines + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"`{self.path}` is no table, line {line}: {_told(error)}") from error

    def row(self, index: int) -> Row:
        span = self._span(index)
        with self.path.open("rb") as file:
            file.seek(span.start)
            text = file.read(span.length).decode("utf-8-sig")
        return self._full(index, self._named(next(csv.reader(io.StringIO(text, newline=""), **self._format))))

    def _named(self, values: list[str]) -> Row:
        return {
            name: None if value in ("", "nan", "NaN") else value
            for name, value in zip(self._columns, values, strict=True)
        }


def _told(error: Exception) -> str:
    """The csv module's two complaints about quotes in words that say what to do."""
    quotes = {
        "unexpected end of data": "a quote is opened and never closed",
        "',' expected after '\"'": "a value goes on after its closing quote; inside quotes, a quote is written twice",
        "'\t' expected after '\"'": "a value goes on after its closing quote; inside quotes, a quote is written twice",
    }
    return quotes.get(str(error), str(error))


class _Counted:
    """The lines of a file as text, counted."""

    def __init__(self, path: Path) -> None:
        self._path, self.bytes, self.lines = path, 0, 0

    def __iter__(self) -> Iterator[str]:
        with self._path.open("rb") as file:
            for line in file:
                self.bytes += len(line)
                self.lines += 1
                yield line.decode("utf-8-sig" if self.lines == 1 else "utf-8")


class ParquetTable(Table):
    """A Parquet file, read a group of rows at a time."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, label)
        self._starts = [0]
        self._group: tuple[int, list[Row]] = (-1, [])
        file = self._open()
        for group in range(file.num_row_groups):
            self._starts.append(self._starts[-1] + file.metadata.row_group(group).num_rows)

    def _open(self) -> Any:
        import pyarrow
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise ConfigError(f"`{self.path}` is no Parquet file: {error}") from error

    def __len__(self) -> int:
        return self._starts[-1]

    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        file = self._open()
        columns = None if keys is None else [name for name in file.schema_arrow.names if name in keys]
        for group, start in enumerate(self._starts[:-1]):
            rows = file.read_row_group(group, columns=columns).to_pylist()
            yield from (self._full(start + offset, row) for offset, row in enumerate(rows))

    def row(self, index: int) -> Row:
        group = next(number for number, end in enumerate(self._starts[1:]) if index < end)
        if self._group[0] != group:
            self._group = (group, self._open().read_row_group(group).to_pylist())
        return self._full(index, self._group[1][index - self._starts[group]])


class MemoryTable(Table):
    """Rows that a reader made of files of its own kind.

    Args:
        rows: each with the file and line (0 if none) where it stands, and its values or what is wrong with it.
    """

    def __init__(self, rows: Iterable[tuple[Path, int, Row | str]], *, path: Path, label: str = "") -> None:
        super().__init__(path, label)
        self._rows = list(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        for index, (_, _, row) in enumerate(self._rows):
            yield row if isinstance(row, str) else self.row(index)

    def row(self, index: int) -> Row:
        row = self._rows[index][2]
        return self._full(index, row)

    def error(self, index: int, message: object, id: str = "") -> DataError:
        path, line, _ = self._rows[index]
        return data_error(path, message, row=index + 1, line=line or None, id=id)


def open_tables(files: str | Sequence[str] | dict[str, str], *, under: str, columns: Sequence[str]) -> list[Table]:
    """A table for each file.

    Args:
        files: paths; a pattern (`*`) stands for all files that it matches, in the order of their names. In a mapping
            the keys are the files' labels, elsewhere the label is the file's name without suffix.
        under: for JSON, where the rows are; `WHOLE` if each file is one row.
        columns: for values between commas or tabs, their names.

    Raises:
        ConfigError: a file is not there, or of a kind that cannot be read.
    """
    named = files if isinstance(files, dict) else {"": [files] if isinstance(files, str) else list(files)}
    tables = []
    for label, patterns in named.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            tables += [_table(path, label or path.stem, under, columns) for path in _matching(pattern)]
    return tables


def _matching(pattern: str) -> list[Path]:
    if not has_magic(pattern):
        if not Path(pattern).is_file():
            raise ConfigError(f"`{pattern}` is not there; {_neighbours(Path(pattern))}")
        return [Path(pattern)]
    found = sorted(glob(pattern), key=lambda path: (len(path), path))
    if not found:
        raise ConfigError(f"nothing matches `{pattern}`; {_neighbours(Path(pattern))}")
    return list(map(Path, found))


def _neighbours(path: Path) -> str:
    """What there is instead."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"`{folder}` has {shown or 'nothing'}"


def _table(path: Path, label: str, under: str, columns: Sequence[str]) -> Table:
    if under == WHOLE:
        return _whole(path, label)
    if path.suffix == ".json" and not _has_lines(path):
        return JsonTable(path, label, under)
    kinds = {".jsonl": LinesTable, ".json": LinesTable, ".parquet": ParquetTable}
    if path.suffix in kinds:
        return kinds[path.suffix](path, label)
    if path.suffix in (".csv", ".tsv", ".txt"):
        return CsvTable(path, label, columns)
    raise ConfigError(f"`{path}`: allowed: .json, .jsonl, .csv, .tsv, .txt, .parquet")


def _has_lines(path: Path) -> bool:
    """Whether a `.json` file is a JSON lines file by another name, as POPE's are: its first line is a whole object,
    and others follow."""
    with path.open("rb") as file:
        first, second = file.readline(_LONGEST_LINE), file.readline(_LONGEST_LINE)
    try:
        return bool(second.strip()) and isinstance(json.loads(first.decode("utf-8-sig")), dict)
    except ValueError:
        return False


def _whole(path: Path, label: str) -> Table:
    try:
        row = read_span(path, Span(0, -1, 1))
    except (OSError, ValueError, RecursionError) as error:
        row = f"is no JSON: {error}"
    if not isinstance(row, (dict, str)):
        row = f"a file holds an object, not {type(row).__name__}"
    return MemoryTable([(path, 0, row)], path=path, label=label)
