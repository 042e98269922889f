"""Data sets that the `datasets` library reads: Parquet and Arrow files, saved folders, the Hugging Face hub."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from vlm.data import DataError, Source, absent, id_of, images_of, sample_of
from vlm.errors import ConfigError, Problem, choices
from vlm.hub_data import undecoded
from vlm.sample import Sample

from .columns import Columns, picture

_FILES = (".parquet", ".arrow")
_SAVED = ("dataset_info.json", "dataset_dict.json")


class Datasets(Source):
    """Rows of a data set of the Hugging Face library, mapped into memory: a row costs none until it is asked for.

    A row is said in one column, `texts` (a list of {user, assistant}, as The Cauldron has it), `conversations`,
    `messages`, `question` (with `answer` or `answers`) or `caption`; `image` or `images` hold pictures or paths.

    Args:
        path: a Parquet or Arrow file, a pattern (`*.parquet`), a folder that holds such files or that
            `save_to_disk` made, or a hub id.
        split: which part of it.
        config: which configuration; the only one if empty.
        columns: meaning -> column, where columns have other names; an empty text for one that is not used.
        images: the folder that image paths start from; for local data the data's own if empty.
        streaming: read it from its beginning, in order, without a copy on disk: for what does not fit. An index
            further on reads over the rows between, a lower one (a new pass) starts again.
        count: rows of a stream that does not say how many it has; fewer than there are leave the rest out.
        shuffle: rows of a stream that are held and drawn from at random, the same way each time.

    Raises:
        ConfigError: there is no such data set, or its columns say nothing that the kit knows.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str = "train",
        config: str = "",
        columns: dict[str, str] | None = None,
        images: str = "",
        streaming: bool = False,
        count: int = 0,
        shuffle: int = 0,
    ) -> None:
        if not streaming and (count or shuffle):
            name, value = ("count", count) if count else ("shuffle", shuffle)
            raise ConfigError(Problem(name, f"`{value}` is for `streaming: true`; other data is of known length"))
        data = undecoded(_opened(path, config, split, streaming))
        self._name = path + (f" ({config})" if config else "") + f", {split}"
        self._rows: _Rows = _Stream(data, _length(data, count, path, split), shuffle) if streaming else _Table(data)
        self._columns = Columns(_column_names(data), columns or {})
        self._folder = Path(images) if images else _own_folder(path)
        self.ordered = streaming  # a stream can only go forward; `shuffle` mixes what it can hold

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        values = self._rows[index]
        try:
            row = self._columns.row(values)
            return sample_of(row, self._picture, f"{self._name}:{index + 1}")
        except (TypeError, ValueError) as error:
            raise self.error(index, error, id_of(values)) from error

    def error(self, index: int, message: object, id: str = "") -> DataError:
        return DataError(f"{self._name}, row {index + 1}: {message}", id)

    def missing_images(self) -> list[str]:
        if not isinstance(self._rows, _Table) or not (names := self._image_columns()):
            return []
        found = []
        for values in self._rows.only(names):
            try:
                pictures = [self._picture(image) for image in images_of(self._columns.row(values))]
            except (KeyError, TypeError, ValueError):
                continue  # no sample, which whoever reads it is told
            found += [image for image in pictures if isinstance(image, str)]
        return absent(found)

    def _picture(self, value: Any) -> Any:
        return picture(value, self._folder)

    def _image_columns(self) -> list[str]:
        return [column for meaning, column in self._columns.columns.items() if meaning in ("image", "images")]


class _Rows(ABC):
    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...


class _Table(_Rows):
    def __init__(self, data: Any) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._data[index]  # type: ignore[no-any-return]

    def only(self, columns: list[str]) -> Iterator[Mapping[str, Any]]:
        """All rows without the other columns."""
        others = dict.fromkeys(self._data.column_names)
        return ({**others, **row} for row in self._data.select_columns(columns))


