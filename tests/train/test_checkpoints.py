"""What a kill, a full disk, a damaged file and a signal leave of a run: always something good to go on from."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from tests.train.test_resume import assert_same, recipe
from vlm.train import durable
from vlm.train.checkpoint import CheckpointError, Checkpoints
from vlm.train.plots import read_metrics
from vlm.train.run import train

STAGE = "stages/02-instruct"


def spec(**stage: Any) -> dict[str, Any]:
    """The recipe of test_resume, whose second stage writes a checkpoint every second step, with more keys for it."""
    found = recipe()
    found["stages"][1].update(stage)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(), out=tmp_path_factory.mktemp("run") / "whole")


def started(file: Path, out: Path, before: str = "") -> subprocess.Popen[str]:
    """`vlm train` in a process of its own, session and all, with code that runs first."""
    code = f"{before}\nimport sys; sys.argv[0] = 'vlm'\nfrom vlm.cli import main; main()"
    command = [sys.executable, "-c", code, "train", str(file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(pattern: str, folder: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def written(file: Path, found: dict[str, Any]) -> Path:
    file.write_text(yaml.safe_dump(found))
    return file


# --- a file


def test_what_is_written_is_what_is_read_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one.ckpt"
    for value in (1, 2):
        durable.write({"value": torch.full((1000,), value)}, path)
        assert torch.load(path, weights_only=True)["value"][0] == value
    assert durable.damage(path) == ""
    assert [one.name for one in path.parent.iterdir()] == ["one.ckpt"]


def test_every_flipped_byte_and_every_cut_is_seen(tmp_path: Path) -> None:
    """Of the tensors' bytes; torch loads such a file without a word."""
    path, rng = tmp_path / "one.ckpt", torch.Generator().manual_seed(0)
    weights = torch.randn(5000, generator=rng)
    durable.write({"weights": weights}, path)
    good = path.read_bytes()
    start = good.index(weights.numpy().tobytes())
    for place in torch.randint(start, start + 20000, (30,), generator=rng).tolist():
        path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert not torch.equal(torch.load(path, weights_only=True)["weights"], weights)
        assert "checksum" in durable.damage(path)
    for length in (0, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        assert durable.damage(path)


def test_the_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("fsync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        done.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    durable.write({}, tmp_path / "one.ckpt")
    assert done == ["fsync one.ckpt.writing", "rename", f"fsync {tmp_path.name}"]


def test_a_disk_that_is_full_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    """A real limit of the system on the size of files, in a process of its own."""
    code = """
import resource, sys, torch
from pathlib import Path
from vlm.train import durable
path = Path(sys.argv[1])
durable.write({"value": torch.zeros(10)}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    durable.write({"value": torch.zeros(100000)}, path)
except (OSError, RuntimeError) as error:
    print("refused:", error)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "one.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    assert "refused:" in done.stdout, done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert len(torch.load(tmp_path / "one.ckpt", weights_only=True)["value"]) == 10
    assert [one.name for one in tmp_path.iterdir()] == ["one.ckpt"], "what was half written does not fill the disk"


# --- a run


class Full:
    """A disk that takes no more while checkpoints of the given steps are written, half of each."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.save = torch.save

    def __call__(self, content: Any, file: Any) -> None:
        if content["global_step"] in self.steps:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        self.save(content, file)


def test_a_full_disk_stops_no_run_and_costs_no_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "save", Full(4, 6))
    said = r"step=[46]\.ckpt could not be written \(.*No space left.*step=2\.ckpt, after"
    with pytest.warns(UserWarning, match=said):
        train(recipe(), out=tmp_path / "run")
    assert_same(tmp_path / "run", whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_while_it_writes_it_goes_on_from_the_one_before(whole: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL with half of the checkpoint of step 6 written."""
    kill = """
import os, torch
save = torch.save
def half(content, file):
    if content["global_step"] == 6:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), 9)
    save(content, file)
torch.save = half
"""
    found, out = spec(workers=workers), tmp_path / "run"
    process = started(written(tmp_path / "recipe.yaml", found), out, kill)
    assert process.wait(120) == -signal.SIGKILL
    left = {path.name for path in (out / STAGE / "checkpoints").iterdir()}
    assert left == {"step=2.ckpt", "step=4.ckpt", "step=6.ckpt.writing"}
    assert_same(train(found, out=out), whole)
    assert not (out / STAGE / "checkpoints").exists()


def stopped_at(folder: Path, step: int) -> None:
    """A run that failed just after the checkpoint of `step`, with the last three kept."""

    class Cut(RuntimeError):
        pass

    save = Checkpoints._save

    def then_fail(self: Checkpoints, trainer: Any, path: Path) -> None:
        save(self, trainer, path)
        if path.name == f"step={step}.ckpt":
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "_save", then_fail)
        with pytest.raises(Cut):
            train(spec(checkpoint_keep=3), out=folder)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    stopped_at(out, 8)
    folder = out / STAGE / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step=4.ckpt", "step=6.ckpt", "step=8.ckpt"], "the last 3"
    for name, size in (("step=8.ckpt", -1), ("step=6.ckpt", 1000)):
        (folder / name).write_bytes((folder / name).read_bytes()[:size])
    with pytest.warns(UserWarning, match="damaged") as caught:
        train(spec(checkpoint_keep=3), out=out)
    said = [str(one.message) for one in caught if "damaged" in str(one.message)]
    assert ["step=8.ckpt" in one for one in said] == [True, False]
    assert ["step=6.ckpt" in one for one in said] == [False, True]
    assert_same(out, whole)


def test_nothing_is_begun_anew_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "step=3.ckpt").write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match=r"every.*step=3\.ckpt"):
        Checkpoints(tmp_path, 1).latest()


def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 5th step, or where half a minute is over since the last: the clock goes 10 seconds with each look at it."""
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("vlm.train.checkpoint.time", SimpleNamespace(monotonic=lambda: next(clock)))
    saved: list[str] = []
    monkeypatch.setattr(Checkpoints, "_save", lambda self, trainer, path: (saved.append(path.name), _now(self, clock)))
    train(spec(checkpoint_every=5, checkpoint_minutes=0.5), out=tmp_path / "run")
    assert saved == ["step=3.ckpt", "step=5.ckpt", "step=8.ckpt"]


def _now(checkpoints: Checkpoints, clock: Any) -> None:
    checkpoints._last = next(clock)


SLOW = """
import itertools, time
sample = itertools.count()
from vlm.embedded import Handwriting
get = Handwriting.__getitem__
def slow(self, index):
    time.sleep({seconds})
    return get(self, index)
Handwriting.__getitem__ = slow
"""


@pytest.mark.parametrize(("name", "workers"), [("SIGTERM", 2), ("SIGUSR1", 0)])
def test_a_signal_saves_and_stops_and_the_same_command_goes_on(
    name: str, workers: int, whole: Path, tmp_path: Path
) -> None:
    """Sent to every process, workers included, as SLURM does."""
    found, out = spec(workers=workers, checkpoint_every=1000), tmp_path / "run"
    process = started(written(tmp_path / "recipe.yaml", found), out, SLOW.format(seconds=0.02))
    wait_for(f"{STAGE}/logs/001/metrics.csv", out, process)
    os.killpg(process.pid, getattr(signal, name))
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 143, said + errors
    assert "stopped as asked; the last good checkpoint is" in errors
    assert "Traceback" not in errors
    assert len(list((out / STAGE / "checkpoints").glob("step=*.ckpt"))) == 1
    assert not (out / "model").exists()
    assert_same(train(found, out=out), whole)


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    """Where the next optimiser step is an hour away."""
    found, out = spec(), tmp_path / "run"
    hour = SLOW.format(seconds=f"open({str(tmp_path / 'waits')!r}, 'w') and 3600 if next(sample) > 9 else 0")
    process = started(written(tmp_path / "recipe.yaml", found), out, hour)
    wait_for("waits", tmp_path, process)
    process.send_signal(signal.SIGTERM)
    time.sleep(1.3)
    assert process.poll() is None, "it waits for the step"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 143


def test_metrics_of_a_run_taken_up_many_times_are_those_of_one(whole: Path) -> None:
    steps = read_metrics(whole / STAGE / "metrics.csv")["step"]
    assert steps == list(range(9))
