"""RefCOCO, RefCOCO+ and RefCOCOg: which region a phrase means, from the files of the `refer` toolbox."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem
from vlm.rows import json_rows

from .fields import Fields
from .records import TableSource
from .tables import MemoryTable, Row


class RefCoco(TableSource):
    """A sample for each phrase; the answer is the region's box, its corners as shares of the image's width and height.

    The phrases are in `refs(BY).p`, a pickle, which is read without building any object: one that names a class or a
    function is refused. The boxes are in `instances.json`. arXiv 1608.00272 (RefCOCO, RefCOCO+), 1511.02283 (RefCOCOg).

    Args:
        folder: the data set's, such as `refcoco+`.
        split: `val`, `testA` and `testB`, or `val` and `test` for RefCOCOg.
        by: whose split it is: `unc`, for RefCOCOg `umd` (`google` has no test part).
        images: the folder of COCO's train2014 images.
    """

    def __init__(self, *, folder: str, images: str, split: str = "val", by: str = "unc") -> None:
        path = Path(folder) / f"refs({by}).p"
        refs = _read_refs(path)
        chosen = [ref for ref in refs if ref.get("split") == split]
        if not chosen:
            splits = sorted({str(ref.get("split")) for ref in refs})
            raise ConfigError(Problem("split", f"`{path}` has no split `{split}`; allowed: {', '.join(splits)}"))
        fields = Fields(
            id="sent_id", question="sent", box="box", size=("width", "height"),
            image="COCO_train2014_{image_id:012d}.jpg",
        )  # fmt: skip
        rows = _phrases(path, chosen, Path(folder) / "instances.json")
        super().__init__([MemoryTable(rows, path=path)], fields, images=Path(images))


class _PlainUnpickler(pickle.Unpickler):
    """Numbers, texts, lists and mappings; a pickle that names anything else may run any code, and is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ConfigError(f"it asks for {module}.{name}; a file of phrases has numbers, texts, lists and mappings only")


def _read_refs(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            refs = _PlainUnpickler(file, encoding="utf-8").load()
    except ConfigError as error:
        raise ConfigError(Problem("folder", f"`{path}` is refused: {error}")) from error
    except OSError as error:
        raise ConfigError(Problem("folder", f"`{path}` cannot be read: {error.strerror or error}")) from error
    except Exception as error:  # a damaged pickle fails in any way
        raise ConfigError(Problem("folder", f"`{path}` is no pickle of phrases: {error}")) from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise ConfigError(Problem("folder", f"`{path}` holds no list of regions with phrases"))
    return refs


def _phrases(path: Path, refs: list[dict[str, Any]], instances: Path) -> Iterator[tuple[Path, int, Row | str]]:
    boxes = _of(instances, "annotations", ("bbox",), {ref.get("ann_id") for ref in refs})
    sizes = _of(instances, "images", ("width", "height"), {ref.get("image_id") for ref in refs})
    for ref in refs:
        lacks = [key for key in ("ref_id", "ann_id", "image_id", "sentences") if key not in ref]
        if lacks or not isinstance(ref["sentences"], list):
            yield path, 0, f"`{(lacks or ['sentences'])[0]}` is missing"
            continue
        box, size = boxes.get(ref["ann_id"]), sizes.get(ref["image_id"])
        for sentence in ref["sentences"]:
            if box is None or size is None:
                what = f"annotation {ref['ann_id']}" if box is None else f"image {ref['image_id']}"
                yield path, 0, f"{instances.name} has no {what}, which region {ref['ref_id']} is in"
            elif not isinstance(sentence, dict):
                yield path, 0, f"region {ref['ref_id']} has a phrase that is no object"
            else:
                yield path, 0, {**sentence, "image_id": ref["image_id"], "box": box["bbox"], **size}


def _of(path: Path, under: str, keys: tuple[str, ...], wanted: set[Any]) -> dict[Any, Row]:
    """Some keys of the wanted rows, by their id."""
    found = {}
    try:
        for row in json_rows(path, under):
            if isinstance(row.value, dict) and row.value.get("id") in wanted:
                found[row.value["id"]] = {key: row.value.get(key) for key in keys}
    except ConfigError as error:
        raise error.under("folder") from error
    return found
