"""Does data keep up, and what does it cost: `python benchmarks/loader.py`.

Speed: samples/s of one worker process, JSON with JPEG files and tar shards in turn, medians of `--repeats` passes in
random order; beside them a training step of a frozen ViT-B/16 at 384 px, 64 latents and an LLM of about 60M
parameters, both by the clock and in CPU time, which counts where other programs run too. Exit status 1 if a core does
not prepare more samples than it trains. With `--step SAMPLES_PER_S` the step is not measured.

Memory: what a process holds, and how long it takes, to open 1,000,000 rows and read 2,000 of them at random: JSON lines
and a JSON list by the kit, the same file through `json.loads` into a list, and a tar shard of 100,000 samples.
"""

import argparse
import io
import json
import multiprocessing as mp
import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import vlm
from vlm.collate import Example
from vlm.data import JsonSource, Source
from vlm.images import open_image
from vlm.processor import Processor
from vlm.train.converters.writers import Lines, Shards
from vlm.train.sources.tars import Tars

IMAGES, BATCH, STEP = 256, 8, 2
CPU = "in a second of CPU time"
ANSWER = "A person stands beside a red bus in front of a brick house, and a dog looks at them. " * 3


def recipe() -> dict[str, Any]:
    """The setting of the cache benchmark: the encoder dominates."""
    vit = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    llm = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "num_attention_heads": 8}
    return {
        "model": {
            "encoders": {"name": "siglip", "config": {**vit, "image_size": 384, "patch_size": 16}},
            "connector": {"name": "resampler", "latents": 64},
            "llm": {"tokenizer": "bytes", "config": {"model_type": "llama", **llm, "max_position_embeddings": 2048}},
        }
    }


def picture(seed: int) -> bytes:
    """A JPEG of 640 x 480 of about the size of a photo's: smooth shapes and some noise."""
    rng = np.random.default_rng(seed)
    shapes = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    smooth = shapes.resize((640, 480), Image.Resampling.BICUBIC)
    noise = rng.normal(0, 6, (480, 640, 1))
    stream = io.BytesIO()
    pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_data(folder: Path) -> dict[str, Source]:
    """The same samples as JSON lines beside JPEG files and as tar shards."""
    shards = Shards(folder / "shard.tar", 64)
    with Lines(folder / "rows.jsonl") as lines, shards:
        for number in range(IMAGES):
            path = folder / f"{number}.jpg"
            path.write_bytes(picture(number))
            row = {"id": f"n{number}", "question": "Describe the picture in a sentence or two.", "answer": ANSWER}
            lines.write(row, str(path))
            shards.write(row, str(path))
    size = statistics.mean(path.stat().st_size for path in folder.glob("*.jpg"))
    show(f"{IMAGES} samples, JPEG of 640 x 480, {size / 1024:.0f} KiB on average")
    return {
        "JSON + JPEG": JsonSource(path=str(folder / "rows.jsonl")),
        "tar shards": Tars(path=str(folder / f"shard-{{000000..{IMAGES // 64 - 1:06d}}}.tar")),
    }


class Encoded(Dataset[Example]):
    """Samples as a training process gets them."""

    def __init__(self, source: Source, processor: Processor) -> None:
        self.source, self.processor = source, processor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return self.processor.encode(self.source[index])


def rates(source: Source, processor: Processor, seed: int) -> dict[str, float]:
    """Samples/s of one process in random order: rows alone, with images decoded, ready for the model; of one worker.
    On a machine that others use too, seconds of CPU time are the steadier measure.
    """
    torch.set_num_threads(1)
    order = list(range(len(source)))
    random.Random(seed).shuffle(order)
    steps: dict[str, Callable[[int], Any]] = {
        "row": lambda index: source[index],
        "+ image decoded": lambda index: [open_image(image) for image in source[index].images],
        "+ views, tokens": lambda index: processor.encode(source[index]),
    }
    found = {}
    for name, step in steps.items():
        wall, cpu = timed(lambda step=step: [step(index) for index in order])
        found[name] = len(order) / wall
    found[CPU] = len(order) / cpu
    data = Encoded(source, processor)
    batches = DataLoader(data, batch_size=BATCH, sampler=order, num_workers=1, collate_fn=processor.collate)
    iterator = iter(batches)
    next(iterator)  # the worker has started
    found["one worker, batches"] = (len(order) - BATCH) / timed(lambda: [None for _ in iterator])[0]
    return found


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds that it takes, and seconds of CPU time."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def step_rate(source: Source, repeats: int) -> tuple[float, float]:
    """Samples/s of a training step, and in a second of CPU time on one thread: encoder frozen, the rest trained."""
    from vlm.train.objectives import LanguageModelling

    torch.manual_seed(0)
    model = vlm.assemble(recipe()).train()
    model.encoders.requires_grad_(False)
    sizes = {part: sum(p.numel() for p in module.parameters()) / 1e6 for part, module in model.parts().items()}
    show("step: " + ", ".join(f"{part} {size:.0f}M" for part, size in sizes.items()))
    batch = model.processor([source[index] for index in range(STEP)])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    objective = LanguageModelling()

    def step() -> None:
        loss = objective(model, batch)
        (loss.total / loss.count).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    times = [timed(step) for _ in range(repeats)]
    return STEP / statistics.median(wall for wall, _ in times), STEP / statistics.median(cpu for _, cpu in times)


