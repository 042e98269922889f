"""A metric that can make nothing of a task's references is refused: its score would look like one."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.errors import ConfigError
from vlm.eval.runner import evaluate
from vlm.eval.task import load_task

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


def scored(stub: Any, folder: Path, metric: str, references: list[list[str]]) -> Any:
    rows = [{"id": f"q{n}", "question": "What?", "answers": answers} for n, answers in enumerate(references)]
    (folder / "data.json").write_text(json.dumps(rows))
    task = load_task("mine", data=str(folder / "data.json")).model_copy(update={"metric": metric})
    return evaluate(stub(lambda sample: FREE), task, out=folder / "out")


@pytest.mark.parametrize(("metric", "right"), CASES.items())
def test_references_of_another_kind(stub: Any, tmp_path: Path, metric: str, right: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"metric `{metric}` needs .*; no reference of task `mine` .*: q0 has `red`"):
        scored(stub, tmp_path, metric, [[FREE], [FREE]])
    assert not (tmp_path / "out").exists()  # before anything is asked
    assert scored(stub, tmp_path, metric, [[FREE], right]).counts.n == 2


def test_other_metrics_take_any_text(stub: Any, tmp_path: Path) -> None:
    assert scored(stub, tmp_path, "exact_match", [[FREE]]).score == 1.0
