"""Every metric against the vectors of the scorer that it follows, and what each does at its edges."""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from rapidfuzz.distance import Levenshtein

from vlm.eval import metrics as m
from vlm.eval.metrics import METRICS
from vlm.eval.metrics.reading import FORMULAS
from vlm.eval.metrics.scoring import Answered, Tally, total
from vlm.eval.metrics.trees import Node, tree_distance
from vlm.eval.metrics.vqa import VIZWIZ_CONTRACTIONS, VQA_CONTRACTIONS

VECTORS = [json.loads(line) for line in (Path(__file__).parent / "vectors.jsonl").read_text("utf8").splitlines()]
Vector = dict[str, Any]


def alone(function: Callable[..., Any]) -> Callable[[Vector], Any]:
    """For metrics of one answer and its references."""
    return lambda vector: function(vector.get("prediction", ""), vector["references"])


def anls_corpus(vector: Vector) -> float:
    pairs = zip(vector["prediction"], vector["references"], strict=True)
    scores = METRICS["anls"].score([Answered(prediction, references) for prediction, references in pairs])
    return METRICS["anls"].values(scores)["score"]


def ocrbench(vector: Vector) -> float:
    formula = "HME100k" in vector.get("why", "")
    return m.ocrbench(vector.get("prediction", ""), vector["references"], formula=formula)


def mme_score(vector: Vector) -> float:
    return m.mme_score([flag == "1" for flag in image.partition(":")[2].split(",")] for image in vector["prediction"])


def mcq_parse(vector: Vector) -> str:
    """MMMU's own parser; ours must find the same letter wherever that one does."""
    official = m.mcq_parse_mmmu(vector.get("prediction", ""), vector["references"])
    if official is not None:
        assert m.mcq_parse(vector["prediction"], vector["references"]) == official
    return official or "<random>"


def one_document(function: Callable[..., float]) -> Callable[[Vector], float]:
    return lambda vector: function([vector["prediction"]], vector["references"])


SCORERS: dict[str, Callable[[Vector], Any]] = {
    "vqa_accuracy": alone(m.vqa_accuracy),
    "vqa_accuracy_few_refs": alone(m.vqa_accuracy),
    "vqa_accuracy_no_answer_id": alone(m.vqa_accuracy),
    "textvqa_accuracy": alone(m.textvqa_accuracy),
    "vizwiz_accuracy": alone(m.vizwiz_accuracy),
    "anls": alone(m.anls),
    "anls_corpus": anls_corpus,
    "relaxed_accuracy": alone(m.relaxed_accuracy),
    "ocrbench": ocrbench,
    "ocrbench_v2_vqa": alone(m.ocrbench_v2_vqa),
    "ocrbench_v2_counting": alone(m.ocrbench_v2_counting),
    "exact_match_lower": alone(m.exact_match),
    "pope": alone(m.pope),
    "mme_parse": lambda vector: m.mme_parse(vector.get("prediction", "")),
    "mme_score": mme_score,
    "mcq_parse": mcq_parse,
    "scienceqa": alone(m.scienceqa),
    "mmmu_open": alone(m.mmmu_open),
    "rec_iou": alone(m.rec_iou),
    "wer": alone(m.wer),
    "cer": alone(m.cer),
    "str_word_accuracy": alone(m.word_accuracy),
    "str_one_minus_ned": alone(m.one_minus_ned),
    "str_char_recall": lambda vector: m.char_recall(vector["prediction"], vector["references"][0]),
    "cider": alone(m.cider),
    "kie_donut_f1": one_document(m.kie_f1),
    "kie_donut_nted_acc": lambda vector: m.nted_accuracy(vector["prediction"], vector["references"][0]),
    "kie_entity_f1": lambda vector: m.entity_f1([vector["prediction"]], [vector["references"]]),
}


