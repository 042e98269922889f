"""Training beside transformers' own: `python benchmarks/training.py [same mixed cache memory]`.

The same weights, data, precision and machine: the kit's `train`, and `LlavaForConditionalGeneration` with transformers'
Trainer. Both take turns, each in a process of its own, and the median of `--repeats` counts. Both read the same JPEG
files, with the kit's processor on both sides, so that every batch is the same to the bit where batches are the same.

same    equal batches, everything trained: samples/s, and the losses side by side
mixed   samples of very different lengths: the kit packs them into rows
cache   a frozen encoder that dominates: the kit with its features on disk, against the kit without
memory  the most that the process holds, with a vocabulary of 128k tokens, 512 positions, 8 samples
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import vlm
from vlm.interop import to_transformers
from vlm.sample import Sample
from vlm.train import run as runs
from vlm.train.mixture import mixture
from vlm.train.progress import StageBar

VIT = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
LLM = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
SAY = sys.stdout.write


def recipe(mode: str, rows: Path, *, steps: int, **stage: Any) -> dict[str, Any]:
    """A CLIP ViT with LLaVA's MLP and a LLaMA; for `cache` ViT-B/16 at 384 pixels with a resampler of 64 latents."""
    vocabulary = 128_000 if mode == "memory" else 512
    llm = {"model_type": "llama", **LLM, "num_key_value_heads": 8, "vocab_size": vocabulary}
    encoder = {"name": "clip", "config": {**VIT, "image_size": 224, "patch_size": 16}, "layers": [-2]}
    connector: Any = {"name": "mlp", "depth": 2}
    parts = {"encoders": 1e-4, "connector": 1e-4, "llm": 1e-4}
    if mode == "cache":
        llm |= {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 12, "num_attention_heads": 10}
        llm["num_key_value_heads"] = 10
        base = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
        encoder = {"name": "siglip", "config": {**base, "image_size": 384, "patch_size": 16}}
        connector = [{"name": "resampler", "latents": 64}, "mlp"]
        parts = {"connector": 1e-4, "llm": 1e-4}
    common = {"name": "s", "train": parts, "data": str(rows), "steps": steps, "batch_size": 8, "precision": "32-true"}
    settings = {"schedule": "constant", "warmup": 0.0, "checkpoint_every": 10**6, "weight_decay": 0.0}
    model = {"encoders": encoder, "views": "crop", "connector": connector}
    whole = {"model": {**model, "llm": {"tokenizer": "bytes", "config": llm, "attention": "sdpa"}}, "seed": 0}
    return {**whole, "stages": [{**common, **settings, **stage}]}


