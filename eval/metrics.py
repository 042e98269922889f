"""Metrics: pure functions of an answer and its references, and the table that says how each is added up.

Every function names the scorer that it follows, slips included: a score is only worth something beside published ones.
None looks at anything but its arguments, and none changes them.
"""

import re
from collections.abc import Sequence

from .scoring import Figure, Metric, Tally, each, errors
from .text import flat, levenshtein, vqa_normalise

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference, whatever the case and the spaces around it.

    Follows Qwen-VL `eval_mm/evaluate_vqa.py` (`evaluate_exact_match_accuracy`; OCR-VQA, GQA): nothing else is folded,
    so `Yes.` is not `yes`. See `loose_match` where no published number is at stake.
    """
    return float(prediction.strip().lower() in {reference.strip().lower() for reference in references})


def loose_match(prediction: str, references: Sequence[str]) -> float:
    """`exact_match` after runs of spaces became one and one period at the end was dropped, on both sides.

    Our own, for people's own data: many models end every answer with a period, which costs them everything under
    `exact_match` (VLMEvalKit #948: 25.68 against 59.24 on ChartQA for the same answers).
    """
    return exact_match(_without_period(prediction), [_without_period(reference) for reference in references])


def _without_period(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


def vqa_accuracy(prediction: str, references: Sequence[str], *, strict_official: bool = False) -> float:
    """VQAv2 accuracy: the mean over the references of min(1, matches among the *other* references / 3).

    Follows lmms-eval `tasks/vqav2/utils.py`: both sides are always normalised (`vqa_normalise`). References are left
    out by index, never by equality, or nine equal answers would vanish together. With ten references 1, 2, 3 and 4
    agreeing people give 0.3, 0.6, 0.9 and 1; a single reference can only give 0.

    Args:
        prediction: the answer.
        references: one answer per person asked, ten in VQAv2.
        strict_official: as the official script since 2021 (GT-Vision-Lab/VQA a013f00): where all references are the
            same, nothing is normalised, so `Yes.` is wrong beside ten `yes`.
    """
    answer, truths = flat(prediction), [flat(reference) for reference in references]
    if not (strict_official and len(set(truths)) == 1):
        answer, truths = vqa_normalise(answer), [vqa_normalise(truth) for truth in truths]
    matches = [truth == answer for truth in truths]
    shares = [min(1.0, (sum(matches) - match) / 3) for match in matches]
    return sum(shares) / len(shares) if shares else 0.0


def anls(prediction: str, references: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity (DocVQA, InfographicVQA, ST-VQA): of the best reference, 0 below 0.5.

    Follows the RRC script (copy in Qwen-VL `eval_mm/infographicsvqa_eval.py`): the distance is taken without capitals
    and extra spaces, but divided by the length of the longer text as it was written; exactly 0.5 is kept; two
    empty texts are equal. arXiv 1907.00490.
    """
    similarity = 1 - min((_distance_share(prediction, reference) for reference in references), default=1.0)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _distance_share(prediction: str, reference: str) -> float:
    distance = levenshtein(" ".join(prediction.lower().split()), " ".join(reference.lower().split()))
    # Of the upper-case form, as in the script: ß counts twice.
    return distance / max(len(prediction.upper()), len(reference.upper()), 1)


def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers may be off by 5 % of the reference, all else must be equal but for case.

    Follows pix2struct `metrics.py` (arXiv 2203.10244, section 5.1) on the stripped prediction, as Qwen-VL and
    VLMEvalKit do: a tokenizer's leading space is no mistake of the model. `5%` is 0.05; no commas, currencies or
    units are removed; a reference of zero is compared as text.
    """
    return float(any(_relaxed(prediction.strip(), reference) for reference in references))


def _relaxed(prediction: str, reference: str) -> bool:
    value, truth = _number(prediction), _number(reference)
    if value is None or not truth:
        return prediction.lower() == reference.lower()
    return abs(value - truth) / abs(truth) <= RELAXED_TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contains(prediction: str, references: Sequence[str], *, formula: bool = False) -> float:
    """OCRBench v1: 1 if the answer contains a reference, inside a longer word too, whatever the case.

    Follows the official `OCRBench/example.py` (arXiv 2305.07895); full-width letters are not folded.

    Args:
        prediction: the answer.
        references: accepted answers.
        formula: the rule for handwritten formulas (HME100k): all spaces are removed and case matters.
    """
    read = _formula if formula else _line
    return float(any(read(reference) in read(prediction) for reference in references))


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def character_errors(prediction: str, references: Sequence[str]) -> Tally:
    """Edits over characters of the reference, as jiwer's `cer`: spaces around the text do not count, those inside do.

    With several references the one that gives the lowest rate.
    """
    return _fewest_errors(prediction.strip(), [reference.strip() for reference in references])


def word_errors(prediction: str, references: Sequence[str]) -> Tally:
    """Edits over words of the reference, as jiwer's `wer`: neither case nor punctuation is folded."""
    return _fewest_errors(_words(prediction), [_words(reference) for reference in references])


def _fewest_errors(prediction: Sequence[str], references: Sequence[Sequence[str]]) -> Tally:
    tallies = [Tally(levenshtein(prediction, reference), len(reference)) for reference in references]
    return min(tallies, key=lambda tally: tally.value, default=Tally(1.0))


def _words(text: str) -> list[str]:
    # As jiwer: a single line end or tab between two words does not part them, two white spaces of any kind do.
    return [word for word in re.sub(r"\s\s+", " ", text).strip().split(" ") if word]


METRICS: dict[str, Metric] = {
    "exact_match": Metric(each(exact_match), "equal but for case and outer spaces (OCR-VQA, GQA)"),
    "loose_match": Metric(each(loose_match), "equal but for case, spaces and one final period"),
    "vqa_accuracy": Metric(each(vqa_accuracy), "agreement with the other nine people (VQAv2)"),
    "vqa_accuracy_2021": Metric(each(vqa_accuracy, strict_official=True), "as the official VQAv2 script since 2021"),
    "anls": Metric(each(anls), "edit similarity, 0 below 0.5 (DocVQA, InfographicVQA)"),
    "relaxed_accuracy": Metric(each(relaxed_accuracy), "numbers within 5 %, text equal (ChartQA)"),
    "contains": Metric(each(contains), "a reference stands in the answer (OCRBench)"),
    "contains_formula": Metric(each(contains, formula=True), "the same for formulas (OCRBench HME100k)"),
    "cer": Metric(errors(character_errors), "character errors / reference characters", (Figure("score", "lower"),)),
    "wer": Metric(errors(word_errors), "word errors / reference words", (Figure("score", "lower"),)),
}
"""Name -> metric, as a task's YAML and `vlm list metrics` name it."""


def descriptions() -> dict[str, str]:
    """Name -> what it measures."""
    return {name: metric.summary for name, metric in METRICS.items()}
