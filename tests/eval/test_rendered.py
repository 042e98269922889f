"""The sources of rendered text: options, order, reproduction, and the tasks made of them."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm import registry
from vlm.errors import ConfigError
from vlm.eval.metrics.scoring import Answered
from vlm.eval.rendered.receipts import LEAST_SIZE
from vlm.eval.rendered.sources import Charts, Document, Lines, Receipts, Rendered, Tables, Words
from vlm.eval.task import load_task
from vlm.sample import Sample
from vlm.schema import check_options
from vlm.tokenizers import bytes_tokenizer

ROOT = Path(__file__).parent.parent.parent
KINDS: dict[str, type[Rendered]] = {
    "words": Words,
    "lines": Lines,
    "receipts": Receipts,
    "charts": Charts,
    "tables": Tables,
}
DOCUMENTS: dict[str, type[Document]] = {"receipts": Receipts, "charts": Charts, "tables": Tables}
EVERY = pytest.mark.parametrize("name", KINDS)
EACH_DOCUMENT = pytest.mark.parametrize("name", DOCUMENTS)


def pixels(sample: Sample) -> bytes:
    image = sample.images[0]
    assert isinstance(image, Image.Image)
    return image.tobytes()


def digest(sample: Sample) -> str:
    told = repr((list(sample.turns), sample.id, list(sample.answers), sample.category, sample.targets))
    return hashlib.sha256(pixels(sample) + told.encode()).hexdigest()


@EVERY
def test_registered_under_its_name(name: str) -> None:
    assert registry.sources.get(name) is KINDS[name]


def test_other_processes_draw_the_same_in_any_order() -> None:
    """Two fresh processes with other hash seeds, one of them from the last sample to the first, and this one."""
    code = """
import sys
from tests.eval.test_rendered import KINDS, digest
for name, kind in KINDS.items():
    source = kind(split="test", count=12, seed=5)
    found = {index: digest(source[index]) for index in range(12)[:: int(sys.argv[1])]}
    print(name, *(found[index] for index in sorted(found)))
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, order],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed, order in (("1", "1"), ("2", "-1"))
    ]
    printed = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert printed[0] == printed[1]
    found = dict(line.split(maxsplit=1) for line in printed[0].splitlines())
    for name, kind in KINDS.items():
        source = kind(split="test", count=12, seed=5)
        assert found[name].split() == [digest(source[index]) for index in range(12)]
    assert len(set(" ".join(found.values()).split())) == 60


@EVERY
def test_split_seed_and_index_make_another_picture(name: str) -> None:
    kind = KINDS[name]
    seen = [
        pixels(kind(split=split, seed=seed, count=10, levels=(2,))[index])  # type: ignore[call-arg]
        for split in ("train", "test")
        for seed in (0, 1)
        for index in range(5)
    ]
    assert len(set(seen)) == len(seen) == 20
    states = [
        int(other(split=split, seed=seed, levels=(level,)).rng(index).integers(2**62))  # type: ignore[call-arg]
        for other in KINDS.values()
        for split in ("train", "test")
        for seed in (0, 1)
        for level in (1, 2)
        for index in (0, 1)
    ]
    assert len(set(states)) == len(states) == 80, "not the same picture in another form, split or level either"


@EVERY
def test_count_changes_no_sample(name: str) -> None:
    few, many = (KINDS[name](count=count)[3] for count in (4, 4000))  # type: ignore[call-arg]
    assert digest(few) == digest(many)


@EVERY
def test_levels_are_taken_in_turn(name: str) -> None:
    source = KINDS[name](count=12, levels=(4, 1, 1))  # type: ignore[call-arg]
    assert len(source) == 12
    levels = [source[index].category.split(",")[0] for index in range(12)]
    assert levels == ["level 4", "level 1", "level 1"] * 4


@EACH_DOCUMENT
def test_kinds_are_taken_in_turn_at_every_level(name: str) -> None:
    kind = DOCUMENTS[name]
    every = list(kind.questions)
    for turns in (1, 3):
        source = kind(count=5 * len(every), turns=turns)
        asked = [source.asked(index) for index in range(len(source))]
        pairs = Counter((source.level(index), kind) for index, kinds in enumerate(asked) for kind in kinds)
        assert set(pairs.values()) == {turns}
        assert len(pairs) == 5 * len(every)
        sample = source[7]
        assert [turn.role for turn in sample.turns] == ["user", "assistant"] * turns
        assert sample.category == f"level {source.level(7)}, {asked[7][-1]}"
        assert sample.answers[0] == sample.turns[-1].text
    five = kind(count=25, kinds=tuple(every[:5]))  # as many as levels
    assert len({(five.level(index), *five.asked(index)) for index in range(25)}) == 25
    doubled = kind(count=40, levels=(1,), kinds=(every[0], every[1], every[0]))
    assert Counter(doubled.asked(index)[0] for index in range(39)) == {every[0]: 26, every[1]: 13}


@EACH_DOCUMENT
def test_the_picture_does_not_depend_on_what_is_asked(name: str) -> None:
    kind = DOCUMENTS[name]
    every = tuple(kind.questions)
    for index in range(5):
        one, other = kind(kinds=every[:1])[index], kind(kinds=every[1:], turns=2)[index]
        assert pixels(one) == pixels(other) == kind().picture(index).tobytes()


@EVERY
def test_pictures_have_the_size_asked_for(name: str) -> None:
    sizes = {"words": (32, 96), "lines": (40, 300), "receipts": (600, 300), "charts": (350, 500), "tables": (300, 500)}
    height, width = sizes[name]
    for size in ((height, width), None):
        source = KINDS[name](count=5, size=size)  # type: ignore[call-arg]
        expected = size or KINDS[name].default_size
        for index in range(5):
            image = source[index].images[0]
            assert isinstance(image, Image.Image)
            assert (image.mode, image.size) == ("RGB", expected[::-1])
            assert np.asarray(image).std() > 3, "something is on it"


