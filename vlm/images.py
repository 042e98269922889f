"""Opening image files: any ordinary picture comes out as upright 8-bit RGB, anything else as one clear error.

Colour profiles are not applied: the pictures vision models learn from are converted without them as well.
"""

import contextlib
import glob
import io
import logging
import math
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

ImageLike = str | os.PathLike[str] | bytes | Image.Image

# Pillow's own default, as a number because a program may have changed Pillow's: 256 MiB of RGB.
MAX_PIXELS = 1024**3 // 4 // 3

_COMMON = [".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"]
IMAGE_SUFFIXES = frozenset([*_COMMON, ".avif", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"])

# Only these decoders see the bytes. Of Pillow's others, EPS starts Ghostscript, TGA takes almost any bytes for a
# picture, and the rest is attack surface that nobody here needs.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")

_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
# Pillow promises no common class for damaged data: what comes depends on which byte of which format is wrong.
_DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, AssertionError),
    *(LookupError, ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error),
)

# "https:/" with one slash too, because that is what pathlib makes of a URL.
_URL = re.compile(r"(?:https?|ftp|s3|gs|hf|file):/|data:", re.IGNORECASE)

_log = logging.getLogger(__name__)


class ImageError(ValueError):
    """A file that cannot be used as an image; the message names it, what is wrong, and what is allowed."""


class _PillowWarnings:
    """While any thread is inside, Pillow's bomb warnings are errors and its other ones are muted.

    The others are about metadata (a cut-off EXIF tag); damaged pixels are errors anyway. All threads share one guard:
    `warnings.catch_warnings` changes the whole process, and two threads that leave theirs in the wrong order would
    change the filters for good. Here the first one in sets them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._filters = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.close()


_pillow_warnings = _PillowWarnings()


def open_image(source: ImageLike, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return `source` (a path, the bytes of a file, or a Pillow image) as a new, upright, 8-bit RGB image.

    Transparency is put on white, because charts and scans are black on transparent: black would hide them. Of an
    animation or a multi-page file the first frame is used, and INFO is logged; a Pillow image is used at the frame it
    stands at. Deep greys are scaled (see `_grey8`). The result has no metadata, so nothing turns it a second time.

    Raises ImageError for what cannot be used. `max_pixels` is checked on the header, before decoding; Pillow's own
    limit (`PIL.Image.MAX_IMAGE_PIXELS`) holds as well, whichever is lower.
    """
    name = _name(source)
    with _clear_errors(name, max_pixels):
        if isinstance(source, Image.Image):
            return _upright_rgb(_loaded(source, name, max_pixels))
        with _stream(source, name) as stream:
            return _upright_rgb(_first_frame(stream, name, max_pixels))


def image_size(source: str | os.PathLike[str] | bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels of what `open_image` returns, from the file's header: damaged pixels are not found.

    Raises ImageError for what cannot be used.
    """
    name = _name(source)
    with _clear_errors(name, max_pixels), _stream(source, name) as stream:
        image = _checked(Image.open(stream, formats=_FORMATS), name, max_pixels)
        lies = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        return image.size if lies and image.format != "TIFF" else image.size[::-1]  # Pillow gives a TIFF's upright size


@contextlib.contextmanager
def _clear_errors(name: str, max_pixels: int) -> Iterator[None]:
    """Whatever Pillow raises in here comes out as one ImageError that says what to do."""
    try:
        with _pillow_warnings:
            yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        wrong = "not a readable image (another kind of file, a format such as HEIC, SVG or PDF, or a damaged header)"
        raise ImageError(f"{name}: {wrong}; allowed: {', '.join(_FORMATS)}. Convert it to PNG or JPEG.") from error
    except _BOMBS as error:
        todo = "Scale it down first, or raise PIL.Image.MAX_IMAGE_PIXELS."
        raise ImageError(f"{name}: too large for Pillow ({error}); allowed: {max_pixels} pixels. {todo}") from error
    except _DAMAGE as error:
        wrong = f"damaged or cut off ({type(error).__name__}: {error})"
        raise ImageError(f"{name}: {wrong}; only complete files are allowed. Copy or export it again.") from error


def _name(source: ImageLike) -> str:
    """Return what messages call the source, shortened because a data: URL holds a whole picture."""
    if isinstance(source, bytes):
        return "<bytes>"
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", "") or "<image>"
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(f"an image is given as a path, bytes or a PIL image, not as {type(source).__name__}")
    name = os.fsdecode(source)
    return name if len(name) <= 300 else f"{name[:200]}...{name[-50:]}"


def _stream(source: str | os.PathLike[str] | bytes, name: str) -> BinaryIO:
    """Open the bytes of the source for the caller to close: Pillow keeps open what may have further frames."""
    if isinstance(source, bytes):
        return io.BytesIO(source) if source else _refuse_empty(name)
    path = os.fspath(source)
    if _URL.match(path):
        raise ImageError(f"{name}: a URL; nothing is downloaded. Save the picture and give the path of the file.")
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name}: a folder; only files are allowed. Name the images in it (see find_images).")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise ImageError(f"{name}: a device or pipe; only regular files are allowed.")
        return open(path, "rb") if status.st_size else _refuse_empty(name)
    except FileNotFoundError as error:
        raise ImageError(f"{name or repr(name)}: no such file; give the path of an existing image file.") from error
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened ({error.strerror}); a readable file is needed.") from error


def _refuse_empty(name: str) -> NoReturn:
    raise ImageError(f"{name}: empty, 0 bytes; only complete files are allowed. Copy or export it again.")


def _first_frame(stream: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Decode the first frame of an opened file."""
    image = Image.open(stream, formats=_FORMATS)
    _repair_transparency(image)
    _loaded(image, name, max_pixels)
    if getattr(image, "is_animated", False):
        _log.info("%s: has more than one frame or page; the first is used", name)
    return image


def _repair_transparency(image: ImageFile.ImageFile) -> None:
    """Bring a PNG's transparent colour to the scale of the decoded pixels.

    Pillow widens 2- and 4-bit greys to 8 bit and cuts 16-bit colours down to it, but leaves the transparent colour
    as the file has it, where it then matches no pixel, or a wrong one.
    """
    colour = image.info.get("transparency")
    raw_mode = image.tile[0].args if image.format == "PNG" and image.tile else None
    if raw_mode in ("L;2", "L;4") and isinstance(colour, int):
        image.info["transparency"] = colour * (85 if raw_mode == "L;2" else 17)
    elif raw_mode == "RGB;16B" and isinstance(colour, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in colour)


def _loaded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Return the image with its pixels decoded, once its size is known to be allowed."""
    _checked(image, name, max_pixels).load()  # Pillow opens lazily: only this finds out that a file is cut off
    return image


def _checked(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    """Return the image if its size is allowed."""
    width, height = image.size
    size = f"{width} x {height} = {width * height} pixels"
    if width * height == 0:
        raise ImageError(f"{name}: {size}, nothing to see; at least 1 x 1 is needed.")
    if width * height > max_pixels:
        raise ImageError(f"{name}: {size}, too large; allowed: {max_pixels}. Scale it down first, or raise max_pixels.")
    return image


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image to RGB and apply its EXIF orientation.

    `exif_transpose` gets a picture that has no other metadata: it writes the EXIF block anew, which on the original
    fails where some tag that nobody needs is damaged. An EXIF block that Pillow cannot read turns nothing.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    picture = _rgb(image)
    picture.info.clear()
    if orientation not in range(2, 9):
        return picture
    picture.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def _rgb(image: Image.Image) -> Image.Image:
    """Return a new RGB image of the same pixels, transparent ones on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey8(image)).convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied grey to nothing but LA
        image = image.convert("LA")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
    return white


