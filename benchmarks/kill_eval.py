"""Kills `vlm eval` at random moments and compares what comes of it: `python benchmarks/kill_eval.py MODEL`.

The command is run once whole, then into another folder again and again, each time with SIGKILL after a random time;
a last run finishes. No answer may be lost or doubled, and scores and samples must equal those of the whole run. Exit
status 1 if anything differs.
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
    options = ["--limit", str(given.limit), "--batch-size", "16", "--device", "cpu", "--out", str(out)]
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
    options.add_argument("--limit", type=int, default=600)
    options.add_argument("--kills", type=int, default=20)
    given = options.parse_args()
    rng, say = random.Random(0), sys.stdout.write
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch) / "whole", Path(scratch) / "killed"
        begin = time.perf_counter()
        subprocess.run(command(given.model, whole, given), check=True, capture_output=True)
        seconds = time.perf_counter() - begin
        counts, blows, lost = [0], 0, 0
        while blows < given.kills:
            with subprocess.Popen(command(given.model, killed, given), stdout=-3, stderr=-3) as child:
                try:
                    child.wait(timeout=rng.uniform(0, seconds))
                except subprocess.TimeoutExpired:
                    child.send_signal(signal.SIGKILL)
                    blows += 1
            counts.append(len(keys(killed / given.task)))
            lost += counts[-1] < counts[-2]
        subprocess.run(command(given.model, killed, given), check=True, capture_output=True)
        found, wanted = keys(killed / given.task), keys(whole / given.task)
        same = [
            (killed / name).read_bytes() == (whole / name).read_bytes()
            for name in ("results.json", f"{given.task}/samples.jsonl")
        ]
    say(f"{blows} kills; answers in the log after each: {counts[1:]}\n")
    say(f"{len(found)} answers at the end, {len(set(found))} different keys; the whole run has {len(wanted)}\n")
    say(f"results.json {'equal' if same[0] else 'DIFFERENT'}, samples.jsonl {'equal' if same[1] else 'DIFFERENT'}\n")
    return int(lost or sorted(found) != sorted(wanted) or len(set(found)) != len(found) or not all(same))


if __name__ == "__main__":
    raise SystemExit(main())
