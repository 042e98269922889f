"""Words, faces and colours of rendered text: who may see which, and what can be read."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from vlm.eval.rendered import lexicon
from vlm.eval.rendered.canvas import (
    CONTRAST,
    LEVELS,
    Canvas,
    Wear,
    contrast,
    ink_and_ground,
    mixed,
    photographed,
    quiet,
    warp,
    worn,
)
from vlm.eval.rendered.faces import HELD_OUT, TRAIN, characters, choose, faces, font, shows
from vlm.eval.rendered.lexicon import Split, split_of
from vlm.eval.rendered.text import ALPHABET

SPLITS: tuple[Split, Split] = ("train", "test")
LISTS = {
    name: getattr(lexicon, name)
    for name in ("COMMON", "FOODS", "QUALITIES", "SHOPS", "MEASURES", "COLUMNS", "SUBJECTS")
}


def by_hand(first: tuple[int, ...], second: tuple[int, ...]) -> float:
    """Contrast as WCAG 2.2 words it."""
    lights = []
    for colour in (first, second):
        parts = []
        for value in colour:
            share = value / 255
            parts.append(share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4)
        lights.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05)
    return max(lights) / min(lights)


# --- words ---


@pytest.mark.parametrize("name", LISTS)
def test_lists_hold_different_plain_words_for_both_splits(name: str) -> None:
    words = LISTS[name]
    assert len(set(words)) == len(words)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    parts = {split: lexicon.of_split(words, split) for split in SPLITS}
    assert sorted((*parts["train"], *parts["test"])) == sorted(words)
    assert min(map(len, parts.values())) >= 8


def test_the_split_of_a_word_knows_no_case_accents_or_marks() -> None:
    for word in lexicon.COMMON[:60]:
        for other in (word.upper(), word.capitalize(), f"({word}),", f'"{word}!"', word.replace("e", "é")):
            assert split_of(other) == split_of(word), other
    assert split_of("Straße") == split_of("STRASSE")
    shares = [split_of(str(number)) == "test" for number in range(4000)]
    assert np.mean(shares) == pytest.approx(1 / 4, abs=0.03)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("lengths", [(1, 1), (2, 3), (4, 9), (12, 14), (30, 40)])
def test_made_up_words_have_the_length_and_split_asked_for(split: Split, lengths: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    makers = {
        "common": lambda: lexicon.common(rng, split, lengths),
        "pseudo": lambda: lexicon.pseudo(rng, split, lengths),
        "accents": lambda: lexicon.pseudo(rng, split, lengths, accents=True),
        "number": lambda: lexicon.number(rng, split, lengths),
        "code": lambda: lexicon.code(rng, split, lengths),
        "symbols": lambda: lexicon.code(rng, split, lengths, symbols=True),
    }
    for name, make in makers.items():
        for _ in range(40):
            word = make()
            assert lengths[0] <= len(word) <= lengths[1], (name, word)
            assert split_of(word) == split, (name, word)
            assert any(letter.isalnum() for letter in word), (name, word)
            assert set(word) <= set(ALPHABET), (name, word)
            if name == "number":
                assert word[0] in "123456789"
                float(word.rstrip("%"))
            if name in ("code", "symbols"):
                assert not set(word) & set("Il1O0o|"), "cannot be told apart in some faces"
            if name == "accents" and lengths[0] >= 4:
                assert not word.isascii(), word


def test_mixed_case_keeps_the_word_and_what_can_be_told_apart() -> None:
    rng = np.random.default_rng(0)
    words = ["illilulil", "straße", "naïveté", "garden"]
    seen = {lexicon.mixed_case(rng, word) for word in words for _ in range(50)}
    assert {word.casefold() for word in seen} == {word.casefold() for word in words}
    assert not any(letter in word for word in seen for letter in "IlÏ")
    assert len(seen) > 40


# --- faces ---


def test_faces_of_the_splits() -> None:
    assert not set(TRAIN) & set(HELD_OUT)
    for level in LEVELS:
        train, test = set(faces(level, "train")), set(faces(level, "test"))
        assert train == test if level <= 2 else not train & test
        assert train <= set(TRAIN)
    assert faces(1, "test") == ("DejaVuSans",)
    assert all("Oblique" not in face and "Italic" not in face for face in faces(2, "train"))


def _file(face: str) -> Path:
    return Path(matplotlib.get_data_path()) / "fonts/ttf" / f"{face}.ttf"


@pytest.mark.parametrize("face", [face for face in (*TRAIN, *HELD_OUT) if not face.startswith("cm")])
def test_what_faces_show_is_in_their_files(face: str) -> None:
    table = TTFont(_file(face), lazy=True).getBestCmap()
    assert {ord(letter) for letter in characters(face)} <= set(table)
    assert shows(face, "".join(set(ALPHABET))), "all that words and lines can hold"
    assert shows(face, "€£$")


@pytest.mark.parametrize("face", [face for face in (*TRAIN, *HELD_OUT) if face.startswith("cm")])
def test_computer_modern_is_used_for_what_it_encodes_as_everybody_does(face: str) -> None:
    """Its files give every character a glyph, some of them another one: `<` is an inverted exclamation mark."""
    assert not set('"$<>\\^_`{|}~é€') & characters(face)
    missing = _pixels(face, "\N{CJK UNIFIED IDEOGRAPH-4E00}")
    drawn = {letter: _pixels(face, letter) for letter in characters(face) if letter != " "}
    assert all(pixels.any() for pixels in drawn.values())
    assert not any(pixels.shape == missing.shape and np.array_equal(pixels, missing) for pixels in drawn.values())


def _pixels(face: str, letter: str) -> np.ndarray:
    mask = font(face, 40).getmask(letter)
    return np.asarray(mask).reshape(mask.size[::-1])


def test_every_character_can_be_drawn_at_every_level_and_unknown_ones_are_refused() -> None:
    rng = np.random.default_rng(0)
    for split in SPLITS:
        for level in LEVELS:
            for letter in ALPHABET:
                assert shows(choose(rng, level, split, letter), letter)
    with pytest.raises(ValueError, match="no face of level 1, train, shows"):
        choose(rng, 1, "train", "\N{CJK UNIFIED IDEOGRAPH-4E00}")


# --- colours ---


def test_contrast_is_that_of_wcag() -> None:
    rng = np.random.default_rng(0)
    for first, second in rng.integers(0, 256, (200, 2, 3)).tolist():
        assert contrast(first, second) == pytest.approx(by_hand(first, second), rel=1e-12)
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005), (
        "a pair of the standard's notes"
    )


@pytest.mark.parametrize("level", LEVELS)
def test_text_has_the_contrast_of_its_level(level: int) -> None:
    rng, dark = np.random.default_rng(level), 0
    least, most = CONTRAST[level]
    for number in range(300):
        ink, ground = ink_and_ground(rng, level, paper=number % 2 == 0)
        inverted = sum(ground) < sum(ink)
        dark += inverted
        assert number % 2 or not inverted, "paper is light"
        gain = 2 if inverted else 1
        assert least * gain - 1e-9 <= by_hand(ink, ground) <= min(21, most * gain) + 1e-9
    assert (dark > 0) == (level >= 3)


@pytest.mark.parametrize("level", LEVELS)
def test_quiet_colours_leave_the_ink_its_contrast(level: int) -> None:
    rng, moved = np.random.default_rng(level), 0
    for _ in range(200):
        ink, ground = ink_and_ground(rng, level)
        other = tuple(rng.integers(0, 256, 3).tolist())
        found = quiet(ground, other, ink, level, 0.3)
        moved += found != ground
        for part in range(21):  # a gradient between the two
            assert by_hand(mixed(ground, found, part / 20), ink) >= CONTRAST[level][0] * 0.99
    assert (moved > 100) == (level > 1)


# --- canvas and wear ---


def test_a_canvas_refuses_text_that_would_be_cut() -> None:
    page = Canvas((40, 120), (255, 255, 255))
    page.text((4, 30), "Fits", "DejaVuSans", 20, (0, 0, 0))
    for at in ((100, 30), (-3, 30), (4, 10), (4, 41)):
        with pytest.raises(RuntimeError, match=r"`Figs` at .* leaves the canvas"):
            page.text(at, "Figs", "DejaVuSans", 20, (0, 0, 0))
    with pytest.raises(RuntimeError, match="leaves the canvas"):
        page.slanting((30, 0), "A long text", "DejaVuSans", 20, (0, 0, 0), turn=35)
    assert [placed.text for placed in page.placed] == ["Fits"]


def test_recorded_boxes_hold_the_ink_and_little_more() -> None:
    for text in ("Agj", "(1.5%)", "Éfß", "Wy."):
        page = Canvas((80, 200), (255, 255, 255))
        page.text((60, 50), text, "DejaVuSerif-Italic", 24, (0, 0, 0))
        ink = np.asarray(page.image.convert("L")) < 255
        rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
        tight = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        box = page.placed[0].box
        assert all(abs(found - drawn) <= 3 for found, drawn in zip(box, tight, strict=True)), text
        assert box[0] <= tight[0]
        assert box[1] <= tight[1]
        assert box[2] >= tight[2]
        assert box[3] >= tight[3]


def test_warp_brings_corners_where_they_belong() -> None:
    marks = Image.new("RGB", (60, 40))
    for number, (x, y) in enumerate([(2, 2), (57, 2), (57, 37), (2, 37)]):
        marks.paste((255, 60 * number + 40, 0), (x - 2, y - 2, x + 3, y + 3))
    corners = [(12.0, 9.0), (88.0, 15.0), (80.0, 70.0), (20.0, 64.0)]
    found = np.asarray(warp(marks, corners, (80, 100)), np.int16)
    for number, (x, y) in enumerate(corners):
        spot = np.argwhere((found[..., 0] > 200) & (abs(found[..., 1] - 60 * number - 40) < 25))
        assert np.hypot(*(spot.mean(0) - (y, x))) < 6, number
    assert not found[0].any()


def test_a_photographed_sheet_is_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        sheet = Image.new("RGB", (200, 120), (255, 255, 255))
        sheet.paste((255, 0, 0), (0, 0, 200, 2))
        sheet.paste((255, 0, 0), (0, 118, 200, 120))
        found = np.asarray(photographed(rng, sheet, 0.05, (0, 0, 0)), np.int16)
        red = (found[..., 0] > 60) & (found[..., 1] < found[..., 0] - 40)
        assert red[: 120 // 2].any(0).mean() > 0.85, "the upper edge, from the left to the right"
        assert red[120 // 2 :].any(0).mean() > 0.85
        assert not found[0, :1].any()


def test_wear_does_what_it_says() -> None:
    rng = np.random.default_rng(0)
    flat = Image.new("RGB", (64, 48), (128, 128, 128))
    assert worn(rng, flat, Wear(), 12) is flat
    noisy = np.asarray(worn(rng, flat, Wear(noise=10), 12), np.int16) - 128
    assert (noisy.min(), noisy.max()) == (-10, 9)
    assert (noisy[..., 0] == noisy[..., 2]).all()
    edge = flat.copy()
    edge.paste((0, 0, 0), (0, 0, 32, 48))
    blurred = np.asarray(worn(rng, edge, Wear(blur=0.2), 12), np.int16)
    assert 0 < len(set(blurred[0, :, 0].tolist()) - {0, 128}) <= 12
    shaded = np.asarray(worn(rng, flat, Wear(shade=0.5), 12))
    assert 60 <= shaded.min() < 110
    assert shaded.max() <= 128
    coarse = np.asarray(worn(rng, edge, Wear(quality=(5, 5)), 12), np.int16)
    assert np.abs(coarse - np.asarray(edge, np.int16)).max() > 3
    assert coarse.shape == (48, 64, 3)
