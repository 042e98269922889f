"""Text tools that metrics share: edit distance and the answer normaliser of VQAv2."""

import re
from collections.abc import Hashable, Sequence

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

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,+\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The reference passes `re.UNICODE` (the number 32) where `re.sub` takes a count.
_MOST_PERIODS = 32


def flat(text: str) -> str:
    """Line ends and tabs as spaces, none at the ends: what VQA accuracy does to every text, in every version."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def vqa_normalise(text: str) -> str:
    """An answer as VQAv2 compares it: without most punctuation, articles and capitals, number words as digits.

    Follows `process_punctuation` and `process_digit_article` of lmms-eval (`_task_utils/vqa_eval_metric.py`), which are
    those of the official `vqaEval.py`, slips included: a mark goes without a trace when it stands beside a space
    anywhere (or the text has a number such as 1,000), else it becomes a space.
    """
    words = (_DIGITS.get(word, word) for word in _without_punctuation(flat(text)).lower().split())
    return " ".join(VQA_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    thousands = _THOUSANDS.search(text) is not None
    result = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if thousands or beside_space else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)


def levenshtein(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Fewest insertions, deletions and replacements that turn one sequence (characters or words) into the other.

    A whole column of the usual table is kept as the bits of two integers, +1 and -1 steps (Myers 1999, in Hyyrö's
    form of 2003): exact, and a page of text takes milliseconds instead of seconds.
    """
    if not first:
        return len(second)
    everything, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    places: dict[Hashable, int] = {}
    for index, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << index
    up, down, distance = everything, 0, len(first)
    for item in second:
        equal = places.get(item, 0)
        diagonal = (((equal & up) + up) ^ up) | equal
        right_up, right_down = down | ~(diagonal | up) & everything, up & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up, right_down = right_up << 1 | 1, right_down << 1
        up, down = (right_down | ~(equal | down | right_up)) & everything, right_up & (equal | down) & everything
    return distance
