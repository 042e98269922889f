"""`vlm compare` from the command line: cells in processes of their own, killed, failing, tried again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

import vlm
from tests.conftest import LLAMA, toy_recipe
from vlm import running
from vlm.cli import app
from vlm.compare import process
from vlm.compare.jobs import Job, run_jobs
from vlm.compare.process import Meter, Usage, read_usage
from vlm.compare.study import collect, study
from vlm.eval.comparison.tallies import save_tallies
from vlm.recipe import read_recipe
from vlm.train.plots import read_metrics

LLM = {"tokenizer": "bytes", "attention": "eager", "config": {**LLAMA, "num_hidden_layers": 2}}


def grid(trap: Path, **keys: Any) -> dict[str, Any]:
    """Two connectors; the second one's data has a trap."""
    common = {"train": {"connector": 1e-2, "llm": 1e-2}, "batch_size": 4, "precision": "32-true", "checkpoint_every": 2}
    stage = {**common, "name": "s", "data": [{"name": "handwriting"}], "steps": 8}
    trapped = [{"name": "tests.vlm_core.trap:Trap", "file": str(trap), "at": 22}]
    linear = {"model.connector": "linear", "stages.0.data": trapped}
    return {
        "recipe": {**toy_recipe(llm=LLM), "stages": [stage], "eval": ["handwriting"]},
        "prepare": {"warm": {"stages.0.train": {"encoders": 1e-2}, "stages.0.steps": 2}},
        "change": {"start.encoders": "$warm"},
        "axes": {"connector": {"mlp": {}, "linear": linear}, "seed": [3]},
        "baseline": {"connector": "mlp"},
        "budget": "steps",
        "limit": 24,
        **keys,
    }


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    yield
    os.environ.pop("OMP_NUM_THREADS")
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


def compare(file: Path, *words: str) -> Any:
    return CliRunner().invoke(app, ["compare", str(file), *words], catch_exceptions=False)


def assert_same(one: Path, job: Job, other: Path) -> None:
    """The same losses, weights and answers, to the bit, as of a run in this process without any interruption."""
    running.train(read_recipe(job.recipe), out=other, console=Console(quiet=True))
    save_tallies(other / "tallies.json", running.evaluate(other, **job.asked))
    assert read_metrics(one / "stages/01-s/metrics.csv") == read_metrics(other / "stages/01-s/metrics.csv")
    found, wanted = vlm.load(one).state_dict(), vlm.load(other).state_dict()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert (one / "tallies.json").read_text() == (other / "tallies.json").read_text()


