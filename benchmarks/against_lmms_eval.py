"""One model, one task, two harnesses: the same scores and the same answers from the kit and from lmms-eval?

Run where both are installed, `pip install 'vlm-kit[lmms]'`: `python benchmarks/against_lmms_eval.py [MODEL]`. Without
a model a small one is trained first (about two minutes on two cores). Nothing is downloaded: the questions are the
kit's embedded handwriting; the task is lmms-eval's own DocVQA (its prompt, its settings, its ANLS scorer), pointed at a
local parquet file. Exit status 1 if a score or an answer differs.

(Not named lmms_eval.py, for Python would then import this file in lmms-eval's place.)
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

TRAINING = ["stages.0.steps=300", "stages.1.steps=20", "stages.2.steps=150", "eval=[]"]
"""Changes to the demo's recipe: a model that is right about half the time, so that a difference would show."""

TASK = "handwriting_docvqa"
METRICS = {"anls": "anls", "exact_match": "exact_match"}
"""The kit's metric by the name that lmms-eval gives its own."""

THEIRS = """include: {docvqa}
task: {task}
dataset_path: parquet
dataset_name: null
dataset_kwargs: {{data_files: {{validation: {parquet}}}}}
test_split: validation
lmms_eval_specific_kwargs: {{default: {{pre_prompt: "", post_prompt: ""}}}}
metric_list:
  - {{metric: anls, aggregation: mean, higher_is_better: true}}
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}}
"""
OURS = """name: {task}-{metric}
version: 1
source: {{name: json, path: $DATA}}
metric: {metric}
max_new_tokens: 32
"""


@dataclass(frozen=True)
class Found:
    """What one harness says."""

    scores: dict[str, float]
    answers: list[str]
    """In the order of the questions."""


def train(folder: Path) -> Path:
    """The small model, trained if it is not there; a run that was cut off goes on."""
    if not (folder / "model" / "config.json").is_file():
        changes = [word for change in TRAINING for word in ("--set", change)]
        subprocess.run([sys.executable, "-m", "vlm", "train", "demo", *changes, "--out", str(folder)], check=True)
    return folder


def write_task(folder: Path, count: int) -> None:
    """The same questions and pictures as lmms-eval reads them (parquet) and as the kit does (PNG files and JSONL)."""
    from datasets import Dataset, Features, Image, List, Value

    from vlm.embedded import Handwriting

    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    source = Handwriting(split="test", count=count, seed=5)
    for sample in (source[index] for index in range(count)):
        path = folder / "images" / f"{sample.id}.png"
        sample.images[0].save(path)  # type: ignore[union-attr]
        row = {"question": sample.turns[0].text, "answers": list(sample.answers)}
        rows.append({**row, "questionId": sample.id, "image": {"bytes": path.read_bytes(), "path": None}})
        lines.append(json.dumps({**row, "id": sample.id, "image": f"images/{path.name}"}))
    kinds = {"question": Value("string"), "answers": List(Value("string")), "questionId": Value("string")}
    Dataset.from_list(rows, features=Features({**kinds, "image": Image()})).to_parquet(str(folder / "data.parquet"))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    docvqa = files("lmms_eval") / "tasks/docvqa/_default_template_docvqa_yaml"
    place = (folder / "data.parquet").resolve()
    (folder / "theirs").mkdir(exist_ok=True)
    (folder / "theirs" / f"{TASK}.yaml").write_text(THEIRS.format(docvqa=docvqa, task=TASK, parquet=place))
    for metric in METRICS.values():
        (folder / f"{metric}.yaml").write_text(OURS.format(task=TASK, metric=metric))


def ours(model: Path, folder: Path, batch_size: int) -> Found:
    """The kit's harness."""
    from vlm.eval.run import run

    tasks = [str(folder / f"{metric}.yaml") for metric in METRICS.values()]
    results = run(model, tasks, data=str(folder / "data.jsonl"), out=folder / "ours", batch_size=batch_size)
    scores = {name: result.score for name, result in zip(METRICS, results, strict=True)}
    return Found(scores, [row.answer for row in results[0].rows])


def theirs(model: Path, folder: Path, batch_size: int) -> Found:
    """lmms-eval's command, which finds the model by its entry point."""
    out = folder / "theirs" / f"{time.time_ns()}"
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "vlm_kit"]
    command += ["--model_args", f"pretrained={model}", "--batch_size", str(batch_size), "--verbosity", "DEBUG"]
    command += ["--tasks", TASK, "--include_path", str(folder / "theirs"), "--log_samples", "--output_path", str(out)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    with (folder / "theirs.log").open("w") as log:
        status = subprocess.run(command, env={**os.environ, **offline}, stdout=log, stderr=log).returncode
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {folder / 'theirs.log'}")
    results = json.loads(one(out, "*_results.json").read_text())["results"][TASK]
    samples = [json.loads(line) for line in one(out, f"*_samples_{TASK}.jsonl").read_text().splitlines()]
    samples.sort(key=lambda sample: int(sample["doc_id"]))
    return Found({name: results[f"{name},none"] for name in METRICS}, [answer_of(sample) for sample in samples])


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def answer_of(sample: dict[str, Any]) -> str:
    answer = sample["filtered_resps"]
    return answer if isinstance(answer, str) else answer[0]


def show(kit: Found, other: Found) -> bool:
    """Print both side by side; whether all is equal."""
    same = sum(first == second for first, second in zip(kit.answers, other.answers, strict=True))
    lines = [f"{'metric':12} {'vlm-kit ' + version('vlm-kit'):>20} {'lmms-eval ' + version('lmms-eval'):>20}"]
    for name, score in kit.scores.items():
        lines.append(f"{name:12} {score:20.12f} {other.scores[name]:20.12f}")
    lines.append(f"equal answers: {same} of {len(kit.answers)}")
    sys.stdout.write("\n".join(lines) + "\n")
    close = all(abs(score - other.scores[name]) < 1e-9 for name, score in kit.scores.items())
    return close and same == len(kit.answers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="a saved model or run; one is trained if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/against-lmms-eval"))
    parser.add_argument("--count", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    model = arguments.model or train(folder / "run")
    write_task(folder, arguments.count)
    kit = ours(model, folder, arguments.batch_size)
    other = theirs(model.resolve(), folder, arguments.batch_size)
    sys.exit(0 if show(kit, other) else 1)