def assert_close(value: Any, expected: Any, within: float) -> None:
    """The vectors are written with six decimals."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for key, number in expected.items():
            assert_close(value[key], number, within)
    elif isinstance(expected, str):
        assert value == expected
    else:
        assert abs(round(value, 6) - expected) <= within


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_vector(vector: Vector) -> None:
    expected = vector.get("kit_should_return", vector.get("expected"))
    value = SCORERS[vector["metric"]](vector)
    assert_close(value, expected, 1e-6 if vector["metric"] == "cider" else 1e-9)


def pooled(name: str, given: Sequence[Answered]) -> dict[str, float]:
    metric = METRICS[name]
    return metric.values(metric.score(given), [answered.category for answered in given])


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
        assert m.vqa_accuracy("red", references) == pytest.approx(slow_vqa("red", references), abs=1e-12)


def test_vqa_accuracy_gate_of_2021() -> None:
    assert m.vqa_accuracy("Yes.", ["yes"] * 10) == 1
    assert m.vqa_accuracy("Yes.", ["yes"] * 10, strict_official=True) == 0
    assert m.vqa_accuracy("Yes.", ["yes"] * 9 + ["no"], strict_official=True) == 1


def test_contractions() -> None:
    """The official table has 120 entries: 4 with capitals never match, 2 change nothing."""
    assert len(VQA_CONTRACTIONS) == 114
    assert VQA_CONTRACTIONS["couldnt've"] == VQA_CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert VQA_CONTRACTIONS["somebody'd"] == "somebodyd"
    assert VIZWIZ_CONTRACTIONS["dont"] == "don`t"
    assert VIZWIZ_CONTRACTIONS["couldnt"] == "couldn't"
    assert VIZWIZ_CONTRACTIONS["hadn'tve"] == "hadn`t`ve"
    assert "hadnt've" not in VIZWIZ_CONTRACTIONS


def test_vizwiz_normalises_the_prediction_alone() -> None:
    assert m.vizwiz_accuracy("The two!", ["2"] * 10) == 1
    assert m.vizwiz_accuracy("2", ["the 2"] * 10) == 0


def test_exact_loose_and_gqa() -> None:
    assert m.exact_match(" Yes\n", ["yes"]) == 1
    assert m.exact_match("Yes.", ["yes"]) == 0
    assert m.loose_match("New   York.", ["new york"]) == 1
    assert m.loose_match("New York..", ["new york"]) == 0
    assert m.loose_match("3.5", ["3.5."]) == 1
    assert m.gqa(" Yes..", ["yes"]) == 1
    assert m.gqa("yes, it is", ["yes"]) == 0


def test_relaxed_accuracy_strips_only_in_the_table() -> None:
    assert m.relaxed_accuracy(" yes", ["yes"]) == 0
    assert pooled("relaxed_accuracy", [Answered(" yes", ["yes"])]) == {"score": 1}


def test_errors_are_weighed_by_length() -> None:
    """One error in 100 characters and 1 in 1 is 2/101, not the mean of the rates."""
    assert total([Tally(1, 100), Tally(1, 1)]).value == pytest.approx(2 / 101)
    assert pooled("cer", [Answered("a" * 99 + "b", ["a" * 100]), Answered("x", ["y"])])["score"] == 2 / 101
    assert m.cer(["abc"], [""]) == 3  # jiwer's rule for an empty reference
    assert METRICS["cer"].score([Answered("abc", ["xyz", "abd"])])[0].tallies["score"] == Tally(1, 3)
    with pytest.raises(ValueError, match="2"):
        m.cer(["a"], ["b", "c"])


def test_error_rates_of_a_set_are_jiwers() -> None:
    rng = random.Random(4)
    texts = [["".join(rng.choices("ab \n", k=rng.randint(0, 9))) for _ in range(2)] for _ in range(50)]
    predictions, references = zip(*texts, strict=True)
    given = [Answered(prediction, [reference]) for prediction, reference in texts]
    assert pooled("cer", given)["score"] == m.cer(predictions, references)
    assert pooled("wer", given)["score"] == m.wer(predictions, references)


def test_ocrbench_reads_formulas_by_category() -> None:
    """Out of 1000; spaces matter but in formulas, capitals only there."""
    rule = METRICS["ocrbench"]
    for category, rights in (("Doc-oriented VQA", [0, 1]), ("HME100k", [1, 0]), (FORMULAS[1], [1, 0])):
        scores = rule.score([Answered("x _ 1", ["x_1"], category=category), Answered("abc", ["B"], category=category)])
        assert [score.goodness for score in scores] == rights
    assert rule.figures[0].scale == 1000
    assert METRICS["contains"].score([Answered("x _ 1", ["x_1"], category="HME100k")])[0].goodness == 0


def test_ocrbench_v2_options() -> None:
    assert m.ocrbench_v2_vqa("RED", ["red"]) == 1
    assert m.ocrbench_v2_vqa("RED", ["red"], case_sensitive=True) == 0
    assert m.ocrbench_v2_vqa("上 海 市", ["上海"], chinese=True) == 1
    assert m.ocrbench_v2_vqa("one two three four five", ["one two three four fivX"]) == pytest.approx(1 - 1 / 23)
    assert m.ocrbench_v2_counting("10 or 11", ["11"]) == pytest.approx(1 - 1 / 11)
    assert m.ocrbench_v2_counting("10 or 11", ["11"], exact=True) == 1
    assert [m.ocrbench_v2_choice(text, ["B"]) for text in ("B", "(B).\n", "b", "B. red", "")] == [1, 1, 0, 0, 0]
    assert pooled("ocrbench_v2_vqa_case", [Answered("RED", ["red"])]) == {"score": 0}
    assert pooled("ocrbench_v2_counting_exact", [Answered("10 or 11", ["11"])]) == {"score": 1}
    assert m.ocrbench_v2_counting("0", ["0"]) == m.ocrbench_v2_counting("3", ["three"]) == 0


OPTIONS = ["red apple", "green pear", "blue plum", "yellow lemon"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        *((answer, "B") for answer in ("B. A pear", "**B**", "B)", "b.", "Green pear.", "a green pear")),
        *((answer, None) for answer in ("BANANA", "", "E", "red apple, green pear", "I can't say")),
    ],
)
def test_our_parser_of_choices(answer: str, letter: str | None) -> None:
    """Where MMMU's parser would guess, or would read an article for a letter."""
    assert m.mcq_parse(answer, OPTIONS) == letter


