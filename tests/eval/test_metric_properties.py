"""What holds for every metric, whatever the texts."""

import json
import random
from collections.abc import Sequence
from copy import deepcopy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.eval.metrics import METRICS
from vlm.eval.metrics.scoring import Answered, Score

LARGEST = {"cer": float("inf"), "wer": float("inf"), "cider": 10.0, "mme": 800.0}
"""Of a figure; 1 of all others. MME: 200 for each of the categories below."""
CATEGORIES = ["", "OCR", "HME100k", "random"]
few = settings(max_examples=10, derandomize=True, deadline=None, database=None)

boxes = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(str)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab 1", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["nm", "cnt", "a"]), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)
TELLING = (
    "yes|No|not.|B|(C)|A.|b|The answer is B.|**D**|red|Red.|the red dog|two|2|1,000|5%|0|-3.5|5|x = 1e3|inf|nan|$5|a-b"
    "|isnt|don't|ß|İ|é|中国| |\n|,|[0.1, 0.2, 0.5, 0.9]|B-Q I-Q O|B-Q O O|I-|{}|[]|[[|{'a'|\\|<unk>|&lt;|```json"
)
telling = st.sampled_from(TELLING.split("|"))
texts = st.text(max_size=12) | telling | st.lists(telling, max_size=4).map(" ".join) | boxes | documents


@st.composite
def answers(draw: st.DrawFn) -> list[Answered]:
    """A few answers; some failed, some right, several of one group."""
    found = []
    for _ in range(draw(st.integers(1, 5))):
        references = draw(st.lists(texts, min_size=1, max_size=4))
        answer = draw(st.none() | texts | st.sampled_from(references))
        group, category = draw(st.sampled_from(["", "one", "two"])), draw(st.sampled_from(CATEGORIES))
        found.append(Answered(answer, references, draw(st.lists(texts, max_size=5)), group, category))
    return found


def figures(name: str, scores: Sequence[Score], given: Sequence[Answered]) -> dict[str, float]:
    return METRICS[name].values(scores, [answered.category for answered in given])


@pytest.mark.parametrize("name", METRICS)
@few
@given(given=answers())
def test_bounds_and_purity(name: str, given: list[Answered]) -> None:
    """One score an answer, within its bounds, the same each time; nothing that was given is changed."""
    before, metric = deepcopy(given), METRICS[name]
    scores = metric.score(given)
    assert len(scores) == len(given)
    assert given == before
    assert metric.score(before) == scores
    for score in scores:
        assert 0 <= score.goodness <= 1
        assert set(score.tallies) <= {figure.name for figure in metric.figures}
        assert all(tally.points >= 0 and tally.weight >= 0 for tally in score.tallies.values())
    values = figures(name, scores, given)
    assert list(values) == [figure.name for figure in metric.figures]
    assert all(0 <= value <= LARGEST.get(name, 1.0) + 1e-12 for value in values.values())


@pytest.mark.parametrize("name", METRICS)
@few
@given(given=answers(), seed=st.integers(0, 9))
def test_the_order_of_references_and_answers_changes_nothing(name: str, given: list[Answered], seed: int) -> None:
    rng, metric = random.Random(seed), METRICS[name]
    places = rng.sample(range(len(given)), len(given))
    mixed = [
        Answered(one.answer, rng.sample(one.references, len(one.references)), one.choices, one.group, one.category)
        for one in (given[place] for place in places)
    ]
    scores, others = metric.score(given), metric.score(mixed)
    for place, other in zip(places, others, strict=True):
        assert other.goodness == pytest.approx(scores[place].goodness, abs=1e-9)
        assert other.read_as == scores[place].read_as
    assert figures(name, scores, given) == pytest.approx(figures(name, others, mixed), abs=1e-9)


@pytest.mark.parametrize("name", METRICS)
@few
@given(given=answers())
def test_a_failure_is_wrong(name: str, given: list[Answered]) -> None:
    """It is worth nothing by itself, and never raises a figure for which more is better."""
    metric = METRICS[name]
    failed = [Answered(None, one.references, one.choices, one.group, one.category) for one in given]
    scores = metric.score(failed)
    assert {score.verdict for score in scores} == {"wrong"}
    for figure, value in figures(name, scores, failed).items():
        lower = next(one.better for one in metric.figures if one.name == figure) == "lower"
        assert value >= 1 - 1e-12 if lower else value == 0


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("answer", ["red", "", None])
def test_nothing_is_right_without_a_reference(name: str, answer: str | None) -> None:
    score = METRICS[name].score([Answered(answer, [], ["red", "blue"])])[0]
    assert score.verdict == "wrong"


RIGHT = {
    **dict.fromkeys(("multiple_choice", "option_letter", "circular_choice", "scienceqa", "mmmu", "mmmu_official"), "B"),
    **dict.fromkeys(("pope", "pope_pooled", "mme"), "no"),
    **dict.fromkeys(("rec", "rec_anywhere"), "[0.1, 0.2, 0.5, 0.9]"),
    **dict.fromkeys(("kie_f1", "nted"), '{"total": "9.50", "menu": [{"nm": "tea"}, {"nm": "cake"}]}'),
    "entity_f1": "B-Q I-Q O B-A",
    "relaxed_accuracy": "12.5",
    "ocrbench_v2_counting": "12",
    "ocrbench_v2_choice": "B",
}


@pytest.mark.parametrize("name", METRICS)
def test_the_reference_itself_is_right(name: str) -> None:
    truth = RIGHT.get(name, "12 red dogs run home")
    given = [Answered(truth, [truth] * 10, ["cat", "dog"]), Answered("another", ["a cat on a mat"] * 10)]
    assert METRICS[name].score(given)[0].goodness == pytest.approx(1)


def long_texts() -> list[str]:
    """A hundred thousand characters that repeat, that are all kinds, that open and never close."""
    rng = random.Random(0)
    kinds = "".join(rng.choices([chr(code) for code in (*range(32, 127), 10, 233, 8217, 20013)], k=100_000))
    parts = ("7", "dog ", "a,", '{"a":', "(A) ")
    return [kinds, *(part * (100_000 // len(part)) for part in parts)]


@pytest.mark.parametrize("name", METRICS)
def test_very_long_texts(name: str) -> None:
    """They are scored, by way of nothing that is quadratic or deeply nested: this test ends in seconds."""
    for text in long_texts():
        score = METRICS[name].score([Answered(text, ["a red dog", text[1:] + "x"], ["red", "blue"])])[0]
        assert 0 <= score.goodness <= 1
