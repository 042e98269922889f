"""References that a metric can make nothing of: such rows are left out, and a metric that fits none is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.errors import ConfigError
from vlm.eval.task import load_task
from vlm.eval.task_runner import evaluate

FREE = "red"
CASES = {
    "multiple_choice": ["B"],
    "circular_choice": ["B"],
    "scienceqa": ["B"],
    "pope": ["No"],
    "pope_pooled": ["yes"],
    "mme": ["Yes."],
    "rec": ["[0.1, 0.2, 0.3, 0.4]"],
    "rec_anywhere": ["[0.1, 0.2, 0.3, 0.4]"],
    "kie_f1": ['{"total": "1"}'],
    "nted": ['{"total": "1"}'],
    "vqa_accuracy": ["red", "red"],
    "vqa_accuracy_2021": ["red", "red"],
    "textvqa_accuracy": ["red", "red"],
    "vizwiz_accuracy": ["red", "red"],
}


CHOICES = {"multiple_choice", "circular_choice", "scienceqa"}


def scored(stub: Any, folder: Path, metric: str, references: list[list[str]]) -> Any:
    more = {"choices": ["red", "blue"]} if metric in CHOICES else {}
    rows = [{"id": f"q{n}", "question": "What?", "answers": answers, **more} for n, answers in enumerate(references)]
    (folder / "data.json").write_text(json.dumps(rows))
    task = load_task("mine:choices" if more else "mine", data=str(folder / "data.json"))
    return evaluate(stub(lambda sample: FREE), task.model_copy(update={"metric": metric}), out=folder / "out")


@pytest.mark.parametrize(("metric", "right"), CASES.items())
def test_references_of_another_kind(stub: Any, tmp_path: Path, metric: str, right: list[str]) -> None:
    refused = rf"metric `{metric}`: none of 2 samples can be used; the first: .*data\.json, row 1 \(line 1\)"
    with pytest.raises(ConfigError, match=refused):
        scored(stub, tmp_path, metric, [[FREE], [FREE]])
    assert not (tmp_path / "out").exists()  # before anything is asked
    counts = scored(stub, tmp_path, metric, [[FREE], right]).counts
    assert (counts.n, counts.faulty) == (1, 1)


def test_other_metrics_take_any_text(stub: Any, tmp_path: Path) -> None:
    assert scored(stub, tmp_path, "exact_match", [[FREE]]).score == 1.0
