"""The forms of data that can be converted, each as a source of samples."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm import registry
from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem, choices
from vlm.images import IMAGE_SUFFIXES
from vlm.recipe import PartSpec
from vlm.sample import Sample, Turn
from vlm.schema import construct

_PART = re.compile(r"(train|val|test)(-dev)?(20\d\d)")


@dataclass(frozen=True)
class Files:
    """What the command line names.

    Args:
        data: the annotation file, or the folder.
        images: the folder of the images; where the official download has it if None.
        answers: a second annotation file, in forms that have one.
        columns: of the file and of the label, in a table of labels.
    """

    data: Path
    images: Path | None = None
    answers: Path | None = None
    columns: tuple[str, str] = ("file", "label")


def pair(text: str) -> tuple[str, str]:
    """`file,label` as two names.

    Raises:
        ConfigError: there are not two.
    """
    names = [name.strip() for name in text.split(",")]
    if len(names) != 2 or not all(names):
        raise ConfigError(Problem("columns", f"`{text}`; allowed: the names of two columns, as file,label"))
    return names[0], names[1]


class ClassFolders(Source):
    """Images in folders that are named after what they show.

    Args:
        folder: that holds a folder for each class, at any depth below it the class's images.

    Raises:
        ConfigError: it is no folder, or has no folder in it.
    """

    ordered = True

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir() or not any(entry.is_dir() for entry in folder.iterdir()):
            raise ConfigError(f"`{folder}` has no class folders: a folder for each class is expected in it")
        self._folder = folder
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self._paths = [path for path in files if not path.name.startswith(".")]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        path = self._paths[index]
        inside = path.relative_to(self._folder)
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise self.error(index, f"`{path.suffix}` is no kind of image")
        if len(inside.parts) == 1:
            raise self.error(index, "it lies in no class folder")
        label = inside.parts[0]
        return Sample([Turn("user", ""), Turn("assistant", label)], [str(path)], str(inside), [label], category=label)

    def error(self, index: int, message: object, id: str = "") -> DataError:
        return DataError(f"{self._paths[index]}: {message}", id)


def _records(**options: Any) -> Source:
    return construct(registry.sources, PartSpec(name="records", **options), {})  # type: ignore[no-any-return]


def _labels(files: Files) -> Source:
    file, label = files.columns
    fields = {"id": file, "answers": label, "image": file, "category": label}
    return _records(files=str(files.data), images=str(files.images or files.data.parent), sample=fields)


def _coco(files: Files) -> Source:
    path = str(files.data)
    join = {"files": path, "under": "images", "by": "image_id", "key": "id"}
    fields = {"id": "id", "answers": "caption", "image": "file_name"}
    images = _folder(files, files.data.parent.parent / _part(files.data))
    return _records(files=path, under="annotations", join=[join], images=images, sample=fields)


def _vqav2(files: Files) -> Source:
    if files.answers is None:
        raise ConfigError(Problem("answers", "is missing: the questions' annotations, v2_mscoco_..._annotations.json"))
    part = _part(files.data)
    image = f"COCO_{part}_{{image_id:012d}}.jpg"
    fields = {"id": "question_id", "question": "question", "answers": "answers[].answer", "image": image}
    join = {"files": str(files.answers), "under": "annotations", "by": "question_id"}
    images = _folder(files, files.data.parent / part)
    return _records(files=str(files.data), under="questions", join=[join], images=images, sample=fields)


def _textvqa(files: Files) -> Source:
    fields = {"id": "question_id", "question": "question", "answers": "answers", "image": "{image_id}.jpg"}
    images = _folder(files, files.data.parent / "train_images")
    return _records(files=str(files.data), under="data", images=images, sample=fields)


def _docvqa(files: Files) -> Source:
    fields = {"id": "questionId", "question": "question", "answers": "answers", "image": "image"}
    images = _folder(files, files.data.parent)
    return _records(files=str(files.data), under="data", images=images, sample=fields)


def _chartqa(files: Files) -> Source:
    fields = {"id": "{$file}-{$row}", "question": "query", "answers": "label", "image": "imgname"}
    images = _folder(files, files.data.parent / "png")
    return _records(files={files.data.stem: str(files.data)}, images=images, sample=fields)


def _part(path: Path) -> str:
    """`train2014` in the name of an official file."""
    found = _PART.search(path.name)
    if found is None:
        message = f"`{path.name}` does not say of which part it is; official names have e.g. train2014 in them"
        raise ConfigError(Problem("data", message))
    return f"{found[1]}{found[3]}"


def _folder(files: Files, usual: Path) -> str:
    folder = files.images or usual
    if not folder.is_dir():
        where = "" if files.images else "; give the folder of the images"
        raise ConfigError(Problem("images", f"there is no folder `{folder}`{where}"))
    return str(folder)


FORMS: dict[str, tuple[Callable[[Files], Source], str]] = {
    "folder": (lambda files: ClassFolders(files.data), "label"),
    "labels": (_labels, "label"),
    "coco": (_coco, "caption"),
    "vqav2": (_vqav2, "question"),
    "textvqa": (_textvqa, "question"),
    "docvqa": (_docvqa, "question"),
    "chartqa": (_chartqa, "question"),
}
"""Name -> the source of its files, and what a row of it is."""


def open_form(name: str, files: Files) -> tuple[Source, str]:
    """The samples of files in a form, and what a row of it is: a question, a caption, or an image with a label.

    Raises:
        ConfigError: there is no such form, or the files are not of it.
    """
    if name not in FORMS:
        raise ConfigError(Problem("form", f"unknown form `{name}`;{choices(name, list(FORMS))}"))
    if not files.data.exists():
        raise ConfigError(Problem("data", f"there is no `{files.data}`"))
    if files.answers is not None and name != "vqav2":
        raise ConfigError(Problem("answers", f"`{files.answers}`: {name} has its answers in the same file"))
    make, kind = FORMS[name]
    return make(files), kind