def _grey8(image: Image.Image) -> NDArray[np.uint8]:
    """Scale 16-bit, integer and float greys to 8 bit; Pillow's own conversion clips at 255, which is almost all white.

    Mode I;16 is 0..65535. Modes I and F do not say what their white is: it is the smallest of the usual ones (1, for
    F only, 255, 65535) that no value exceeds; where values are negative or larger still, the darkest becomes black
    and the brightest white. NaN, infinity and the transparent value hold no data: white, like all transparency.
    """
    with np.errstate(invalid="ignore"):  # numpy warns of some kinds of NaN
        values: NDArray[Any] = np.asarray(image, dtype=np.float32 if image.mode.startswith("I;16") else np.float64)
    usable = np.isfinite(values) & (values != image.info.get("transparency", np.nan))
    low, high = _black_and_white(image, values[usable])
    grey = (np.where(usable, values, low) - low) * (255 / (high - low))
    # Where a TIFF says that 0 is white, Pillow inverts up to 8 bits, but not these.
    if getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0:
        grey = 255 - grey
    return np.where(usable, np.rint(grey), 255).astype(np.uint8)


def _black_and_white(image: Image.Image, values: NDArray[Any]) -> tuple[float, float]:
    """Return the values that stand for black and white, by the rule in `_grey8`."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM") or not values.size:
        return 0, 65535  # a deep PGM too: Pillow widens every one to 16 bit
    low, high = float(values.min()), float(values.max())
    for white in (1, 255, 65535) if image.mode == "F" else (255, 65535):
        if low >= 0 and high <= white:
            return 0, white
    return low, high if high > low else math.inf  # a single value has no range: all black


def find_images(paths: Iterable[str]) -> list[Path]:
    """Expand files, folders and glob patterns (`**` too) to a list of files, in the order given, each once.

    Folders are searched recursively, in natural order (page2 before page10), for the suffixes in IMAGE_SUFFIXES;
    hidden files are skipped, they are thumbnails and the like. A file named outright stays whatever its suffix, and
    even if it does not exist: then it fails alone later, instead of the whole batch now. A folder or pattern without
    any image raises ImageError.
    """
    found: dict[str, Path] = {}
    for name in [paths] if isinstance(paths, str) else paths:
        for path in _expand(name):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _expand(name: str) -> list[Path]:
    """List what one argument stands for; an existing file is itself even if its name looks like a pattern."""
    if os.path.isdir(name):
        matches, what = [name], "a folder without images"
    elif glob.has_magic(name) and not os.path.exists(name) and not _URL.match(name):
        matches, what = glob.glob(name, recursive=True), "a pattern that matches no images"
    else:
        return [Path(name)]
    files = {path for match in matches for path in _images_in(match)}
    if not files:
        raise ImageError(f"{name}: {what}; allowed suffixes: {' '.join(sorted(IMAGE_SUFFIXES))}.")
    return sorted(files, key=lambda path: (_natural(path), path))  # page1 and page01 are one number


def _images_in(match: str) -> Iterator[Path]:
    """Yield the images below a folder, or the file itself; links to folders may lead in circles: not followed."""
    walked = os.walk(match) if os.path.isdir(match) else [("", [], [match])]
    for parent, folders, files in walked:
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        paths = (Path(parent, file) for file in files if parent == "" or not file.startswith("."))
        yield from (path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)


def _natural(path: Path) -> list[list[tuple[str, int]]]:
    """Sort key: folder by folder, with runs of digits as numbers."""
    return [[(text.lower(), int(run or -1)) for text, run in re.findall(r"(\D*)(\d*)", part)] for part in path.parts]
