"""`vlm ask`: questions about many images, a row each."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from vlm.errors import ConfigError
from vlm.images import find_images
from vlm.sample import Sample, ask


def questions(paths: Sequence[str], question: str | None) -> list[Sample]:
    """A sample for each image of `paths` (files, folders, globs), and for each row of a `.jsonl` among them.

    Raises:
        ConfigError: an image without a question, or a row that is no object with `image` (and `question`).
        ImageError: a folder or glob without images.
    """
    found: list[Sample] = []
    for path in paths:
        if path.endswith(".jsonl"):
            rows = [_row(path, number, line, question) for number, line in _lines(path)]
            if not rows:
                raise ConfigError(f"`{path}` holds no question; a line is {{image, question}}")
            found += rows
        else:
            if question is None:
                raise ConfigError(f"what should be asked about `{path}`? give -q QUESTION (or a .jsonl with questions)")
            found += [ask(question, [str(image)], id=str(image)) for image in find_images([path])]
    return found


def answers(
    folder: Path, samples: Sequence[Sample], *, batch_size: int, max_new_tokens: int, device: str | None = None
) -> Iterator[dict[str, Any]]:
    """One row {image, question, answer} or {image, question, error} a sample, in order; on the fastest device there is
    unless told otherwise."""
    from vlm.device import best_device
    from vlm.loading import load

    model = load(folder, device or best_device())
    replies = model.answer(samples, batch_size=batch_size, max_new_tokens=max_new_tokens)
    for sample, reply in zip(samples, replies, strict=True):
        row: dict[str, Any] = {"image": sample.id, "question": sample.turns[-1].text}
        if reply.error is not None:
            row["error"] = reply.error
        else:
            row["answer"] = reply.text
            if reply.truncated:
                row["truncated"] = True
        yield row


def write(rows: Iterable[dict[str, Any]], *, total: int, out: Path | None, as_json: bool) -> int:
    """Show rows as they come, or write them to `out`; returns how many are errors.

    Raises:
        ConfigError: `out` exists already: answers are not overwritten in silence.
    """
    if out is not None and out.exists():
        raise ConfigError(f"`{out}` exists already; take another --out or remove it")
    failed = 0
    for row in rows if out is None else _with_bar(rows, total):
        failed += "error" in row
        if out is not None:
            _append(out, row)
        elif as_json:
            _line(sys.stdout, json.dumps(row, ensure_ascii=False))
        elif "error" in row:
            _line(sys.stderr, f"{row['image']}: error: {row['error']}")
        else:
            _line(sys.stdout, row["answer"] if total == 1 else f"{row['image']}: {row['answer']}")
    return failed


def _lines(path: str) -> list[tuple[int, str]]:
    try:
        text = Path(path).read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read: {error}") from error
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _row(path: str, number: int, line: str, question: str | None) -> Sample:
    """Image paths start from the file's own folder."""
    try:
        row = json.loads(line)
        image = row["image"]
        text = row.get("question", question)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}, line {number}: not of the form {{image, question}}: {error}") from error
    if not isinstance(image, str) or not isinstance(text, str):
        raise ConfigError(f"{path}, line {number}: `image` and `question` are texts; got {image!r} and {text!r}")
    return ask(text, [str(Path(path).parent / image)], id=image)


def _append(out: Path, row: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf8") as file:
        _line(file, json.dumps(row, ensure_ascii=False))


def _line(stream: TextIO, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


def _with_bar(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    from rich.console import Console
    from rich.progress import track

    yield from track(rows, description="asking", total=total, console=Console(stderr=True))
