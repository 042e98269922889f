"""Several processes share one evaluation: together they give what one gives."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlm.eval.task import load_task
from vlm.eval.task_runner import evaluate
from vlm.eval.world import World, world

CHILD = """
import sys
from pathlib import Path
from tests.eval.conftest import StubModel
from vlm.eval.task_runner import evaluate
from vlm.eval.task import load_task
from vlm.eval.world import world

model = StubModel(lambda sample: sample.id * int(sample.id) if int(sample.id) % 3 else "7")
here = world()
result = evaluate(model, load_task("mine", data=sys.argv[2]), out=Path(sys.argv[1]), batch_size=2, world=here)
said = f"{here.rank} asked {len(model.asked)} score {result.score:.6f} missing {result.counts.missing}"
Path(sys.argv[1], f"said-{here.rank}").write_text(said)
here.wait()
"""


def test_the_environment_of_torchrun(monkeypatch: Any) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert world() == World(0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert world() == World(3, 4)
    assert not world().is_first


def test_parts_are_disjoint_total_and_of_like_size() -> None:
    rng = np.random.default_rng(0)
    items = [(str(rng.integers(0, 30)), number) for number in range(200)]
    for size in (1, 2, 3, 7):
        parts = [World(rank, size).share(items, together=lambda item: item[0]) for rank in range(size)]
        assert sorted(item for part in parts for item in part) == sorted(items)
        owners: dict[str, set[int]] = {}
        for rank, part in enumerate(parts):
            images = [image for image, _ in part]
            assert [images[n] for n in range(len(images)) if images[n] not in images[:n]] == list(dict.fromkeys(images))
            assert sum(a != b for a, b in pairwise(images)) == len(set(images)) - 1
            for image in images:
                owners.setdefault(image, set()).add(rank)
        assert all(len(ranks) == 1 for ranks in owners.values())  # an image is encoded in one place
        assert max(map(len, parts)) - min(map(len, parts)) <= 12


def mine(folder: Path) -> str:
    rows = []
    for number in range(17):
        Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(folder / f"{number // 2}.png")
        rows.append({"id": str(number), "image": f"{number // 2}.png", "question": "Why?", "answer": str(number)})
    (folder / "mine.json").write_text(json.dumps(rows))
    return str(folder / "mine.json")


def test_two_processes_give_what_one_gives(stub: Any, tmp_path: Path) -> None:
    data = mine(tmp_path)
    task = load_task("mine", data=data)
    model = stub(lambda sample: sample.id * int(sample.id) if int(sample.id) % 3 else "7")
    alone = evaluate(model, task, out=tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    child = [sys.executable, "-c", CHILD, str(tmp_path / "two"), data]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, *child],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [path.read_text().split() for path in sorted((tmp_path / "two").glob("said-*"))]
    assert [line[0] for line in said] == ["0", "1"]
    assert sum(int(line[2]) for line in said) == 17
    assert abs(int(said[0][2]) - int(said[1][2])) <= 2
    assert {(line[4], line[6]) for line in said} == {(f"{alone.score:.6f}", "0")}
    assert (tmp_path / "one/mine/samples.jsonl").read_text() == (tmp_path / "two/mine/samples.jsonl").read_text()
    assert (tmp_path / "two/mine/answers-1.jsonl").is_file()
    again = evaluate(stub(lambda sample: "not asked"), task, out=tmp_path / "two")  # another number of processes
    assert again == alone
