"""The shipped recipes as a page -> docs/models.md: `python benchmarks/catalogue.py`. Its numbers are `vlm plan`'s."""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from vlm.planning.plan import Plan, plan
from vlm.recipe import EncoderSpec, StageSpec, read_recipe, shipped_recipes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "models.md"
SIZES = {"336 x 336": (336, 336), "1280 x 720": (1280, 720), "A4, 1654 x 2339": (1654, 2339)}
"""(width, height) in pixels."""

INTRO = """# Models

The recipes that come with the kit, as `vlm plan` counts them; `vlm plan llava-1.5 photo.jpg` counts for your images.
`vlm train llava-1.5 --set stages.0.data=mine.json --set stages.1.data=more.json` trains on your own data: the files
that a recipe names are placeholders, called after the paper's. Batches are the papers' too, for many devices: on a few,
add `--set stages.0.micro_batch_size=1` and so on. Written by `benchmarks/catalogue.py`.

## Parts

`@` is the size in pixels where it is not the weights' own; in brackets what an encoder's tokens pass before a merge.

"""
COUNTS = """
## Parameters

"""
TOKENS = """
## Visual tokens

Of one image, by its width and height in pixels, in the trained model. Tags around them are not counted.

"""
STAGES = """
## Stages

What trains, with its learning rate, and steps x samples a step; everything else is frozen. `@` is the size of the views
in that stage, or its view policy, where they differ from the trained model's.

"""
NOTES = """
## Notes

Where a recipe is not as published, or what was not published. Each has these lines at its top.

"""


def names() -> list[str]:
    """The recipes on the page."""
    return [name for name in shipped_recipes() if name != "demo"]


@cache
def planned(name: str) -> Plan:
    """The plan of a recipe, with the images of the page."""
    return plan(name, images=[f"{width}x{height}" for width, height in SIZES.values()], costs=False)


def page() -> str:
    """The whole page."""
    parts = ["recipe", "paper", "encoders", "views", "connector", "LLM"]
    lines = [INTRO, *_table(parts, [_parts(name) for name in names()])]
    lines += [COUNTS, *_table(["recipe", "encoders", "connector", "LLM", "sum"], map(_counts, names()), right=4)]
    lines += [TOKENS, *_table(["recipe", *SIZES], [_tokens(name) for name in names()], right=len(SIZES))]
    lines += [STAGES, *_table(["recipe", "stages"], [_stages(name) for name in names()])]
    lines += [NOTES, *(f"- **{name}**: {note}\n" for name in names() if (note := _note(name)))]
    return "".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> Iterator[str]:
    rules = ["---"] * (len(header) - right) + ["--:"] * right
    for row in (header, rules, *rows):
        yield f"| {' | '.join(row)} |\n"


def _parts(name: str) -> list[str]:
    spec = read_recipe(name).model
    ops = [op.name for op in spec.connector]
    return [
        name,
        _paper(name),
        "<br>".join(_encoder(part) for part in spec.encoders),
        spec.views.name,
        ", ".join([*ops, *([] if spec.packer is None else [spec.packer.name])]),
        spec.llm.weights or f"{(spec.llm.config or {})['model_type']}, random",
    ]


def _encoder(part: EncoderSpec) -> str:
    options = part.options
    source = options.get("weights") or options.get("model") or f"patches of {options.get('patch')} pixels"
    size = "" if "size" not in options else f" @ {_size(options['size'])}"
    ops = f" ({', '.join(op.name for op in part.adapter)})" if part.adapter else ""
    return f"{source}{size}{ops}"


def _counts(name: str) -> list[str]:
    counts = planned(name).parameters
    encoders = sum(count for part, count in counts.items() if part.startswith("encoders"))
    return [name, *map(_count, (encoders, counts["connector"], counts["llm"], sum(counts.values())))]


def _tokens(name: str) -> list[str]:
    return [name, *(f"{count:,}" for count in planned(name).tokens.values())]


def _stages(name: str) -> list[str]:
    return [name, "<br>".join(_stage(stage) for stage in read_recipe(name).stages)]


def _stage(stage: StageSpec) -> str:
    """Parts of one rate together, what it shows, steps and samples a step."""
    together = groupby(stage.train.items(), key=lambda item: item[1])
    rates = ", ".join(f"{' '.join(_part(key) for key, _ in items)} {_rate(rate)}" for rate, items in together)
    shown = [] if stage.size is None else [_size(size) for size in stage.size.values()]
    shown += [] if stage.views is None else [stage.views.name]
    seen = f" @ {' '.join(shown)}" if shown else ""
    return f"{stage.name}: {rates}{seen}, {stage.steps:,} x {stage.batch_size:,}"


def _part(key: str) -> str:
    return f"`{key}`" if "*" in key or key.count(".") > 1 else key


def _rate(rate: float) -> str:
    """`4.2e-5`."""
    digits, _, power = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _size(size: Any) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return str(height) if height == width else f"{height} x {width}"


def _paper(name: str) -> str:
    text = read_recipe(name).description
    found = re.search(r"arXiv (\d{4}\.\d{5})|(https://[^\s),]+)", text)
    if found is None:
        return ""
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found[1] else f"[post]({found[2]})"


def _note(name: str) -> str:
    """The comment below the description."""
    lines = shipped_recipes()[name].read_text(encoding="utf8").splitlines()[1:]
    comment = [line.removeprefix("# ") for line in lines[: next(n for n, line in enumerate(lines) if line[0] != "#")]]
    return " ".join(comment)


def _count(number: int) -> str:
    """Three digits and B or M."""
    size, letter = (1e9, "B") if number >= 1e9 else (1e6, "M")
    whole = len(str(int(number / size)))
    return f"{number / size:.{max(0, 3 - whole)}f} {letter}" if number else "0"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf8")
