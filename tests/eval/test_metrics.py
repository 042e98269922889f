"""Every metric against the vectors of the scorer that it follows, and what each does at its edges."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm.eval import metrics as m
from vlm.eval.metrics import METRICS
from vlm.eval.scoring import Answered, Score, Tally, total

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


def test_every_visible_vector_is_here() -> None:
    assert len(VECTORS) == 131
