"""The runner: what is asked, what is written, what is counted, and that nothing fails or is lost in silence."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vlm.errors import ConfigError
from vlm.eval.run import paths, run
from vlm.eval.task import Task, load_task
from vlm.eval.task_runner import evaluate
from vlm.eval.terminal import table
from vlm.sample import Sample

REPLIES = {"one": "Blue.", "two": "", "three": "16 pixels", "four": "maroon"}


def reply(sample: Sample) -> str:
    return REPLIES[sample.id]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def test_every_row_is_written_scored_and_counted(stub: Any, mine: str, tmp_path: Path) -> None:
    result = evaluate(stub(reply, limit=6), load_task("mine", data=mine), out=tmp_path, batch_size=2)
    assert result.score == pytest.approx(2 / 5)  # over all that can be scored, errors included
    counts = result.counts
    assert (counts.n, counts.missing, counts.errors, counts.empty, counts.truncated) == (5, 0, 1, 1, 1)
    assert counts.faulty == 1
    written = lines(tmp_path / "mine" / "samples.jsonl")
    assert [line["verdict"] for line in written] == ["right", "wrong", "wrong", "right", "error", "faulty"]
    assert [line["id"] for line in written] == ["one", "two", "three", "four", "five", "six"]
    assert written[2]["answer"] == "16 pix"
    assert written[2]["truncated"] is True
    assert written[0]["references"] == ["navy", "blue"]
    assert written[1]["error"] is None
    assert re.search(r"mine\.jsonl, row 5 \(line 5\): .*missing.png: no such file", written[4]["error"])
    assert "a row has one of" in written[5]["error"]
    assert {name: (part.score, part.n, part.errors) for name, part in result.categories.items()} == {
        "colour": (pytest.approx(2 / 3), 3, 1),
        "size": (0.0, 2, 0),
    }


def test_the_model_sees_the_prompt_and_not_the_answer(stub: Any, mine: str, tmp_path: Path) -> None:
    model = stub(reply)
    task = load_task("mine", data=mine).model_copy(update={"prompt": "Q: {question} A:"})
    evaluate(model, task, out=tmp_path)
    assert {sample.id: sample.turns[-1].text for sample in model.asked}["two"] == "Q: Wide? A:"
    assert all(sample.turns[-1].role == "user" for sample in model.asked)
    assert len(model.asked) == 5  # the row that is no sample was not asked


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_changes_nothing(stub: Any, mine: str, tmp_path: Path, batch_size: int) -> None:
    task = load_task("mine", data=mine)
    one = evaluate(stub(reply), task, out=tmp_path / "a", batch_size=3)
    other = evaluate(stub(reply), task, out=tmp_path / "b", batch_size=batch_size)
    assert one == other
    assert one.rows == other.rows


def test_questions_about_one_image_stand_side_by_side(stub: Any, mine: str, tmp_path: Path) -> None:
    model = stub(reply)
    evaluate(model, load_task("mine", data=mine), out=tmp_path, batch_size=1)
    images = [sample.images[0] for sample in model.asked]
    assert images == sorted(images, key=images.index)
    assert len(set(images)) == 3


def test_an_error_is_the_worst_error_rate(stub: Any, mine: str, tmp_path: Path) -> None:
    """Counted as 0, a failure would be a perfect line."""
    task = load_task("mine", data=mine).model_copy(update={"metric": "cer"})
    result = evaluate(stub(lambda sample: sample.answers[0]), task, out=tmp_path)
    # navy 24 16 maroon are right; `red` is lost with its 3 characters.
    assert result.score == pytest.approx(3 / (4 + 2 + 2 + 6 + 3))
    assert result.counts.errors == 1


def test_a_faulty_annotation_is_counted_and_not_scored(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    rows = [
        {"id": 1, "question": "Why?"},
        {"id": 2, "question": "Why?", "answers": [" ", ""]},
        {"id": 3, "question": "Why?", "answer": "so"},
        {"id": 3, "question": "How?", "answer": "no"},
    ]
    data.write_text(json.dumps(rows))
    result = evaluate(stub(lambda sample: "so"), load_task("mine", data=str(data)), out=tmp_path)
    assert (result.score, result.counts.n, result.counts.faulty, result.counts.errors) == (1.0, 1, 3, 0)
    faults = [row.question.fault for row in result.rows]
    assert "data.json, row 1 (line 1): there is no answer to compare with" in faults[0]
    assert "row 2 (line 1): there is no answer to compare with" in faults[1]
    assert faults[2] is None
    assert "row 4 (line 1): id `3` stands twice, first as sample 3" in faults[3]
    data.write_text(json.dumps(rows[:2]))
    with pytest.raises(ConfigError, match=r"none of 2 samples can be used; the first: .*data.json, row 1"):
        evaluate(stub(lambda sample: "so"), load_task("mine", data=str(data)), out=tmp_path)


def test_what_no_answer_could_meet_is_faulty_by_file_and_line(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"id": 1, "question": "Dog?", "answer": "yes"}\n\n{"id": 2, "question": "Cat?", "answer": "hm"}\n')
    task = load_task("mine", data=str(data)).model_copy(update={"metric": "pope"})
    result = evaluate(stub(lambda sample: "yes"), task, out=tmp_path)
    assert (result.score, result.counts.n, result.counts.faulty) == (1.0, 1, 1)
    assert result.rows[1].error == f"{data}, row 2 (line 3): the answer `hm` is neither yes nor no"


def test_half_a_surrogate_pair_stops_nothing(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text('[{"question": "\\ud800?", "answer": "\\ud800", "category": "\\udfff"}]')
    run(stub(lambda sample: sample.answers[0]), ["mine"], data=str(data), out=tmp_path)
    assert lines(tmp_path / "mine" / "answers.jsonl")[0]["answer"] == "\ud800"
    assert "ud800" in (tmp_path / "report.html").read_text("utf8")


class Miscounting:
    def __init__(self, stub: Any, change: int) -> None:
        self.stub, self.change = stub, change

    def replies(self, samples: Any, **options: Any) -> Iterator[Any]:
        answers = list(self.stub(lambda sample: "x").replies(samples, **options))
        return iter([*answers, *answers][: len(answers) + self.change])


@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_number_of_answers_is_refused(stub: Any, mine: str, tmp_path: Path, change: int) -> None:
    with pytest.raises(
        RuntimeError, match=r"mine: the model (gave no answer to 1 samples|answered sample \d of 5 twice)"
    ):
        evaluate(Miscounting(stub, change), load_task("mine", data=mine), out=tmp_path)


def test_a_limit_draws_the_same_questions_and_smaller_ones_nest(stub: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"id": n, "question": "Why?", "answer": str(n)} for n in range(50)]))
    task = load_task("mine", data=str(data))

    def asked(limit: int) -> set[str]:
        model = stub(lambda sample: sample.id)
        result = evaluate(model, task, out=tmp_path / str(limit), limit=limit)
        assert result.conditions.subset == f"{limit} of 50 questions"
        return {sample.id for sample in model.asked}

    assert asked(5) < asked(20)
    with pytest.raises(ConfigError, match="limit: `0`; allowed: 1 or more"):
        asked(0)
    assert asked(5) != {str(n) for n in range(5)}  # the first ones are often of one kind


HIDDEN = """
name: hidden
version: 1
source: {name: json, path: $DATA}
hidden: true
metric: vqa_accuracy
submission: vqa
"""


def test_hidden_answers_give_a_submission_and_no_score(stub: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "task.yaml").write_text(HIDDEN)
    rows = [{"id": n, "question": f"Why {n}?"} for n in range(3)] + [{"id": 3, "image": "gone.png", "question": "Who?"}]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    arguments: Any = {"data": str(tmp_path / "data.json"), "out": tmp_path / "out"}
    results = run(stub(lambda sample: f"Two {sample.id}!"), [str(tmp_path / "task.yaml")], **arguments)
    written = json.loads((tmp_path / "out/hidden/submission.json").read_text())
    assert written == [{"question_id": n, "answer": f"2 {n}"} for n in range(3)] + [{"question_id": 3, "answer": ""}]
    assert results[0].figures == {}
    assert (results[0].counts.n, results[0].counts.errors) == (4, 1)
    assert "hidden" in text_of(results)
    with pytest.raises(ValueError, match="the answers of this split are hidden"):
        _ = results[0].score
    samples = lines(tmp_path / "out/hidden/samples.jsonl")
    assert [sample["verdict"] for sample in samples] == ["unscored"] * 3 + ["error"]
    run(stub(lambda sample: "x"), [str(tmp_path / "task.yaml")], **{**arguments, "out": tmp_path / "few"}, limit=2)
    assert not (tmp_path / "few/hidden/submission.json").exists()  # a server refuses a part
    assert results[0].submission == f"{tmp_path}/out/hidden/submission.json, 1 answers empty that could not be had"
    assert "submission file" in text_of(results)
    (tmp_path / "data.json").write_text(json.dumps([*rows, {"id": 2, "question": "Again?"}]))
    (again,) = run(stub(lambda sample: "Two"), [str(tmp_path / "task.yaml")], **arguments)
    assert "submission.json, without 1 questions whose annotation cannot be used" in again.submission
    (few,) = run(stub(lambda sample: "x"), [str(tmp_path / "task.yaml")], **arguments, limit=2)
    assert few.submission == "none, for a server refuses a part of the questions"


def test_ids_that_no_server_has(stub: Any, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "question": "Why?", "answers": ["so", "so"]}]))
    for hidden, text in ((True, HIDDEN), (False, HIDDEN.replace("hidden: true", "hidden: false"))):
        (tmp_path / "task.yaml").write_text(text)
        task = load_task(str(tmp_path / "task.yaml"), data=str(tmp_path / "data.json"))
        model = stub(lambda sample: "so")
        if hidden:
            with pytest.raises(ConfigError, match="`a` is no number"):
                evaluate(model, task, out=tmp_path)
            assert not model.asked
        else:
            assert evaluate(model, task, out=tmp_path).counts.errors == 0
            assert not (tmp_path / "hidden/submission.json").exists()


def test_missing_images_are_said_before_the_model_is_asked(stub: Any, mine: str, tmp_path: Path, capsys: Any) -> None:
    run(stub(lambda sample: "x"), ["mine"], data=mine, out=tmp_path / "out")
    assert "mine: 1 image files are missing, the first is" in capsys.readouterr().err


def test_rows_of_ones_own_with_choices(stub: Any, tmp_path: Path) -> None:
    rows = [{"id": n, "question": "Which?", "choices": ["red", "blue"], "answer": "AB"[n]} for n in range(2)]
    (tmp_path / "data.json").write_text(json.dumps([*rows, {"id": 2, "question": "Why?", "answer": "so"}]))
    arguments: Any = {"data": str(tmp_path / "data.json"), "out": tmp_path / "out", "metric": "multiple_choice"}
    model = stub(lambda sample: "B.")
    (result,) = run(model, ["mine:choices"], **arguments)
    end = "\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    assert model.asked[0].turns[-1].text == f"Which?{end}"
    assert (result.score, result.counts.n, result.counts.faulty) == (0.5, 2, 1)  # the last row has no choices
    (bare,) = run(stub(lambda sample: "so"), ["mine"], **{**arguments, "metric": "exact_match"})
    assert (bare.score, bare.counts.n, bare.counts.faulty) == (1.0, 1, 2)
    assert "the prompt has no {options}, but the sample has 2 choices" in bare.rows[0].error


def test_data_by_task() -> None:
    assert paths([]) is None
    assert paths(["x.json"]) == "x.json"
    assert paths(["mine=x.json", "own=y=z.json"]) == {"mine": "x.json", "own": "y=z.json"}
    with pytest.raises(ConfigError, match="each is TASK=PATH"):
        paths(["a", "b"])


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
    assert stored["results"][0]["counts"]["errors"] == 1
    conditions = stored["results"][0]["conditions"]
    assert conditions["model"] == "StubModel"
    assert conditions["decoding"] == {"max_new_tokens": 64, "decoding": "greedy"}
    assert (tmp_path / "out" / "report.html").is_file()
    shown = text_of(results)
    for word in (
        "mine v1",
        "own v3",
        "40.0",
        "cer ↓",
        "errors",
        "  size",
        "faulty",
        "prompt default",
        "model StubModel",
    ):
        assert word in shown


def test_run_refuses_before_it_loads(mine: str, tmp_path: Path) -> None:
    nowhere = tmp_path / "no-model"
    with pytest.raises(ConfigError, match="add --data PATH"):
        run(nowhere, ["mine"])
    with pytest.raises(ConfigError, match="none of the tasks handwriting reads your own file"):
        run(nowhere, ["handwriting"], data=mine)
    with pytest.raises(ConfigError, match="unknown task in --data `mein`; did you mean `mine`"):
        run(nowhere, ["mine"], data={"mein": mine})
    with pytest.raises(ConfigError, match="task `handwriting` reads no files"):
        run(nowhere, ["mine", "handwriting"], data={"mine": mine, "handwriting": mine})
    with pytest.raises(ConfigError, match="unknown metric `anlz`; did you mean `anls`"):
        run(nowhere, ["mine"], data=mine, metric="anlz")
    with pytest.raises(ConfigError, match="named twice"):
        run(nowhere, ["mine", "mine"], data=mine)
    with pytest.raises(ConfigError, match="at least one"):
        run(nowhere, [])
    with pytest.raises(ConfigError, match=r"batch_size: `0`; allowed: 1 or more\n  - limit: `0`; allowed: 1 or more"):
        run(nowhere, "mine", data=mine, limit=0, batch_size=0)
    with pytest.raises(ConfigError, match="unknown task `mein`"):
        run(nowhere, "mein", data=mine)
    with pytest.raises(ConfigError, match=r"out: `.*` is no folder that can be written to"):
        run(nowhere, ["mine"], data=mine, out=mine)
    with pytest.raises(ConfigError, match="holds no model"):
        run(nowhere, ["mine"], data=mine)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/answers.jsonl").write_text('{"said": "x"}\n')
    with pytest.raises(ConfigError, match=r"answers\.jsonl, line 1 is no answer as this version"):
        run(nowhere, ["mine"], data=mine, out=tmp_path)


def test_results_of_other_tasks_of_the_same_model_stay(stub: Any, mine: str, tmp_path: Path) -> None:
    def stored() -> dict[str, float]:
        return {
            one["task"]: one["counts"]["n"] for one in json.loads((tmp_path / "results.json").read_text())["results"]
        }

    run(stub(reply), ["mine"], data=mine, out=tmp_path)
    run(stub(lambda sample: "x"), ["words"], out=tmp_path, limit=3)
    assert stored() == {"mine": 5, "words": 3}
    run(stub(lambda sample: "x"), ["words"], out=tmp_path, limit=4)
    assert stored() == {"mine": 5, "words": 4}
    other = type("Other", (), {"replies": stub(lambda sample: "x").replies})
    run(other(), ["words"], out=tmp_path, limit=2)
    assert stored() == {"words": 2}  # another model's are no results of this one
    (tmp_path / "results.json").write_text("{")
    run(stub(lambda sample: "x"), ["words"], out=tmp_path, limit=2)
    assert stored() == {"words": 2}


def test_task_folder_cannot_leave_out(tmp_path: Path) -> None:
    for name in ("..", ".", "a/b", ""):
        path = tmp_path / "t.yaml"
        path.write_text(f'name: "{name}"\nversion: 1\nsource: handwriting\nmetric: anls\n')
        with pytest.raises(ConfigError, match="name"):
            load_task(str(path))
    assert isinstance(load_task("mine"), Task)
