"""The shipped studies, run: `vlm compare` on each of vlm/studies/*.yaml -> the tables and plots in docs/studies.md.

What the page says about them is written by people, and has to be read again after a run.

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
    head = f"`vlm compare {name}`: {result.description}"
    return "\n\n".join([head, *pictures, markdown(result, task).strip(), said])


def replaced(page: str, name: str, text: str) -> str:
    """The page with `text` between the comments that bear `name`; what people wrote around them stays.

    Raises:
        ValueError: the page has no such comments.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no `{begin}` with an `{end}` after it")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"))
    parser.add_argument("--studies", nargs="+", default=list(SHOWN), choices=list(SHOWN))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    console, failed = Console(), 0
    page = ROOT / "docs" / "studies.md"
    text = page.read_text(encoding="utf8")
    if arguments.smoke:
        page = arguments.out / "studies.md"
    for name in arguments.studies:
        start, out = time.perf_counter(), (arguments.out / name).resolve()
        found = comparing.study(smoke(name) if arguments.smoke else name, out)
        result = comparing.compare(found, out, at_once=arguments.jobs, console=console)
        console.print(f"{name}: {(time.perf_counter() - start) / 60:.1f} min, {len(result.failed)} failed")
        failed += len(result.failed)
        text = replaced(text, name, section(name, result, page.parent / "studies"))
    ran = f"Run by `python benchmarks/studies.py` on {machine()}, {arguments.jobs} cells at a time"
    text = replaced(text, "machine", f"{ran}. Scores and steps do not depend on the machine, seconds do.")
    page.write_text(text, encoding="utf8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
