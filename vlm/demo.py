"""`vlm demo`: the embedded default, from nothing to an answered question."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm import running
from vlm.embedded import Handwriting
from vlm.errors import ConfigError, unknown
from vlm.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from rich.console import Console

CONNECTORS: dict[str, list[str]] = {
    "mlp": [],
    "linear": [],
    "perceiver": ["model.connector.latents=16"],
    "cross_attention": ["model.connector.every=1", "model.connector.mlp_ratio=2"],
}
"""Options of each connector at the demo's toy size."""

FAST = ["stages.0.steps=8", "stages.1.steps=4", "stages.2.steps=8"]
"""Overrides that go through all stages in seconds and learn nothing."""


def recipe(connector: str, *, fast: bool = False) -> Recipe:
    """The demo's recipe with another connector.

    Raises:
        ConfigError: the demo has no such connector.
    """
    if connector not in CONNECTORS:
        raise ConfigError(unknown("connector of the demo", connector, CONNECTORS))
    return read_recipe("demo", [f"model.connector={connector}", *CONNECTORS[connector], *(FAST if fast else [])])


def run(connector: str, *, out: Path | None, fast: bool, console: "Console") -> Path:
    """Train, evaluate, write samples and say what to try next; returns the run folder. Run again, it continues."""
    out = out or Path("runs") / ("demo" if connector == "mlp" else f"demo-{connector}")
    chosen = recipe(connector, fast=fast)
    console.print(f"Training a small VLM on handwritten numbers, stage by stage, into [bold]{out}[/].", soft_wrap=True)
    running.run(chosen, [], out=out, console=console)
    _say_next(out, write_samples(out / "samples"), console)
    return out


def write_samples(folder: Path, count: int = 6) -> list[Path]:
    """Pictures of held-out handwriting, named by what is written on them."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [Handwriting(split="test", seed=7).scene(index) for index in range(count)]
    files = [folder / f"{scene.colour}-{scene.number}.png" for scene in scenes]
    for scene, file in zip(scenes, files, strict=True):
        scene.image.save(file)
    return files


def _say_next(out: Path, samples: list[Path], console: Any) -> None:
    def say(text: str, **style: Any) -> None:
        console.print(text, soft_wrap=True, markup=False, **style)

    vlm = "vlm" if shutil.which("vlm") else sys.argv[0]
    say("Ask it yourself:")
    for target, question in ((samples[0], "What is the number?"), (samples[0].parent, "What colour is it?")):
        say("  " + shlex.join([vlm, "ask", str(out), str(target), "-q", question]), style="bold")
