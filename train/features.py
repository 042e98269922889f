"""Features of frozen encoders on disk: computed once, shared by epochs, stages and runs."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as unpacked
from safetensors.torch import save as packed
from torch import Tensor

from vlm.collate import Look
from vlm.features import Features
from vlm.images import ImageLike
from vlm.views import Size


class Found(NamedTuple):
    """What a store has of one image."""

    size: Size
    """(height, width) in pixels."""
    views: list[list[Features]]
    """Per view one of a single view per encoder."""


class FeatureStore:
    """Features by the content of images. Data lies in one file a process, which others map into memory, with an index
    beside it; both only grow, and the index names what is written whole. Readers look into it again when they miss
    something.

    Args:
        folder: of these encoders and views: see `vlm.identity.sight_identity`.
        dtype: what features are kept in.
        rank: of this process; each writes a file of its own.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, rank: int = 0) -> None:
        self.folder, self.dtype, self.rank = folder, dtype, rank
        self._places: dict[str, tuple[Path, int, int]] = {}
        self._read: dict[Path, int] = {}
        self._maps: dict[Path, Any] = {}
        self._writes = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        self._refresh()
        return len(self._places)

    def find(self, image: ImageLike, images: int) -> Found | None:
        """The features of an image in a sample of so many `images`; None where there are none, or it cannot be read."""
        key = key_of(image, images)
        if key is None or not self.has(key):
            return None
        path, offset, length = self._places[key]
        if path not in self._maps or len(self._maps[path]) < offset + length:
            self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")
        return _found(unpacked(self._maps[path][offset : offset + length].tobytes()))

    def has(self, key: str) -> bool:
        if key not in self._places:
            self._refresh()
        return key in self._places

    def put(self, key: str, look: Look, views: Sequence[Sequence[Features]]) -> None:
        """Keep the features of an image.

        Args:
            key: of the image.
            look: how it is shown.
            views: per view one of a single view per encoder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"size": torch.tensor(look.plan.size)}
        for number, view in enumerate(views):
            for encoder, one in enumerate(view):
                tensors |= _tensors(f"{number}.{encoder}", one, self.dtype)
        content, path = packed(tensors), self.folder / f"features-{self.rank}.bin"
        with path.open("ab") as file:
            offset = file.tell()
            file.write(content)
            file.flush()
        with self._index(self.rank).open("a", encoding="ascii") as index:
            if not self._writes:
                index.truncate(_whole_lines(self._index(self.rank)))
            index.write(f"{key} {offset} {len(content)}\n")
        self._writes = True
        self._places[key] = path, offset, len(content)

    def _index(self, rank: int) -> Path:
        return self.folder / f"index-{rank}.txt"

    def _refresh(self) -> None:
        """Read what the indexes have more than when they were read last; half a line is not there yet."""
        for index in sorted(self.folder.glob("index-*.txt")):
            begin = self._read.get(index, 0)
            if index.stat().st_size <= begin:
                continue
            with index.open("rb") as file:
                file.seek(begin)
                fresh = file.read()
            whole = fresh[: fresh.rfind(b"\n") + 1]
            self._read[index] = begin + len(whole)
            path = index.with_name(index.name.replace("index", "features")).with_suffix(".bin")
            for line in whole.decode("ascii").splitlines():
                key, offset, length = line.split()
                self._places[key] = path, int(offset), int(length)


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last line that is whole: a killed process may have left half of one."""
    return path.read_bytes().rfind(b"\n") + 1


def key_of(image: ImageLike, images: int) -> str | None:
    """The digest of an image's content and of the number of images in its sample, by which views may differ; None where
    it cannot be read."""
    try:
        content = image if isinstance(image, bytes) else _content(image)
    except (OSError, ValueError):
        return None
    return hashlib.blake2b(content, digest_size=16, person=str(images).encode()).hexdigest()


def _content(image: Any) -> bytes:
    if isinstance(image, Image.Image):
        return bytes(image.tobytes()) + repr((image.mode, image.size)).encode()
    return Path(os.fspath(image)).read_bytes()


def _tensors(name: str, one: Features, dtype: torch.dtype) -> dict[str, Tensor]:
    if one.mask is not None:
        raise RuntimeError("features with a mask are not kept: views of one size have none")
    kept = {f"{name}.tokens": one.tokens.to("cpu", dtype).clone()}  # of its own, not a piece of a batch's
    if one.grid is not None:
        kept[f"{name}.grid"] = torch.tensor(one.grid)
    if one.extra is not None:
        kept[f"{name}.extra"] = one.extra.to("cpu", dtype).clone()
    return kept


def _found(tensors: dict[str, Tensor]) -> Found:
    places = sorted({tuple(map(int, name.split(".")[:2])) for name in tensors if name != "size"})
    views: list[list[Features]] = []
    for view, encoder in places:
        name = f"{view}.{encoder}"
        grid = tensors.get(f"{name}.grid")
        size = None if grid is None else (int(grid[0]), int(grid[1]))
        if encoder == 0:
            views.append([])
        views[view].append(Features(tensors[f"{name}.tokens"], size, extra=tensors.get(f"{name}.extra")))
    height, width = tensors["size"].tolist()
    return Found((height, width), views)