def test_what_is_not_parsed_is_wrong_and_told() -> None:
    scores = METRICS["multiple_choice"].score([Answered(text, ["A"], OPTIONS) for text in ("A", "hm", None)])
    assert [(score.goodness, score.read_as) for score in scores] == [(1, "A"), (0, None), (0, "")]
    assert METRICS["mmmu_official"].score([Answered("hm", ["A"], OPTIONS)])[0].read_as is None


def test_scienceqa_knows_how_many_options_there_are() -> None:
    assert m.scienceqa("C", ["C"], ["x", "y"]) == 0
    assert m.scienceqa("C. x", ["C"], ["x", "y", "z"]) == 1
    assert m.scienceqa("The answer is B", ["B"]) == 0


def test_mmmu_takes_options_or_the_open_rule() -> None:
    given = [Answered("(B)", ["B"], OPTIONS), Answered("so x = 3.141", ["3.14"]), Answered("four", ["4"])]
    assert [score.goodness for score in METRICS["mmmu"].score(given)] == [1, 1, 0]


def test_a_question_is_right_in_all_its_rotations() -> None:
    answers = [("A", "A"), ("B", "B"), ("A", "A"), ("A", "B"), ("C", "C")]
    groups = ["one", "one", "two", "two", ""]
    given = [Answered(said, [right], OPTIONS, group) for (said, right), group in zip(answers, groups, strict=True)]
    assert pooled("circular_choice", given) == pytest.approx({"score": 2 / 3, "single": 4 / 5})


def test_pope_by_category_and_pooled() -> None:
    """Two splits with F1 of 1 and of 0; over all questions it is 2/3."""
    rows = [("yes", "yes", "random"), ("no", "no", "random"), ("Yes!", "no", "popular")]
    given = [Answered(said, [right], category=split) for said, right, split in rows]
    assert pooled("pope", given)["f1"] == 0.5
    assert pooled("pope_pooled", given)["f1"] == pytest.approx(2 / 3)
    assert pooled("pope_pooled", given)["yes_ratio"] == pytest.approx(2 / 3)


def test_pope_tells_what_it_took_for_a_yes() -> None:
    texts = ["Yes, a dog.", "no\n", "There is not.", "NO", "Nothing there", "", "Yes!"]
    scores = METRICS["pope"].score([Answered(text, ["yes"]) for text in texts])
    assert [score.read_as for score in scores] == ["yes", "no", "no", None, None, None, "yes"]
    assert [score.goodness for score in scores] == [1, 0, 0, 1, 1, 1, 1]


