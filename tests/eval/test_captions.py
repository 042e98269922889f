"""CIDEr and its tokeniser: against what Stanford's jar says, and against the definition."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest

from vlm.eval.metrics.captions import cider, cider_each
from vlm.eval.metrics.ptb import ptb_tokens
from vlm.eval.metrics.scoring import Answered

# Captions of our own with the tokens of pycocoevalcap's jar, each by itself.
TOKENS = [json.loads(line) for line in (Path(__file__).parent / "ptb_tokens.jsonl").read_text("utf8").splitlines()]


@pytest.mark.parametrize("known", TOKENS, ids=lambda known: known["caption"][:30])
def test_tokens_are_the_jars(known: dict[str, str]) -> None:
    assert " ".join(ptb_tokens(known["caption"])) == known["tokens"]


def test_line_separators_are_white_space() -> None:
    assert ptb_tokens("a dog\r\nruns\u2028home\n") == ["a", "dog", "runs", "home"]


def slow_cider(predictions: list[str], references: list[list[str]]) -> float:
    """The definition, n by n and reference by reference, on words without punctuation."""

    def grams(text: str, n: int) -> Counter[str]:
        words = text.split()
        return Counter(" ".join(words[i : i + n]) for i in range(len(words) - n + 1))

    def weights(text: str, n: int) -> dict[str, float]:
        having = {g: sum(any(g in grams(one, n) for one in texts) for texts in references) for g in grams(text, n)}
        return {g: c * math.log(len(references) / max(1, having[g])) for g, c in grams(text, n).items()}

    total = 0.0
    for prediction, texts in zip(predictions, references, strict=True):
        for n in range(1, 5):
            for text in texts:
                one, other = weights(prediction, n), weights(text, n)
                length = math.hypot(*one.values()) * math.hypot(*other.values())
                cosine = sum(min(w, other[g]) * other[g] for g, w in one.items() if g in other) / (length or 1)
                words = len(prediction.split()) - len(text.split())
                total += 10 * cosine * math.exp(-(words**2) / 72) / 4 / len(texts)
    return total / len(predictions)


def test_cider_is_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(20):
        captions = [[" ".join(rng.choices("abcde", k=rng.randint(2, 9))) for _ in range(4)] for _ in range(5)]
        predictions, references = [texts[0] for texts in captions], [texts[1:] for texts in captions]
        assert cider(predictions, references) == pytest.approx(slow_cider(predictions, references), abs=1e-9)


def test_cider_of_failures_and_of_nothing() -> None:
    """A failure is worth nothing, and its references still say how rare a word is."""
    references = [["a red dog runs home"], ["two cats sit on a mat"], ["a boat at sea"]]
    right, failed, wrong = cider_each(["a red dog runs home", None, ""], references)
    assert right == pytest.approx(10)
    assert failed == wrong == 0
    assert cider([], []) == 0
    with pytest.raises(ValueError, match="1 predictions, but 2 lists"):
        cider(["a"], [["a"], ["b"]])


def test_goodness_is_the_share_of_the_most() -> None:
    from vlm.eval.metrics import METRICS

    truths = ["a red dog runs home", "two cats sit on mats"]
    scores = METRICS["cider"].score([Answered(truths[0], [truths[0]]), Answered("a boat", [truths[1]])])
    assert [score.verdict for score in scores] == ["right", "wrong"]
    assert METRICS["cider"].values(scores)["score"] == pytest.approx(5)
