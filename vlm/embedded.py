"""Embedded data sources: nothing is downloaded."""

from typing import Literal

import numpy as np

from vlm import handwriting
from vlm.data import Source
from vlm.errors import ConfigError, Problem, positive, unknown
from vlm.sample import Sample, Turn

MOST_DIGITS = 5
NO_DIGIT = 10
"""Class of an empty digit slot."""


class Handwriting(Source):
    """Questions about coloured handwritten numbers (see `vlm.handwriting`), composed anew for each index.

    Targets: `digits`, five slots of classes 0-9 and 10 for none; `colour`, one slot.

    Args:
        split: `train` and `test` scenes share no glyph.
        count: number of samples; each shows another scene.
        seed: of the scenes; two stages with the same one see the same scenes.
        kinds: kinds of question, taken in turn; one that stands twice is asked twice as often. All if absent.
        turns: questions about each scene, of the next kinds in turn.
        curriculum: share of the samples from which on numbers may have 2, 3, ... digits; `[0.1, 0.2]` is one digit
            for the first tenth, two up to a fifth, then up to five.
        long: share of the scenes with as many digits as there may be, or one fewer; they are the hardest to read.
        described: in words in place of the picture (`red 1234`): text from which an LLM learns before it can see.
    """

    ordered = True  # each sample is composed afresh, so one order is as random as another

    def __init__(
        self,
        *,
        split: Literal["train", "test"] = "train",
        count: int = 1_000_000,
        seed: int = 0,
        kinds: list[str] | None = None,
        turns: int = 1,
        curriculum: tuple[float, ...] = (),
        long: float = 0.0,
        described: bool = False,
    ) -> None:
        self.kinds = list(handwriting.QUESTIONS) if kinds is None else kinds
        _check(self.kinds, curriculum, long, count=count, turns=turns, seed=seed)
        self.split, self.count, self.seed = split, count, seed
        self.turns, self.curriculum, self.long, self.described = turns, curriculum, long, described

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        first = index * self.turns
        kinds = [self.kinds[number % len(self.kinds)] for number in range(first, first + self.turns)]
        asked = [handwriting.ask(scene, kind) for kind in kinds]
        digits = [int(digit) for digit in scene.number]
        turns = [turn for question, answer in asked for turn in (Turn("user", question), Turn("assistant", answer))]
        if self.described:
            turns[0] = Turn("user", f"{scene.colour} {scene.number}\n{turns[0].text}")
        return Sample(
            turns=turns,
            images=[] if self.described else [scene.image],
            id=f"{self.split}-{index}",
            answers=[asked[-1][1]],
            category=kinds[-1],
            targets={
                "digits": digits + [NO_DIGIT] * (MOST_DIGITS - len(digits)),
                "colour": [list(handwriting.COLOURS).index(scene.colour)],
            },
        )

    def scene(self, index: int) -> handwriting.Scene:
        """The picture of sample `index` and what is written in it."""
        rng = np.random.default_rng([self.seed, self.split == "test", index])
        most = self._most(index / self.count)
        fewest = max(1, most - 1) if rng.random() < self.long else 1
        return handwriting.compose(rng, self.split, digits=(fewest, most))

    def _most(self, progress: float) -> int:
        passed = sum(progress >= share for share in self.curriculum)
        return MOST_DIGITS if passed == len(self.curriculum) else 1 + passed


def _check(kinds: list[str], curriculum: tuple[float, ...], long: float, *, count: int, turns: int, seed: int) -> None:
    known = handwriting.QUESTIONS
    problems = [Problem("kinds", unknown("kind of question", kind, known)) for kind in kinds if kind not in known]
    problems += positive(count=count, turns=turns, kinds=len(kinds))
    if seed < 0:
        problems.append(Problem("seed", f"`{seed}`; allowed: 0 or more"))
    rises = list(curriculum) == sorted(curriculum) and all(0 <= share <= 1 for share in curriculum)
    if not rises or len(curriculum) >= MOST_DIGITS:
        allowed = f"at most {MOST_DIGITS - 1} shares that rise from 0 to 1"
        problems.append(Problem("curriculum", f"`{list(curriculum)}`; allowed: {allowed}"))
    if not 0 <= long <= 1:
        problems.append(Problem("long", f"`{long}`; allowed: 0 to 1"))
    if problems:
        raise ConfigError(problems)