def test_pope_counts_failures_as_misses() -> None:
    """Of a yes a false negative, of a no a false positive; neither is a yes."""
    given = [Answered("yes", ["yes"]), Answered(None, ["yes"]), Answered(None, ["no"])]
    expected = {"accuracy": 1 / 3, "recall": 1 / 2, "precision": 1 / 2, "f1": 1 / 2, "yes_ratio": 1 / 3}
    assert pooled("pope", given) == pytest.approx(expected)


def test_mme_adds_up_categories() -> None:
    """Perception 150 + 200 of two categories, cognition 50 of one; an image's name may be in several."""
    rows = [("OCR", "1", "Yes", "Yes"), ("OCR", "1", "No.", "No"), ("OCR", "2", "no", "Yes"), ("OCR", "2", "no", "No")]
    rows += [("count", "1", "yes", "Yes"), ("count", "1", "no", "No")]
    rows += [("code_reasoning", "1", "hm", "Yes"), ("code_reasoning", "1", "No", "No")]
    given = [Answered(said, [right], group=image, category=kind) for kind, image, said, right in rows]
    assert pooled("mme", given) == {"perception": 325, "cognition": 50, "total": 375}
    assert METRICS["mme"].score(given)[6].read_as is None


def test_boxes() -> None:
    assert m.iou([0, 0, 0.5, 1], [0.25, 0, 0.75, 1]) == pytest.approx(1 / 3)
    assert m.iou([0, 0, 0, 0], [0, 0, 0, 0]) == 0
    for text in (
        "[0.1, 0.1, 0.5, 0.9][0, 1]",
        "[" * 900,
        "-" * 900 + "1",
        "[0.5, 0.1, 0.1, 0.9]",
        "[nan, 0, 1, 1]",
        "[]",
    ):
        assert m.parse_box(text) is None
    given = [
        Answered(text, ["[0.1, 0.1, 0.5, 0.9]"]) for text in ("[0.1, 0.1, 0.5, 0.8]", "It is (0.1, 0.1, 0.5, 0.9).")
    ]
    assert [(score.goodness, score.read_as) for score in METRICS["rec"].score(given)] == [(1, ""), (0, None)]
    assert pooled("rec_anywhere", given) == pytest.approx({"score": 1, "iou": (0.875 + 1) / 2})


def test_a_true_box_may_end_a_hair_outside_the_image() -> None:
    given = [Answered("[0.5, 0, 1, 1]", ["[0.5, -1e-09, 1.0000001, 1.0]"]), Answered("[0, 0, 1, 1]", ["nothing"])]
    assert [score.goodness for score in METRICS["rec"].score(given)] == [1, 0]


def test_fields_are_read_from_json_in_text() -> None:
    truth = '{"total": "9.50", "date": "May 1"}'
    for text in (truth, f"```json\n{truth}\n```", f"Here it is: {truth}. Done."):
        assert METRICS["kie_f1"].score([Answered(text, [truth])])[0].verdict == "right"
    unread = METRICS["kie_f1"].score([Answered("9.50", [truth]), Answered(None, [truth])])
    assert [(one.tallies["score"], one.read_as) for one in unread] == [(Tally(0, 3), None), (Tally(0, 2), "")]
    deep = "[" * 5000 + "]" * 5000
    assert METRICS["nted"].score([Answered(deep, [truth])])[0].read_as is None


def test_kie_f1_of_a_set_weighs_documents_by_their_fields() -> None:
    assert m.kie_f1([{"a": "1"}, {}], [{"a": "1"}, {"a": "1", "b": "2", "c": "3"}]) == 2 / 5
    assert m.kie_f1([{}], [{}]) == 1
    assert m.nted_accuracy({}, {}) == 0


def test_entities() -> None:
    assert m.entity_f1([["B-Q", "I-A", "O"]], [["B-Q", "I-Q", "O"]]) == 0
    assert m.entity_f1([["B-Q"], ["I-Q"]], [["B-Q"], ["B-Q"]]) == 1
    assert m.entity_f1([[]], [["O"]]) == 0


