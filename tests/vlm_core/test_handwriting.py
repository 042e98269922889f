"""The embedded data: who may see which glyph, what is drawn, and what is asked about it."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from sklearn.utils import Bunch

from vlm import handwriting
from vlm.embedded import Handwriting
from vlm.errors import ConfigError
from vlm.handwriting import COLOURS, QUESTIONS, Scene, Split, ask, compose, glyphs
from vlm.sample import Sample

HELD_OUT = range(1400, 1797)
OTHER: dict[Split, Split] = {"train": "test", "test": "train"}


def scenes(split: Split, count: int, seed: int = 0, **options: Any) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [compose(rng, split, **options) for _ in range(count)]


@pytest.mark.parametrize(("split", "rows"), [("train", range(1400)), ("test", HELD_OUT)])
def test_glyphs_are_these_rows_of_scikit_learn(split: Split, rows: Sequence[int]) -> None:
    data = sklearn.datasets.load_digits()
    images, labels = glyphs(split)
    assert len(images) == len(labels) == len(rows) == {"train": 1400, "test": 397}[split]
    for found, label, row in zip(images, labels, rows, strict=True):
        assert np.array_equal(found * 16, data.images[row])
        assert label == data.target[row]
    with pytest.raises(ValueError, match="not 'valid'"):
        glyphs("valid")  # type: ignore[arg-type]


def _forget() -> None:
    handwriting.glyphs.cache_clear()
    handwriting._enlarged.cache_clear()


@pytest.fixture
def inked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[int, int], bool]], None]]:
    """`inked(which)`: glyphs for which `which(row, label)` holds are solid ink, all others are blank."""
    labels = sklearn.datasets.load_digits().target

    def set_ink(which: Callable[[int, int], bool]) -> None:
        images = np.zeros((len(labels), 8, 8))
        for row, label in enumerate(labels):
            images[row] = 16.0 if which(row, int(label)) else 0.0
        monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: Bunch(images=images, target=labels))
        _forget()

    yield set_ink
    _forget()


def ink(scene: Scene) -> np.ndarray:
    """Where there is ink: the ground and its noise stay below 100 in every channel, a solid glyph does not."""
    pixels: np.ndarray = np.asarray(scene.image).max(-1)
    return pixels > 100


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_scene_shows_a_glyph_of_the_other_split(split: Split, inked: Any) -> None:
    rows = {"train": set(range(1400)), "test": set(HELD_OUT)}
    inked(lambda row, label: row in rows[OTHER[split]])
    assert not any(ink(scene).any() for scene in scenes(split, 200)), "only the other split's glyphs have ink"
    inked(lambda row, label: row in rows[split])
    for scene in scenes(split, 200):
        assert ink(scene).sum() > 40 * len(scene.number), "every digit is drawn with a glyph of its own split"
    source = Handwriting(split=split, count=50)
    assert all(ink(source.scene(index)).any() for index in range(50)), "and so are the samples of the source"
    inked(lambda row, label: row in rows[OTHER[split]])
    assert not any(ink(source.scene(index)).any() for index in range(50))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("digit", [0, 3, 9])
def test_each_digit_stands_where_the_number_says(split: Split, digit: int, inked: Any) -> None:
    """In a picture as high as it is wide five digits fill it: each takes 16.8 to 18.4, the first starts at 2 to 10."""
    inked(lambda row, label: label == digit)
    places = set()
    for scene in scenes(split, 200, digits=(5, 5), height=96):
        expected = [place for place, value in enumerate(scene.number) if value == str(digit)]
        columns = np.flatnonzero(ink(scene).sum(0) > 3)
        assert bool(len(columns)) == bool(expected), scene.number
        if len(expected) == 1:
            assert round((columns.mean() - 14.5) / 17.5) == expected[0], scene.number
            places.add(expected[0])
    assert places == set(range(5)) - ({0} if digit == 0 else set())


def by_hand(scene: Scene, wording: str) -> str:
    digits = [int(character) for character in scene.number]
    value = sum(digit * 10**power for power, digit in enumerate(reversed(digits)))
    answers: dict[str, str] = {
        "What is the number?": str(value),
        "What colour is it?": scene.colour,
        "How many digits?": str(len(str(value))),
        "What is the largest digit?": str(sorted(digits)[-1]),
        "What is the first digit?": str(value // 10 ** (len(digits) - 1)),
        "What is the last digit?": str(value % 10),
        "Is it even or odd?": ["even", "odd"][value % 2],
    }
    return answers[wording]


@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_against_recomputation(split: Split) -> None:
    wordings = set()
    for scene in scenes(split, 300):
        for kind in QUESTIONS:
            wording, answer = ask(scene, kind)
            assert answer == by_hand(scene, wording), (kind, scene.number)
            wordings.add(wording)
    assert len(wordings) == len(QUESTIONS) == 7


def nearest_colour(scene: Scene) -> str:
    """The named colour nearest to the 20 pixels that differ most from the ground."""
    pixels = np.asarray(scene.image, dtype=np.float64).reshape(-1, 3)
    contrast = np.linalg.norm(pixels - np.median(pixels, axis=0), axis=1)
    strongest = pixels[np.argsort(contrast)[-20:]].mean(0)
    return min(COLOURS, key=lambda name: float(np.linalg.norm(strongest - COLOURS[name])))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_ink_has_the_colour_that_is_named(split: Split) -> None:
    drawn = scenes(split, 300)
    agree = [nearest_colour(scene) == scene.colour for scene in drawn]
    assert np.mean(agree) >= 0.95
    assert {scene.colour for scene in drawn} == set(COLOURS)


def test_numbers_have_the_digits_asked_for_and_no_leading_zero() -> None:
    for digits in ((1, 5), (1, 1), (2, 2), (3, 4)):
        numbers = [scene.number for scene in scenes("train", 300, digits=digits)]
        assert {len(number) for number in numbers} == set(range(digits[0], digits[1] + 1))
        assert all(number == "0" or number[0] != "0" for number in numbers)
        assert ("0" in numbers) == (digits[0] == 1)
        assert set("".join(numbers)) == set("0123456789")
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="1 <= fewest <= most"):
            scenes("train", 1, digits=wrong)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_are_32_by_96_rgb(split: Split) -> None:
    for scene in scenes(split, 20):
        assert scene.image.size == (96, 32)
        assert scene.image.mode == "RGB"
    assert scenes(split, 1, height=48, width=120)[0].image.size == (120, 48)


def test_the_generator_alone_decides() -> None:
    rng = np.random.default_rng(5)
    state = rng.bit_generator.state
    first, second = compose(rng, "test"), compose(rng, "test")
    np.random.seed(1)
    rng.bit_generator.state = state
    again = compose(rng, "test")
    assert again.image.tobytes() == first.image.tobytes()
    assert (again.number, again.colour) == (first.number, first.colour)
    assert second.image.tobytes() != first.image.tobytes(), "the generator moved on"


# --- the source ---


def number_of(sample: Sample) -> str:
    return "".join(str(digit) for digit in sample.targets["digits"] if digit != 10)


def test_curriculum_limits_digits_over_the_samples() -> None:
    source = Handwriting(count=500, curriculum=(0.1, 0.3))
    lengths = [len(number_of(source[index])) for index in range(500)]
    assert set(lengths[:50]) == {1}
    assert set(lengths[50:150]) == {1, 2}
    assert set(lengths[150:]) == {1, 2, 3, 4, 5}
    for seed in range(5):
        two = Handwriting(count=2, curriculum=(0.5,), long=1.0, seed=seed)
        assert len(two.scene(0).number) == 1
        assert len(two.scene(1).number) >= 4, "from that share on"
    without = Handwriting(count=500)
    assert {len(number_of(without[index])) for index in range(50)} == {1, 2, 3, 4, 5}


def test_long_is_the_share_of_the_longest() -> None:
    def counted(long: float, **options: Any) -> Counter[int]:
        source = Handwriting(count=600, long=long, **options)
        return Counter(len(source.scene(index).number) for index in range(600))

    assert set(counted(1.0)) == {4, 5}
    assert set(counted(0.0)) == {1, 2, 3, 4, 5}
    half = counted(0.5)
    assert (half[4] + half[5]) / 600 == pytest.approx(0.5 + 0.5 * 2 / 5, abs=0.07)
    rising = Handwriting(count=600, long=1.0, curriculum=(0.1, 0.2, 0.3, 1.0))
    assert {len(rising.scene(index).number) for index in range(60)} == {1}
    assert {len(rising.scene(index).number) for index in range(120, 180)} == {2, 3}


KIND = {wording: kind for kind, (wording, _) in QUESTIONS.items()}


def kinds_of(sample: Sample) -> list[str]:
    return [KIND[turn.text] for turn in sample.turns if turn.role == "user"]


@pytest.mark.parametrize("turns", [1, 2, 3, 9])
def test_kinds_are_taken_in_turn(turns: int) -> None:
    source = Handwriting(count=70, turns=turns)
    expected = (list(QUESTIONS) * 100)[: 70 * turns]
    found = []
    for index in range(70):
        sample = source[index]
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * turns
        assert len(set(kinds_of(sample))) == min(turns, 7)
        found += kinds_of(sample)
    assert found == expected


def test_a_kind_that_stands_twice_is_asked_twice_as_often() -> None:
    source = Handwriting(count=40, turns=3, kinds=["number", "colour", "number", "parity"])
    asked = Counter(kind for index in range(40) for kind in kinds_of(source[index]))
    assert asked == {"number": 60, "colour": 30, "parity": 30}


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_is_about_its_own_scene(split: Split) -> None:
    source = Handwriting(split=split, count=60, turns=3)
    assert len(source) == 60
    for index in range(60):
        sample, scene = source[index], source.scene(index)
        assert sample.images[0].tobytes() == scene.image.tobytes()  # type: ignore[union-attr]
        pairs = zip(sample.turns[::2], sample.turns[1::2], strict=True)
        assert all(answer.text == by_hand(scene, question.text) for question, answer in pairs)
        assert sample.answers == [sample.turns[-1].text]
        assert sample.category == kinds_of(sample)[-1]
        assert sample.id == f"{split}-{index}"
        digits = [int(character) for character in scene.number]
        assert sample.targets["digits"] == [*digits, 10, 10, 10, 10, 10][:5]
        assert list(COLOURS)[sample.targets["colour"][0]] == scene.colour
        assert set(sample.targets) == {"digits", "colour"}


def test_split_seed_and_index_make_another_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that `compose` is given differ, not only its glyphs and jitter, which follow the split anyway."""
    states: list[int] = []
    monkeypatch.setattr(handwriting, "compose", lambda rng, *_, **__: states.append(int(rng.integers(2**62))))
    for split in ("train", "test"):
        for seed in (0, 1):
            source = Handwriting(split=split, seed=seed, count=50)  # type: ignore[arg-type]
            for index in range(50):
                source.scene(index)
    assert len(set(states)) == len(states) == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["number", "color"]}, "^kinds: unknown kind of question `color`; did you mean `colour`"),
        ({"count": 0}, "^count: `0`; allowed: 1 or more"),
        ({"turns": 0}, "^turns: `0`; allowed: 1 or more"),
        ({"long": 1.5}, "^long: `1.5`; allowed: 0 to 1"),
        ({"long": -0.1}, "^long: `-0.1`"),
    ],
)
def test_bad_options_say_where_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Handwriting(**options)


def test_all_bad_options_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Handwriting(kinds=["numbr", "colour"], count=0, turns=-1, long=2.0)
    assert [problem.place for problem in caught.value.problems] == ["kinds", "count", "turns", "long"]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"curriculum": (0.1, 0.2, 0.3, 0.4, 0.5)}, "curriculum"),
        ({"curriculum": (0.5, 0.1)}, "curriculum"),
        ({"curriculum": (0.5, 3.0)}, "curriculum"),
        ({"seed": -1}, "seed"),
        ({"kinds": []}, "kinds"),
    ],
)
def test_options_that_would_be_taken_otherwise_are_refused(options: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Handwriting(**options)
    assert [problem.place for problem in caught.value.problems] == [place]


def test_described_scenes_say_in_words_what_the_picture_shows() -> None:
    shown, told = Handwriting(turns=2, seed=4), Handwriting(turns=2, seed=4, described=True)
    for index in range(5):
        picture, words = shown[index], told[index]
        scene = shown.scene(index)
        assert words.images == []
        assert words.turns[0].text == f"{scene.colour} {scene.number}\n{picture.turns[0].text}"
        assert list(words.turns[1:]) == list(picture.turns[1:])
        assert (words.answers, words.category) == (picture.answers, picture.category)
