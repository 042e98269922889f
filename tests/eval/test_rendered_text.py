"""Pictures of words and lines: what they show, where it lies, and how hard it is."""

from typing import Any

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from tests.eval.test_drawing import by_hand
from vlm.eval.rendered import text as printed
from vlm.eval.rendered.canvas import CONTRAST, LEVELS, warp
from vlm.eval.rendered.lexicon import Split, core
from vlm.eval.rendered.sources import Lines, Words
from vlm.eval.rendered.text import RULES, Form, Print, compose, paint
from vlm.views import Size

SIZES: dict[Form, list[Size]] = {"word": [(64, 192), (32, 96)], "line": [(64, 512), (24, 270)]}


def prints(
    form: Form, level: int, size: Size, count: int, split: Split = "train", **options: Any
) -> list[tuple[np.random.Generator, Print]]:
    """Each with the generator's state after it, as `paint` gets it."""
    found = []
    for number in range(count):
        rng = np.random.default_rng([level, number])
        found.append((rng, compose(rng, split, level, form, size, **options)))
    return found


@pytest.mark.parametrize("source", [Words, Lines])
def test_train_and_test_share_no_word(source: type[Words] | type[Lines]) -> None:
    """Whatever the level, the case, the accents and the marks: no text of one split has a word of the other."""
    seen = {
        split: {
            core(word)
            for index in range(500)
            for word in source(split=split, count=500, seed=seed).scene(index).text.split()
        }
        for split, seed in (("train", 0), ("test", 0))
    }
    assert min(map(len, seen.values())) > 300
    assert not seen["train"] & seen["test"]
    assert "" not in seen["train"] | seen["test"]


@pytest.mark.parametrize("form", ["word", "line"])
@pytest.mark.parametrize("level", LEVELS)
def test_texts_have_the_characters_of_their_level(form: Form, level: int) -> None:
    for lengths in (None, (3, 8)):
        fewest, most = lengths or RULES[level].lengths[form]
        texts = [found.text for _, found in prints(form, level, (64, 512), 60, lengths=lengths)]
        assert all(fewest <= len(text) <= most for text in texts)
        assert max(map(len, texts)) - min(map(len, texts)) >= (most - fewest) * 0.6
        assert set("".join(texts)) <= set(printed.ALPHABET)
    joined = "".join(found.text for _, found in prints(form, level, (64, 512), 60))
    assert joined.replace(" ", "").isalpha() == (level == 1 or (level == 2 and form == "word"))
    assert joined.islower() == (level == 1)
    assert joined.isascii() == (level < 5)


def test_level_one_is_the_text_in_one_face_black_on_white() -> None:
    """Drawn again by Pillow alone, in the face's own file, the ink is the same, pixel for pixel."""
    for form in ("word", "line"):
        for rng, found in prints(form, 1, (64, 320), 40, split="test"):  # type: ignore[arg-type]
            shown = 255 - np.asarray(paint(rng, found, 1, (64, 320)).convert("L"))
            canvas = Image.new("L", (600, 200))
            face = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", found.em, layout_engine=0)
            ImageDraw.Draw(canvas).text((50, 50), found.text, 255, face)
            assert np.array_equal(trimmed(shown), trimmed(np.asarray(canvas))), found.text


def trimmed(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("form", ["word", "line"])
@pytest.mark.parametrize("level", LEVELS)
def test_no_ink_is_cut(form: Form, level: int) -> None:
    """On a canvas with a wide border all around, the same text leaves no ink outside the picture."""
    far = 60
    for size in SIZES[form]:
        for _, found in prints(form, level, size, 25):
            mask = np.asarray(found.mask)
            edges = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
            assert mask.max() > 128
            assert not edges.any(), "the mask holds the whole text"
            corners = [(x + far, y + far) for x, y in found.corners]
            large = np.asarray(warp(found.mask, corners, (size[0] + 2 * far, size[1] + 2 * far)))
            inside = large[far : far + size[0], far : far + size[1]]
            assert large.sum() == inside.sum() > 0.5 * mask.sum(), found.text
            assert not np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).any()
            assert found.em >= 6, "still letters"


