"""Embedded data sources: nothing is downloaded."""

from typing import Literal

import numpy as np

from vlm import handwriting
from vlm.data import Source
from vlm.errors import ConfigError, Problem, unknown
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
        seed: of the scenes.
        kinds: kinds of question, taken in turn; all if absent.
        curriculum: share of the samples from which on numbers may have 2, 3, ... digits; `[0.1, 0.2]` is one digit
            for the first tenth, two up to a fifth, then up to five.
    """

    ordered = True  # each sample is composed afresh, so one order is as random as another

    def __init__(
        self,
        *,
        split: Literal["train", "test"] = "train",
        count: int = 1_000_000,
        seed: int = 0,
        kinds: list[str] | None = None,
        curriculum: tuple[float, ...] = (),
    ) -> None:
        self.kinds = kinds or list(handwriting.QUESTIONS)
        wrong = [kind for kind in self.kinds if kind not in handwriting.QUESTIONS]
        if wrong:
            raise ConfigError(
                [Problem("kinds", unknown("kind of question", kind, handwriting.QUESTIONS)) for kind in wrong]
            )
        if count < 1:
            raise ConfigError(Problem("count", f"`{count}`; allowed: 1 or more"))
        self.split, self.count, self.seed, self.curriculum = split, count, seed, curriculum

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        scene = self.scene(index)
        kind = self.kinds[index % len(self.kinds)]
        question, answer = handwriting.ask(scene, kind)
        digits = [int(digit) for digit in scene.number]
        return Sample(
            turns=[Turn("user", question), Turn("assistant", answer)],
            images=[scene.image],
            id=f"{self.split}-{index}",
            answers=[answer],
            category=kind,
            targets={
                "digits": digits + [NO_DIGIT] * (MOST_DIGITS - len(digits)),
                "colour": [list(handwriting.COLOURS).index(scene.colour)],
            },
        )

    def scene(self, index: int) -> handwriting.Scene:
        """The picture of sample `index` and what is written in it."""
        rng = np.random.default_rng([self.seed, self.split == "test", index])
        return handwriting.compose(rng, self.split, digits=(1, self._most(index / self.count)))

    def _most(self, progress: float) -> int:
        passed = sum(progress >= share for share in self.curriculum)
        return MOST_DIGITS if passed == len(self.curriculum) else 1 + passed
