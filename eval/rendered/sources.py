"""Embedded sources of rendered text: words, lines, receipts, charts and tables; nothing is downloaded.

They are drawn with Pillow in the fonts that matplotlib brings. Five sources rather than one with a kind: each has its
own size and questions, and a recipe says what it is about, `{name: words, levels: [1, 2]}`.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vlm.data import Source
from vlm.errors import ConfigError, Problem, positive, unknown
from vlm.sample import Sample, Turn
from vlm.views import Size

from . import charts, receipts, tables
from . import text as printed
from .canvas import LEVELS, Asked, Sheet
from .lexicon import Split

Levels = tuple[int, ...]
LEAST_HEIGHT = 24
"""Pixels, of a picture of one word or line."""
MOST_CHARACTERS = 99


class Rendered(Source):
    """What the five have in common."""

    stream: ClassVar[int]
    """Keeps the random numbers of one source apart from those of another with the same seed."""
    default_size: ClassVar[Size]

    def __init__(self, split: Split, count: int, seed: int, levels: Levels, size: Size | None) -> None:
        self.split: Split = split
        self.count, self.seed, self.levels = count, seed, levels
        self.size = self.default_size if size is None else size
        problems = positive(count=count, levels=len(levels))
        problems += [Problem("levels", f"`{level}`; allowed: 1 to 5") for level in levels if level not in LEVELS]
        if seed < 0:
            problems.append(Problem("seed", f"`{seed}`; allowed: 0 or more"))
        problems += self._problems() if not any(problem.place == "levels" for problem in problems) else []
        if problems:
            raise ConfigError(problems)

    def _problems(self) -> list[Problem]:
        """What else is wrong, where the levels are right."""
        return []

    def __len__(self) -> int:
        return self.count

    def level(self, index: int) -> int:
        """Levels are taken in turn."""
        return self.levels[index % len(self.levels)]

    def rng(self, index: int, *more: int) -> np.random.Generator:
        """The random numbers of sample `index`; others for each purpose named by `more`."""
        test = int(self.split == "test")
        return np.random.default_rng([self.stream, self.seed, test, self.level(index), index, *more])


class PrintedText(Rendered):
    """One text in a picture, to be read as it is."""

    form: ClassVar[printed.Form]
    question: ClassVar[str]

    def __init__(
        self,
        *,
        split: Split = "train",
        count: int = 1_000_000,
        seed: int = 0,
        levels: Levels = LEVELS,
        size: Size | None = None,
        characters: tuple[int, int] | None = None,
    ) -> None:
        self.characters = characters
        super().__init__(split, count, seed, levels, size)

    def lengths(self, level: int) -> tuple[int, int]:
        """Fewest and most characters."""
        return self.characters or printed.RULES[level].lengths[self.form]

    @property
    def longest(self) -> int:
        """Slots of the target `characters`."""
        return max(self.lengths(level)[1] for level in self.levels)

    def _problems(self) -> list[Problem]:
        if self.characters is not None and not 1 <= self.characters[0] <= self.characters[1] <= MOST_CHARACTERS:
            allowed = f"[fewest, most] with 1 <= fewest <= most <= {MOST_CHARACTERS}"
            return [Problem("characters", f"`{list(self.characters)}`; allowed: {allowed}")]
        width = self.longest * printed.PIXELS_A_CHARACTER + 2 * printed.MARGIN
        if self.size[0] < LEAST_HEIGHT or self.size[1] < width:
            allowed = f"at least [{LEAST_HEIGHT}, {width}] for texts of up to {self.longest} characters"
            return [Problem("size", f"`{list(self.size)}`; allowed: {allowed}; fewer with other `characters`")]
        return []

    def scene(self, index: int) -> printed.Print:
        """What sample `index` shows, and where."""
        return self._compose(index, self.rng(index))

    def _compose(self, index: int, rng: np.random.Generator) -> printed.Print:
        level = self.level(index)
        return printed.compose(rng, self.split, level, self.form, self.size, self.lengths(level))

    def __getitem__(self, index: int) -> Sample:
        rng = self.rng(index)
        found = self._compose(index, rng)
        image = printed.paint(rng, found, self.level(index), self.size)
        classes = [printed.ALPHABET.index(letter) for letter in found.text]
        return Sample(
            turns=[Turn("user", self.question), Turn("assistant", found.text)],
            images=[image],
            id=f"{self.split}-{index}",
            answers=[found.text],
            category=f"level {self.level(index)}",
            targets={"characters": classes + [printed.NO_CHARACTER] * (self.longest - len(classes))},
        )


class Words(PrintedText):
    """Printed words on pictures of five levels of difficulty, to be read.

    Target: `characters`, a slot each of the longest word; classes are places in `printed.ALPHABET` (of 154
    characters), and 154 for none.

    Args:
        split: `train` and `test` share no word, and from level 3 on no face; see `lexicon`, `faces`.
        count: number of samples; each shows another picture.
        seed: two stages with the same one see the same pictures.
        levels: 1 to 5, taken in turn; one that stands twice is drawn twice as often. `text` has a table.
        size: [height, width] of the pictures in pixels; [64, 192] if absent.
        characters: fewest and most of a word; each level's own if absent.
    """

    stream, form, default_size = 1, "word", (64, 192)
    question = "What is written here?"


class Lines(PrintedText):
    """Printed lines of text on pictures of five levels of difficulty, to be transcribed.

    Target: `characters`, a slot each of the longest line; classes as those of `words`.

    Args:
        split: `train` and `test` share no word, and from level 3 on no face; see `lexicon`, `faces`.
        count: number of samples; each shows another picture.
        seed: two stages with the same one see the same pictures.
        levels: 1 to 5, taken in turn; one that stands twice is drawn twice as often. `text` has a table.
        size: [height, width] of the pictures in pixels; [64, 512] if absent.
        characters: fewest and most of a line; each level's own if absent.
    """

    stream, form, default_size = 2, "line", (64, 512)
    question = "Transcribe the line of text."


class Document(Rendered):
    """A picture of which several things can be asked."""

    least: ClassVar[Mapping[int, Size]]
    """Size by level."""
    questions: ClassVar[Mapping[str, Callable[[Any, np.random.Generator], Asked]]]

    def __init__(
        self,
        *,
        split: Split = "train",
        count: int = 1_000_000,
        seed: int = 0,
        levels: Levels = LEVELS,
        size: Size | None = None,
        kinds: tuple[str, ...] | None = None,
        turns: int = 1,
    ) -> None:
        self.kinds = tuple(self.questions) if kinds is None else kinds
        self.turns = turns
        super().__init__(split, count, seed, levels, size)

    def _problems(self) -> list[Problem]:
        asked = self.questions
        problems = [
            Problem("kinds", unknown("kind of question", kind, asked)) for kind in self.kinds if kind not in asked
        ]
        problems += positive(kinds=len(self.kinds), turns=self.turns)
        hardest = max(self.levels)
        least = self.least[hardest]
        if self.size[0] < least[0] or self.size[1] < least[1]:
            allowed = f"at least {list(least)} at level {hardest}"
            problems.append(Problem("size", f"`{list(self.size)}`; allowed: {allowed}"))
        return problems

    @abstractmethod
    def compose(self, rng: np.random.Generator, level: int) -> Sheet[Any]:
        """A document of this level."""

    def scene(self, index: int) -> Sheet[Any]:
        """What sample `index` shows, before its wear."""
        return self.compose(self.rng(index), self.level(index))

    def picture(self, index: int) -> Image.Image:
        """The picture of sample `index`."""
        return self.scene(index).worn(self.rng(index, 0))

    def asked(self, index: int) -> list[str]:
        """The kinds of question about picture `index`; with every level they are taken in turn."""
        first = index // len(self.levels) * self.turns
        return [self.kinds[number % len(self.kinds)] for number in range(first, first + self.turns)]

    def __getitem__(self, index: int) -> Sample:
        sheet, kinds, rng = self.scene(index), self.asked(index), self.rng(index, 1)
        pairs = [self.questions[kind](sheet.facts, rng) for kind in kinds]
        said = [(Turn("user", question), Turn("assistant", answers[0])) for question, answers in pairs]
        return Sample(
            turns=[turn for pair in said for turn in pair],
            images=[sheet.worn(self.rng(index, 0))],
            id=f"{self.split}-{index}",
            answers=pairs[-1][1],
            category=f"level {self.level(index)}, {kinds[-1]}",
        )


class Receipts(Document):
    """Till receipts of five levels of difficulty, with questions about total, date, shop and items; also as JSON.

    Args:
        split: `train` and `test` share no name, and from level 3 on no face; see `lexicon`, `faces`.
        count: number of samples; each shows another picture.
        seed: two stages with the same one see the same pictures.
        levels: 1 to 5, taken in turn; one that stands twice is drawn twice as often. `receipts` has a table.
        size: [height, width] of the pictures in pixels; [640, 448] if absent.
        kinds: of question, taken in turn: shop, date, total, price, count, dearest, sum, json. All if absent.
        turns: questions about each picture, of the next kinds in turn.
    """

    stream, default_size, least = 3, (640, 448), receipts.LEAST_SIZE
    questions = receipts.QUESTIONS

    def compose(self, rng: np.random.Generator, level: int) -> Sheet[Any]:
        return receipts.compose(rng, self.split, level, self.size)


class Charts(Document):
    """Bar, line and pie charts of five levels of difficulty, with questions about their values.

    Args:
        split: `train` and `test` share no name, and from level 3 on no face; see `lexicon`, `faces`.
        count: number of samples; each shows another picture.
        seed: two stages with the same one see the same pictures.
        levels: 1 to 5, taken in turn; one that stands twice is drawn twice as often. `charts` has a table.
        size: [height, width] of the pictures in pixels; [480, 640] if absent.
        kinds: of question, taken in turn: title, count, value, highest, lowest, difference, sum. All if absent.
        turns: questions about each picture, of the next kinds in turn.
    """

    stream, default_size, least = 4, (480, 640), charts.LEAST_SIZE
    questions = charts.QUESTIONS

    def compose(self, rng: np.random.Generator, level: int) -> Sheet[Any]:
        return charts.compose(rng, self.split, level, self.size)


class Tables(Document):
    """Tables of five levels of difficulty, with questions about cells, rows, headings and sums.

    Args:
        split: `train` and `test` share no name, and from level 3 on no face; see `lexicon`, `faces`.
        count: number of samples; each shows another picture.
        seed: two stages with the same one see the same pictures.
        levels: 1 to 5, taken in turn; one that stands twice is drawn twice as often. `tables` has a table.
        size: [height, width] of the pictures in pixels; [480, 640] if absent.
        kinds: of question, taken in turn: cell, heading, row, count, highest, difference, sum. All if absent.
        turns: questions about each picture, of the next kinds in turn.
    """

    stream, default_size, least = 5, (480, 640), tables.LEAST_SIZE
    questions = tables.QUESTIONS

    def compose(self, rng: np.random.Generator, level: int) -> Sheet[Any]:
        return tables.compose(rng, self.split, level, self.size)