def test_a_recipe_gives_options_as_yaml_has_them() -> None:
    found = check_options(Words, {"levels": [1, 2], "size": [32, 96], "characters": [3, 8], "split": "test"})
    source = Words(**found)
    assert source.size == (32, 96)
    assert max(len(source[index].answers[0]) for index in range(20)) <= 8
    with pytest.raises(ConfigError, match=r"split: `valid` is not allowed; allowed: train, test"):
        check_options(Charts, {"split": "valid"})
    with pytest.raises(ConfigError, match="unknown option of Words `kinds`"):
        check_options(Words, {"kinds": ["value"]})


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Words, {"count": 0}, "^count: `0`; allowed: 1 or more"),
        (Words, {"seed": -1}, "^seed: `-1`; allowed: 0 or more"),
        (Words, {"levels": ()}, "^levels: `0`; allowed: 1 or more"),
        (Words, {"levels": (1, 6)}, "^levels: `6`; allowed: 1 to 5"),
        (Words, {"characters": (0, 4)}, r"^characters: `\[0, 4\]`; allowed: \[fewest, most\] with 1 <= fewest"),
        (Words, {"characters": (9, 4)}, r"^characters: `\[9, 4\]`"),
        (Lines, {"characters": (5, 200)}, r"^characters: `\[5, 200\]`; .*most <= 99"),
        (Words, {"size": (16, 96)}, r"^size: `\[16, 96\]`; allowed: at least \[24, 90\] for texts of up to 14"),
        (Lines, {"size": (64, 192)}, r"^size: `\[64, 192\]`; .* \[24, 270\] .*44 characters; fewer with other"),
        (Charts, {"kinds": ("value", "hihgest")}, "^kinds: unknown kind of question `hihgest`; did you mean `highest`"),
        (Tables, {"kinds": ()}, "^kinds: `0`; allowed: 1 or more"),
        (Tables, {"turns": 0}, "^turns: `0`; allowed: 1 or more"),
        (Receipts, {"size": (400, 400)}, r"^size: `\[400, 400\]`; allowed: at least \[496, 240\] at level 5"),
        (Receipts, {"size": (400, 200), "levels": (1, 4)}, r"at least \[416, 208\] at level 4"),
    ],
)
def test_bad_options_say_where_and_what_is_allowed(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        kind(**options)
    assert len(caught.value.problems) == 1


def test_all_bad_options_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Charts(count=0, seed=-2, kinds=("valu",), turns=-1, size=(20, 20))
    assert [problem.place for problem in caught.value.problems] == ["count", "seed", "kinds", "turns", "size"]


def test_the_smallest_sizes_hold_the_longest_texts() -> None:
    for level in range(1, 6):
        for kind, least in ((Receipts, LEAST_SIZE), (Charts, Charts.least), (Tables, Tables.least)):
            source = kind(count=4, levels=(level,), size=least[level])  # type: ignore[operator]
            assert all(source.scene(index).em >= 9 for index in range(4))
    tight = Lines(count=6, levels=(5,), size=(24, 270))
    assert all(min(tight.scene(index).corners)[0] >= 0 for index in range(6))
    for characters in ((1, 1), (2, 2)):
        for split in ("train", "test"):
            source = Words(count=10, size=(24, 24), characters=characters, split=split)  # type: ignore[arg-type]
            assert {len(source[index].answers[0]) for index in range(10)} == {characters[0]}


# --- tasks ---


@pytest.mark.parametrize("name", [*KINDS, "receipts_json"])
def test_tasks_cover_levels_and_kinds_evenly(name: str) -> None:
    task = load_task(name)
    source = task.open()
    assert isinstance(source, KINDS[task.source.name])
    assert source.split == "test"
    assert source.levels == (1, 2, 3, 4, 5)
    assert len(source) >= 200
    cells = Counter(
        (source.level(index), source.asked(index)[0] if isinstance(source, Document) else "")
        for index in range(len(source))
    )
    assert len(set(cells.values())) == 1
    assert min(cells.values()) >= 20
    asked = task.ask(source[0])
    assert asked.turns[-1].role == "user"
    assert asked.turns[-1].text.startswith(source[0].turns[-2].text)
    assert list(asked.answers) == list(source[0].answers)


@pytest.mark.parametrize("name", [*KINDS, "receipts_json"])
def test_the_longest_truth_fits_in_the_tokens_of_bytes(name: str) -> None:
    """The demo's LLM reads bytes, and ends with one token more."""
    task = load_task(name)
    source: Any = task.open()
    tokenizer = bytes_tokenizer()
    longest = 0
    for index in range(4, len(source), 10):  # of level 5, the longest
        if isinstance(source, Document):
            facts = source.scene(index).facts
            truths = [source.questions[kind](facts, np.random.default_rng(index))[1] for kind in source.kinds]
            texts = [text for answers in truths for text in answers]
        else:
            texts = [source.scene(index).text]
        longest = max(longest, *(len(tokenizer(text)["input_ids"]) for text in texts))
    assert 0.2 * task.max_new_tokens < longest + 1 <= 0.9 * task.max_new_tokens


@pytest.mark.parametrize("name", [*KINDS, "receipts_json"])
def test_the_truth_scores_in_full_and_nothing_scores_nothing(name: str) -> None:
    task = load_task(name)
    source = task.open()
    for index in range(0, 40, 3):
        sample = source[index]
        answered = [Answered(text, sample.answers, category=sample.category) for text in (sample.answers[0], "")]
        assert [score.verdict for score in task.scoring.score(answered)] == ["right", "wrong"]
