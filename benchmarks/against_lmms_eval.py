"""One model, one task, two harnesses: do the kit and lmms-eval give the same answers and the same score?

Run where both are installed, `pip install 'vlm-kit[lmms]'`: `python benchmarks/against_lmms_eval.py [MODEL]`. Without
a model a small one is trained first (two minutes on two cores). Nothing is downloaded: the questions are the kit's
embedded handwriting, put into DocVQA's files; the task is DocVQA as each harness ships it, with its own code for
prompt, images, settings and scorer. Exit status 1 if a score or an answer differs.

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

TRAINING = ["stages.0.steps=300", "stages.1.steps=20", "stages.2.steps=150", "eval=[]"]
"""Changes to the demo's recipe: a model that is right about half the time, so that a difference would show."""

METRIC = "anls"
TASKS = {"docvqa": "handwriting_docvqa", "docvqa_bare": "handwriting_bare"}
"""lmms-eval's task by the kit's. The first are DocVQA as both ship it; the second ask without "Answer the question
using a single word or phrase.", which the small model was never taught."""

THEIRS = """include: {docvqa}
task: {task}
dataset_path: parquet
dataset_name: null
dataset_kwargs: {{data_files: {{validation: {parquet}}}}}
"""
THEIR_BARE = 'lmms_eval_specific_kwargs: {default: {pre_prompt: "", post_prompt: ""}}\n'
OUR_BARE = """name: docvqa_bare
version: 1
source: {name: records, files: $DATA/val_v1.0.json, under: data, sample: {id: questionId, question: question,
  answers: answers, image: image}}
prompt: "{question}"
max_new_tokens: 32
metric: anls
"""


@dataclass(frozen=True)
class Found:
    """What one harness says of one task."""

    score: float
    answers: list[str]
    """In the order of the questions."""


def train(folder: Path) -> Path:
    """The small model, trained if it is not there; a run that was cut off goes on."""
    if not (folder / "model" / "config.json").is_file():
        changes = [word for change in TRAINING for word in ("--set", change)]
        subprocess.run([sys.executable, "-m", "vlm", "train", "demo", *changes, "--out", str(folder)], check=True)
    return folder


def write_tasks(folder: Path, count: int) -> None:
    """The same questions and pictures as a parquet file, for lmms-eval, and in DocVQA's official files, for the kit."""
    from datasets import Dataset, Features, Image, List, Value, disable_progress_bars

    from vlm.embedded import Handwriting

    disable_progress_bars()
    source = Handwriting(split="test", count=count, seed=5)
    (folder / "ours/documents").mkdir(parents=True, exist_ok=True)
    (folder / "theirs").mkdir(exist_ok=True)
    rows, records = [], []
    for number in range(count):
        sample = source[number]
        path = folder / "ours/documents" / f"{sample.id}.png"
        sample.images[0].save(path)  # type: ignore[union-attr]
        row = {"question": sample.turns[0].text, "answers": list(sample.answers), "questionId": number}
        rows.append({**row, "image": {"bytes": path.read_bytes(), "path": None}})
        records.append({**row, "image": f"documents/{path.name}", "question_types": [sample.category]})
    (folder / "ours/val_v1.0.json").write_text(json.dumps({"data": records}))
    (folder / "ours/bare.yaml").write_text(OUR_BARE)
    kinds = {"question": Value("string"), "answers": List(Value("string")), "questionId": Value("int64")}
    parquet = (folder / "theirs/data.parquet").resolve()
    Dataset.from_list(rows, features=Features({**kinds, "image": Image()})).to_parquet(str(parquet))
    docvqa = files("lmms_eval") / "tasks/docvqa/docvqa_val.yaml"
    for ending, task in zip(("", THEIR_BARE), TASKS.values(), strict=True):
        text = THEIRS.format(docvqa=docvqa, task=task, parquet=parquet) + ending
        (folder / "theirs" / f"{task}.yaml").write_text(text)


def ours(model: Path, folder: Path, batch_size: int) -> list[Found]:
    """The kit's harness, a result a task."""
    from vlm.eval.run import run

    tasks, data = ["docvqa", str(folder / "ours/bare.yaml")], str(folder / "ours")
    results = run(model, tasks, data=data, out=folder / "ours/eval", batch_size=batch_size)
    return [Found(result.score, [row.answer for row in result.rows]) for result in results]


def theirs(model: Path, folder: Path, batch_size: int) -> list[Found]:
    """lmms-eval's command, which finds the model by its entry point."""
    out = folder / "theirs" / f"{time.time_ns()}"
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model", "vlm_kit", "--tasks", ",".join(TASKS.values())]
    command += ["--model_args", f"pretrained={model}", "--batch_size", str(batch_size), "--log_samples"]
    command += ["--include_path", str(folder / "theirs"), "--output_path", str(out), "--verbosity", "DEBUG"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(out / "cache")}
    with (folder / "theirs.log").open("w") as log:
        status = subprocess.run(command, env={**os.environ, **offline}, stdout=log, stderr=log).returncode
    if status:
        raise SystemExit(f"{' '.join(command)} failed; see {folder / 'theirs.log'}")
    scores = json.loads(one(out, "*_results.json").read_text())["results"]
    return [Found(scores[task][f"{METRIC},none"], answers(one(out, f"*_{task}.jsonl"))) for task in TASKS.values()]


def answers(samples: Path) -> list[str]:
    """The answers that lmms-eval scored, in the order of the documents."""
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: int(line["doc_id"]))
    found = [line["filtered_resps"] for line in lines]
    return [answer if isinstance(answer, str) else answer[0] for answer in found]


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.rglob(pattern)
    return path


def show(kit: list[Found], other: list[Found]) -> bool:
    """Print both side by side; whether all is equal."""
    ours, theirs = f"vlm-kit {version('vlm-kit')}", f"lmms-eval {version('lmms-eval')}"
    sys.stdout.write(f"{'task (' + METRIC + ')':16} {ours:>16} {theirs:>16}   equal answers\n")
    equal = True
    for task, first, second in zip(TASKS, kit, other, strict=True):
        same = sum(a == b for a, b in zip(first.answers, second.answers, strict=True))
        equal &= abs(first.score - second.score) < 1e-9 and same == len(first.answers)
        number = len(first.answers)
        sys.stdout.write(f"{task:16} {first.score:16.12f} {second.score:16.12f}   {same} of {number}\n")
    return equal


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?", help="a saved model or run; one is trained if absent")
    parser.add_argument("--out", type=Path, default=Path("runs/against-lmms-eval"))
    parser.add_argument("--count", type=int, default=1400)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    model = arguments.model or train(folder / "run")
    write_tasks(folder, arguments.count)
    kit = ours(model, folder, arguments.batch_size)
    other = theirs(model.resolve(), folder, arguments.batch_size)
    sys.exit(0 if show(kit, other) else 1)
