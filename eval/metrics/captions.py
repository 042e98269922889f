"""CIDEr-D, the metric of captions."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from .ptb import ptb_tokens
from .scoring import Answered, Score, Tally

LONGEST = 4
"""n-grams of one to so many words."""
SIGMA = 6.0
"""How fast a difference in length costs points."""
MOST = 10.0
"""CIDEr of a caption that equals all its references."""

_Counts = Sequence[Counter[tuple[str, ...]]]


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of a set of captions, 0 to 10 (papers print it times 100).

    Follows pycocoevalcap `cider_scorer.py` after its PTB tokeniser, here without Java (`ptb_tokens`); arXiv 1411.5726.
    What an n-gram is worth depends on all references of the set: figures of different sets do not compare, and of one
    image every figure is 0.

    Raises:
        ValueError: not one list of references a prediction.
    """
    scores = cider_each(predictions, references)
    return sum(scores) / len(scores) if scores else 0.0


def cider_each(predictions: Sequence[str | None], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption within its set, 0 to 10; a None gives 0, and its references count all the same.

    Raises:
        ValueError: not one list of references a prediction.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions, but {len(references)} lists of references")
    truths = [[_count(ptb_tokens(text)) for text in texts] for texts in references]
    images: Counter[tuple[str, ...]] = Counter()
    for counts in truths:
        images.update({gram for count in counts for grams in count for gram in grams})
    known = math.log(len(truths)) if truths else 0.0
    rarity = {gram: known - math.log(number) for gram, number in images.items()}
    return [
        _closeness(_count(ptb_tokens(prediction)), counts, rarity, known) if prediction is not None else 0.0
        for prediction, counts in zip(predictions, truths, strict=True)
    ]


def _count(words: Sequence[str]) -> _Counts:
    """The n-grams of a text, by n."""
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1)) for n in range(1, LONGEST + 1)
    ]


def _closeness(
    counts: _Counts, truths: Sequence[_Counts], rarity: Mapping[tuple[str, ...], float], new: float
) -> float:
    """The mean over references and n of the clipped cosine, less for each word too many or too few.

    Args:
        counts: of the prediction.
        truths: of each reference.
        rarity: of an n-gram that stands in any reference of the set, the log of images by images that have it.
        new: the same of any other n-gram.
    """
    lengths = [_norm(grams, rarity, new) for grams in counts]
    score = 0.0
    for truth in truths:
        # The number of bigrams, as in the reference: both texts have one less than they have words.
        difference = counts[1].total() - truth[1].total()
        cosines = sum(
            _dot(grams, other, rarity) / ((length * _norm(other, rarity, new)) or 1.0)
            for grams, other, length in zip(counts, truth, lengths, strict=True)
        )
        score += cosines / LONGEST * math.exp(-(difference**2) / (2 * SIGMA**2))
    return MOST * score / len(truths) if truths else 0.0


def _norm(grams: Counter[tuple[str, ...]], rarity: Mapping[tuple[str, ...], float], new: float) -> float:
    return math.sqrt(sum((count * rarity.get(gram, new)) ** 2 for gram, count in grams.items()))


def _dot(
    grams: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]], rarity: Mapping[tuple[str, ...], float]
) -> float:
    shared = grams.keys() & other.keys()
    return math.fsum(min(grams[gram], other[gram]) * other[gram] * rarity[gram] ** 2 for gram in shared)


def cider_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores captions within their set; a caption is right by itself as far as it comes to the most there is."""
    values = cider_each([answered.answer for answered in answers], [answered.references for answered in answers])
    return [Score({"score": Tally(value)}, min(1.0, value / MOST)) for value in values]
