"""The runner: what is written, what is counted, and that nothing fails in silence."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlm.errors import ConfigError
from vlm.eval.metrics import Tally
from vlm.eval.results import Row, interval, table
from vlm.eval.run import run
from vlm.eval.runner import evaluate
from vlm.eval.task import Task, load_task
from vlm.sample import Sample

REPLIES = {"one": "Blue.", "two": "", "three": "16 pixels", "four": "maroon"}


def reply(sample: Sample) -> str:
    return REPLIES[sample.id]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def row(index: int, points: float, *, weight: float = 1.0, image: str = "") -> Row:
    return Row("t", index, str(index), "", "q", "a", ("a",), Tally(points, weight), "right", image)


def test_every_row_is_written_scored_and_counted(stub: Any, mine: str, tmp_path: Path) -> None:
    result = evaluate(stub(reply, limit=6), load_task("mine", data=mine), out=tmp_path, batch_size=2)
    assert result.score == pytest.approx(2 / 6)  # over all, errors included
    assert (result.n, result.errors, result.empty, result.truncated) == (6, 2, 1, 1)
    written = lines(tmp_path / "mine" / "answers.jsonl")
    assert [line["verdict"] for line in written] == ["right", "wrong", "wrong", "right", "error", "error"]
    assert [line["id"] for line in written] == ["one", "two", "three", "four", "five", "#5"]
    assert written[2]["answer"] == "16 pix"
    assert written[2]["truncated"] is True
    assert written[0]["references"] == ["navy", "blue"]
    assert written[1]["error"] is None
    assert "missing.png: no such file" in written[4]["error"]
    assert "a row has one of" in written[5]["error"]
    assert {name: (part.score, part.n, part.errors) for name, part in result.categories.items()} == {
        "": (0.0, 1, 1),
        "colour": (pytest.approx(2 / 3), 3, 1),
        "size": (0.0, 2, 0),
    }


def test_the_model_sees_the_prompt_and_not_the_answer(stub: Any, mine: str, tmp_path: Path) -> None:
    model = stub(reply)
    task = load_task("mine", data=mine).model_copy(update={"prompt": "Q: {question} A:"})
    evaluate(model, task, out=tmp_path)
    assert [sample.turns[-1].text for sample in model.asked][:2] == ["Q: Colour? A:", "Q: Wide? A:"]
    assert all(sample.turns[-1].role == "user" for sample in model.asked)
    assert len(model.asked) == 5  # the row that is no sample was not asked


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(stub: Any, mine: str, tmp_path: Path, batch_size: int) -> None:
    task = load_task("mine", data=mine)
    one = evaluate(stub(reply), task, out=tmp_path / "a", batch_size=3)
    other = evaluate(stub(reply), task, out=tmp_path / "b", batch_size=batch_size)
    assert one == other
    assert one.rows == other.rows


def test_an_error_is_the_worst_error_rate(stub: Any, mine: str, tmp_path: Path) -> None:
    """Counted as 0, two failures would be perfect lines."""
    task = load_task("mine", data=mine).model_copy(update={"metric": "cer"})
    result = evaluate(stub(lambda sample: sample.answers[0]), task, out=tmp_path)
    # navy 24 16 maroon are right; `red` is lost with its 3 characters, the row without a sample with 1.
    assert result.score == pytest.approx(4 / (4 + 2 + 2 + 6 + 3 + 1))
    assert result.errors == 2


def test_a_sample_without_answers_is_an_error(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"question": "Why?"}, {"question": "Why?", "answer": "so"}]))
    result = evaluate(stub(lambda sample: "so"), load_task("mine", data=str(data)), out=tmp_path)
    assert (result.score, result.errors) == (0.5, 1)
    assert "no answer to compare with" in str(result.rows[0].error)


def test_half_a_surrogate_pair_stops_nothing(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text('[{"question": "\\ud800?", "answer": "\\ud800", "category": "\\udfff"}]')
    run(stub(lambda sample: sample.answers[0]), ["mine"], data=str(data), out=tmp_path)
    assert lines(tmp_path / "mine" / "answers.jsonl")[0]["answer"] == "\ud800"
    assert "ud800" in (tmp_path / "report.html").read_text("utf8")


def test_answers_are_kept_when_the_model_fails(stub: Any, mine: str, tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        evaluate(
            stub(lambda sample: {"one": "blue", "two": "24"}[sample.id]), load_task("mine", data=mine), out=tmp_path
        )
    assert len(lines(tmp_path / "mine" / "answers.jsonl")) == 2


class Miscounting:
    def __init__(self, stub: Any, change: int) -> None:
        self.stub, self.change = stub, change

    def answer(self, samples: Any, **options: Any) -> Iterator[Any]:
        answers = list(self.stub(lambda sample: "x").answer(samples, **options))
        return iter([*answers, *answers][: len(answers) + self.change])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_answers_is_refused(stub: Any, mine: str, tmp_path: Path, change: int) -> None:
    with pytest.raises(RuntimeError, match="mine: the model gave"):
        evaluate(Miscounting(stub, change), load_task("mine", data=mine), out=tmp_path)


def test_interval_draws_images() -> None:
    rows = [row(index, index % 2, image=f"{index}.png") for index in range(200)]
    low, high = interval(rows) or (0, 0)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.15)
    assert interval(rows) == (low, high)  # seeded
    by_two = [row(index, index // 2 % 2, image=f"{index // 2}.png") for index in range(200)]
    low_two, high_two = interval(by_two) or (0, 0)
    assert (high_two - low_two) / (high - low) == pytest.approx(2**0.5, rel=0.15)  # half as many independent images
    assert interval([row(0, 1, image="a"), row(1, 0, image="a")]) is None
    assert interval([row(0, 1), row(1, 1)]) is None
    assert interval([row(0, 1), row(1, 0)]) == (0, 1)


def text_of(results: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table(results))
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_run_writes_results_and_report(stub: Any, mine: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nversion: 3\nsource: {name: json, path: $DATA}\nmetric: cer\n")
    results = run(stub(reply), ["mine", str(own)], data=mine, out=tmp_path / "out")
    stored = json.loads((tmp_path / "out" / "results.json").read_text("utf8"))
    assert stored["results"] == json.loads(json.dumps([result.to_dict() for result in results]))
    assert [item["task"] for item in stored["results"]] == ["mine", "own"]
    assert stored["results"][0]["errors"] == 2
    assert (tmp_path / "out" / "report.html").is_file()
    shown = text_of(results)
    for word in ("mine v1", "own v3", "33.3", "cer ↓", "errors", "  size"):
        assert word in shown


def test_run_refuses_before_it_loads(mine: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "no-model"
    with pytest.raises(ConfigError, match="add --data PATH"):
        run(nowhere, ["mine"])
    with pytest.raises(ConfigError, match="none of the tasks handwriting reads your own file"):
        run(nowhere, ["handwriting"], data=mine)
    with pytest.raises(ConfigError, match="named twice"):
        run(nowhere, ["mine", "mine"], data=mine)
    with pytest.raises(ConfigError, match="at least one"):
        run(nowhere, [])
    with pytest.raises(ConfigError, match="holds no model"):
        run(nowhere, ["mine"], data=mine)


def test_task_folder_cannot_leave_out(tmp_path: Path) -> None:
    for name in ("..", ".", "a/b", ""):
        path = tmp_path / "t.yaml"
        path.write_text(f'name: "{name}"\nversion: 1\nsource: handwriting\nmetric: anls\n')
        with pytest.raises(ConfigError, match="name"):
            load_task(str(path))
    assert isinstance(load_task("mine"), Task)
