"""The shipped studies, run and written up: `vlm compare` on each of vlm/studies/*.yaml -> docs/studies.md and plots.

Run on a quiet machine with two cores: `python benchmarks/studies.py` (under an hour for all three; two cells at a
time, one core each). Interrupted, the same command goes on. `--smoke` goes the whole way in a few steps and writes to
`--out` only.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from demo import machine
from PIL import Image
from rich.console import Console

from vlm.compare import study as comparing
from vlm.compare.grid import shipped_studies
from vlm.eval.comparison.plots import plot_all
from vlm.eval.comparison.tables import markdown
from vlm.eval.comparison.words import remarks
from vlm.recipe import read_yaml

ROOT = Path(__file__).parent.parent
SHOWN = {"nvlm": ("tokens", "compute"), "connectors": ("tokens", "differences"), "freezing": ("compute", "differences")}
"""Which plots stand on the page."""

TITLES = {
    "nvlm": "Visual tokens in the sequence, or reached by cross-attention?",
    "connectors": "Connectors at equal numbers of visual tokens",
    "freezing": "Which parts train when",
}


def smoke(name: str) -> dict[str, Any]:
    """The study with so few steps, questions and seeds that it learns nothing."""
    grid = read_yaml(shipped_studies()[name])
    for changes in (grid["change"], *grid["prepare"].values()):
        for stage in changes["stages"]:
            stage["steps"] = max(2, stage["steps"] // 100)
    grid["axes"]["seed"] = grid["axes"]["seed"][:2]
    return {**grid, "limit": 40}


def section(name: str, result: Any, folder: Path) -> str:
    """A study's part of the page; its pictures go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (task,) = result.tasks
    drawn = plot_all(result, folder)[task.task]
    pictures = []
    for kind, path in drawn.items():
        if kind in SHOWN[name]:
            kept = folder / f"{name}-{kind}.png"
            with Image.open(path) as image:
                image.convert("RGB").quantize(96).save(kept, optimize=True)
            pictures.append(f"![{result.title}: {kind}]({folder.name}/{kept.name})")
        path.unlink()
    said = "\n".join(f"- {remark}" for remark in remarks(result, task))
    text = [f"## {TITLES[name]}", f"`vlm compare {name}`: {result.description}", FINDINGS[name]]
    return "\n\n".join([*filter(None, text), *pictures, markdown(result, task).strip(), said])


INTRODUCTION = """# Three studies

They come with the kit (`vlm list studies`), need no download and run on a CPU. All start from the same two parts, which
are trained apart before: an encoder that has learned to read slots (48 tokens, 4 x 12), and a small LLM that has
learned the questions from descriptions in words (`described` in the data source `handwriting`). A connector then has to
translate the one's tokens for the other, as between a pretrained encoder and a pretrained LLM. The task is
`handwriting`: 2100 pictures by writers that training never saw, seven kinds of question.

What holds for models of a million parameters on handwritten numbers need not hold for large ones: the studies show how
to ask such a question, at equal cost and with honest intervals, on one's own parts and data.
[compare.md](compare.md) explains the columns and the test. NVLM has a hybrid of both routes as well (tiles by
cross-attention, the thumbnail in the sequence); it joins the first study once the kit has that route."""

FINDINGS = {"nvlm": "", "connectors": "", "freezing": ""}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--studies", nargs="+", default=list(SHOWN), choices=list(SHOWN))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    console, parts, failed = Console(), [INTRODUCTION], 0
    for name in arguments.studies:
        start, out = time.perf_counter(), (arguments.out / name).resolve()
        found = comparing.study(smoke(name) if arguments.smoke else name, out)
        result = comparing.compare(found, out, at_once=arguments.jobs, console=console)
        console.print(f"{name}: {(time.perf_counter() - start) / 60:.1f} min, {len(result.failed)} failed")
        failed += len(result.failed)
        parts.append(section(name, result, (arguments.out if arguments.smoke else ROOT / "docs") / "studies"))
    parts.append(f"Run by `python benchmarks/studies.py` on {machine()}, {arguments.jobs} cells at a time.")
    page = (arguments.out if arguments.smoke else ROOT / "docs") / "studies.md"
    if len(arguments.studies) == len(SHOWN):
        page.write_text("\n\n".join(parts) + "\n", encoding="utf8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
