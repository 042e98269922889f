"""Answers made elsewhere: scored as the kit's own, and refused by place where they cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlm.errors import ConfigError
from vlm.eval.predictions import score_predictions
from vlm.eval.results import TaskResult
from vlm.eval.run import score
from vlm.eval.task import Task, load_task
from vlm.eval.task_runner import evaluate

OWN = '''
from vlm.eval.metrics.scoring import Figure, Metric, Score, Tally

def first_letter(answer, references):
    """Whether the first letter is right."""
    return float(any(answer[:1] == reference[:1] for reference in references))

def points(answers):
    return [Score({"points": Tally(len(one.answer))}, 1.0) for one in answers]

METRIC = Metric(points, "letters", (Figure("points", scale=10.0, unit="points"),))
SEVEN = 7
'''


@pytest.fixture
def task(tmp_path: Path) -> Task:
    rows = [{"question_id": n, "question": "Why?", "answer": str(n)} for n in range(6)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return load_task("mine", data=str(tmp_path / "data.json"))


def answers(folder: Path, rows: Any, suffix: str = ".json") -> Path:
    path = folder / f"answers{suffix}"
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)) + "\n"
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(("id", "text"), [("question_id", "answer"), ("questionId", "prediction"), ("id", "caption")])
def test_the_same_score_as_a_model_that_says_so(
    stub: Any, task: Task, tmp_path: Path, suffix: str, id: str, text: str
) -> None:
    said = {"0": "0", "1": "one", "2": "2.", "3": "", "4": "4"}
    path = answers(tmp_path, [{id: int(key), text: value} for key, value in said.items()], suffix)
    found = score_predictions(task, path)
    wanted = evaluate(stub(lambda sample: said.get(sample.id, "x")), task, out=tmp_path / "out")
    assert (found.score, found.interval) == (wanted.score, wanted.interval) == (0.5, wanted.interval)
    assert (found.counts.n, found.counts.missing, found.counts.empty, wanted.counts.missing) == (6, 1, 1, 0)
    assert [row.verdict for row in found.rows] == ["right", "wrong", "right", "wrong", "right", "missing"]


RECORDS = """
name: own
version: 1
source: {name: records, files: $DATA, sample: {id: question_id, question: question, answers: answer}}
metric: exact_match
"""


@pytest.mark.parametrize("form", ["json", "records"])
def test_an_answer_to_a_faulty_question_is_passed_over(tmp_path: Path, form: str) -> None:
    """A results file answers all questions; one annotation that cannot be used must not cost the others' score."""
    rows: list[Any] = [{"question_id": n, "question": "Why?", "answer": str(n)} for n in (0, 1, 2, 2)]
    rows[1]["answer"] = None
    (tmp_path / "data.json").write_text(json.dumps(rows))
    (tmp_path / "own.yaml").write_text(RECORDS)
    task = load_task("mine" if form == "json" else str(tmp_path / "own.yaml"), data=str(tmp_path / "data.json"))
    path = answers(tmp_path, [{"question_id": n, "answer": str(n)} for n in range(3)])
    found = score_predictions(task, path)
    assert (found.score, found.counts.n, found.counts.faulty, found.counts.missing) == (1.0, 2, 2, 0)
    assert [(row.question.id, row.verdict) for row in found.rows] == [
        ("0", "right"), ("1", "faulty"), ("2", "right"), ("2", "faulty"),
    ]  # fmt: skip


def test_it_writes_what_an_evaluation_writes(task: Task, tmp_path: Path) -> None:
    path = answers(tmp_path, [{"question_id": 0, "answer": "0"}])
    result = score(path, "mine", data=task.source.options["path"], out=tmp_path / "out", metric="cer")
    assert result.conditions.metric == "cer"
    assert json.loads((tmp_path / "out/results.json").read_text())["results"][0]["counts"]["missing"] == 5
    assert len((tmp_path / "out/samples.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "out/report.html").is_file()


BAD = [
    (
        [{"question_id": 0, "answer": "0"}, {"question_id": 0, "answer": "1"}],
        r"row 2: `0` is answered twice, first in row 1",
    ),
    ([{"question_id": 9, "answer": "0"}], r"row 1: the task does not ask `9`"),
    ([{"qid": 0, "answer": "0"}], "row 1: has none of question_id, .*; there is qid, answer"),
    ([{"question_id": 0}], "row 1: has none of answer, .*; there is question_id"),
    ([{"question_id": 0, "answer": ["0"]}], r'`answer` is text or a number, not \["0"\]'),
    ([{"question_id": 0, "answer": float("nan")}], "`answer` is text or a number, not NaN"),
    ([{"question_id": 0, "answer": None}], "not null"),
    (["0"], "there is str"),
    ({"0": "0"}, "holds dict; allowed: a list of rows"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_bad_answers_are_named(task: Task, tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        score_predictions(task, answers(tmp_path, rows))


def test_a_damaged_file_is_named(task: Task, tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"question_id": 0, "answer": "0"}\n{"question_id"\n')
    with pytest.raises(ConfigError, match=r"answers\.jsonl, line 2 is not JSON"):
        score_predictions(task, path)
    with pytest.raises(ConfigError, match=r"nowhere\.json` cannot be read"):
        score_predictions(task, tmp_path / "nowhere.json")


def test_mistakes_are_counted_and_the_first_are_listed(task: Task, tmp_path: Path) -> None:
    path = answers(tmp_path, [{"question_id": n, "answer": ""} for n in range(100, 150)])
    with pytest.raises(ConfigError) as caught:
        score_predictions(task, path)
    assert len(caught.value.problems) == 20
    assert "50 answers to no question of `mine`, whose ids are 0, 1, 2" in str(caught.value)


def test_a_failure_is_no_empty_answer(task: Task, tmp_path: Path) -> None:
    rows = [{"id": 0, "answer": "", "error": "no such file"}, {"id": 1, "error": "damaged"}, {"id": 2, "answer": ""}]
    result = score_predictions(task, answers(tmp_path, rows))
    assert (result.counts.errors, result.counts.empty, result.counts.missing) == (2, 1, 3)
    assert result.rows[1].error == "damaged"


def test_a_file_without_answers_is_no_score_of_nought(task: Task, tmp_path: Path) -> None:
    path = answers(tmp_path, [])
    with pytest.raises(ConfigError, match=r"answers\.json` holds no answer"):
        score_predictions(task, path)
    with pytest.raises(ConfigError, match=r"out: `.*` is no folder that can be written to"):
        score(path, "mine", data=task.source.options["path"], out=path)


def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps([{"id": n, "question": "?", "answer": "blue"} for n in range(2)]))
    said = answers(tmp_path, [{"id": 0, "answer": "bright"}, {"id": 1, "answer": "red"}])

    def by(metric: str) -> TaskResult:
        return score(said, "mine", data=str(tmp_path / "data.json"), metric=metric)

    assert by("own_metrics:first_letter").score == 0.5
    assert by("own_metrics:METRIC").score == 4.5
    with pytest.raises(ConfigError, match=r"`own_metrics:SEVEN` is 7; allowed: a .*Metric, or a function"):
        by("own_metrics:SEVEN")
    with pytest.raises(
        ConfigError, match=r"unknown metric `anlz`; did you mean `anls`.*your own as package.module:NAME"
    ):
        by("anlz")
