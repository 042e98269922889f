"""Benchmarks that come as a folder of small files in a form of their own: MME, AI2D, FUNSD."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vlm.errors import ConfigError, Problem
from vlm.images import IMAGE_SUFFIXES, ImageError, open_image
from vlm.sample import Sample

from .fields import Fields
from .records import TableSource
from .tables import MemoryTable, Row

_COVER = (25, 249, 255)
_FORM_LABELS = ("header", "question", "answer")


class Mme(TableSource):
    """MME: a folder a subtask, with a text file of lines `question<TAB>Yes` beside each image.

    In some subtasks the texts are in `questions_answers_YN` and the images in `images`. The subtask is the category,
    the image the group. arXiv 2306.13394.

    Args:
        folder: the one that has the subtasks' folders.
        question: the question as a path; how to answer is left to the task's prompt.
    """

    def __init__(self, *, folder: str, question: str = "question | without Please answer yes or no.") -> None:
        rows = list(self._rows(_folder(folder)))
        if not rows:
            raise ConfigError(Problem("folder", f"`{folder}` has no subtask: no folder with text files of questions"))
        fields = Fields(
            id="{group}/{number}", question=question, answers="answer", image="image", category="task", group="group"
        )
        super().__init__([MemoryTable(rows, path=Path(folder))], fields)

    def _rows(self, folder: Path) -> Iterator[tuple[Path, int, Row | str]]:
        for task in sorted(path for path in folder.iterdir() if path.is_dir()):
            texts, images = task / "questions_answers_YN", task / "images"
            apart = texts.is_dir() and images.is_dir()
            pictures = _pictures(images if apart else task)
            for file in sorted((texts if apart else task).glob("*.txt")):
                image = pictures.get(file.stem, str((images if apart else task) / f"{file.stem}.jpg"))
                for line, content in enumerate(file.read_bytes().removeprefix(BOM_UTF8).splitlines(), 1):
                    if content.strip():
                        yield file, line, self._row(content, task.name, file.stem, image, line)

    def _row(self, content: bytes, task: str, stem: str, image: str, line: int) -> Row | str:
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            return f"is no UTF-8: {error.reason}"
        question, tab, answer = text.strip().rpartition("\t")
        if not tab or answer.strip() not in ("Yes", "No"):
            return f"a line is a question, a tab, and Yes or No, not `{text.strip()}`"
        group = f"{task}/{stem}"
        row = {"question": question.strip(), "answer": answer.strip(), "task": task, "group": group, "number": line}
        return {**row, "image": image}


class Ai2d(TableSource):
    """AI2D: a JSON file of questions beside each diagram. arXiv 1603.07396.

    Where a question speaks of letters (`abcLabel`), the texts of the diagram are covered by the letters that its
    annotation gives them: without, the question has no answer. How they are drawn is not laid down anywhere.

    Args:
        folder: the one that has `questions`, `images` and `annotations`.
        test: a file with the number of a test image on each line; all images if empty.
    """

    def __init__(self, *, folder: str, test: str = "") -> None:
        self._folder = _folder(folder)
        files = sorted((self._folder / "questions").glob("*.json"), key=lambda path: (len(path.name), path.name))
        if not files:
            raise ConfigError(Problem("folder", f"`{folder}` has no questions/*.json"))
        chosen = _lines(Path(test)) if test else None
        files = [path for path in files if chosen is None or path.name.split(".")[0] in chosen]
        rows = [row for path in files for row in _diagram(path)]
        if not rows:
            raise ConfigError(Problem("test", f"`{test}` names none of the images in `{folder}`"))
        fields = Fields(
            id="questionId", question="question", choices="answerTexts", correct="correctAnswer", image="image",
            category="kind",
        )  # fmt: skip
        super().__init__([MemoryTable(rows, path=self._folder)], fields, images=self._folder / "images")

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        if sample.category != "letters" or not Path(str(sample.images[0])).is_file():
            return sample  # whoever opens the image says that it is not there
        path = Path(str(sample.images[0]))
        try:
            annotation = _object(self._folder / "annotations" / f"{path.name}.json")
            return replace(sample, images=[_covered(open_image(path), annotation)])
        except ImageError:
            return sample
        except (KeyError, TypeError, ValueError) as error:
            raise self._tables[0].error(index, f"the letters of `{path.name}` are not known: {error}") from error


class Funsd(TableSource):
    """FUNSD's forms: the answer is a JSON object of the texts of all headers, questions and answers. arXiv 1905.13538.

    FUNSD's own metric labels given words; a model that sees but the picture can only be asked for the texts.

    Args:
        folder: the one that has `annotations` and `images`, such as `dataset/testing_data`.
    """

    def __init__(self, *, folder: str) -> None:
        files = sorted((_folder(folder) / "annotations").glob("*.json"))
        if not files:
            raise ConfigError(Problem("folder", f"`{folder}` has no annotations/*.json"))
        rows = [(path, 0, _form(path)) for path in files]
        fields = Fields(id="name", answers="entities", image="{name}.png")
        super().__init__([MemoryTable(rows, path=Path(folder))], fields, images=Path(folder) / "images")


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise ConfigError(Problem("folder", f"`{path}` is no folder"))
    return Path(path)


def _pictures(folder: Path) -> dict[str, str]:
    """Name without suffix -> path."""
    return {path.stem: str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES}


def _lines(path: Path) -> set[str]:
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()}
    except OSError as error:
        raise ConfigError(Problem("test", f"`{path}` cannot be read: {error.strerror}")) from error


def _object(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file is not there, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"`{path}` cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, not an object")
    return content


def _diagram(path: Path) -> Iterator[tuple[Path, int, Row | str]]:
    try:
        content = _object(path)
        image, questions = content["imageName"], content["questions"]
        if not isinstance(questions, dict) or not all(isinstance(asked, dict) for asked in questions.values()):
            raise ValueError("`questions` is no mapping of questions to objects")
    except KeyError as error:
        yield path, 0, f"{error} is missing"
    except ValueError as error:
        yield path, 0, str(error)
    else:
        for question, asked in questions.items():
            kind = "letters" if asked.get("abcLabel") else "texts"
            yield path, 0, {**asked, "question": question, "image": image, "kind": kind}


def _covered(image: Image.Image, annotation: dict[str, Any]) -> Image.Image:
    """The diagram with a letter on a plain box in place of each of its texts."""
    draw = ImageDraw.Draw(image)
    for box in annotation["text"].values():
        (left, top), (right, bottom) = box["rectangle"]
        if bottom <= top or right <= left:
            continue
        draw.rectangle((left, top, right, bottom), fill=_COVER)
        font = ImageFont.load_default(max(6, min(0.8 * (bottom - top), 40)))
        draw.text(
            ((left + right) / 2, (top + bottom) / 2), box["replacementText"], fill="black", font=font, anchor="mm"
        )
    return image


def _form(path: Path) -> Row | str:
    try:
        form = _object(path)["form"]
        entities: dict[str, list[str]] = {label: [] for label in _FORM_LABELS}
        for entity in form:
            if entity["label"] in entities and entity["text"].strip():
                entities[entity["label"]].append(entity["text"])
    except KeyError as error:
        return f"{error} is missing"
    except (AttributeError, TypeError, ValueError) as error:
        return f"it is no form: {error}"
    if not any(entities.values()):
        return "it has no header, question or answer"
    return {"name": path.stem, "entities": {label: texts for label, texts in entities.items() if texts}}