def speed(folder: Path, repeats: int, told: float | None) -> bool:
    """Whether one worker outruns the step."""
    processor = vlm.assemble(recipe()).processor
    sources = write_data(folder)
    runs = [{name: rates(source, processor, seed) for name, source in sources.items()} for seed in range(repeats)]
    workers = []
    for name in sources:
        middle = {step: statistics.median(run[name][step] for run in runs) for step in runs[0][name]}
        show(f"{name:12}" + "".join(f"  {step} {rate:,.0f}/s" for step, rate in middle.items()))
        workers.append(middle)
    wall, cpu = (told, told) if told else step_rate(sources["tar shards"], repeats)
    show(f"training step {wall:.2f} samples/s, {cpu:.2f} {CPU}")
    slowest = min(middle[CPU] for middle in workers) / cpu
    show(f"one core prepares {slowest:.0f} times as many samples as it trains")
    return slowest > 1


def rows(count: int) -> Iterator[dict[str, Any]]:
    for number in range(count):
        talk = [{"from": "human", "value": f"<image>\nWhat is in picture {number}?"}, {"from": "gpt", "value": ANSWER}]
        yield {"id": f"n{number}", "image": f"train2017/{number:012d}.jpg", "conversations": talk}


def write_large(folder: Path, count: int) -> None:
    with (folder / "large.jsonl").open("w") as lines, (folder / "large.json").open("w") as whole:
        for number, row in enumerate(rows(count)):
            text = json.dumps(row)
            lines.write(text + "\n")
            whole.write(("[" if number == 0 else ",\n") + text)
        whole.write("]")
    with tarfile.open(folder / "large.tar", "w") as archive:
        for number in range(count // 10):
            for name, content in ((f"{number:09d}.jpg", b"x" * 400), (f"{number:09d}.txt", b"A caption.")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def held() -> float:
    """MiB that this process holds and shares with nobody's files."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return float(fields["RssAnon"].split()[0]) / 1024


def open_and_read(kind: str, path: str, answer: Any) -> None:
    """In a process of its own: MiB more than before, seconds of CPU time to open, microseconds of it a row."""
    openers: dict[str, Callable[[], Any]] = {
        "json.loads of every line": lambda: [json.loads(line) for line in Path(path).read_text().splitlines()],
        "kit, JSON lines": lambda: JsonSource(path=path),
        "kit, JSON list": lambda: JsonSource(path=path),
        "kit, tar": lambda: Tars(path=path),
        "kit, tar again": lambda: Tars(path=path),
    }
    before, start = held(), time.process_time()
    source = openers[kind]()
    opened = time.process_time() - start
    order = random.Random(0).sample(range(len(source)), 2000)
    _, reading = timed(lambda: [source[index] for index in order])
    answer.put((len(source), held() - before, opened, 1e6 * reading / len(order)))


def memory(folder: Path, count: int) -> None:
    write_large(folder, count)
    kinds = [
        ("json.loads of every line", "large.jsonl"),
        ("kit, JSON lines", "large.jsonl"),
        ("kit, JSON list", "large.json"),
        ("kit, tar", "large.tar"),
        ("kit, tar again", "large.tar"),
    ]
    context = mp.get_context("spawn")
    for kind, name in kinds:
        answer = context.Queue()
        process = context.Process(target=open_and_read, args=(kind, str(folder / name), answer))
        process.start()
        number, mib, opened, each = answer.get()
        process.join()
        size = os.path.getsize(folder / name) / 2**20
        told = f"holds {mib:,.0f} MiB, opened in {opened:.1f} s of CPU time, {each:.0f} us a row"
        show(f"{kind:26} {number:>9,} rows, {size:,.0f} MiB: {told}")


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--step", type=float, help="samples/s of a training step measured elsewhere")
    parser.add_argument("--part", choices=["speed", "memory", "both"], default="both")
    options = parser.parse_args()
    fast = True
    with tempfile.TemporaryDirectory() as folder:
        if options.part != "memory":
            fast = speed(Path(folder), options.repeats, options.step)
        if options.part != "speed":
            memory(Path(folder), options.rows)
    return 0 if fast else 1


if __name__ == "__main__":
    sys.exit(main())
