"""Metrics of boxes: referring expressions."""

import ast
import re
import warnings
from collections.abc import Callable, Sequence

from .scoring import Answered, Score, Tally

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the image's width and height."""

IOU_THRESHOLD = 0.5
LONGEST = 1000
"""No longer text is read as a bare list of numbers."""
_NUMBER = r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*"
_BRACKETS = re.compile(rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]")


def parse_box(text: str) -> Box | None:
    """The box that a text is: a list of four numbers from 0 to 1 and nothing else, left < right and top < bottom.

    Follows TRI-ML/vlm-evaluation `tasks/harnesses/refcoco.py`, where any other answer is invalid. None if it is.
    """
    if len(text) > LONGEST or "[" not in text:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's about `[0.1][0.2]`
            numbers = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        return None
    return _valid(numbers)


def find_box(text: str) -> Box | None:
    """The first four numbers in brackets anywhere in a text, if they are a valid box; our own, for models that talk."""
    return _valid(_four_numbers(text))


def _four_numbers(text: str) -> list[float]:
    found = _BRACKETS.search(text)
    return [float(number) for number in found.groups()] if found else []


def _valid(numbers: Sequence[float]) -> Box | None:
    if len(numbers) != 4 or not all(0 <= number <= 1 for number in numbers):
        return None
    left, top, right, bottom = numbers
    return (left, top, right, bottom) if left < right and top < bottom else None


def iou(box: Sequence[float], truth: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0 to 1; 0 where neither has an area."""
    width = min(box[2], truth[2]) - max(box[0], truth[0])
    height = min(box[3], truth[3]) - max(box[1], truth[1])
    shared = max(0.0, width) * max(0.0, height)
    union = _area(box) + _area(truth) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def rec_iou(prediction: str, box: Sequence[float]) -> float:
    """IoU of the box that a text is (`parse_box`) with the true one; 0 if it is none."""
    found = parse_box(prediction)
    return iou(found, box) if found else 0.0


def rec_accuracy(prediction: str, box: Sequence[float]) -> float:
    """1 if `rec_iou` is at least 0.5."""
    return float(rec_iou(prediction, box) >= IOU_THRESHOLD)


def box_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no box could be right."""
    wrong = [text for text in references if not _has_area(_four_numbers(text))]
    what = "[left, top, right, bottom] in shares of the image"
    return f"the answer `{wrong[0][:60]}` is no box {what}" if wrong else None


def _has_area(box: Sequence[float]) -> bool:
    """Whether a true box holds anything; pixels are far beyond 2."""
    return len(box) == 4 and box[0] < box[2] < 2 and box[1] < box[3] < 2


def box_scores(parse: Callable[[str], Box | None]) -> Callable[[Sequence[Answered]], list[Score]]:
    """Scores boxes that `parse` reads by IoU >= 0.5 (`score`) and by IoU itself; an invalid one is wrong, and told by
    `read_as` None. References are boxes as texts, `[left, top, right, bottom]`, which may end a hair outside the
    image, as those of COCO do; of several the best counts.
    """
    return lambda answers: [_box_score(answered, parse) for answered in answers]


def _box_score(answered: Answered, parse: Callable[[str], Box | None]) -> Score:
    box = None if answered.answer is None else parse(answered.answer.strip())
    truths = [truth for truth in map(_four_numbers, answered.references) if truth]
    overlap = max((iou(box, truth) for truth in truths), default=0.0) if box else 0.0
    right = float(overlap >= IOU_THRESHOLD)
    return Score({"score": Tally(right), "iou": Tally(overlap)}, right, "" if box or answered.answer is None else None)
