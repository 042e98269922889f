"""Every metric against the vectors of the scorer that it follows, and against slow obvious loops."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from vlm.eval.metrics import METRICS, Tally, exact_match, loose_match, relaxed_accuracy, total, vqa_accuracy
from vlm.eval.text import VQA_CONTRACTIONS, levenshtein

VECTORS = [json.loads(line) for line in (Path(__file__).parent / "vectors.jsonl").read_text("utf8").splitlines()]
METRIC_OF = {
    "vqa_accuracy": "vqa_accuracy",
    "vqa_accuracy_few_refs": "vqa_accuracy",
    "vqa_accuracy_no_answer_id": "vqa_accuracy",
    "anls": "anls",
    "anls_corpus": "anls",
    "relaxed_accuracy": "relaxed_accuracy",
    "ocrbench": "contains",
    "exact_match_lower": "exact_match",
    "cer": "cer",
    "wer": "wer",
}
WORDS = ["Red", "the", "two", "2", "1,000", "5%", "0", "-3.5", "a-b", "isnt", "ß", "x.", "  ", "\n", ",", "中"]


def score(vector: dict[str, Any]) -> float:
    name = METRIC_OF[vector["metric"]]
    if "HME100k" in vector.get("why", ""):
        name = "contains_formula"
    prediction, references = vector.get("prediction", ""), vector["references"]
    if isinstance(prediction, str):
        return METRICS[name].tally(prediction, references).value
    lists = [[one] if isinstance(one, str) else one for one in references]
    return total(map(METRICS[name].tally, prediction, lists)).value


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_vector(vector: dict[str, Any]) -> None:
    expected = vector.get("kit_should_return", vector.get("expected"))
    # The vectors are written with six decimals.
    assert abs(round(score(vector), 6) - expected) <= 1e-9, vector.get("why")


def random_case(rng: random.Random) -> tuple[str, list[str]]:
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(0, 3))) for _ in range(rng.randint(1, 6))]
    return rng.choice([texts[0], " ".join(rng.choices(WORDS, k=2))]), texts


@pytest.mark.parametrize("name", METRICS)
def test_bounds_order_and_purity(name: str) -> None:
    """0..1 (0.. for error rates), the same whatever the order of the references, which are left as they were."""
    rng = random.Random(0)
    for _ in range(300):
        prediction, references = random_case(rng)
        before, mixed = list(references), rng.sample(references, len(references))
        value = METRICS[name].tally(prediction, references).value
        assert value == pytest.approx(METRICS[name].tally(prediction, mixed).value, abs=1e-12)
        assert 0 <= value <= (1 if METRICS[name].higher_is_better else float("inf"))
        assert references == before


@pytest.mark.parametrize("name", set(METRICS) - {"vqa_accuracy", "vqa_accuracy_2021", "relaxed_accuracy"})
def test_the_reference_itself_is_right(name: str) -> None:
    rng = random.Random(1)
    for _ in range(200):
        _, references = random_case(rng)
        tally = METRICS[name].tally(references[-1], references)
        assert METRICS[name].verdict(tally) == "right", references


@pytest.mark.parametrize("name", METRICS)
def test_nothing_is_right_without_a_reference(name: str) -> None:
    assert METRICS[name].verdict(METRICS[name].tally("red", [])) == "wrong"
    assert METRICS[name].verdict(METRICS[name].lost([])) == "wrong"
    assert METRICS[name].verdict(METRICS[name].lost(["red"])) == "wrong"


def slow_vqa(prediction: str, references: list[str]) -> float:
    """The definition, on words that normalisation leaves alone."""
    shares = []
    for left_out in range(len(references)):
        others = [one for index, one in enumerate(references) if index != left_out]
        shares.append(min(1.0, others.count(prediction) / 3))
    return sum(shares) / len(shares)


def test_vqa_accuracy_leaves_one_out() -> None:
    rng = random.Random(2)
    for _ in range(300):
        references = rng.choices(["red", "blue", "green"], k=rng.randint(1, 10))
        assert vqa_accuracy("red", references) == pytest.approx(slow_vqa("red", references), abs=1e-12)


def test_vqa_accuracy_gate_of_2021() -> None:
    assert vqa_accuracy("Yes.", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes.", ["yes"] * 10, strict_official=True) == 0
    assert vqa_accuracy("Yes.", ["yes"] * 9 + ["no"], strict_official=True) == 1


def test_vqa_contractions() -> None:
    """The official table has 120 entries: 4 with capitals never match, 2 change nothing."""
    assert len(VQA_CONTRACTIONS) == 114
    assert VQA_CONTRACTIONS["couldnt've"] == VQA_CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert VQA_CONTRACTIONS["somebody'd"] == "somebodyd"


def slow_levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        fresh = [i]
        for j, b in enumerate(second, 1):
            fresh.append(min(row[j] + 1, fresh[-1] + 1, row[j - 1] + (a != b)))
        row = fresh
    return row[-1]


def test_levenshtein() -> None:
    rng = random.Random(3)
    for _ in range(1000):
        first, second = ("".join(rng.choices("abcd", k=rng.randint(0, 12))) for _ in range(2))
        assert levenshtein(first, second) == slow_levenshtein(first, second)
    long = "".join(rng.choices("abcdef", k=300))
    assert levenshtein(long, long[7:250] + "xyz") == slow_levenshtein(long, long[7:250] + "xyz")
    assert levenshtein(["a", "b", "c"], ["a", "x"]) == 2


def test_exact_and_loose_match() -> None:
    assert exact_match(" Yes\n", ["yes"]) == 1
    assert exact_match("Yes.", ["yes"]) == 0
    assert loose_match("New   York.", ["new york"]) == 1
    assert loose_match("New York..", ["new york"]) == 0
    assert loose_match("3.5", ["3.5."]) == 1


def test_relaxed_accuracy_strips_the_prediction() -> None:
    assert relaxed_accuracy(" yes", ["yes"]) == 1


def test_total_weighs_by_length() -> None:
    """One error in 100 characters and 1 in 1 is 2/101, not the mean of the rates."""
    assert total([Tally(1, 100), Tally(1, 1)]).value == pytest.approx(2 / 101)
    assert METRICS["cer"].tally("abc", [""]).value == 3  # jiwer's rule for an empty reference
    assert METRICS["cer"].tally("abc", ["xyz", "abd"]) == Tally(1, 3)
