"""Data sets of the Hugging Face hub, or local folders that the `datasets` library reads, with the same templates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlm.errors import ConfigError, Problem
from vlm.hub_data import undecoded

from .fields import Fields
from .records import Join, Joined, TableSource, Value
from .tables import Row, Table


class HubJoin(BaseModel):
    """Another configuration of the same data set, whose rows belong to the first's by a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str
    split: str = ""
    by: str
    key: str = ""


class HubTable(Table):
    """A split of a data set. Pictures stay encoded: whoever looks at one opens it.

    Args:
        path: a hub id or a local folder.
        config: which configuration; the only one if empty.
        split: which part.

    Raises:
        ConfigError: there is no such data set, configuration or split, or no way to it.
    """

    def __init__(self, path: str, config: str, split: str) -> None:
        name = path + (f" ({config})" if config else "")
        super().__init__(Path(f"{name}, {split}"), split)
        self._data = undecoded(_loaded(path, config, split))

    def __len__(self) -> int:
        return len(self._data)

    def scan(self, keys: set[str] | None = None) -> Iterator[Row | str]:
        wanted = [name for name in self._data.column_names if keys is None or name in keys]
        if not wanted:  # a data set without columns has no rows either
            yield from (self._full(index, {}) for index in range(len(self)))
            return
        for index, row in enumerate(self._data.select_columns(wanted)):
            yield self._full(index, row)

    def row(self, index: int) -> Row:
        return self._full(index, self._data[index])


class Hub(TableSource):
    """A data set of the Hugging Face hub, or a local folder in one of the forms that the `datasets` library reads.

    Args:
        path: a hub id (`lmms-lab/textvqa`) or a local folder.
        split: which part of it, or several; `$file` is the part's name.
        sample: which of a row's values is the question, which the answers, and so on.
        config: which configuration; the only one if empty.
        join: other configurations whose rows belong to these by a key.
        where: column -> the value that a row has to have, or a list of values; `*` for any. Others are left out.
        each: columns of lists of the same length: a row is as many samples as they have items.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str | list[str],
        sample: Fields,
        config: str = "",
        join: tuple[HubJoin, ...] = (),
        where: dict[str, Value | list[Value]] | None = None,
        each: tuple[str, ...] = (),
    ) -> None:
        splits = [split] if isinstance(split, str) else split
        joins = [_joined(path, spec, splits) for spec in join]
        tables = [HubTable(path, config, name) for name in splits]
        super().__init__(tables, sample, joins=joins, where=where, each=each)


def _joined(path: str, join: HubJoin, splits: list[str]) -> Joined:
    tables = [HubTable(path, join.config, name) for name in ([join.split] if join.split else splits)]
    return Joined(tables, Join(files="", by=join.by, key=join.key))


def _loaded(path: str, config: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        wanted = f"`{path}`" + (f", configuration `{config}`" if config else "") + f", split `{split}`"
        reason = " ".join(str(error).split())
        hint = "with local copies of the official files give --data PATH instead"
        raise ConfigError(Problem("path", f"{wanted} cannot be loaded: {reason}; {hint}")) from error
