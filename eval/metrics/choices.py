"""Metrics of multiple choice: which option an answer names, and whether that is right."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from .scoring import Answered, Score, Tally, listed
from .short_answers import mmmu_open

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"\s*([A-Z])[.):]\s")
_STANDALONE = re.compile(r"(?<![A-Za-z0-9'’])([A-Z])(?![A-Za-z0-9'’])")
_SMALL = re.compile(r"\W*([a-z])\W*")
_SCIENCEQA = re.compile(r"The answer is ([A-Z]).")
_SCIENCEQA_LETTERS = "ABCDE"
# Texts that stand in no answer, for options of which only the question's own words tell the texts.
_UNTOLD = tuple("\ue000" + letter for letter in "ABCD")


def mcq_parse(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the option that an answer names, or None. Never a guess.

    Our own parser. Where MMMU's official one finds a letter, this one finds the same, but for answers that begin with
    an option's label (`B. A pear`, where the official one reads the article). Then, where that one would guess:
    letters set apart by other marks (`**B**`, `B)`), the text of exactly one option, a single small letter.

    Args:
        prediction: the answer.
        options: the texts of the options A, B, C, ...
    """
    letters = _LETTERS[: len(options)]
    label = _LABEL.match(prediction)
    if label and label[1] in letters:
        return label[1]
    return (
        mcq_parse_mmmu(prediction, options)
        or _last(letter for letter in _STANDALONE.findall(prediction) if letter in letters)
        or _named(prediction, options)
        or _small_letter(prediction, letters)
    )


def _last(letters: Iterator[str]) -> str | None:
    found = list(letters)
    return found[-1] if found else None


def _named(prediction: str, options: Sequence[str]) -> str | None:
    """The option whose text is the answer, or the only one that stands in it as whole words."""
    text = " ".join(prediction.lower().split()).strip(".,;:!?\"'*` ")
    texts = {letter: " ".join(option.lower().split()) for letter, option in zip(_LETTERS, options, strict=False)}
    equal = [letter for letter, option in texts.items() if option and option == text]
    named = equal or [letter for letter, option in texts.items() if option and _stands_in(option, text)]
    return named[0] if len(named) == 1 else None


def _stands_in(words: str, text: str) -> bool:
    place = text.find(words)
    while place >= 0:
        end = place + len(words)
        if not text[place - 1 : place].isalnum() and not text[end : end + 1].isalnum():
            return True
        place = text.find(words, place + 1)
    return False


def _small_letter(prediction: str, letters: str) -> str | None:
    alone = _SMALL.fullmatch(prediction)
    return alone[1].upper() if alone and alone[1].upper() in letters else None


def mcq_parse_mmmu(prediction: str, options: Sequence[str]) -> str | None:
    """The letter that MMMU's official parser reads, or None where it would draw one at random.

    Follows MMMU `eval_utils.py` (`parse_multi_choice_response`; arXiv 2311.16502): letters in brackets; else between
    spaces, the article `A` too; else, in more than five words, an option's text. Of several the last.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        prediction = prediction.strip(mark)
    response = f" {prediction} "
    named = dict(zip(_LETTERS, options, strict=False))
    places = {letter: response.rfind(f"({letter})") for letter in named}
    if max(places.values(), default=-1) < 0:
        places = {letter: response.rfind(f" {letter} ") for letter in named}
    if max(places.values(), default=-1) < 0 and len(response.split()) > 5:
        places = {letter: response.lower().rfind(text.lower()) for letter, text in named.items()}
    place = max(places.values(), default=-1)
    return next((letter for letter in places if places[letter] == place), None) if place >= 0 else None


def scienceqa_parse(prediction: str, options: Sequence[str]) -> str | None:
    """The letter that LLaVA's ScienceQA script reads: `B`, `B. ...` or one "The answer is B." with a mark behind it.

    Follows LLaVA `eval/eval_science_qa.py`: letters A to E that the question has; a final space matters.
    """
    if prediction in tuple(_SCIENCEQA_LETTERS):
        letter = prediction
    elif prediction[1:3] == ". " and prediction[0] in _SCIENCEQA_LETTERS:
        letter = prediction[0]
    else:
        found = _SCIENCEQA.findall(prediction)
        letter = found[0] if len(found) == 1 else ""
    return letter if letter and letter in _SCIENCEQA_LETTERS[: len(options)] else None


@listed
def scienceqa(prediction: str, references: Sequence[str], options: Sequence[str] = _SCIENCEQA_LETTERS) -> float:
    """1 if the letter of `scienceqa_parse` is a reference."""
    return float(scienceqa_parse(prediction, options) in references)


def letter_parse(prediction: str, options: Sequence[str] = ()) -> str | None:
    """The letter A to D that `mcq_parse` reads, where the options stand in the question and their texts are not known
    apart (MMStar)."""
    return mcq_parse(prediction, _UNTOLD)


def letter_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no letter could be right."""
    return choice_fault(references, _UNTOLD)


def choice_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no letter could be right."""
    letters = tuple(_LETTERS[: len(choices)])
    if not letters:
        return "there are no choices"
    wrong = [reference for reference in references if reference not in letters]
    return f"the answer `{wrong[0]}` is none of the letters {', '.join(letters)}" if wrong else None


def mmmu_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """The same, where there are choices."""
    return choice_fault(references, choices) if choices else None


Parser = Callable[[str, Sequence[str]], str | None]
"""From an answer and the options' texts to a letter."""


def choice_scores(parse: Parser) -> Callable[[Sequence[Answered]], list[Score]]:
    """Scores answers by the letter that `parse` reads in them; unparsed is wrong, and told by `read_as` None."""
    return lambda answers: [_choice_score(answered, parse) for answered in answers]


def _choice_score(answered: Answered, parse: Parser) -> Score:
    if answered.answer is None:
        return Score({"score": Tally(0.0)}, 0.0)
    letter = parse(answered.answer.strip(), answered.choices)
    value = float(letter in answered.references)
    return Score({"score": Tally(value)}, value, letter)


def mmmu_scores(parse: Parser) -> Callable[[Sequence[Answered]], list[Score]]:
    """Scores MMMU: by `parse` where there are options, else by `mmmu_open`."""
    return lambda answers: [
        _choice_score(answered, parse) if answered.choices else _open_score(answered) for answered in answers
    ]


def _open_score(answered: Answered) -> Score:
    value = 0.0 if answered.answer is None else mmmu_open(answered.answer, answered.references)
    return Score({"score": Tally(value)}, value)


def circular_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores MMBench: a question is right only if it is in all its rotations, which are the answers of its group.

    Follows MMBench's circular evaluation (arXiv 2307.06281) with `mcq_parse` in place of a language model. Each of a
    question's answers adds its part of the question, so that the figure is a mean over questions; `single` is the
    plain mean over answers. An answer without a group is a question by itself.
    """
    scores = choice_scores(mcq_parse)(answers)
    groups = defaultdict(list)
    for number, answered in enumerate(answers):
        groups[(answered.category, answered.group) if answered.group else number].append(number)
    for numbers in groups.values():
        right, part = min(scores[number].goodness for number in numbers), 1 / len(numbers)
        for number in numbers:
            alone = scores[number]
            tallies = {"score": Tally(right * part, part), "single": alone.tallies["score"]}
            scores[number] = Score(tallies, alone.goodness, alone.read_as)
    return scores
