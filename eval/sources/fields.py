"""How a row of an annotation file becomes a sample: which value is the question, which are the answers, and so on."""

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from vlm.images import ImageLike, open_image
from vlm.sample import IMAGE_MARK, Sample, Turn

from .field_paths import Empty, Missing, as_text, check, find, is_nothing, render
from .tables import Row

_NUMBERED = re.compile(r"<image (\d+)>")


class Fields(BaseModel):
    """Where each field of a sample is found: a path (`answers[].answer`), or a text with paths in braces
    (`COCO_{image_id:012d}.jpg`); see `field_paths`. Beside a row's own keys there are `$file` (its file's label),
    `$row` (its number there), `$key` (its key in a mapping of rows) and `$item` (see `each` of a source).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = ""
    """No two samples have the same one. The file and the row if absent."""
    question: str = ""
    answers: str = ""
    """The accepted answers: a text, a list of texts, or an object, which is compared as JSON. For a question with
    choices, the letter of the right one. None are expected if empty."""
    correct: str = ""
    """Instead of `answers`: the number of the right choice, from 0."""
    box: str = ""
    """Instead of `answers`: a box [x, y, width, height] in pixels of the image. The answer is its corners
    `[x1, y1, x2, y2]` as shares of the image's width and height."""
    size: tuple[str, ...] = ()
    """For `box`, the image's width and height in pixels; looked up in the image itself if absent."""
    choices: str | tuple[str, ...] = ""
    """The options: a path to a list, or a path for each; those that are empty at the end are left out."""
    image: str | tuple[str, ...] = ""
    """A path below the source's `images`, or a picture's bytes; of several paths, those that are not empty."""
    numbered: bool = False
    """The first `<image 2>` in the question and the choices stands for the second of `image`; otherwise images come
    first."""
    category: str = ""
    """Empty where the row has none."""
    group: str = ""
    texts: Mapping[str, str] = {}
    """Further texts for the prompt by name. One that names an empty value is empty; one that names a value that
    the row lacks is not there."""
    missing: tuple[str, ...] = ()
    """Texts that stand for no value, such as `nan` in files that were written so."""

    @model_validator(mode="after")
    def _checked(self) -> "Fields":
        single = [self.id, self.question, self.answers, self.correct, self.box, self.category, self.group]
        for expression in [*single, *self.size, *_several(self.choices), *self.images(), *self.texts.values()]:
            if expression:
                check(expression)
        return self

    def images(self) -> tuple[str, ...]:
        """The expressions for the images."""
        return _several(self.image)

    def sample(self, row: Row, folder: Path | None, *, name: str) -> Sample:
        """
        Args:
            row: its values.
            folder: what image paths start from.
            name: the id where no other is given.

        Raises:
            Missing: the row has no such key.
            ValueError: what else is wrong with it.
        """
        row = {key: None if value in self.missing else value for key, value in row.items()} if self.missing else row
        choices = self._choices(row)
        question = self._text(row, self.question)
        images = self.pictures(row, folder)
        if self.numbered:
            (question, *choices), images = _in_place([question, *choices], images)
        answers = [self._box(row, images)] if self.box else self._answers(row, choices)
        spoken = [Turn("assistant", answer) for answer in answers[:1]]  # what training teaches to say
        return Sample(
            turns=[Turn("user", question), *spoken],
            images=images,
            id=self._text(row, self.id) or name,
            answers=answers,
            category=self._category(row),
            choices=choices,
            group=self._text(row, self.group),
            fields=self._texts(row),
        )

    def _text(self, row: Row, expression: str) -> str:
        return render(row, expression) if expression else ""

    def _optional(self, row: Row, expression: str) -> str:
        try:
            return self._text(row, expression)
        except Empty:
            return ""

    def _category(self, row: Row) -> str:
        try:
            return self._optional(row, self.category)
        except Missing:
            return ""  # what is only shown beside the score costs no sample

    def _texts(self, row: Row) -> dict[str, str]:
        found = {}
        for name, expression in self.texts.items():
            try:
                found[name] = self._optional(row, expression)
            except Missing:
                continue  # a prompt that needs it says so
        return found

    def _choices(self, row: Row) -> list[str]:
        if isinstance(self.choices, str):
            values = find(row, self.choices) if self.choices else None
        else:
            values = [find(row, path) for path in self.choices]
        if values is not None and not isinstance(values, list):
            raise ValueError(f"`{self.choices}` is no list")
        values = list(values or [])
        while values and is_nothing(values[-1]):
            values.pop()
        if any(map(is_nothing, values)):
            raise ValueError(f"choice {_letter(list(map(is_nothing, values)).index(True))} is empty")
        return list(map(as_text, values))

    def _answers(self, row: Row, choices: list[str]) -> list[str]:
        if self.correct:
            return [_letter(_number(find(row, self.correct), self.correct, choices))]
        if not self.answers:
            return []
        found = find(row, self.answers)
        answers = [as_text(answer) for answer in (found if isinstance(found, list) else [found]) if found is not None]
        if not any(answer.strip() for answer in answers):
            raise ValueError(f"there is no answer: `{self.answers}` is empty")
        letters = [_letter(number) for number in range(len(choices))]
        if choices and not set(answers) <= set(letters):
            raise ValueError(f"the answer `{', '.join(answers)}` is none of the letters {', '.join(letters)}")
        return answers

    def _box(self, row: Row, images: list[ImageLike]) -> str:
        size = [find(row, path) for path in self.size] or list(open_image(images[0]).size)
        numbers = [*_numbers(find(row, self.box), self.box, 4), *_numbers(size, "size", 2)]
        x, y, width, height, across, down = numbers
        return json.dumps([x / across, y / down, (x + width) / across, (y + height) / down])

    def pictures(self, row: Row, folder: Path | None) -> list[ImageLike]:
        """The sample's images."""
        values = [self._picture(row, expression) for expression in self.images()]
        found = [image for value in values for image in (value if isinstance(value, list) else [value])]
        images = [_picture(image, folder) for image in found if not is_nothing(image)]
        if self.image and not images:
            raise Empty(f"there is no image: `{', '.join(self.images())}` is empty")
        return images

    def _picture(self, row: Row, expression: str) -> Any:
        return render(row, expression) if "{" in expression else find(row, expression)


