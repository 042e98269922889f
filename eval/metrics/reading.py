"""Metrics of reading: edit distances, text recognition, OCRBench."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

import jiwer
from rapidfuzz.distance import Levenshtein

from .scoring import Answered, Score, Tally, listed

ANLS_THRESHOLD = 0.5
FORMULAS = ("HME100k", "Handwritten Mathematical Expression Recognition")
"""Categories of OCRBench whose answers are formulas."""

_NOT_WORD = re.compile("[^0-9a-z]")
# The caret is no slip of ours: the reference writes it in front of every range.
_NOT_SYMBOL = re.compile("[^A-Z^a-z^0-9^\u4e00-\u9fa5]")


@listed
def anls(prediction: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (DocVQA, InfographicVQA, ST-VQA): of the best reference, 0 below 0.5.

    Follows the RRC script (copy in Qwen-VL `eval_mm/infographicsvqa_eval.py`): the distance is taken without capitals
    and extra spaces, but divided by the length of the longer text as it was written; exactly 0.5 is kept; two
    empty texts are equal. arXiv 1907.00490.
    """
    similarity = 1 - min((_distance_share(prediction, reference) for reference in references), default=1.0)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _distance_share(prediction: str, reference: str) -> float:
    distance = Levenshtein.distance(" ".join(prediction.lower().split()), " ".join(reference.lower().split()))
    # Of the upper-case form, as in the script: ß counts twice.
    return distance / max(len(prediction.upper()), len(reference.upper()), 1)


@listed
def cer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Character error rate of a set: all errors over all characters of the references, so long lines count for more.

    It is jiwer's: spaces around a text do not count, those inside do; nothing else is folded. It may exceed 1; where
    every reference is empty it is the number of characters too many.

    Raises:
        ValueError: not one reference a prediction.
    """
    return float(jiwer.cer(list(references), list(predictions)))


@listed
def wer(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Word error rate of a set, as `cer`; words are parted by single spaces or by runs of any white space.

    Raises:
        ValueError: not one reference a prediction.
    """
    return float(jiwer.wer(list(references), list(predictions)))


def character_errors(prediction: str, references: Sequence[str]) -> Tally:
    """jiwer's errors over characters of the reference; with several references the one that gives the lowest rate."""
    return _fewest([jiwer.process_characters(reference, prediction) for reference in references])


def word_errors(prediction: str, references: Sequence[str]) -> Tally:
    """jiwer's errors over words of the reference; with several references the one that gives the lowest rate."""
    return _fewest([jiwer.process_words(reference, prediction) for reference in references])


def _fewest(outcomes: Sequence[jiwer.WordOutput | jiwer.CharacterOutput]) -> Tally:
    tallies = [
        Tally(one.substitutions + one.deletions + one.insertions, one.hits + one.substitutions + one.deletions)
        for one in outcomes
    ]
    return min(tallies, key=lambda tally: (tally.value, tally.weight), default=Tally(1.0))


@listed
def word_accuracy(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference in its letters a to z and digits, whatever the case (IIIT5K, SVT, IC13, ...).

    Follows deep-text-recognition-benchmark `test.py` (arXiv 1904.01906): all else is dropped, so `5%` is `5`, and a
    word of another script is an empty one.
    """
    return float(any(_letters(prediction) == _letters(reference) for reference in references))


@listed
def one_minus_ned(prediction: str, references: Sequence[str]) -> float:
    """1 - edit distance / length of the longer text, over letters a to z and digits; of the best reference.

    Follows deep-text-recognition-benchmark `test.py` (ICDAR 2019): 0 where either side is empty, even if both are.
    """
    return max((_similarity(_letters(prediction), _letters(reference)) for reference in references), default=0.0)


def _letters(text: str) -> str:
    return _NOT_WORD.sub("", text.lower())


def _similarity(prediction: str, reference: str) -> float:
    if not prediction or not reference:
        return 0.0
    return 1 - Levenshtein.distance(prediction, reference) / max(len(prediction), len(reference))


def char_recall(prediction: str, reference: str) -> float:
    """The share of the reference's characters that are read, in blocks that difflib finds."""
    found, _, wanted = _characters(prediction, reference)
    return found / wanted if wanted else 0.0


def char_scores(answers: Sequence[Answered]) -> list[Score]:
    """Character recall and precision of each answer, on the reference that it reads most of.

    Follows mmocr `CharMetric`: Latin letters, digits and common Chinese characters, whatever the case, in the matching
    blocks of difflib, which finds fewer characters than an edit distance would.
    """
    return [_char_score(answered) for answered in answers]


def _char_score(answered: Answered) -> Score:
    counts = [_characters(answered.answer or "", reference) for reference in answered.references] or [(0, 0, 1)]
    found, read, wanted = max(counts, key=lambda count: (count[0] / (count[2] or 1), count))
    tallies = {"recall": Tally(found, wanted), "precision": Tally(found, read)}
    return Score(tallies, 0.0 if answered.answer is None else tallies["recall"].value)


def _characters(prediction: str, reference: str) -> tuple[int, int, int]:
    """How many are found, read and wanted."""
    read, wanted = (_NOT_SYMBOL.sub("", text.lower()) for text in (prediction, reference))
    blocks = SequenceMatcher(None, read, wanted).get_matching_blocks()
    return sum(block.size for block in blocks), len(read), len(wanted)


@listed
def ocrbench(prediction: str, references: Sequence[str], *, formula: bool = False) -> float:
    """OCRBench v1: 1 if the answer contains a reference, inside a longer word too, whatever the case.

    Follows the official `OCRBench/example.py` (arXiv 2305.07895); full-width letters are not folded.

    Args:
        prediction: the answer.
        references: accepted answers.
        formula: the rule for handwritten formulas (HME100k): all spaces are removed and case matters.
    """
    read = _formula if formula else _line
    answer = read(prediction)
    return float(any(read(reference) in answer for reference in references))


def ocrbench_scores(answers: Sequence[Answered]) -> list[Score]:
    """`ocrbench` of each answer, with the rule for formulas where its category says so (`FORMULAS`)."""
    return [_ocrbench_score(answered) for answered in answers]


def _ocrbench_score(answered: Answered) -> Score:
    if answered.answer is None:
        return Score({"score": Tally(0.0)}, 0.0)
    formula = any(name in answered.category for name in FORMULAS)
    value = ocrbench(answered.answer, answered.references, formula=formula)
    return Score({"score": Tally(value)}, value)


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")
