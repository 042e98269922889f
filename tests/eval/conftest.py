"""A model that answers from a list, and a small data set of the user's own kind."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from vlm.images import ImageError, open_image
from vlm.sample import Sample


@dataclass(frozen=True)
class StubAnswer:
    text: str
    error: str | None = None
    truncated: bool = False
    tokens: int = 0


class StubModel:
    """Answers by `reply`, the second of two samples first; opens the images as a real model would, and keeps what it
    was asked."""

    def __init__(self, reply: Callable[[Sample], str], limit: int = 1000) -> None:
        self.reply = reply
        self.limit = limit
        self.asked: list[Sample] = []

    def replies(
        self, samples: Iterable[Sample], *, max_new_tokens: int = 64, batch_size: int = 16
    ) -> Iterator[tuple[int, StubAnswer]]:
        numbered = enumerate(samples)
        while batch := list(islice(numbered, batch_size)):
            answers = [(number, self._answer(sample)) for number, sample in batch]
            yield from reversed(answers)

    def _answer(self, sample: Sample) -> StubAnswer:
        self.asked.append(sample)
        try:
            for image in sample.images:
                open_image(image)
        except ImageError as error:
            return StubAnswer("", error=str(error))
        text = self.reply(sample)
        return StubAnswer(text[: self.limit], truncated=len(text) > self.limit)


@pytest.fixture
def stub() -> type[StubModel]:
    return StubModel


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """Six rows: four that can be answered, one whose image is missing, one that is no sample."""
    Image.new("RGB", (24, 16), "navy").save(tmp_path / "a.png")
    Image.new("RGB", (24, 16), "maroon").save(tmp_path / "b.png")
    rows = [
        {"id": "one", "image": "a.png", "question": "Colour?", "answers": ["navy", "blue"], "category": "colour"},
        {"id": "two", "image": "a.png", "question": "Wide?", "answer": "24", "category": "size"},
        {"id": "three", "image": "b.png", "question": "<b>Tall?</b>", "answer": "16", "category": "size"},
        {"id": "four", "image": "b.png", "question": "Colour?", "answer": "maroon", "category": "colour"},
        {"id": "five", "image": "missing.png", "question": "Colour?", "answer": "red", "category": "colour"},
        {"id": "six", "image": "a.png", "answer": "no question here"},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf8")
    return str(path)
