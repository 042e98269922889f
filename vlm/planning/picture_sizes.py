"""Sizes of pictures, as words (`640x480`) or read from the headers of files."""

import os
import re
from collections.abc import Iterable

from vlm.images import MAX_PIXELS, ImageError, find_images, image_size
from vlm.views import Size

_WORD = re.compile(r"(\d+)[xX](\d+)")


def picture_sizes(words: Iterable[str]) -> tuple[dict[str, Size], dict[str, str]]:
    """(height, width) in pixels by name, and what is wrong with those that cannot be used, by name.

    Args:
        words: files, folders, globs, or sizes as people write them, WIDTHxHEIGHT; a file of such a name is a file.

    Raises:
        ImageError: a folder or pattern without any image.
    """
    sizes: dict[str, Size] = {}
    unusable: dict[str, str] = {}
    for word in words:
        written = _WORD.fullmatch(word) if not os.path.exists(word) else None
        for name in [word] if written else [str(path) for path in find_images([word])]:
            try:
                sizes[name] = _written_size(written) if written else image_size(name)
            except ImageError as error:
                unusable[name] = str(error)
    return sizes, unusable


def _written_size(word: re.Match[str]) -> Size:
    width, height = int(word[1]), int(word[2])
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"{word[0]}: {width * height} pixels; allowed: 1 to {MAX_PIXELS}")
    return height, width
