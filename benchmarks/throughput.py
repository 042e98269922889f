"""Questions per second against the plain loop: `python benchmarks/throughput.py`.

Four questions about each image, the same weights on both sides: the kit's `replies`, and transformers' own LLaVA with
its `generate`, one question at a time, the image encoded for each. Both sides take turns, the median counts, and the
answers must be the same. Exit status 1 if they are not, or if the kit is less than `--least` times as fast.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image

import vlm
from vlm.interop import to_transformers
from vlm.sample import Sample, ask

QUESTIONS = (
    "What is written on the sign?",
    "How many people are there in the picture?",
    "Which colour has the car that stands on the left?",
    "Is it raining?",
)
SUFFIX = "\nAnswer the question using a single word or phrase."


def recipe(small: bool) -> dict[str, Any]:
    """A CLIP ViT of 336 pixels with LLaVA-1.5's 576 tokens, and a LLaMA: of the sizes of CLIP-base and SmolLM2-135M, or
    smaller. The tokenizer is one of bytes, so questions are about four times as long as they usually are: what they
    share counts for less here than elsewhere."""
    encoder = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    llm = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    if small:
        encoder = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 6}
        llm = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
    config = {**encoder, "image_size": 336, "patch_size": 14}
    language = {"model_type": "llama", **llm, "num_key_value_heads": 3, "max_position_embeddings": 2048}
    return {
        "model": {
            "encoders": {"name": "clip", "config": config, "layers": [-2]},
            "views": "crop",
            "connector": {"name": "mlp", "depth": 2},
            "llm": {"tokenizer": "bytes", "config": language},
        }
    }


def build(small: bool) -> Any:
    """A random model whose answers depend on image and question."""
    torch.manual_seed(0)
    model = vlm.assemble(recipe(small)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def samples(images: int) -> list[Sample]:
    """Four questions about each of so many random pictures."""
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((320, 240))
        for seed in range(images)
    ]
    return [
        ask(question + SUFFIX, [picture], id=f"{number}-{question[:8]}")
        for number, picture in enumerate(pictures)
        for question in QUESTIONS
    ]


def plain(model: Any, other: Any, asked: list[Sample], tokens: int) -> list[str]:
    """The loop that everybody writes first."""
    answers = []
    for sample in asked:
        batch = model.processor([sample])
        ids = batch.input_ids.masked_fill(batch.owner >= 0, other.config.image_token_id)
        with torch.no_grad():
            out = other.generate(
                input_ids=ids,
                attention_mask=batch.attention_mask,
                pixel_values=batch.groups[0].pixels[0],
                max_new_tokens=tokens,
                do_sample=False,
                eos_token_id=model.processor.chat.stop_ids,
                pad_token_id=model.processor.chat.pad_id,
            )
        said = out[0, ids.shape[1] :].tolist()
        end = next((n for n, token in enumerate(said) if token in model.processor.chat.stop_ids), len(said))
        answers.append(model.processor.chat.decode(said[:end]))
    return answers


def kit(model: Any, asked: list[Sample], tokens: int, batch_size: int) -> list[str]:
    """The kit's way."""
    return [answer.text for answer in model.answer(asked, max_new_tokens=tokens, batch_size=batch_size)]


def timed(run: Callable[[], list[str]]) -> tuple[float, list[str]]:
    begin = time.perf_counter()
    answers = run()
    return time.perf_counter() - begin, answers


def main() -> int:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--tokens", type=int, default=16, help="longest answer")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--least", type=float, default=3.0)
    options.add_argument("--small", action="store_true", help="a model of a few million parameters")
    given = options.parse_args()
    model, asked = build(given.small), samples(given.images)
    other = to_transformers(model, architecture="llava").eval()
    kit(model, asked[:4], 2, given.batch_size), plain(model, other, asked[:1], 2)  # nothing is measured cold
    times: dict[str, list[float]] = {"plain": [], "kit": []}
    for _ in range(given.repeats):
        seconds, wanted = timed(lambda: plain(model, other, asked, given.tokens))
        times["plain"].append(seconds)
        seconds, found = timed(lambda: kit(model, asked, given.tokens, given.batch_size))
        times["kit"].append(seconds)
    same = sum(a == b for a, b in zip(wanted, found, strict=True))
    rates = {name: len(asked) / statistics.median(all_of) for name, all_of in times.items()}
    ratio = rates["kit"] / rates["plain"]
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    threads = f"{torch.get_num_threads()} threads, {given.tokens} tokens an answer"
    say = sys.stdout.write
    say(f"{size:.0f} M parameters, {len(asked)} questions about {given.images} images, {threads}\n")
    say(f"plain loop {rates['plain']:.2f} questions/s, kit {rates['kit']:.2f} questions/s: {ratio:.2f} times as fast\n")
    say(f"{same} of {len(asked)} answers are the same, {len(set(found))} different ones among them\n")
    return int(same < len(asked) or ratio < given.least)


if __name__ == "__main__":
    raise SystemExit(main())