def covered(found: Print, size: Size) -> Image.Image:
    """Where there is ink in the picture, 0-255."""
    if not found.upright:
        return warp(found.mask, found.corners, size)
    cover = Image.new("L", (size[1], size[0]))
    cover.paste(found.mask, (int(found.corners[0][0]), int(found.corners[0][1])))
    return cover


@pytest.mark.parametrize("form", ["word", "line"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_ground_keeps_its_contrast_everywhere(form: Form, level: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels of the picture before its wear, strokes and gradient included, against the ink; and ink is there."""
    monkeypatch.setattr(printed, "worn", lambda rng, image, wear, em: image)
    size = SIZES[form][0]
    cluttered = 0
    for rng, found in prints(form, level, size, 12):
        pixels = np.asarray(paint(rng, found, level, size))
        cover = np.asarray(covered(found, size))
        bare = cover == 0
        grounds = {tuple(colour) for colour in np.unique(pixels[bare], axis=0).tolist()}
        assert min(by_hand(colour, found.ink) for colour in grounds) >= CONTRAST[level][0] * 0.97
        cluttered += len(grounds) > 1
        assert (cover > 100).any()
        nearest = np.abs(pixels.astype(int) - found.ink).sum(-1)
        assert nearest.min() <= 90, "the ink shows its colour somewhere"
        assert nearest[bare].min() > nearest.min()
    assert cluttered >= 10 if level >= 4 else cluttered == 0, "where the contrast leaves room for it"


def test_levels_get_harder() -> None:
    """Longer, smaller, fainter, and further from the drawing that a level-one reader knows."""
    length, em, faint, wild = [], [], [], []
    for level in LEVELS:
        found = prints("word", level, (64, 192), 150)
        length.append(np.mean([len(one.text) for _, one in found]))
        em.append(np.mean([one.em for _, one in found]))
        faint.append(np.median([by_hand(one.ink, one.ground[0]) for _, one in found]))
        slopes = [abs(np.subtract(one.corners[1], one.corners[0])) for _, one in found]
        wild.append(np.mean([rise / run for run, rise in slopes]))
    assert length == sorted(length)
    assert length[-1] > 2 * length[0]
    assert em == sorted(em, reverse=True)
    assert em[-1] < em[0] / 2
    assert faint == sorted(faint, reverse=True)
    assert wild == sorted(wild)
    assert wild[1] == 0 < wild[2]


def test_wear_grows_with_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far the picture is from what was drawn, in grey levels."""
    clean: dict[int, Image.Image] = {}
    real = printed.worn

    def spy(rng: np.random.Generator, image: Image.Image, *rest: Any) -> Image.Image:
        clean[0] = image.copy()
        return real(rng, image, *rest)

    monkeypatch.setattr(printed, "worn", spy)
    far = []
    for level in LEVELS:
        gaps = []
        for rng, found in prints("word", level, (64, 192), 30):
            shown = np.asarray(paint(rng, found, level, (64, 192)), np.float64)
            gaps.append(np.abs(shown - np.asarray(clean[0])).mean())
        far.append(np.mean(gaps))
    assert far[0] == far[1] == 0 < far[2] < far[3] < far[4]


def test_targets_spell_the_text() -> None:
    source = Words(count=50, levels=(1, 4, 5), size=(64, 192))
    for index in range(50):
        sample = source[index]
        classes = sample.targets["characters"]
        assert len(classes) == source.longest == 14
        letters = "".join((*printed.ALPHABET, "")[number] for number in classes)
        assert letters == sample.answers[0] == sample.turns[-1].text
    assert f"{printed.NO_CHARACTER} for none" in (Words.__doc__ or "")
    assert Lines(count=1, characters=(5, 20)).longest == 20
