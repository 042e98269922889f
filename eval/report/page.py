"""The report: one HTML file that holds everything it shows, for people who want to look and not only to count."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from vlm import __version__

from ..results import Row, TaskResult
from .cards import samples
from .chart import published
from .html import safe, soft
from .images import Pictures, data_uri, view
from .select import Selection, select
from .task_section import anchor, categories, overview, panel
from .words import counted, phrase, shared

ROOM = 9_500_000
"""Bytes of images on a page, shared evenly by its samples: with the third that base64 adds less than 13 MB."""


def write_report(
    path: Path,
    results: Sequence[TaskResult],
    *,
    title: str,
    curves: Sequence[Path] = (),
    pictures: Pictures | None = None,
    seed: int = 0,
) -> None:
    """Write the report of all tasks to `path`; it needs no network and no other file, and no script to be read.

    Args:
        path: where to.
        results: one per task.
        title: the heading.
        curves: PNG files, such as one plot of the loss per stage.
        pictures: gives the images of a row; without it answers are shown alone.
        seed: chooses the random selection.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _page(results, title=title, curves=curves, pictures=pictures, seed=seed)
    path.write_text(page, encoding="utf8", errors="backslashreplace", newline="\n")


def _page(
    results: Sequence[TaskResult], *, title: str, curves: Sequence[Path], pictures: Pictures | None, seed: int
) -> str:
    selections = [select(result.rows, seed) for result in results]
    room = ROOM // max(1, sum(selection.cards for selection in selections))

    def shown_by(row: Row) -> str:
        return "" if pictures is None else view(row, pictures, room)

    sections = (
        _section(
            result, selection, samples(selection, shown_by, template=result.conditions.prompt, alone=len(results) == 1)
        )
        for result, selection in zip(results, selections, strict=True)
    )
    style, script = _file("report.css"), _file("report.js")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">
<title>{safe(title)}</title><style>
{style}</style></head><body><main>
<header id="top"><h1>{safe(title)}</h1><p class="soft">{_heading(results)}</p></header>
{overview(results) if curves or len(results) > 1 else ""}
{_curves(curves)}
{"".join(sections)}
</main><script>{script}</script></body></html>
"""


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf8")


def _policy(script: str) -> str:
    """What a browser may do with the page: show images that are in it and run this one script, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _heading(results: Sequence[TaskResult]) -> str:
    n, errors = (sum(getattr(result.counts, name) for result in results) for name in ("n", "errors"))
    counts = (counted(len(results), "task"), counted(n, "sample"), counted(errors, "error"))
    alike = [phrase(name, value) for name, value in shared(results).items() if name in ("model", "decoding")]
    return safe(" · ".join((*counts, *alike, f"vlm-kit {__version__}")))


def _curves(curves: Sequence[Path]) -> str:
    if not curves:
        return ""
    return f'<h2>Training</h2><div class="grid curves">{"".join(map(_curve, curves))}</div>'


def _curve(path: Path) -> str:
    try:
        image = f'<img alt="Curve of {safe(path.stem)}" src="{data_uri(path.read_bytes(), "png")}">'
    except OSError as error:
        image = f'<p class="soft">cannot be read: {safe(error)}</p>'
    return f'<figure class="panel">{image}</figure>'


def _section(result: TaskResult, selection: Selection, lists: str) -> str:
    version = soft(f"v{result.conditions.task_version}")
    return f"""<section id="{anchor(result)}"><h2>{safe(result.task)} {version}<a class="up" href="#top">↑ top</a></h2>
{panel(result)}
{published(result)}
{categories(result)}
{lists}
</section>"""
