"""Plans a 72B recipe in a process of its own and prints seconds and memory: `python benchmarks/plan_72b.py`.

The whole command is measured from outside, imports and all: parameters, tokens, FLOPs and memory of two stages over
eight devices. Exit status 1 if it takes more than `--seconds` or `--gib`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
model:
  encoders:
    name: siglip
    config:
      {hidden_size: 1152, intermediate_size: 4304, num_hidden_layers: 27, num_attention_heads: 16, image_size: 378,
       patch_size: 14}
  connector: mlp
  llm:
    tokenizer: bytes
    dtype: bfloat16
    config:
      {model_type: qwen2, hidden_size: 8192, intermediate_size: 29568, num_hidden_layers: 80, num_attention_heads: 64,
       num_key_value_heads: 8, vocab_size: 152064, max_position_embeddings: 32768}
stages:
  - {name: align, train: {connector: 1e-3}, data: captions.json, steps: 2000, batch_size: 256, micro_batch_size: 4}
  - name: instruct
    train: {connector: 2e-5, llm: 2e-5}
    data: mix.json
    steps: 5000
    batch_size: 128
    micro_batch_size: 1
"""


def measure(folder: Path) -> tuple[dict[str, int], float, float]:
    """(parameters by part, seconds, GiB) of one `vlm plan`."""
    recipe, output = folder / "72b.yaml", folder / "plan.json"
    recipe.write_text(RECIPE, encoding="utf8")
    command = [sys.executable, "-m", "vlm", "plan", str(recipe), "1280x720", "--devices", "8", "--json"]
    with output.open("wb") as file:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=file)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    found = json.loads(output.read_text(encoding="utf8"))
    if found["notes"] or set(found["training"]) != {"align", "instruct"}:
        raise SystemExit(f"not all was counted: {found['notes']}")
    return found["parameters"], seconds, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--gib", type=float, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        parameters, seconds, gib = measure(Path(place))
    sys.stdout.write(f"{parameters['llm'] / 1e9:.2f} B parameters in the LLM: {seconds:.1f} s, {gib:.2f} GiB\n")
    sys.exit(1 if seconds > arguments.seconds or gib > arguments.gib else 0)
