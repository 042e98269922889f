"""Every picture that Pillow can hold must come out as the same upright RGB, and a broken file as one clear error."""

import io
import logging
import os
import random
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from vlm.images import IMAGE_SUFFIXES, MAX_PIXELS, ImageError, find_images, image_size, open_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Nothing may warn, not even about a file left open."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_by_hand(size: tuple[int, int], depth: int, colour: int, rows: list[bytes], *extra: bytes) -> bytes:
    """A PNG of exactly this bit depth and colour type, which Pillow would not write."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The pixels row by row; also checks what holds for every result."""
    assert (type(image), image.mode, image.info) == (Image.Image, "RGB", {})
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def row(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    for x, pixel in enumerate(pixels):
        image.putpixel((x, 0), pixel)
    return image


def greys(*values: int) -> list[tuple[int, ...]]:
    return [(value,) * 3 for value in values]


def quadrants(width: int = 48, height: int = 32) -> Image.Image:
    """Red, green over blue, white: no turn or flip of it looks like another."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(WHITE, (width // 2, height // 2, width, height))
    return image


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    places = [(4, 4), (width - 5, 4), (4, height - 5), (width - 5, height - 5)]
    return [tuple(image.getpixel(place)) for place in places]


def close(found: list[tuple[int, ...]], expected: list[tuple[int, ...]], *, tolerance: int) -> bool:
    return bool(np.abs(np.subtract(found, expected)).max() <= tolerance)


def refused(source: object, *words: str, **options: int) -> str:
    """The message with which the source is refused; it must contain the words."""
    with pytest.raises(ImageError) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


# Modes


def palette_image(*, transparency: int | bytes | None = None) -> bytes:
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    return encoded(image, **({} if transparency is None else {"transparency": transparency}))


HALF_RED_ON_WHITE = (255, 127, 127)

MODES: dict[str, tuple[bytes, list[tuple[int, ...]]]] = {
    "RGB": (encoded(row("RGB", RED, GREEN, (1, 2, 3))), [RED, GREEN, (1, 2, 3)]),
    "grey": (encoded(row("L", 0, 100, 255)), greys(0, 100, 255)),
    "1 bit": (encoded(row("1", 0, 255)), [BLACK, WHITE]),
    "RGBA": (encoded(row("RGBA", (*BLACK, 0), (*BLACK, 255), (*RED, 128))), [WHITE, BLACK, HALF_RED_ON_WHITE]),
    "LA": (encoded(row("LA", (0, 0), (0, 255), (90, 255))), greys(255, 0, 90)),
    "palette": (palette_image(), [RED, GREEN, BLUE]),
    "palette, one transparent": (palette_image(transparency=1), [RED, WHITE, BLUE]),
    "palette, alpha each": (palette_image(transparency=bytes([128, 0, 255])), [HALF_RED_ON_WHITE, WHITE, BLUE]),
    "grey, transparent value": (encoded(row("L", 0, 7, 9), transparency=7), greys(0, 255, 9)),
    "RGB, transparent value": (encoded(row("RGB", RED, BLUE), transparency=RED), [WHITE, BLUE]),
    "1 bit, transparent black": (png_by_hand((2, 1), 1, 0, [b"\x40"], png_chunk(b"tRNS", b"\0\0")), greys(255, 255)),
    "2 bit, transparent 1": (
        png_by_hand((4, 1), 2, 0, [b"\x1b"], png_chunk(b"tRNS", b"\0\1")),
        greys(0, 255, 170, 255),
    ),
    "4 bit, transparent 2": (
        png_by_hand((4, 1), 4, 0, [b"\x01\x23"], png_chunk(b"tRNS", b"\0\2")),
        greys(0, 17, 255, 51),
    ),
    "16 bit RGB": (png_by_hand((2, 1), 16, 2, [struct.pack(">6H", 65535, 0, 0, 257, 514, 771)]), [RED, (1, 2, 3)]),
    "16 bit RGB, transparent": (
        png_by_hand((2, 1), 16, 2, [struct.pack(">6H", *[0x0305] * 3, *[0x0501] * 3)], png_chunk(b"tRNS", b"\3\5" * 3)),
        greys(255, 5),
    ),
    "16 bit RGBA": (png_by_hand((2, 1), 16, 6, [struct.pack(">8H", 0, 0, 0, 0, 65535, 0, 0, 65535)]), [WHITE, RED]),
    "16 bit LA": (png_by_hand((2, 1), 16, 4, [struct.pack(">4H", 0, 0, 257, 65535)]), greys(255, 1)),
    "16 bit grey, transparent": (
        png_by_hand((3, 1), 16, 0, [struct.pack(">3H", 0, 300, 65535)], png_chunk(b"tRNS", struct.pack(">H", 300))),
        greys(0, 255, 255),
    ),
    "CMYK TIFF": (encoded(row("CMYK", (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0)), "TIFF"), [RED, BLACK, WHITE]),
    "RGBA WebP": (encoded(row("RGBA", (*BLACK, 0), (*RED, 255)), "WEBP", lossless=True), [WHITE, RED]),
    "BMP": (encoded(row("RGB", RED, BLUE), "BMP"), [RED, BLUE]),
    "deep PGM": (b"P5 3 1 1023\n" + struct.pack(">3H", 0, 511, 1023), greys(0, 127, 255)),
    "very dark deep PGM": (b"P5 2 1 65535\n" + struct.pack(">2H", 0, 255), greys(0, 1)),
    "16 bit TIFF, 0 is white": (encoded(row("I;16", 0, 65535), "TIFF", tiffinfo={262: 0}), greys(255, 0)),
}


@pytest.mark.parametrize("case", MODES)
def test_every_mode_in_a_file_gives_the_right_colours(case: str, tmp_path: Path) -> None:
    content, expected = MODES[case]
    (tmp_path / "picture").write_bytes(content)  # no suffix: the content decides
    assert colours(open_image(tmp_path / "picture")) == expected
    assert colours(open_image(content)) == expected


@pytest.mark.parametrize("subsampling", [0, 2])
def test_cmyk_and_ycbcr_jpegs_have_their_colours(subsampling: int) -> None:
    picture = quadrants()
    expected = [RED, GREEN, BLUE, WHITE]
    for mode in ("RGB", "YCbCr", "CMYK"):
        jpeg = encoded(picture.convert(mode), "JPEG", quality=95, subsampling=subsampling)
        assert close(corners(open_image(jpeg)), expected, tolerance=6), mode


def test_a_lab_tiff_has_its_colours() -> None:
    content = encoded(row("LAB", (255, 128, 128), (0, 128, 128), (138, 209, 198)), "TIFF")
    assert close(colours(open_image(content)), [WHITE, BLACK, RED], tolerance=6)


IN_MEMORY: dict[str, tuple[Image.Image, list[tuple[int, ...]]]] = {
    "HSV": (row("HSV", (0, 255, 255), (85, 255, 255), (170, 255, 255), (0, 0, 0)), [RED, GREEN, BLUE, BLACK]),
    "YCbCr": (row("YCbCr", (76, 85, 255), (29, 255, 107), (255, 128, 128)), [RED, BLUE, WHITE]),
    "LAB": (row("LAB", (255, 128, 128), (0, 128, 128), (138, 209, 198)), [WHITE, BLACK, RED]),
    "PA": (Image.merge("PA", (row("P", 0, 1), row("L", 255, 0))), [BLACK, WHITE]),
    "La": (row("LA", (90, 255), (0, 0)).convert("La"), greys(90, 255)),
    "RGBa": (row("RGBA", (*RED, 255), (*RED, 0)).convert("RGBa"), [RED, WHITE]),
    "RGBX": (row("RGBX", (*RED, 0), (*BLUE, 9)), [RED, BLUE]),
    "I;16B": (row("I;16B", 0, 257, 65535), greys(0, 1, 255)),
    "I;16L": (row("I;16L", 0, 257, 65535), greys(0, 1, 255)),
    "I as 8 bit": (row("I", 0, 100, 200), greys(0, 100, 200)),
    "I as 16 bit": (row("I", 0, 257, 65535), greys(0, 1, 255)),
    "I, negative": (row("I", -100, -50, 100), greys(0, 64, 255)),
    "I, larger": (row("I", 0, 10**6, 2 * 10**6), greys(0, 128, 255)),
    "I, one value": (row("I", 10**6, 10**6), greys(0, 0)),
    "F as fraction": (row("F", 0.0, 0.5, 1.0), greys(0, 128, 255)),
    "F as 8 bit": (row("F", 0.0, 100.4, 200.0), greys(0, 100, 200)),
    "F as 16 bit": (row("F", 0.0, 257.0, 65535.0), greys(0, 1, 255)),
    "F, negative": (row("F", -0.5, 0.0, 0.5), greys(0, 128, 255)),
    "F, no data": (row("F", float("nan"), float("inf"), 0.0, 1.0), greys(255, 255, 0, 255)),
    "F, nothing but no data": (row("F", float("nan"), float("-inf")), greys(255, 255)),
    "F, one value and no data": (row("F", -7.0, float("inf")), greys(0, 255)),
    "F, signalling NaN": (Image.frombytes("F", (1, 1), struct.pack("=I", 0x7FA00001)), greys(255)),
    "F, huge": (row("F", -3e38, 3e38), greys(0, 255)),
}


@pytest.mark.parametrize("case", IN_MEMORY)
def test_every_mode_of_a_pillow_image_gives_the_right_colours(case: str) -> None:
    image, expected = IN_MEMORY[case]
    before = image.mode, image.tobytes(), dict(image.info)
    tolerance = {"LAB": 6, "YCbCr": 2}.get(case, 0)
    assert close(colours(open_image(image)), expected, tolerance=tolerance)
    assert (image.mode, image.tobytes(), dict(image.info)) == before


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_a_16_bit_gradient_keeps_its_order_and_range(kind: str) -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    image = Image.fromarray(values)
    result = np.asarray(open_image(encoded(image if kind != "PPM" else image.convert("I"), kind)))[..., 0].ravel()
    assert (result[0], result[-1]) == (0, 255)
    assert (np.diff(result.astype(int)) >= 0).all()
    assert np.array_equal(result, np.rint(values.ravel() / 257))


def test_float_and_integer_tiffs_are_scaled_not_clipped() -> None:
    assert colours(open_image(encoded(row("F", 0.0, 0.2, 1.0), "TIFF"))) == greys(0, 51, 255)
    assert colours(open_image(encoded(row("I", 0, 2570, 65535), "TIFF"))) == greys(0, 10, 255)


def test_a_copy_is_returned_that_does_not_depend_on_the_source() -> None:
    image = row("RGB", RED, BLUE)
    open_image(image).putpixel((0, 0), GREEN)
    assert image.getpixel((0, 0)) == RED


# Orientation


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    """How a camera that writes this orientation has the picture in the file, straight from the EXIF standard.

    The standard says where the file's first row and first column lie in the upright picture.
    """
    pixels = np.asarray(picture)
    sides = {1: "TL", 2: "TR", 3: "BR", 4: "BL", 5: "LT", 6: "RT", 7: "RB", 8: "LB"}[orientation]
    if sides[0] in "LR":  # the first row of the file is a column of the picture
        pixels = pixels[:, ::-1] if sides[0] == "R" else pixels
        pixels = pixels[::-1] if sides[1] == "B" else pixels
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 0, 2)))
    pixels = pixels[::-1] if sides[0] == "B" else pixels
    return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if sides[1] == "R" else pixels))


def oriented(orientation: object, **other: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for tag, value in other.items():
        exif[int(tag.lstrip("x"), 16)] = value
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})]
)
def test_each_exif_orientation_gives_the_same_upright_picture(
    kind: str, options: dict[str, object], orientation: int
) -> None:
    upright = quadrants()
    content = encoded(stored(upright, orientation), kind, exif=oriented(orientation), **options)
    result = open_image(content)
    assert result.size == upright.size
    assert image_size(content) == (upright.height, upright.width)
    assert close(corners(result), corners(upright), tolerance=6)
    assert open_image(result).tobytes() == result.tobytes(), "it must not be turned a second time"
    assert open_image(Image.open(io.BytesIO(content))).tobytes() == result.tobytes()


def test_orientation_is_applied_to_greys_and_transparency_too() -> None:
    assert colours(open_image(encoded(row("I;16", 0, 65535), exif=oriented(3)))) == greys(255, 0)
    assert colours(open_image(encoded(row("LA", (0, 255), (0, 0)), exif=oriented(2)))) == greys(255, 0)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    assert corners(open_image(encoded(quadrants(), exif=oriented(orientation)))) == corners(quadrants())


@pytest.mark.parametrize("kind", range(14))
def test_a_damaged_tag_elsewhere_does_not_cost_the_orientation(kind: int) -> None:
    # The resolution, a fraction, is said to be of another type; with text, exif_transpose alone ends in a TypeError.
    exif = oriented(6, x011a=72.0).tobytes().replace(b"\x01\x1a\0\5", b"\x01\x1a\0" + bytes([kind]))
    assert bytes([0x01, 0x1A, 0, kind]) in exif
    content = encoded(stored(quadrants(), 6), exif=exif)
    assert corners(open_image(content)) == corners(quadrants())


# More than one frame


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("GIF", {}),
        ("WEBP", {"lossless": True}),
        ("PNG", {}),
        ("TIFF", {}),
        ("MPO", {"quality": 95}),
        ("AVIF", {"quality": 100}),
    ],
)
def test_the_first_frame_is_used_and_that_is_logged(
    kind: str, options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"animation.{kind.lower()}"
    frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
    with caplog.at_level(logging.INFO, logger="vlm.images"):
        assert close(colours(open_image(path)), [RED] * 256, tolerance=6)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert str(path) in caplog.text


def test_a_single_frame_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vlm.images"):
        for kind in ("GIF", "WEBP", "PNG", "TIFF", "JPEG"):
            open_image(encoded(quadrants(), kind))
    assert not caplog.records


def test_a_transparent_first_gif_frame_is_put_on_white() -> None:
    frames = [row("RGBA", (*BLACK, 0), (*RED, 255)), row("RGBA", (*BLUE, 255), (*BLUE, 255))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colours(open_image(content)) == [WHITE, RED]


def test_a_pillow_image_is_used_at_the_frame_it_stands_at() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    with Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert colours(open_image(image)) == [BLUE] * 64


# Refusals


def test_what_is_no_file_is_refused_by_name(tmp_path: Path) -> None:
    refused(tmp_path / "missing.png", "missing.png", "no such file")
    refused(str(tmp_path), str(tmp_path), "folder")
    refused("", "no such file")
    (tmp_path / "empty.jpg").touch()
    refused(tmp_path / "empty.jpg", "empty.jpg", "empty")
    refused(b"", "<bytes>", "empty")
    refused(tmp_path / ("x" * 400), "cannot be opened", "...")
    refused("nul\0byte.png", "null byte")


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "pipe.png", "only regular files")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(encoded(quadrants()))
    (tmp_path / "secret.png").chmod(0)
    refused(tmp_path / "secret.png", "secret.png", "cannot be opened")


@pytest.mark.parametrize(
    "url", ["https://x.org/a.png", "HTTP://x.org/a.png", "s3://b/a.png", "file:///a.png", "data:image/png;base64,AAAA"]
)
def test_urls_are_refused_and_nothing_is_downloaded(url: str) -> None:
    refused(url, url, "URL", "nothing is downloaded")
    if not url.startswith("data:"):
        refused(Path(url), "URL")
    assert len(refused("data:image/png;base64," + "A" * 10**6, "URL")) < 600


@pytest.mark.parametrize(
    "content",
    [
        b"Dear reader, this is text.\n" * 50,
        b"%PDF-1.7\n",
        b"<svg xmlns='x'/>",
        b"\0" * 500,
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    ],
)
def test_other_content_is_refused_whatever_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(content)
    refused(tmp_path / "photo.jpg", "photo.jpg", "not a readable image", "PNG, JPEG")
    refused(content, "<bytes>", "not a readable image")


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4, 3), np.uint8), ["a.png"]])
def test_another_type_of_source_is_a_type_error(source: object) -> None:
    with pytest.raises(TypeError, match="path, bytes or a PIL image"):
        open_image(source)


SMOOTH = Image.fromarray(np.add.outer(np.arange(40) * 3, np.arange(48) * 2).astype(np.uint8)).convert("RGB")
ENCODINGS: dict[str, bytes] = {
    "PNG": encoded(SMOOTH),
    "JPEG": encoded(SMOOTH, "JPEG", exif=oriented(1, x010f="Maker")),
    "progressive JPEG": encoded(SMOOTH, "JPEG", progressive=True),
    "GIF": encoded(SMOOTH, "GIF"),
    "WebP": encoded(SMOOTH, "WEBP"),
    "lossless WebP": encoded(SMOOTH, "WEBP", lossless=True, exif=oriented(1)),
    "TIFF": encoded(SMOOTH, "TIFF"),
    "LZW TIFF": encoded(SMOOTH, "TIFF", compression="tiff_lzw"),
    "float TIFF": encoded(SMOOTH.convert("F"), "TIFF"),
    "AVIF": encoded(SMOOTH, "AVIF"),
    "BMP": encoded(SMOOTH, "BMP"),
    "PPM": encoded(SMOOTH, "PPM"),
    "palette PNG": palette_image(transparency=bytes([128, 0, 255])),
    "16 bit PNG": MODES["16 bit grey, transparent"][0],
    "animated GIF": encoded(SMOOTH, "GIF", save_all=True, append_images=[quadrants(48, 40)]),
    "animated PNG": encoded(SMOOTH, "PNG", save_all=True, append_images=[quadrants(48, 40)]),
}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_header_tells_the_size(kind: str, tmp_path: Path) -> None:
    whole = open_image(ENCODINGS[kind])
    assert image_size(ENCODINGS[kind]) == (whole.height, whole.width)
    for name, content in (("empty.png", b""), ("text.png", b"no picture")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            image_size(tmp_path / name)
    with pytest.raises(ImageError, match="too large; allowed: "):
        image_size(ENCODINGS[kind], max_pixels=whole.height * whole.width - 1)


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_cut_off_file_is_never_half_a_picture(kind: str, tmp_path: Path) -> None:
    content, whole = ENCODINGS[kind], open_image(ENCODINGS[kind]).tobytes()
    pixels_end = len(content) // 2 if "animated" in kind else len(content)  # the second frame may be missing
    refused(content[: pixels_end // 2], "<bytes>")
    (tmp_path / "cut.img").write_bytes(content[: pixels_end * 3 // 4])
    refused(tmp_path / "cut.img", "cut.img")
    for end in range(1, len(content), max(1, len(content) // 200)):
        try:
            image = open_image(content[:end])
        except ImageError:
            continue
        # Only what follows the pixels may be missing (an end marker, an animation's further frames).
        assert image.tobytes() == whole, end
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_cut_off_jpeg_and_png_say_so() -> None:
    refused(encoded(quadrants(), "JPEG")[:-40], "damaged or cut off", "truncated")
    refused(encoded(SMOOTH)[:-30], "damaged or cut off", "truncated")


def outcome(content: bytes) -> str:
    """Open damaged bytes; anything but an RGB image or an ImageError escapes and fails the test."""
    try:
        image = open_image(content, max_pixels=10**6)
    except ImageError as error:
        assert "<bytes>" in str(error)  # noqa: PT017 (any other outcome is looked at below)
        return "refused"
    assert (type(image), image.mode) == (Image.Image, "RGB")
    return "opened"


@pytest.mark.parametrize("kind", ENCODINGS)
def test_damaged_bytes_give_an_image_or_an_image_error(kind: str) -> None:
    chance = random.Random(f"damage {kind}")
    outcomes = set()
    for _ in range(200):
        content = bytearray(ENCODINGS[kind])
        # Half the damage goes to the first bytes: that is where the headers are.
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(min(len(content), chance.choice([120, len(content)])))] = chance.randrange(256)
        if chance.random() < 0.2:
            del content[chance.randrange(len(content)) :]
        outcomes.add(outcome(bytes(content)))
    assert "refused" in outcomes


@pytest.mark.parametrize(
    "error",
    [
        OSError,
        EOFError,
        SyntaxError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        AssertionError,
        OverflowError,
        ZeroDivisionError,
        RuntimeError,
        NotImplementedError,
        MemoryError,
        struct.error,
        zlib.error,
    ],
)
def test_whatever_a_decoder_raises_becomes_an_image_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: object) -> None:
        raise error("block 7")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ImageError, match="block 7") as caught:
        open_image(ENCODINGS["PNG"])
    assert type(caught.value.__cause__) is error


# Size limits


def bomb(width: int, height: int) -> bytes:
    return png_by_hand((width, height), 8, 2, [b"\0" * 10])


@pytest.mark.parametrize("size", [(50000, 50000), (12000, 12000), (MAX_PIXELS + 1, 1)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int], tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    refused(tmp_path / "bomb.png", "bomb.png", "too large", str(MAX_PIXELS))
    refused(bomb(*size), "too large", max_pixels=10**12)  # Pillow's own limit stays


def test_the_limit_is_exact_and_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("RGB", (20, 10)))
    assert open_image(content, max_pixels=200).size == (20, 10)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    refused(content, "20 x 10 = 200 pixels", "allowed: 199", max_pixels=199)
    with Image.open(io.BytesIO(content)) as lazy:
        refused(lazy, "<image>", "too large", max_pixels=199)


def test_pillows_switches_are_as_before() -> None:
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)
    for content in (bomb(50000, 50000), bomb(12000, 12000), ENCODINGS["PNG"], b"text"):
        outcome(content)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters)) == before


def test_without_pillows_limit_ours_still_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    refused(bomb(50000, 50000), "50000 x 50000 = 2500000000 pixels", str(MAX_PIXELS))


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(size: tuple[int, int]) -> None:
    refused(Image.new("RGB", size), "<image>", "at least 1 x 1")
    refused(png_by_hand(size, 8, 2, [b"\0" * 15]), "<bytes>", "allowed")


def test_a_closed_pillow_image_is_refused() -> None:
    image = Image.open(io.BytesIO(ENCODINGS["PNG"]))
    image.close()
    refused(image, "<image>")


# Resources and threads


def test_files_are_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[io.BufferedReader] = []
    real_open: Callable[..., io.BufferedReader] = open

    def spy(*args: object, **options: object) -> io.BufferedReader:
        opened.append(real_open(*args, **options))
        return opened[-1]

    contents = [
        *ENCODINGS.values(),
        *(content[: len(content) // 2] for content in ENCODINGS.values()),
        b"text",
        bomb(50000, 50000),
    ]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    monkeypatch.setattr("builtins.open", spy)
    results = []  # kept, so that no file is closed only because its image was collected
    for number in range(len(contents)):
        try:
            results.append(open_image(tmp_path / str(number)))
        except ImageError as error:
            results.append(error)
    assert len(opened) == len(contents)
    assert all(file.closed for file in opened)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    before = list(warnings.filters)
    started = threading.Barrier(4)

    def work(content: bytes) -> list[str]:
        started.wait()
        return [outcome(content) for _ in range(40)]

    sources = [ENCODINGS["PNG"], bomb(12000, 12000), ENCODINGS["JPEG"], b"text"]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, sources))
    assert [set(result) for result in results] == [{"opened"}, {"refused"}, {"opened"}, {"refused"}]
    assert list(warnings.filters) == before


def test_a_thread_that_leaves_first_takes_no_filters_along(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, leave = ({name: threading.Event() for name in (b"first", b"second")} for _ in range(2))

    def slow_open(stream: io.BytesIO, **_: object) -> Image.Image:
        name = stream.read()
        entered[name].set()
        leave[name].wait(5)
        raise OSError("left")

    monkeypatch.setattr(Image, "open", slow_open)
    before = list(warnings.filters)
    with ThreadPoolExecutor(2) as pool:
        results = []
        for name in entered:
            results.append(pool.submit(outcome, name))
            assert entered[name].wait(5)
        leave[b"first"].set()
        assert results[0].result(5) == "refused"
        assert list(warnings.filters) != before, "the second one still needs them"
        leave[b"second"].set()
        assert results[1].result(5) == "refused"
    assert list(warnings.filters) == before


# Finding files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    names = [
        "page10.png",
        "page2.PNG",
        "page1.jpg",
        "notes.txt",
        "b/c/deep.tiff",
        "b/x.webp",
        ".hidden.png",
        ".cache/thumb.png",
        "text/readme.md",
        "odd[1].png",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*paths: str) -> list[str]:
    return [path.as_posix() for path in find_images(paths)]


def test_a_folder_is_searched_recursively_in_natural_order(folder: Path) -> None:
    assert found(".") == ["b/c/deep.tiff", "b/x.webp", "odd[1].png", "page1.jpg", "page2.PNG", "page10.png"]
    assert find_images([str(folder / "b")]) == [folder / "b/c/deep.tiff", folder / "b/x.webp"]


def test_pages_are_sorted_by_number(tmp_path: Path) -> None:
    names = [f"{chapter}/page{page}b.png" for chapter in (2, 10) for page in range(8, 12)]
    for name in reversed(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images([str(tmp_path)]) == [tmp_path / name for name in names]


@pytest.mark.usefixtures("folder")
def test_patterns_are_expanded() -> None:
    assert found("page*") == ["page1.jpg", "page2.PNG", "page10.png"]
    assert found("page?.jpg") == ["page1.jpg"]
    assert found("**/*.webp") == ["b/x.webp"]
    assert found("b/**") == ["b/c/deep.tiff", "b/x.webp"]
    assert found("?") == ["b/c/deep.tiff", "b/x.webp"]  # a folder that a pattern matches is searched
    assert found("odd[1].png") == ["odd[1].png"]  # an existing file is itself, not a pattern


@pytest.mark.usefixtures("folder")
def test_order_is_kept_and_duplicates_are_dropped() -> None:
    assert found("page10.png", "page1.jpg", "./page10.png", "page*", "b/../page1.jpg") == [
        "page10.png",
        "page1.jpg",
        "page2.PNG",
    ]
    assert found() == []


@pytest.mark.usefixtures("folder")
def test_what_is_named_outright_stays() -> None:
    assert found("missing.png", "notes.txt") == ["missing.png", "notes.txt"]
    assert find_images("page1.jpg") == [Path("page1.jpg")]  # a lone string is one path, not its letters
    [url] = find_images(["https://x.org/a.png?width=3"])
    refused(url, "URL")


@pytest.mark.usefixtures("folder")
def test_nothing_found_is_an_error_that_names_it() -> None:
    for name in ("text", "*.gif", "nowhere/**/*", "text/*"):
        with pytest.raises(ImageError, match=r"allowed suffixes: .*\.png") as caught:
            find_images(["page1.jpg", name])
        assert str(caught.value).startswith(f"{name}: ")


def test_links_that_go_round_in_circles_end(folder: Path) -> None:
    (folder / "b" / "loop").symlink_to(folder)
    assert found("b") == ["b/c/deep.tiff", "b/x.webp"]


def test_every_suffix_belongs_to_a_format_that_is_opened() -> None:
    Image.init()
    allowed = {"AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
    assert {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES} == allowed
