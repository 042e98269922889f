"""VQA accuracy, its variants, and how each of them reads an answer."""

import re
from collections.abc import Callable, Sequence

from .scoring import listed

_Reader = Callable[[str], str]

# Every contraction that the VQA table knows, written as it should be. A prediction that lacks exactly one of the
# apostrophes is read as the contraction; the table's keys with capitals (`Im`) never match, as text is lower by then.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _misspelt(contraction: str) -> list[str]:
    return [contraction[:i] + contraction[i + 1 :] for i, mark in enumerate(contraction) if mark == "'"]


VQA_CONTRACTIONS: dict[str, str] = {wrong: right for right in _CONTRACTIONS.split() for wrong in _misspelt(right)}
"""Word -> how VQA accuracy reads it."""
VQA_CONTRACTIONS["somebody'd"] = "somebodyd"  # the official table has this one the wrong way round

# VizWiz's copy of the table has back-ticks for apostrophes. Keys that hold one never match, since back-ticks are gone
# by then; eight values and two keys were forgotten when the marks were exchanged.
_FORGOTTEN = {"ain't", "aren't", "can't", "couldn't", "could've", "we've", "where's", "who've"}
VIZWIZ_CONTRACTIONS: dict[str, str] = {
    wrong: right if right in _FORGOTTEN else right.replace("'", "`")
    for wrong, right in VQA_CONTRACTIONS.items()
    if "'" not in wrong or wrong in ("couldn'tve", "hadn'tve")
}
"""Word -> how the VizWiz script reads it."""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_MARK = re.compile(r"[;/\[\]\"{}()=+\\_\-><@`,?!]")
_COMMAS = re.compile(r"\d,+\d")
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The reference passes `re.UNICODE` (the number 32) where `re.sub` takes a count.
_MOST_PERIODS = 32


def people_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no answer could be right: one is left out in turn, so that a single one has none to agree with."""
    few = "there is one answer, and VQA accuracy compares with those of several people"
    return few if len(references) == 1 else None


@listed
def vqa_accuracy(prediction: str, references: Sequence[str], *, strict_official: bool = False) -> float:
    """VQAv2 accuracy: the mean over the references of min(1, matches among the *other* references / 3).

    Follows lmms-eval `tasks/vqav2/utils.py`: both sides are always normalised (`vqa_normalise`). References are left
    out by index, never by equality, or nine equal answers would vanish together. With ten references 1, 2, 3 and 4
    agreeing people give 0.3, 0.6, 0.9 and 1; a single reference can only give 0. arXiv 1612.00837.

    Args:
        prediction: the answer.
        references: one answer per person asked, ten in VQAv2.
        strict_official: as the official script since 2021 (GT-Vision-Lab/VQA a013f00): where all references are the
            same, nothing is normalised, so `Yes.` is wrong beside ten `yes`.
    """
    if not strict_official:
        return _agreement(prediction, references, vqa_normalise)
    unanimous = len(set(map(_flat, references))) == 1
    return _agreement(prediction, references, _flat if unanimous else _official_normalise)


@listed
def textvqa_accuracy(prediction: str, references: Sequence[str]) -> float:
    """VQA accuracy on answers as the EvalAI processor reads them (`evalai_normalise`), on both sides.

    Follows mmf `utils/m4c_evaluators.py` (TextVQA; the copies of LLaVA and lmms-eval are the same), which lmms-eval
    also takes for OK-VQA and VizWiz. arXiv 1904.08920.
    """
    return _agreement(prediction, references, evalai_normalise)


@listed
def vizwiz_accuracy(prediction: str, references: Sequence[str]) -> float:
    """VQA accuracy as the VizWiz challenge scores it: the prediction alone is normalised, the references as they are.

    Follows the VizWiz script (copy in TRI-ML/vlm-evaluation `util/evaluation/vizwiz/eval.py`), where `two` is 2 in the
    prediction and not in the references, and most contractions get a back-tick, so that `dont` equals nothing.
    arXiv 1802.08218.
    """
    return _agreement(prediction, references, _vizwiz_normalise, lambda truth: truth)


def _agreement(prediction: str, references: Sequence[str], read: _Reader, read_truth: _Reader | None = None) -> float:
    """The mean over the references of min(1, equal ones among the others / 3)."""
    answer, people = read(prediction), len(references)
    equal = sum(truth == answer for truth in map(read_truth or read, references))
    if not equal:
        return 0.0
    return (equal * min(1.0, (equal - 1) / 3) + (people - equal) * min(1.0, equal / 3)) / people


def vqa_normalise(text: str) -> str:
    """An answer as VQAv2 compares it: without most punctuation, articles and capitals, number words as digits.

    Follows `process_punctuation` and `process_digit_article` of lmms-eval (`_task_utils/vqa_eval_metric.py`), slips
    included: a mark goes without a trace when it stands beside a space anywhere (or the text has a number such as
    1,000), else it becomes a space.
    """
    return _words(_without_punctuation(_flat(text), _COMMAS), VQA_CONTRACTIONS)


def evalai_normalise(text: str) -> str:
    """An answer as the EvalAI server's processor reads it: `vqa_normalise` after commas and question marks are deleted
    and `'s` is parted from its word."""
    parted = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return vqa_normalise(parted.strip())


def _official_normalise(text: str) -> str:
    return _words(_without_punctuation(_flat(text), _COMMA), VQA_CONTRACTIONS)


def _vizwiz_normalise(text: str) -> str:
    return _words(_without_punctuation(_flat(text), _COMMA), VIZWIZ_CONTRACTIONS)


def _flat(text: str) -> str:
    """Line ends and tabs as spaces, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_punctuation(text: str, thousands: re.Pattern[str]) -> str:
    result, marks = text, set(_MARK.findall(text))
    if marks:
        number = "," in marks and thousands.search(text) is not None
        for mark in marks:
            beside_space = f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if number or beside_space else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def _words(text: str, contractions: dict[str, str]) -> str:
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(contractions.get(word, word) for word in words if word not in _ARTICLES)
