"""`vlm convert`: every row is written, or counted and named."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem
from vlm.files import replacing
from vlm.images import IMAGE_SUFFIXES, ImageError, image_size
from vlm.sample import Sample

from .forms import Files, open_form
from .writers import Lines, Shards, Writer

QUESTION = "What is in the picture?"
"""Asked about an image of which only a label is known."""
_PROMPT = "{question}"
_DETAILS = (
    (re.compile(r"^.*?(?:, row \d+[^:]*|\.[A-Za-z0-9]{2,5}): "), ""),
    (re.compile(r"`[^`]*[/\\][^`]*`|\S*/\S*"), "…"),
    (re.compile(r"\d+"), "…"),
)
"""What makes the same fault read differently from row to row: the place, paths, numbers."""


@dataclass
class Converted:
    """What came of it."""

    written: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    """Of the rows that cannot be used."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with each of these rows, with its place."""

    def refuse(self, message: str) -> None:
        """Count and name a row that cannot be used."""
        self.faults.append(message)
        self.causes[cause(message)] += 1


def cause(message: str) -> str:
    """A fault without what is particular to its row."""
    for pattern, other in _DETAILS:
        message = pattern.sub(other, message)
    return message


def convert(
    form: str, files: Files, out: Path, *, question: str = QUESTION, prompt: str = _PROMPT, shard_size: int = 0
) -> Converted:
    """Rows of annotation files -> `out`: a `.jsonl` file, or tar shards named after a `.tar` file.

    A question with several answers keeps them all, the most frequent first: that one is learned. What cannot be used
    is listed in `out` with `.faults.txt` behind its name.

    Args:
        form: a name of `forms.FORMS`.
        files: what is read.
        out: what is written.
        question: asked about an image that has a label alone.
        prompt: how a question reads; `{question}` stands for it.
        shard_size: samples of a tar shard.

    Raises:
        ConfigError: form, files or `out` cannot be used, or no row can.
    """
    _check(out, prompt, shard_size)
    source, kind = open_form(form, files)
    found = Converted()
    with _writer(out, shard_size) as writer:
        for sample, image in _good(source, found):
            writer.write(_row(sample, kind, question, prompt), image)
            found.written += 1
        if not found.written:
            raise ConfigError(f"none of {len(source)} rows can be used; the first: {found.faults[0]}")
    faults = out.with_name(out.name + ".faults.txt")
    if found.faults:
        with replacing(faults) as file:
            file.writelines(f"{line}\n" for line in found.faults)
    else:
        faults.unlink(missing_ok=True)
    return found


def _check(out: Path, prompt: str, shard_size: int) -> None:
    problems = []
    if out.suffix not in (".jsonl", ".tar"):
        problems.append(Problem("out", f"`{out}`; allowed: a .jsonl file, or .tar for shards"))
    if (out.suffix == ".tar") != (shard_size > 0):
        problems.append(Problem("shard-size", f"`{shard_size}`; allowed: 1 or more for .tar, nothing for .jsonl"))
    if _PROMPT not in prompt:
        problems.append(Problem("prompt", f"`{prompt}` has no {_PROMPT} in it"))
    if problems:
        raise ConfigError(problems)


def _writer(out: Path, shard_size: int) -> Writer:
    return Shards(out, shard_size) if shard_size else Lines(out)


def _good(source: Source, found: Converted) -> Iterator[tuple[Sample, str]]:
    """The samples whose images can be opened, as far as their headers tell; the others are refused."""
    for index in range(len(source)):
        try:
            sample = source[index]
            image = str(sample.images[0])
            image_size(image)
            if Path(image).suffix.lower() not in IMAGE_SUFFIXES:
                raise ImageError(f"{image}: its name does not end as an image's does")
        except DataError as error:
            found.refuse(str(error))
        except ImageError as error:
            found.refuse(str(source.error(index, error)))
        else:
            yield sample, image


def _row(sample: Sample, kind: str, question: str, prompt: str) -> dict[str, Any]:
    answers = _by_frequency(list(sample.answers))
    if kind == "caption":
        return {"id": sample.id, "caption": answers[0]}
    asked = question if kind == "label" else prompt.replace(_PROMPT, sample.turns[0].text)
    said = {"answers": answers} if len(answers) > 1 else {"answer": answers[0]}
    return {"id": sample.id, "question": asked, **said}


def _by_frequency(answers: list[str]) -> list[str]:
    """All of them, the most frequent first; of equally frequent ones the first given."""
    counts = Counter(answers)
    first = {answer: number for number, answer in reversed(list(enumerate(answers)))}
    return sorted(answers, key=lambda answer: (-counts[answer], first[answer]))
