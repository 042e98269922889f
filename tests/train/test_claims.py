"""Pairs from scored claims: the scores and pairs worked out by hand, and what is left out of a lopsided lot."""

from pathlib import Path
from typing import Any

import pytest

from vlm.data import JsonSource
from vlm.errors import ConfigError
from vlm.files import write_json
from vlm.train.claims import balanced, claim_pairs

GOOD = {"text": "A red bus.", "claims": [0.9, 0.8]}
FAIR = {"text": "A red bus with a driver, at noon.", "claims": [0.9, 0.95, 0.2]}
POOR = {"text": "A green tram.", "claims": [{"score": 0.1}, {"yes": 0.2, "no": 0.7}, {"yes": 0.6, "no": 0.3}]}


def made(*responses: dict[str, Any], **options: Any) -> list[tuple[str, str]]:
    rows = [{"image": "bus.jpg", "question": "What?", "responses": list(responses)}]
    return [(pair["chosen"], pair["rejected"]) for pair in claim_pairs(rows, **options)]


def test_a_response_with_fewer_wrong_claims_is_the_better_one() -> None:
    """Wrong claims: none, one, two. That the fair one says more that is right does not count."""
    texts = [response["text"] for response in (GOOD, FAIR, POOR)]
    wanted = [(texts[0], texts[1]), (texts[0], texts[2]), (texts[1], texts[2])]
    assert sorted(made(POOR, GOOD, FAIR, most=0)) == sorted(wanted)
    assert made(POOR, GOOD, FAIR, most=0, difference=2) == [(texts[0], texts[2])]
    assert made(GOOD, {"text": "A bus.", "claims": [0.7]}) == [], "equal scores make no pair"
    assert made(GOOD, {"text": "A red bus. ", "claims": [0.1]}) == [], "nor do equal texts"
    assert made(GOOD, FAIR, wrong_below=0.1) == []
    assert made(GOOD, {"text": "Yes", "claims": [0.5]}) == [(texts[0], "Yes")], "what is not more likely true is wrong"


def test_no_question_makes_more_pairs_than_asked_for_and_the_draw_is_its_own() -> None:
    many = [{"text": f"Text {n}", "claims": [0.1] * n + [0.9]} for n in range(6)]
    row = {"question": "?", "responses": many}
    drawn = list(claim_pairs([row] * 8, most=2))
    assert len(drawn) == 16
    assert len({(pair["chosen"], pair["rejected"]) for pair in drawn}) > 4, "not the same ones each time"
    assert list(claim_pairs([row] * 8, most=2)) == drawn
    assert list(claim_pairs([row] * 3, most=2)) == drawn[:6], "whatever rows follow"
    assert list(claim_pairs([row] * 8, most=2, seed=1)) != drawn
    assert all(int(pair["chosen"][5:]) < int(pair["rejected"][5:]) for pair in drawn)


def test_the_pairs_are_rows_that_a_source_reads(tmp_path: Path) -> None:
    rows = [{"id": "7", "question": "What?", "category": "bus", "responses": [POOR, GOOD]}]
    write_json(tmp_path / "pairs.json", list(claim_pairs(rows)))
    sample = JsonSource(path=str(tmp_path / "pairs.json"))[0]
    assert (sample.id, sample.category, sample.turns[-1].text, sample.rejected) == (
        *("7", "bus", "A red bus."),
        "A green tram.",
    )


@pytest.mark.parametrize(
    "row",
    [
        {"question": "?"},
        {"responses": [{"text": "x"}]},
        {"responses": [{"text": "x", "claims": ["true"]}]},
        {"responses": [{"text": "x", "claims": [7]}]},
        {"responses": "x"},
    ],
)
def test_rows_of_another_form_are_named(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="row 2: no scored responses"):
        list(claim_pairs([{"question": "?", "responses": [GOOD]}, row]))


def test_balance_leaves_out_the_pairs_in_which_the_short_answer_wins() -> None:
    """Chosen against rejected words: 5-5, 6-4, 2-10 and 3-4. Without the third both are 4.67 and 4.33 long on average,
    without the last two 5.5 and 4.5; with all, 4 and 5.75."""
    lengths = [(5, 5), (6, 4), (2, 10), (3, 4)]
    pairs = [{"chosen": "a " * one, "rejected": "b " * other, "id": n} for n, (one, other) in enumerate(lengths)]
    assert [pair["id"] for pair in balanced(pairs)] == [0, 1, 3]
    assert [pair["id"] for pair in balanced(pairs[:2])] == [0, 1]
    assert balanced([]) == []
