"""Metrics of yes/no questions: POPE and MME."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

from .scoring import Answered, Score, Tally, total

_POPE_KEYS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1_score": "f1",
    "yes_ratio": "yes_ratio",
}
MME_PERCEPTION = frozenset(
    ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
)
"""MME's categories of perception; every other is one of cognition."""


def pope_parse(prediction: str) -> Literal["yes", "no"]:
    """What POPE's script reads: no if `No`, `not` or `no` is a word of the first sentence, else yes.

    Follows RUCAIBox POPE `evaluate.py` (arXiv 2305.10355): commas are dropped and words parted by single spaces; so
    `NO`, `no!`, `Nothing` and an empty answer are a yes.
    """
    words = _words(prediction)
    return "no" if "No" in words or "not" in words or "no" in words else "yes"


def _words(prediction: str) -> list[str]:
    """The words of the first sentence."""
    return prediction.partition(".")[0].replace(",", "").split(" ")


def pope(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE's accuracy, precision, recall, f1_score and yes_ratio (0 to 1) of a set of answers.

    Follows `evaluate.py`; where that divides by zero, for want of a yes, the figure is 0. (The metric of this name
    takes off spaces around the answers first.)

    Raises:
        ValueError: not one label a prediction.
    """
    tallies = [
        _pope_tallies(pope_parse(prediction) == "yes", label != "no")
        for prediction, label in zip(predictions, labels, strict=True)
    ]
    return {key: total(tally[name] for tally in tallies).value for key, name in _POPE_KEYS.items()}


def _pope_tallies(yes: bool, truth: bool) -> dict[str, Tally]:
    """What one answer adds to each figure; F1 is twice the hits by (twice the hits + the misses of both kinds)."""
    hit, right = yes and truth, yes == truth
    return {
        "f1": Tally(2.0 * hit, 2.0 * hit + (not right)),
        "accuracy": Tally(float(right)),
        "precision": Tally(float(hit), float(yes)),
        "recall": Tally(float(hit), float(truth)),
        "yes_ratio": Tally(float(yes)),
    }


def yes_no_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why neither yes nor no could be right."""
    wrong = [text for text in references if text.strip().lower().replace(".", "") not in ("yes", "no")]
    return f"the answer `{wrong[0]}` is neither yes nor no" if wrong else None


def pope_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores POPE; `read_as` is None where yes was read for want of a no, and the answer holds no yes either.

    A failure is a miss in whichever way is wrong: of a yes a false negative, of a no a false positive; in `yes_ratio`
    it is no yes.
    """
    return [_pope_score(answered) for answered in answers]


def _pope_score(answered: Answered) -> Score:
    truth = not any(reference.strip().lower() == "no" for reference in answered.references)
    if answered.answer is None or not answered.references:
        return Score({**_pope_tallies(not truth, truth), "yes_ratio": Tally(0.0)}, 0.0)
    text = answered.answer.strip()
    read = pope_parse(text)
    said = read == "no" or "yes" in (word.strip("!?:;*\"'").lower() for word in _words(text))
    return Score(_pope_tallies(read == "yes", truth), float((read == "yes") == truth), read if said else None)


def mme_parse(prediction: str) -> Literal["yes", "no", "other"]:
    """What MME's script reads: yes or no where it stands in the first four characters.

    Follows lmms-eval `tasks/mme/utils.py` (as MME's own eval tool; arXiv 2306.13394): `Know` and `Not sure` are a no.
    """
    text = prediction.lower().strip().replace(".", "")
    if len(text) == 1:
        return "yes" if text == "y" else "no" if text == "n" else "other"
    return "yes" if "yes" in text[:4] else "no" if "no" in text[:4] else "other"


def mme_score(images: Iterable[Sequence[bool]]) -> float:
    """A category's score, 0 to 200: the mean over images of 100 * share of right answers + 100 if all are right.

    Follows lmms-eval `tasks/mme/utils.py`, where every image has two questions.

    Args:
        images: of each image whether each answer is right.
    """
    scores = [100 * sum(rights) / len(rights) + 100 * all(rights) for rights in images]
    return sum(scores) / len(scores) if scores else 0.0


def mme_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores MME: an image's answers are those of one category and group, and share its points between them.

    `total` is the sum of both figures. An answer without a group is an image by itself.
    """
    readings = [mme_parse(answered.answer) if answered.answer is not None else None for answered in answers]
    rights = [_mme_right(read, answered.references) for read, answered in zip(readings, answers, strict=True)]
    images = defaultdict(list)
    for number, answered in enumerate(answers):
        images[(answered.category, answered.group) if answered.group else number].append(number)
    scores: dict[int, Score] = {}
    for numbers in images.values():
        part = 1 / len(numbers)
        tally = Tally(part * mme_score([[rights[number] for number in numbers]]), part)
        for number in numbers:
            figure = "perception" if answers[number].category in MME_PERCEPTION else "cognition"
            read = "" if readings[number] is None else None if readings[number] == "other" else readings[number]
            scores[number] = Score({figure: tally, "total": tally}, float(rights[number]), read)
    return [scores[number] for number in range(len(answers))]


def _mme_right(read: str | None, references: Sequence[str]) -> bool:
    return read in {reference.lower().strip().replace(".", "") for reference in references} - {"other"}
