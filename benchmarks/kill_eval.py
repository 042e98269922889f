"""Kills `vlm eval` at random moments and compares what comes of it: `python benchmarks/kill_eval.py MODEL`.

The command is run once whole, then into another folder again and again, each time with SIGKILL at a random moment
while answers are written; a last run finishes. No answer may be lost or doubled, and scores and samples must equal
those of the whole run. Exit status 1 if anything differs.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(model: Path, out: Path, given: argparse.Namespace) -> list[str]:
    options = ["--limit", str(given.limit), "--batch-size", "4", "--device", "cpu", "--out", str(out)]
    return [sys.executable, "-m", "vlm", "eval", str(model), given.task, *options]


def keys(folder: Path) -> list[str]:
    """The keys of all whole lines of the log."""
    path = folder / "answers.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return [json.loads(line)["key"] for line in content[: content.rfind(b"\n") + 1].splitlines()]


def main() -> int:
    """Kill, finish, compare."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("model", type=Path)
    options.add_argument("--task", default="handwriting")
    options.add_argument("--limit", type=int, default=1200)
    options.add_argument("--kills", type=int, default=20)
    given = options.parse_args()
    rng, say = random.Random(0), sys.stdout.write
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        subprocess.run(command(given.model, whole, given), check=True, capture_output=True)
        counts, lost = [0], 0
        for _ in range(given.kills):
            more = rng.randrange(given.limit // given.kills)  # answers that it may still give
            with subprocess.Popen(command(given.model, killed, given), stdout=-3, stderr=-3) as child:
                while child.poll() is None and len(keys(killed / given.task)) <= counts[-1] + more:
                    time.sleep(rng.uniform(0, 0.002))
                child.send_signal(signal.SIGKILL)
            counts.append(len(keys(killed / given.task)))
            lost += counts[-1] < counts[-2]
        subprocess.run(command(given.model, killed, given), check=True, capture_output=True)
        found, wanted = keys(killed / given.task), keys(whole / given.task)
        same = [
            (killed / name).read_bytes() == (whole / name).read_bytes()
            for name in ("results.json", f"{given.task}/samples.jsonl")
        ]
    say(f"{given.kills} kills; answers in the log after each: {counts[1:]}\n")
    say(f"{len(found)} answers at the end, {len(set(found))} different keys; the whole run has {len(wanted)}\n")
    say(f"results.json {'equal' if same[0] else 'DIFFERENT'}, samples.jsonl {'equal' if same[1] else 'DIFFERENT'}\n")
    middle = all(one < given.limit for one in counts)
    return int(not middle or lost or sorted(found) != sorted(wanted) or len(set(found)) != len(found) or not all(same))


if __name__ == "__main__":
    raise SystemExit(main())