def _several(expressions: str | tuple[str, ...]) -> tuple[str, ...]:
    return ((expressions,) if expressions else ()) if isinstance(expressions, str) else expressions


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _number(value: Any, path: str, choices: list[str]) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(choices):
        raise ValueError(f"`{path}` is {value!r}; allowed: 0 to {len(choices) - 1}, the number of a choice")
    return number


def _numbers(values: Any, path: str, count: int) -> list[float]:
    numbers = [value for value in values if isinstance(value, (int, float))] if isinstance(values, list) else []
    if len(numbers) != count or not all(map(math.isfinite, numbers)) or min(numbers[-2:]) <= 0:
        raise ValueError(f"`{path}` is {values!r}; allowed: {count} numbers, width and height above 0")
    return numbers


def _picture(value: Any, folder: Path | None) -> ImageLike:
    if isinstance(value, Mapping) and {"bytes", "path"} >= set(value) > set():  # as Parquet files of data sets have it
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"{str(value)[:60]!r} is no image: neither a path nor bytes")
    return os.path.join(folder, value) if folder is not None else value


def _in_place(texts: list[str], images: list[ImageLike]) -> tuple[list[str], list[ImageLike]]:
    """The texts with a plain mark where an image is first spoken of, and the images in the order of these marks."""
    order: list[int] = []

    def mark(found: re.Match[str]) -> str:
        number = int(found[1])
        if not 1 <= number <= len(images):
            raise ValueError(f"`{found[0]}` is spoken of, but there are {len(images)} images")
        if number in order:
            return found[0]
        order.append(number)
        return IMAGE_MARK

    texts = [_NUMBERED.sub(mark, text) for text in texts]
    return texts, [images[number - 1] for number in order] or images
