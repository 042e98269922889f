"""How answers become figures: what one answer adds to a set's figures, and what a set's figures come to.

Every figure is a ratio of sums, taken over all samples or category by category: a mean, an error rate, an F1. So a
metric says only what each answer adds, and any figure can be had of any part of the samples, with an interval.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

Over = Literal["samples", "mean of categories", "sum of categories"]
"""What a figure is the ratio of: all samples, or each category by itself."""
Verdict = Literal["right", "partly", "wrong", "error", "missing", "faulty", "unscored"]


@dataclass(frozen=True)
class Answered:
    """One answer and all that a metric may look at."""

    answer: str | None
    """None where the model could not answer: nothing right, never an empty answer."""
    references: Sequence[str]
    """Accepted answers; for a question with choices the letters of the right ones."""
    choices: Sequence[str] = ()
    """The texts of the options A, B, C, ..."""
    group: str = ""
    """Answers of one group may be scored together (MME: an image's two; MMBench: a question's rotations)."""
    category: str = ""


@dataclass(frozen=True)
class Tally:
    """What one answer adds to a figure: points out of a weight, which is 1, or a length where errors are counted."""

    points: float
    weight: float = 1.0

    @property
    def value(self) -> float:
        """Points per weight; over no weight (an empty reference) the points themselves, which is jiwer's rule."""
        return self.points / self.weight if self.weight else self.points


def listed(score: Callable[P, R]) -> Callable[P, R]:
    """Marks a metric of `(prediction, references)`: one text in the place of the list raises TypeError, for it would be
    compared letter by letter."""

    @wraps(score)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        references = kwargs["references"] if "references" in kwargs else args[1]
        if isinstance(references, str):
            raise TypeError(f"{score.__name__}: references are a list of texts, not the text {references[:40]!r}")
        return score(*args, **kwargs)

    return checked


def total(tallies: Iterable[Tally]) -> Tally:
    """The sum of a set: points and weights are added up first, so that a long line counts more than a short."""
    tallies = list(tallies)
    return Tally(sum(tally.points for tally in tallies), sum(tally.weight for tally in tallies))


@dataclass(frozen=True)
class Score:
    """What one answer is worth."""

    tallies: Mapping[str, Tally]
    """By the figure that each adds to."""
    goodness: float
    """How right the answer is by itself, 0 to 1: what a report sorts by."""
    read_as: str | None = ""
    """What the metric understood where it had to parse the answer: a letter, yes or no; None if it could not."""

    @property
    def verdict(self) -> Literal["right", "partly", "wrong"]:
        """The answer's worth in a word."""
        return "right" if self.goodness >= 1 else "wrong" if self.goodness <= 0 else "partly"


@dataclass(frozen=True)
class Figure:
    """One number of a metric."""

    name: str
    better: Literal["higher", "lower", "neither"] = "higher"
    scale: float = 100.0
    """What the value is multiplied by for people: 100 for a percentage, 1000 for OCRBench."""
    unit: str = "%"


def no_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Any text may be a reference."""
    return None


def blank_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """For rules by which a reference has to stand in the answer: an empty one stands in every answer."""
    return None if all(map(str.strip, references)) else "one of the answers is empty, and stands in every text"


@dataclass(frozen=True)
class Metric:
    """How a set of answers is scored."""

    score: Callable[[Sequence[Answered]], Sequence[Score]]
    """One score an answer, in order; a metric of a whole set (CIDEr) looks at all of them."""
    summary: str
    figures: tuple[Figure, ...] = (Figure("score"),)
    """The first is the metric's own number."""
    over: Over = "samples"
    fault: Callable[[Sequence[str], Sequence[str]], str | None] = no_fault
    """From references and choices to why no answer could be right: the annotation, not the answer, is then at fault."""

    def values(self, scores: Sequence[Score], categories: Sequence[str] | None = None) -> dict[str, float]:
        """Every figure of a set of scores.

        Args:
            scores: of all its answers.
            categories: each answer's, for metrics that go by category; one for all if absent.
        """
        named = categories or [""] * len(scores)
        return {figure.name: self._value(figure.name, scores, named) for figure in self.figures}

    def _value(self, figure: str, scores: Sequence[Score], categories: Sequence[str]) -> float:
        by_category: dict[str, list[Tally]] = {}
        for score, category in zip(scores, categories, strict=True):
            if figure in score.tallies:
                key = "" if self.over == "samples" else category
                by_category.setdefault(key, []).append(score.tallies[figure])
        values = [total(tallies).value for tallies in by_category.values()]
        return sum(values) / (len(values) if self.over == "mean of categories" and values else 1)


def each(
    score: Callable[..., float], *, strip: bool = False, **options: object
) -> Callable[[Sequence[Answered]], list[Score]]:
    """Scores answers one by one with `score(answer, references, **options)` of 0 to 1; their mean is the figure.

    With `strip` the spaces around an answer are taken off first, where `score` itself follows a scorer that does not.
    """

    def alone(answered: Answered) -> Score:
        if answered.answer is None:
            return Score({"score": Tally(0.0)}, 0.0)
        answer = answered.answer.strip() if strip else answered.answer
        value = float(score(answer, answered.references, **options))
        return Score({"score": Tally(value)}, value)

    return lambda answers: [alone(answered) for answered in answers]


def errors(count: Callable[[str, Sequence[str]], Tally]) -> Callable[[Sequence[Answered]], list[Score]]:
    """Scores answers one by one with the errors that `count(answer, references)` finds; lower is better."""

    def alone(answered: Answered) -> Score:
        tally = count(answered.answer or "", answered.references)
        if answered.answer is None and not tally.points:
            tally = Tally(1.0, tally.weight)  # an empty reference would make a failure perfect
        return Score({"score": tally}, max(0.0, 1 - tally.value))

    return lambda answers: [alone(answered) for answered in answers]
