"""The three connectors of `vlm demo` side by side: seconds, memory, held-out accuracy -> docs/demo.md.

Run on a quiet machine with two cores: `python benchmarks/demo.py` (about twelve minutes). Seeds are those of the
shipped recipe; each run is a process of its own, timed and measured from outside.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONNECTORS = ("mlp", "perceiver", "cross_attention")
LIMITS = {"mlp": (300, 0.90), "perceiver": (360, 0.88), "cross_attention": (360, 0.88)}


def measure(connector: str, folder: Path) -> dict[str, Any]:
    """One whole `vlm demo`, from the command to its last line."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "vlm", "demo", "--connector", connector, "--out", str(folder)]
    start = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    results = json.loads((folder / "eval" / "results.json").read_text())
    scores = {kind: entry["score"] for kind, entry in results["results"][0]["categories"].items()}
    return {"seconds": time.perf_counter() - start, "gib": usage.ru_maxrss / 2**20, "scores": scores}


def within(connector: str, figures: dict[str, Any]) -> bool:
    """Whether a run keeps its limits: time, memory, numbers read, each other kind and their mean."""
    seconds, least = LIMITS[connector]
    scores = figures["scores"]
    others = [score for kind, score in scores.items() if kind != "number"]
    small = figures["seconds"] <= seconds and figures["gib"] <= 2
    return small and scores["number"] >= least and min(others) >= 0.90 and sum(others) / len(others) >= 0.95


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page of docs."""
    kinds = [kind for kind in next(iter(found.values()))["scores"] if kind != "number"]
    rows = [
        "| connector | seconds | GiB | number read exactly | mean of the others | " + " | ".join(kinds) + " |",
        "|---" * (5 + len(kinds)) + "|",
    ]
    for connector, figures in found.items():
        scores = figures["scores"]
        others = [scores[kind] for kind in kinds]
        cells = [f"{figures['seconds']:.0f}", f"{figures['gib']:.2f}", _percent(scores["number"])]
        cells += [_percent(sum(others) / len(others)), *map(_percent, others)]
        rows.append(f"| `{connector}` | " + " | ".join(cells) + " |")
    return TEXT.format(table="\n".join(rows), machine=machine())


def machine() -> str:
    import torch

    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        lines = cpu.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, torch {torch.__version__}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


TEXT = """# The demo, with three connectors

`vlm demo` trains a model of about 1.5 M parameters on scikit-learn's handwritten digits, composed into coloured numbers
of one to five digits, and evaluates it on 2100 pictures made of the last 397 glyphs, which training never sees.
The same recipe runs with another connector by one word: `vlm demo --connector perceiver`.

{table}

Whole commands, from start to the printed result. Measured by `python benchmarks/demo.py` on {machine}.

What the stages do: `warmup` trains the encoder alone, with five learned queries that name the digits and one that
names the colour; `align` trains the connector with everything else frozen; `instruct` trains all parts on questions
and answers. Attention and precision are chosen by timing them on the device
(each stage's `device.json` says what was chosen).
"""


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-demo"))
    parser.add_argument("--connectors", nargs="+", default=list(CONNECTORS))
    arguments = parser.parse_args()
    found = {name: measure(name, arguments.out / name) for name in arguments.connectors}
    outside = [name for name, figures in found.items() if not within(name, figures)]
    for name, figures in found.items():
        sys.stdout.write(f"{name}: {'OUTSIDE' if name in outside else 'within'} its limits: {json.dumps(figures)}\n")
    if len(found) == len(CONNECTORS):
        (ROOT / "docs" / "demo.md").write_text(page(found), encoding="utf8")
    sys.exit(1 if outside else 0)
