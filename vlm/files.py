"""Writing files that other processes read, or a killed process leaves behind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path) -> Iterator[IO[str]]:
    """A text file to write in the place of `path`, which it takes when the block ends without an error; what was there
    before stays until then, and stays if the process is killed.

    Half a surrogate pair, which JSON can name and UTF-8 cannot, is written the way JSON names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".writing")
    with fresh.open("w", encoding="utf8", errors="backslashreplace", newline="\n") as file:
        yield file
    fresh.replace(path)


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON that people can read, in the place of `path`; see `replacing`."""
    with replacing(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def lock(file: IO[Any]) -> bool:
    """Take an open file for this process until it is closed or the process ends, however it ends; whether it worked.

    Windows has no such locks: there it always works.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