def test_a_grid_goes_through_failures_kills_and_back(tmp_path: Path) -> None:
    """One story, as processes take seconds to start: a cell raises, the others are done; the whole command is
    killed with a checkpoint at hand; the same command ends it, and nothing differs from a run without interruption."""
    trap, file, out = tmp_path / "trap", tmp_path / "grid.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(grid(trap), sort_keys=False))
    mlp, linear = out / "cells/mlp-seed3", out / "cells/linear-seed3"

    trap.write_text("raise")
    result = compare(file, "--out", str(out))
    assert result.exit_code == 1, result.output
    assert "[2/3] linear-seed3: FAILED: RuntimeError: no room [here]" in result.output
    failed = json.loads((linear / "failed.json").read_text())
    assert failed["error"] == "RuntimeError: no room [here]"
    assert "trap.py" in failed["traceback"]
    assert "FAILED" in (out / "report.html").read_text()
    content = json.loads((out / "compare.json").read_text())
    assert [run["error"] for group in content["groups"] for run in group["runs"]] == [None, failed["error"]]
    assert content["tasks"][0]["entries"][0]["score"]["value"] is not None
    done = {
        path: path.stat().st_mtime_ns for path in [mlp / "model/model.safetensors", out / "prepared/warm/usage.json"]
    }

    trap.write_text("wait")
    kill_when(file, out, lambda: bool(list(linear.glob("stages/*/logs/002"))))
    assert list(linear.glob("stages/*/checkpoints/*.ckpt"))
    assert_is_left_alone(linear / "usage.json")

    trap.unlink()
    result = compare(file, "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "FAILED" not in result.output
    assert not (linear / "failed.json").exists()
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is left alone"
    jobs = {one.name: one for one in study(str(file), out).jobs}
    assert_same(linear, jobs["linear-seed3"], tmp_path / "whole")

    usage = read_usage(linear)
    assert (usage.attempts, read_usage(mlp).attempts) == (3, 1)
    assert usage.training > 0
    assert usage.evaluation > 0
    assert 2**27 < usage.memory < 2**33
    warmed = vlm.load(out / "prepared/warm").encoders.state_dict()
    assert all(torch.equal(tensor, warmed[name]) for name, tensor in vlm.load(mlp).encoders.state_dict().items())
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2, "tokens and compute are the same for both"
    assert (out / "handwriting-over-compute.png").exists()

    changed = grid(trap, limit=30)
    assert [one.done for one in study(changed, out).jobs] == [True, False, False], "more questions are asked anew"
    other = grid(trap, axes={"connector": {"mlp": {"stages.0.steps": 9}}, "seed": [3]}, budget=None)
    file.write_text(yaml.safe_dump(other, sort_keys=False))
    refused = compare(file, "--out", str(out))
    assert refused.exit_code == 2
    assert "mlp-seed3: `" in refused.stderr
    assert "is a run of another recipe (different: stages.0.steps)" in refused.stderr


def kill_when(file: Path, out: Path, ready: Callable[[], bool]) -> None:
    """Start the command and kill it, but not the cell that it has started, as soon as it is `ready`."""
    command = [sys.executable, "-m", "vlm", "compare", str(file), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
    while not ready():
        assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def assert_is_left_alone(usage: Path) -> None:
    """A cell, which writes here every second, ends when its parent has gone."""
    before, since = usage.stat().st_mtime_ns, time.monotonic()
    deadline = since + 20
    while time.monotonic() < since + 3:
        time.sleep(0.1)
        if usage.stat().st_mtime_ns != before:
            before, since = usage.stat().st_mtime_ns, time.monotonic()
        assert time.monotonic() < deadline, "it goes on"


def test_dry_run_says_what_would_be_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump(grid(tmp_path / "trap"), sort_keys=False))
    result = compare(file, "--out", str(tmp_path / "out"), "--dry-run")
    assert result.exit_code == 0
    for words in ("mlp (baseline)", "linear", "FLOP", "trained first: warm", "3 runs, 0 of them done"):
        assert words in result.output
    assert not (tmp_path / "out").exists()


def test_data_of_tasks_is_found_wrong_before_anything_is_trained(tmp_path: Path) -> None:
    """It goes by the task's name alone, whatever prompt is asked for."""
    rows, own = tmp_path / "rows.json", tmp_path / "own.yaml"
    rows.write_text(json.dumps([{"question": "Why?", "answer": "so"}]))
    own.write_text("name: own\nversion: 1\nsource: {name: json, path: $DATA}\nmetric: cer\nprompts: {p: '{question}'}")
    tasks = ["handwriting", f"{own}:p"]

    def said(data: dict[str, str]) -> list[str]:
        return [str(problem) for problem in running.task_problems(tasks, data)]

    assert said({"own": str(rows)}) == []
    assert "add --data PATH" in said({})[0]
    (stranger,) = said({"own": str(rows), "handwritten": "x"})
    assert "data.handwritten" in stranger
    assert "did you mean `handwriting`" in stranger
    assert "reads no files" in said({"own": str(rows), "handwriting": "x"})[0]
    own.write_text(own.read_text() + "\nhidden: true\n")
    assert said({"own": str(rows)}) == []
    (hidden,) = running.task_problems(tasks, {"own": str(rows)}, scored=True)
    assert "are kept by a server: there is no score to compare" in hidden.message


def test_an_unfinished_grid_says_what_is_not_done(tmp_path: Path) -> None:
    result = collect(study(grid(tmp_path / "trap"), tmp_path / "out"))
    assert [run.error for run in result.failed] == ["not done", "not done"]


def test_jobs_that_end_badly_and_those_that_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job's process is one that ends at once: with a status, killed, and well."""
    ends = {"warm": "raise SystemExit(1)", "dead": "import os; os.kill(os.getpid(), 9)", "other": "pass"}
    jobs = [
        Job("dead", tmp_path / "dead", {}, {"tasks": []}),
        Job("warm", tmp_path / "warm", {}, {"tasks": []}),
        Job("cell", tmp_path / "cell", {}, {"tasks": []}, ("warm",)),
        Job("other", tmp_path / "other", {}, {"tasks": []}),
    ]
    known = {"other": {"finished": {"tasks": []}}, "dead": {"memory": 5 * 2**29}}
    started = []

    def start(one: Job, at_once: int) -> subprocess.Popen[bytes]:
        started.append(one.name)
        one.folder.mkdir()
        (one.folder / "usage.json").write_text(json.dumps(known.get(one.name, {})))
        return subprocess.Popen([sys.executable, "-c", ends[one.name]])

    monkeypatch.setattr("vlm.compare.jobs._start", start)
    ended = []
    run_jobs(jobs, at_once=1, ended=lambda one: ended.append((one.name, one.error)), tick=lambda _: None)
    assert started == ["dead", "warm", "other"]
    assert dict(ended) == {
        "dead": "killed by SIGKILL when it held 2.50 GiB; perhaps there was no more",
        "warm": f"ended with status 1 and said nothing; see {tmp_path / 'warm/log.txt'}",
        "cell": "`warm`, which it starts from, could not be trained",
        "other": None,
    }


def test_no_two_processes_work_in_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = process._alone(tmp_path)
    monkeypatch.setattr(process, "BEAT", 0.01)
    assert process.main(tmp_path, os.getppid()) == 1
    assert "another process is at work in" in json.loads((tmp_path / "failed.json").read_text())["error"]
    held.close()
    assert process._alone(tmp_path) is not None


def test_usage_is_written_while_a_run_lasts_and_adds_up(tmp_path: Path) -> None:
    meter = Meter(tmp_path, parent=os.getppid(), writes=True)
    with meter.phase("training"):
        time.sleep(0.3)
        meter.write()
        assert read_usage(tmp_path).training >= 0.3
    with meter.phase("evaluation"):
        time.sleep(0.1)
    meter.finish({"tasks": []})
    first = read_usage(tmp_path)
    assert 0.1 <= first.evaluation < first.training + 0.2
    assert first.finished == {"tasks": []}
    again = Meter(tmp_path, parent=os.getppid(), writes=True)
    with again.phase("training"):
        time.sleep(0.1)
    again.finish({})
    second = read_usage(tmp_path)
    assert second.training >= first.training + 0.1
    assert (second.attempts, second.finished) == (2, {})
    helper = Meter(tmp_path / "nowhere", parent=os.getppid(), writes=False)
    helper.finish({})
    assert read_usage(tmp_path / "nowhere") == Usage(), "a process that only helps writes nothing"