class _Stream(_Rows):
    """Rows of a stream by number: each process goes on from where it is, and starts again for a lower number."""

    def __init__(self, data: Any, count: int, shuffle: int) -> None:
        self._count = count
        self._data = data.shuffle(seed=0, buffer_size=shuffle) if shuffle else data
        self._next = 0
        self._rows: Iterator[Mapping[str, Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_rows": None, "_next": 0}  # an open stream stays in its process

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if self._rows is None or index < self._next:
            self._rows, self._next = self._from(index), index
        try:
            while self._next < index:
                next(self._rows)
                self._next += 1
            row = next(self._rows)
        except StopIteration:
            raise DataError(f"the stream ends after {self._next} rows, but `count` is {self._count}") from None
        self._next += 1
        return row

    def _from(self, index: int) -> Iterator[Mapping[str, Any]]:
        """All rows from there on. In batches of one: asked for single rows, the library gives each worker process of
        a torch loader another part of the data, and row numbers would mean something else in each."""
        data = self._data.skip(index) if index else self._data
        return ({name: values[0] for name, values in batch.items()} for batch in data.iter(batch_size=1))


def _length(data: Any, count: int, path: str, split: str) -> int:
    """How many rows of a stream are read."""
    from pyarrow import parquet

    files = _files(path)
    splits = (data.info.splits if data.info is not None else None) or {}
    told = (splits[split].num_examples or 0) if split in splits else 0
    if files and files[0].endswith(".parquet"):
        told = sum(parquet.read_metadata(file).num_rows for file in files)
    if count and told and count > told:
        raise ConfigError(Problem("count", f"`{count}`, but there are {told} rows"))
    if not count and not told:
        raise ConfigError(Problem("count", "is missing: the stream does not say how many rows it has"))
    return int(count or told)


def _opened(path: str, config: str, split: str, streaming: bool) -> Any:
    import datasets

    files = _files(path)
    try:
        if not files and any((Path(path) / name).is_file() for name in _SAVED):
            if streaming:
                message = "is for data that is not at hand; a saved folder is mapped into memory as it is"
                raise ConfigError(Problem("streaming", message))
            return _saved(path, split)
        if files:
            kind = files[0].rpartition(".")[2]
            return datasets.load_dataset(kind, data_files={split: files}, split=split, streaming=streaming)
        return datasets.load_dataset(path, config or None, split=split, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        wanted = f"`{path}`" + (f", configuration `{config}`" if config else "") + f", split `{split}`"
        raise ConfigError(Problem("path", f"{wanted} cannot be loaded: {' '.join(str(error).split())}")) from error


def _saved(path: str, split: str) -> Any:
    """What `save_to_disk` left. A folder of one part has no splits, so `split` says nothing there."""
    import datasets

    data = datasets.load_from_disk(path)
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise ConfigError(Problem("split", f"`{split}` is not there;{choices(split, list(data))}"))
        return data[split]
    return data


def _files(path: str) -> list[str]:
    """The files that a path or a pattern names; none for a folder or a hub id."""
    found = sorted(glob(path, recursive=True)) if has_magic(path) else [path] if path.endswith(_FILES) else []
    if has_magic(path) and not found:
        raise ConfigError(Problem("path", f"no file matches `{path}`"))
    for file in found:
        if not file.endswith(_FILES) or file.rpartition(".")[2] != found[0].rpartition(".")[2]:
            raise ConfigError(Problem("path", f"`{file}`: allowed: files of one kind, {' or '.join(_FILES)}"))
        if not os.path.isfile(file):
            raise ConfigError(Problem("path", f"there is no file `{file}`"))
    return found


def _own_folder(path: str) -> Path | None:
    """Where local data lies; None for a hub id, whose pictures are in it."""
    files = _files(path)
    if files:
        return Path(files[0]).parent
    return Path(path) if os.path.isdir(path) else None


def _column_names(data: Any) -> list[str]:
    return list(data.column_names or next(iter(data), {}))
