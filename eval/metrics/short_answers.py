"""Metrics of short answers that are compared as text or as numbers."""

import re
from collections.abc import Iterator, Sequence

from rapidfuzz.distance import Levenshtein

from .scoring import listed

RELAXED_TOLERANCE = 0.05

# MMMU's three shapes of a number. A run of digits is never entered in its middle nor given back, which changes no match
# and keeps long runs cheap.
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?(?<!\d)\d++(?:\.\d++)?[eE][+-]?\d+"),
    re.compile(r"-?(?:(?<!\d)\d++\.\d++|\.\d++|(?<!\d)\d++\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_BEFORE_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_COUNT = re.compile(r"\d+")


@listed
def exact_match(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer equals a reference, whatever the case and the spaces around it.

    Follows Qwen-VL `eval_mm/evaluate_vqa.py` (`evaluate_exact_match_accuracy`; OCR-VQA): nothing else is folded,
    so `Yes.` is not `yes`. See `loose_match` where no published number is at stake.
    """
    return float(prediction.strip().lower() in {reference.strip().lower() for reference in references})


@listed
def loose_match(prediction: str, references: Sequence[str]) -> float:
    """`exact_match` after runs of spaces became one and one period at the end was dropped, on both sides.

    Our own, for people's own data: many models end every answer with a period, which costs them everything under
    `exact_match` (VLMEvalKit #948: 25.68 against 59.24 on ChartQA for the same answers).
    """
    return exact_match(_without_period(prediction), [_without_period(reference) for reference in references])


def _without_period(text: str) -> str:
    return " ".join(text.split()).removesuffix(".")


@listed
def gqa(prediction: str, references: Sequence[str]) -> float:
    """1 if the answer, without periods at its end, equals a reference, whatever the case.

    Follows LLaVA `scripts/convert_gqa_for_eval.py` before GQA's own equality (arXiv 1902.09506); spaces around the
    answer are no mistake. Other harnesses clean answers otherwise (more punctuation, articles), so that figures differ.
    """
    return float(prediction.strip().rstrip(".").lower() in {reference.lower() for reference in references})


@listed
def relaxed_accuracy(prediction: str, references: Sequence[str]) -> float:
    """ChartQA's relaxed accuracy: numbers may be off by 5 % of the reference, all else must be equal but for case.

    Follows pix2struct `metrics.py` (arXiv 2203.10244, section 5.1): `5%` is 0.05; no commas, currencies or units are
    removed; a reference of zero is compared as text; the space of ` yes` counts. (The metric of this name takes off
    spaces around the answer first, as VLMEvalKit does: a tokenizer's space is no mistake of the model.)
    """
    return float(any(_relaxed(prediction, reference) for reference in references))


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


@listed
def mmmu_open(prediction: str, references: Sequence[str]) -> float:
    """MMMU's rule for open questions: 1 if a number of the answer equals a reference, or its text contains one.

    Follows MMMU `eval_utils.py` (`parse_open_response`, `eval_open`; arXiv 2311.16502): only what stands after the last
    "is", "so", "answer", "=" ... of a line counts, where there is such a word; numbers are rounded to two decimals. A
    reference of one letter must stand beside a space.
    """
    answers = [normal for text in _candidates(prediction) for normal in _mmmu_normalise(text)]
    truths = [normal for reference in references for normal in _mmmu_normalise(reference)]
    texts = [truth for truth in truths if isinstance(truth, str)]
    return float(any(any(text in one for text in texts) if isinstance(one, str) else one in truths for one in answers))


def _candidates(response: str) -> Iterator[str]:
    """The parts of an answer that may hold what was asked for, and the numbers in them."""
    response = response.strip().strip(".").lower()
    lines = _SENTENCES.split(response)
    parts = [_after_indicator(line, last=number == len(lines)) for number, line in enumerate(lines, 1)]
    for part in [part for part in parts if part and part not in _TRIVIAL] or [response]:
        yield part
        for pattern in _NUMBERS:
            yield from pattern.findall(part)


def _after_indicator(line: str, *, last: bool) -> str:
    """The shortest text behind an indicator; an empty one gives way to the next."""
    shortest = ""
    for indicator in (*_BEFORE_ANSWER, "=") if last else _BEFORE_ANSWER:
        if indicator in line:
            tail = line.rpartition(indicator)[2].strip()
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
    return shortest


def _mmmu_normalise(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


@listed
def ocrbench_v2_vqa(
    prediction: str, references: Sequence[str], *, chinese: bool = False, case_sensitive: bool = False
) -> float:
    """OCRBench v2's rule for questions: short references must stand in the answer, long ones be similar to it.

    Follows MultimodalOCR `OCRBench_v2/eval_scripts/vqa_metric.py` (arXiv 2501.00321) for lists of answers. A reference
    under five words is looked for as a substring; a longer one gives 1 - edit distance / length of the longer
    text, 0 below 0.5, and nothing for being contained.

    Args:
        prediction: the answer.
        references: accepted answers.
        chinese: spaces are removed, and under four parts between commas is short.
        case_sensitive: capitals matter.
    """
    answer = _v2_line(prediction, chinese, case_sensitive)
    truths = [_v2_line(reference, chinese, case_sensitive) for reference in references]
    return max((_v2_similarity(answer, truth, chinese) for truth in truths), default=0.0)


def _v2_line(text: str, chinese: bool, case_sensitive: bool) -> str:
    line = (text if case_sensitive else text.lower()).strip().replace("\n", " ")
    return line.replace(" ", "") if chinese else line


def _v2_similarity(answer: str, truth: str, chinese: bool) -> float:
    if len(truth.split(",")) < 4 if chinese else len(truth.split()) < 5:
        return float(truth in answer)
    similarity = 1 - Levenshtein.distance(answer, truth) / max(len(answer), len(truth))
    return similarity if similarity >= 0.5 else 0.0


@listed
def ocrbench_v2_choice(prediction: str, references: Sequence[str]) -> float:
    """OCRBench v2's rule for rows that are marked "multiple choice": the letters of the answer, and letters alone, are
    the reference's.

    Follows `OCRBench_v2/eval_scripts/eval.py`: case matters, `B.` and `(B)` are `B`, and `B. red` is wrong.
    """
    return float("".join(filter(str.isalpha, prediction)) in references)


@listed
def ocrbench_v2_counting(prediction: str, references: Sequence[str], *, exact: bool = False) -> float:
    """OCRBench v2's rule for counts: 1 - |first number in the answer - reference| / reference, 0 unless above 0.5.

    Follows `vqa_metric.py` as `ocrbench_v2_vqa` does; 0 in the answer counts as no number. A reference that is
    no whole number, for which the script raises, gives 0.

    Args:
        prediction: the answer.
        references: accepted counts.
        exact: the rule for rows that are marked "exact match": the reference stands in the answer, as a substring.
    """
    truths = [reference.lower().strip().replace("\n", " ") for reference in references]
    if exact:
        return float(any(truth in prediction for truth in truths))
    found = _COUNT.search(prediction)
    return max((_closeness(_whole(found[0]), _whole(truth)) for truth in truths), default=0.0) if found else 0.0


def count_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no count could be right."""
    wrong = [text for text in references if _whole(text) < 1]
    return f"the answer `{wrong[0][:60]}` is no whole number from 1" if wrong else None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # no number, or one of thousands of digits
        return 0


def _closeness(count: int, truth: int) -> float:
    if not 0 < count < 2 * truth:
        return 0.0
    closeness = 1 - abs(count - truth) / truth
    return closeness if closeness > 0.5 else 0.0
