"""The log of answers: a line for each as it is produced, so that an evaluation that is killed loses the batch in flight
and nothing else, and an answer is never taken for that of another model, prompt, picture or setting.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from vlm.errors import ConfigError
from vlm.files import lock


@dataclass(frozen=True)
class Reply:
    """What was asked under which conditions, and what came back."""

    key: str
    """The digest of all that the answer depends on; see `key_of`."""
    id: str
    prompt: str
    image: str
    """The images' digests."""
    model: str
    """The model's identity."""
    settings: Mapping[str, Any]
    """How the answer was generated."""
    answer: str
    error: str | None = None
    """Why there is none."""
    truncated: bool = False
    tokens: int = 0


def key_of(task: str, id: str, *, turns: Any, image: str, model: str, settings: Mapping[str, Any]) -> str:
    """The digest of task, question, prompt, image, model and generation settings: equal only if all are."""
    facts = json.dumps([task, id, turns, image, model, settings], sort_keys=True)
    return hashlib.sha256(facts.encode("utf8", errors="backslashreplace")).hexdigest()[:32]


class AnswerLog:
    """The answers in a folder, `answers.jsonl`; each further process writes a file of its own beside it.

    Nothing is ever removed: answers of other models and prompts stay, and are found again when these come back.

    Args:
        folder: where the files lie.
        rank: number of this process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.path = folder / (f"answers-{rank}.jsonl" if rank else "answers.jsonl")

    def read(self) -> dict[str, Reply]:
        """Key -> answer, from all files; where one stands twice, an answer goes before an error, then the later one.

        Raises:
            ConfigError: a line that is no answer; names file and line. Half a line at the end of a file is what was
                being written when the process was killed, and is passed over.
        """
        found: dict[str, Reply] = {}
        for path in sorted(self.folder.glob("answers*.jsonl")):
            for reply in _read(path):
                known = found.get(reply.key)
                if known is None or known.error is not None or reply.error is None:
                    found[reply.key] = reply
        return found

    def open(self) -> IO[str]:
        """The file of this process, to append to; half a line that a killed process left is cut off.

        Raises:
            ConfigError: another process is writing it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Half a surrogate pair, which JSON can name and UTF-8 cannot, is written the way JSON names it.
        file = self.path.open("a", encoding="utf8", errors="backslashreplace", newline="\n")
        if not lock(file):
            file.close()
            raise ConfigError(f"another evaluation is writing {self.path}; wait for it, or give another folder")
        with self.path.open("rb+") as content:
            content.truncate(_complete(content))
        return file


def write(file: IO[str], reply: Reply) -> None:
    """Append one answer; it is in the system's hands when this returns."""
    file.write(json.dumps(asdict(reply), ensure_ascii=False) + "\n")
    file.flush()


_FIELDS = {item.name for item in fields(Reply)}
_NEEDED = {item.name for item in fields(Reply) if item.default is MISSING}


def _complete(file: IO[bytes]) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        position = file.read(end - start).rfind(b"\n")
        if position >= 0:
            return start + position + 1
        end = start
    return 0


def _read(path: Path) -> Iterator[Reply]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                todo = "mend or remove the line: its question is then asked again"
                raise ConfigError(f"{path}, line {number} is damaged ({error}); {todo}") from error
            if not isinstance(row, dict) or not _NEEDED <= row.keys() <= _FIELDS:
                todo = "move the file away to begin anew"
                raise ConfigError(f"{path}, line {number} is no answer as this version of the kit writes it; {todo}")
            yield Reply(**row)
