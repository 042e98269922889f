"""The log of answers: nothing lost, nothing doubled, nothing taken for something else."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm.errors import ConfigError
from vlm.eval.answer_log import AnswerLog, Reply, key_of, write
from vlm.eval.task import load_task
from vlm.eval.task_runner import evaluate
from vlm.sample import Sample


def reply(key: str, **fields: Any) -> Reply:
    given = {"id": key, "prompt": "p", "image": "i", "model": "m", "settings": {"max_new_tokens": 3}, "answer": key}
    return Reply(key=key, **{**given, **fields})


def written(folder: Path, *replies: Reply, rank: int = 0) -> AnswerLog:
    log = AnswerLog(folder, rank)
    with log.open() as file:
        for one in replies:
            write(file, one)
    return log


def test_what_is_written_is_read(tmp_path: Path) -> None:
    replies = [
        reply("a", answer='line\nend " \u2028 中', truncated=True, tokens=3),
        reply("b", error="broken", answer=""),
    ]
    assert written(tmp_path, *replies).read() == {one.key: one for one in replies}
    assert written(tmp_path, reply("c"), rank=3).read().keys() == {"a", "b", "c"}  # every process's file
    assert (tmp_path / "answers-3.jsonl").is_file()


def test_an_answer_goes_before_an_error(tmp_path: Path) -> None:
    log = written(
        tmp_path, reply("a", error="x"), reply("a"), reply("a", error="y"), reply("b"), reply("b", answer="2")
    )
    assert log.read()["a"].error is None
    assert log.read()["b"].answer == "2"


@pytest.mark.parametrize("cut", [1, 30, 70_000])
def test_half_a_line_is_asked_again(tmp_path: Path, cut: int) -> None:
    """Whatever of the last line had reached the disk, the lines before it stay and the next one is whole."""
    log = written(tmp_path, reply("a"), reply("b", answer="x" * 80_000))
    content = log.path.read_bytes()
    log.path.write_bytes(content[:-cut])
    assert log.read().keys() == {"a"}
    assert written(tmp_path, reply("c")).read().keys() == {"a", "c"}
    assert all(json.loads(line) for line in log.path.read_text("utf8").splitlines())


def test_only_half_a_line(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_bytes(b'{"key": "a')
    assert AnswerLog(tmp_path).read() == {}
    assert written(tmp_path, reply("b")).read().keys() == {"b"}


def test_one_writes_at_a_time(tmp_path: Path) -> None:
    with AnswerLog(tmp_path).open() as file:
        write(file, reply("a"))
        with pytest.raises(ConfigError, match=r"another evaluation is writing .*answers\.jsonl"):
            AnswerLog(tmp_path).open()
        AnswerLog(tmp_path, rank=1).open().close()  # each process of one evaluation has its own
    assert written(tmp_path, reply("b")).read().keys() == {"a", "b"}


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "a"}', "\x00\x00"])
def test_damage_is_named(tmp_path: Path, line: str) -> None:
    log = written(tmp_path, reply("a"))
    with log.path.open("a") as file:
        file.write(line + "\n")
    written(tmp_path, reply("b"))
    with pytest.raises(ConfigError, match=r"answers\.jsonl, line 2 is (damaged|no answer as this version)"):
        log.read()


def test_the_key_depends_on_everything() -> None:
    given: dict[str, Any] = {"turns": [("user", "Why?")], "image": "i", "model": "m", "settings": {"max_new_tokens": 3}}
    known = key_of("t", "1", **given)
    assert known == key_of("t", "1", **given)
    changes = [{"turns": [("user", "Why")]}, {"image": "j"}, {"model": "n"}, {"settings": {"max_new_tokens": 4}}]
    others = [key_of("t", "1", **{**given, **change}) for change in changes]
    assert len({known, *others, key_of("u", "1", **given), key_of("t", "2", **given)}) == 7


def count_lines(path: Path) -> int:
    return len(path.read_text("utf8").splitlines())


def test_nothing_is_asked_twice(stub: Any, mine: str, tmp_path: Path) -> None:
    task = load_task("mine", data=mine)
    model = stub(lambda sample: sample.id)
    first = evaluate(model, task, out=tmp_path, identity="m")
    assert len(model.asked) == 5
    again = evaluate(model, task, out=tmp_path, identity="m", batch_size=1)
    assert [sample.id for sample in model.asked[5:]] == ["five"]  # its image is still missing
    assert again == first
    assert again.rows == first.rows
    for changed in (
        task.model_copy(update={"prompt": "Now: {question}"}),
        task.model_copy(update={"max_new_tokens": 8}),
    ):
        evaluate(model, changed, out=tmp_path, identity="m")
    assert len(model.asked) == 6 + 5 + 5
    evaluate(model, task, out=tmp_path, identity="another")
    assert len(model.asked) == 16 + 5
    assert evaluate(model, task, out=tmp_path, identity="m") == first  # the first model's answers are still there
    assert len(model.asked) == 21 + 1


def test_weights_that_changed_are_never_served_old_answers(toy: Any, mine: str, tmp_path: Path) -> None:
    """Nobody has to say which model it is."""
    task = load_task("mine", data=mine).model_copy(update={"max_new_tokens": 2})
    model = toy("mlp")
    first = evaluate(model, task, out=tmp_path).conditions.model
    assert evaluate(model, task, out=tmp_path).conditions.model == first
    written = count_lines(tmp_path / "mine/answers.jsonl")
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    assert evaluate(model, task, out=tmp_path).conditions.model != first
    assert count_lines(tmp_path / "mine/answers.jsonl") == written + 5


def test_a_changed_image_is_looked_at_again(stub: Any, mine: str, tmp_path: Path) -> None:
    from PIL import Image

    task = load_task("mine", data=mine)
    model = stub(lambda sample: sample.id)
    evaluate(model, task, out=tmp_path / "out")
    Image.new("RGB", (24, 16), "white").save(tmp_path / "b.png")
    Image.new("RGB", (24, 16), "red").save(tmp_path / "missing.png")
    evaluate(model, task, out=tmp_path / "out")
    assert sorted(sample.id for sample in model.asked[5:]) == ["five", "four", "three"]


def test_another_metric_asks_nothing(stub: Any, mine: str, tmp_path: Path) -> None:
    model = stub(lambda sample: "navy")
    task = load_task("mine", data=mine)
    evaluate(model, task, out=tmp_path)
    result = evaluate(model, task.model_copy(update={"metric": "cer"}), out=tmp_path)
    assert result.conditions.metric == "cer"
    assert len(model.asked) == 5 + 1


def test_what_was_answered_before_a_crash_is_kept(stub: Any, mine: str, tmp_path: Path) -> None:
    def fails(sample: Sample) -> str:
        if sample.id == "three":
            raise KeyboardInterrupt
        return sample.id

    task = load_task("mine", data=mine)
    with pytest.raises(KeyboardInterrupt):
        evaluate(stub(fails), task, out=tmp_path, batch_size=1)
    assert count_lines(tmp_path / "mine" / "answers.jsonl") == 2
    model = stub(lambda sample: sample.id)
    evaluate(model, task, out=tmp_path, batch_size=1)
    assert sorted(sample.id for sample in model.asked) == ["five", "four", "three"]


def start(out: Path, run: Callable[[], object]) -> int:
    """A child that runs `run`, from the moment that `out/started` is there."""
    if child := os.fork():
        while not (out / "started").exists():
            time.sleep(0.0005)
        (out / "started").unlink()
        return child
    try:
        (out / "started").touch()
        run()
    finally:
        os._exit(0)


def test_killed_at_twenty_moments(stub: Any, tmp_path: Path) -> None:
    """SIGKILL at random moments: no answer lost or doubled, and the score of an uninterrupted run."""
    data = tmp_path / "data.json"
    rows = [{"id": f"q{n}", "question": "Why?", "answer": f"q{n}" * (50 if n % 3 else 1)} for n in range(150)]
    data.write_text(json.dumps(rows))
    task = load_task("mine", data=str(data))
    whole = evaluate(stub(lambda sample: sample.id * 50), task, out=tmp_path / "whole")
    out, rng = tmp_path / "killed", np.random.default_rng(5)
    out.mkdir()

    def slowly(sample: Sample) -> str:
        time.sleep(0.004)
        return sample.id * 50

    kept, cuts = 0, 0
    for _ in range(20):
        child = start(out, lambda: evaluate(stub(slowly), task, out=out, batch_size=3))
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = AnswerLog(out / "mine").read()
        assert len(found) >= kept  # nothing that was there is gone
        cuts += len(found) > kept
        kept = len(found)
    assert cuts > 3  # the blows fell while answers were being written
    assert kept < len(rows)
    result = evaluate(stub(lambda sample: sample.id * 50), task, out=out)
    assert result == whole
    assert result.rows == whole.rows
    keys = [json.loads(line)["key"] for line in (out / "mine/answers.jsonl").read_text("utf8").splitlines()]
    assert len(keys) == len(set(keys)) == len(rows)