def write_rows(folder: Path, mode: str, count: int = 128) -> Path:
    """JPEG pictures with a question and an answer: of one length, or of 16 to 900 bytes."""
    rng, lines = np.random.default_rng(0), []
    for number in range(count):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / f"{number}.jpg")
        length = {"mixed": int(np.clip(rng.lognormal(4.6, 1.0), 16, 900)), "memory": 270}.get(mode, 60)
        words = " ".join(f"{word:x}" for word in rng.integers(0, 4096, length))[:length]
        shown = {} if mode == "mixed" and number % 3 == 0 else {"image": f"{number}.jpg"}
        lines.append(json.dumps({**shown, "question": "What is to be seen here?", "answer": words}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def ours(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The kit: seconds from the first batch to the last step, and losses."""
    clock: list[float] = []

    class Timed(StageBar):
        def on_train_start(self, *given: Any) -> None:
            super().on_train_start(*given)
            clock.append(time.perf_counter())

        def on_train_end(self, *given: Any) -> None:
            clock.append(time.perf_counter())
            super().on_train_end(*given)

    runs.StageBar = Timed  # type: ignore[misc]
    run = runs.train(spec, out=folder / "run")
    found = [line.split(",") for line in (run / "stages/01-s/metrics.csv").read_text().splitlines()]
    places = {name: place for place, name in enumerate(found[0])}
    losses = [float(row[places["loss"]]) for row in found[1:]]
    return {"losses": losses, "seconds": clock[-1] - clock[-2]}


def theirs(spec: dict[str, Any], folder: Path) -> dict[str, Any]:
    """transformers: its LLaVA with its Trainer, on the kit's batches."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    clock: list[float] = []

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.append(time.perf_counter())

        on_train_end = on_train_begin

    torch.manual_seed(0)
    kit = vlm.assemble(spec)
    other, stage = to_transformers(kit, architecture="llava"), spec["stages"][0]
    data = mixture(vlm.recipe.read_recipe(spec).stages[0].data, seed=0)

    def collate(samples: list[Sample]) -> dict[str, Any]:
        batch = kit.processor(samples)
        ids = batch.input_ids.masked_fill(batch.owner >= 0, other.config.image_token_id)
        shown = {"pixel_values": batch.groups[0].pixels[0]} if batch.groups else {}
        return {"input_ids": ids, "attention_mask": batch.attention_mask, "labels": batch.labels, **shown}

    class InOrder(Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(range(stage["steps"] * stage["batch_size"]))

    arguments = TrainingArguments(
        str(folder / "hf"),
        per_device_train_batch_size=stage["batch_size"],
        max_steps=stage["steps"],
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
    )
    watched = {"train_dataset": data, "data_collator": collate, "callbacks": [Timed()]}
    trainer = InOrder(model=other, args=arguments, **watched)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {"losses": losses, "seconds": clock[1] - clock[0]}


def one(given: argparse.Namespace) -> int:
    """One side of one measurement, in this process; its figures as JSON."""
    folder, spec = Path(given.folder), json.loads(Path(given.spec).read_text())
    torch.set_num_threads(given.threads)
    warm = {**spec, "stages": [{**spec["stages"][0], "steps": 1}]}
    side = ours if given.side == "kit" else theirs
    if not given.cold:
        side(warm, folder / "warm")  # what is loaded once counts for neither
    found = side(spec, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(given.out).write_text(json.dumps({**found, "peak": peak}))
    return 0


def measured(side: str, spec: dict[str, Any], threads: int, *, cold: bool = False) -> dict[str, Any]:
    """`one` in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "spec.json").write_text(json.dumps(spec))
        command = [sys.executable, __file__, "--side", side, "--spec", str(folder / "spec.json")]
        command += ["--folder", str(folder), "--out", str(folder / "out.json"), "--threads", str(threads)]
        command += ["--cold"] if cold else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        return dict(json.loads((folder / "out.json").read_text()))


def rate(found: list[dict[str, Any]], samples: int) -> float:
    """Samples/s, the median of the runs."""
    return samples / statistics.median(run["seconds"] for run in found)


def compare(mode: str, given: argparse.Namespace) -> bool:
    """Both sides in turns; whether the target is reached."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch), mode)
        spec = recipe(mode, rows, steps=given.steps)
        kit = spec
        if mode == "mixed":
            kit = recipe(mode, rows, steps=given.steps, pack=1024, batch_size=2)
        plain = given.steps * 8
        counts = {"kit": packed_samples(kit) if mode == "mixed" else plain, "transformers": plain}
        sides: dict[str, list[dict[str, Any]]] = {"kit": [], "transformers": []}
        for _ in range(1 if mode == "memory" else given.repeats):
            for side, one in (("transformers", spec), ("kit", kit)):
                sides[side].append(measured(side, one, given.threads, cold=mode == "memory"))
    losses = {side: found[0]["losses"] for side, found in sides.items()}
    if mode == "memory":
        peaks = {side: found[0]["peak"] / 2**30 for side, found in sides.items()}
        ratio = peaks["kit"] / peaks["transformers"]
        SAY(f"memory: {peaks['kit']:.2f} GiB against {peaks['transformers']:.2f} GiB: {ratio:.2f} times as much\n")
        SAY(told(losses))
        return ratio <= 0.6
    rates = {side: rate(found, counts[side]) for side, found in sides.items()}
    ratio = rates["kit"] / rates["transformers"]
    SAY(f"{mode}: {rates['kit']:.2f} samples/s against {rates['transformers']:.2f}: {ratio:.2f} times as fast\n")
    SAY(told(losses))
    return ratio >= {"same": 1.0, "mixed": 1.5}[mode]


def packed_samples(spec: dict[str, Any]) -> int:
    """How many samples the packed stage takes."""
    from vlm.train.batches import Batches
    from vlm.train.reader import Reader

    stage = vlm.recipe.read_recipe(spec).stages[0]
    reader = Reader(mixture(stage.data, seed=0), vlm.assemble(spec).processor, limit=stage.pack)
    steps = Batches(stage, reader).steps()
    return sum(len(row) for step in steps for device in step for micro in device for row in micro)


def cache(given: argparse.Namespace) -> bool:
    """The kit with features on disk against the kit without; the first epoch fills the disk and does not count."""
    with tempfile.TemporaryDirectory() as scratch:
        rows = write_rows(Path(scratch), "cache", count=8 * given.steps)
        spec = recipe("cache", rows, steps=given.steps)
        cached = recipe("cache", rows, steps=given.steps, cache={"folder": scratch + "/features", "dtype": "float32"})
        measured("kit", cached, given.threads)
        sides: dict[str, list[dict[str, Any]]] = {"cached": [], "plain": []}
        for _ in range(given.repeats):
            sides["plain"].append(measured("kit", spec, given.threads))
            sides["cached"].append(measured("kit", cached, given.threads))
    rates = {side: rate(found, given.steps * 8) for side, found in sides.items()}
    ratio = rates["cached"] / rates["plain"]
    SAY(f"cache: {rates['cached']:.2f} samples/s against {rates['plain']:.2f} without: {ratio:.2f} times as fast\n")
    SAY(told({side: found[0]["losses"] for side, found in sides.items()}))
    return ratio >= 3


def told(losses: dict[str, list[float]]) -> str:
    lines = [f"  losses, {side}: " + " ".join(f"{loss:.4f}" for loss in all_) for side, all_ in losses.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("modes", nargs="*", default=["same", "mixed", "cache", "memory"])
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in ("--side", "--spec", "--folder", "--out"):
        options.add_argument(name, help=argparse.SUPPRESS)
    options.add_argument("--cold", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.side:
        return one(given)
    fine = [cache(given) if mode == "cache" else compare(mode, given) for mode in given.modes]
    return int(not all(fine))


if __name__ == "__main__":
    raise SystemExit(main())