@cache
def slow_tree_distance(ours: tuple[Node, ...], theirs: tuple[Node, ...]) -> int:
    """The recursion of the definition: the last root is removed, inserted, or put for the other."""
    if not ours and not theirs:
        return 0
    found = []
    if ours:
        found.append(slow_tree_distance(ours[:-1] + ours[-1].children, theirs) + len(ours[-1].label))
    if theirs:
        found.append(slow_tree_distance(ours, theirs[:-1] + theirs[-1].children) + len(theirs[-1].label))
    if ours and theirs:
        one, other = ours[-1], theirs[-1]
        below = slow_tree_distance(one.children, other.children)
        found.append(slow_tree_distance(ours[:-1], theirs[:-1]) + below + Levenshtein.distance(one.label, other.label))
    return min(found)


def random_tree(rng: random.Random, depth: int = 0) -> Node:
    children = [random_tree(rng, depth + 1) for _ in range(rng.randint(0, 2 if depth < 2 else 0))]
    return Node(rng.choice(["a", "b", "ab", "bbb"]), tuple(children))


def test_tree_distance() -> None:
    rng = random.Random(6)
    for _ in range(150):
        one, other = random_tree(rng), random_tree(rng)
        if rng.random() < 0.5:  # equal subtrees at both ends
            one, other = Node("r", (one, other, one)), Node("r", (one, one))
        fast = tree_distance(one, other, alone=len, change=Levenshtein.distance)
        assert fast == slow_tree_distance((one,), (other,))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B. A red car", "B"),
        ("b", "B"),
        ("The answer is (C).", "C"),
        ("**D**", "D"),
        ("E", None),
        ("I cannot tell what stands in this picture at all", None),
        ("", None),
    ],
)
def test_a_letter_is_read_without_the_options_texts(answer: str, letter: str | None) -> None:
    (score,) = METRICS["option_letter"].score([Answered(answer, ["B"])])
    assert (score.read_as, score.goodness) == (letter, float(letter == "B"))


FAULTS: dict[str, tuple[str, list[str]]] = {
    "multiple_choice": ("B", ["E", "green pear", "b", ""]),
    "option_letter": ("D", ["E", "a red car", "d"]),
    "mmmu": ("A", ["F"]),
    "scienceqa": ("D", ["5"]),
    "pope": ("Yes", ["maybe", "1"]),
    "mme": ("no.", ["nope"]),
    "rec": ("[0.5, -1e-09, 1.0000001, 1.0]", ["a dog", "[0.5, 0.1, 0.5, 0.2]", "[10, 20, 300, 400]", "[1, 2]"]),
    "kie_f1": ('{"total": "9"}', ["9", "{'total': 9}"]),
    "ocrbench_v2_counting": ("12", ["three", "0", "-1"]),
    "anls": ("anything", []),
}


@pytest.mark.parametrize("name", FAULTS)
def test_references_that_no_answer_could_meet_are_told(name: str) -> None:
    fine, wrong = FAULTS[name]
    assert METRICS[name].fault([fine], OPTIONS) is None
    for text in wrong:
        assert f"`{text}`" in str(METRICS[name].fault([fine, text], OPTIONS))


def test_a_letter_needs_choices() -> None:
    assert METRICS["multiple_choice"].fault(["B"], []) == "there are no choices"
    assert METRICS["mmmu"].fault(["3.5"], []) is None


def test_the_list_of_metrics() -> None:
    assert len(VECTORS) == 131
    assert set(m.__all__) <= set(dir(m))
    assert m.descriptions().keys() == METRICS.keys()
    assert all(m.descriptions().values())


@pytest.mark.parametrize("function", [m.vqa_accuracy, m.anls, m.cer, m.exact_match, m.ocrbench, m.scienceqa])
def test_one_text_in_the_place_of_the_references_is_refused(function: Callable[..., float]) -> None:
    with pytest.raises(TypeError, match=f"{function.__name__}: references are a list of texts, not the text 'yes'"):
        function("yes", "yes")
    with pytest.raises(TypeError, match="not the text"):
        function("yes", references="yes")


@pytest.mark.parametrize("name", ["contains", "ocrbench", "ocrbench_v2_vqa", "ocrbench_v2_counting_exact"])
def test_an_empty_reference_that_stands_in_every_answer_is_a_fault(name: str) -> None:
    (won,) = METRICS[name].score([Answered("anything", ["right", " "])])
    assert won.goodness == 1  # what the scorers do, and why such a question is not asked
    assert METRICS[name].fault(["right", " "], ()) == "one of the answers is empty, and stands in every text"
    assert METRICS[name].fault(["right"], ()) is None
