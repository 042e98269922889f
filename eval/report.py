"""The report: one HTML file that holds everything it shows, for people who want to look and not only to count."""

import base64
import io
import random
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vlm import __version__
from vlm.images import open_image

from .results import CategoryScore, Row, TaskResult, percent

Pictures = Callable[[Row], Sequence[Image.Image]]
"""The images of a row as the encoder saw them; an `ImageError` or `DataError` if they cannot be had."""

WORST, RANDOM = 12, 24
MOST_PICTURES = 6
SMALL, LARGE = 160, 640
"""Pixels of the longer side: below the first an image is enlarged without smoothing, above the second it is reduced."""

_MARKS = {
    "right": "✓ right",
    "partly": "◐ partly right",
    "wrong": "✗ wrong",
    "error": "⚠ error",
    "missing": "⚠ missing",
    "faulty": "⚠ faulty annotation",
    "unscored": "hidden",
}
_ORDER = {"error": 0, "missing": 1, "wrong": 2, "partly": 3, "right": 4, "faulty": 5, "unscored": 6}


def write_report(
    path: Path,
    results: Sequence[TaskResult],
    *,
    title: str,
    curves: Sequence[Path] = (),
    pictures: Pictures | None = None,
    seed: int = 0,
) -> None:
    """Write the report of all tasks to `path`; it needs no network, no script and no other file.

    Args:
        path: where to.
        results: one per task.
        title: the heading.
        curves: PNG files, such as one plot of the loss per stage.
        pictures: gives the images of a row; without it answers are shown alone.
        seed: chooses the random selection.
    """
    sections = [_section(result, result.rows, pictures, seed) for result in results]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>
{(Path(__file__).parent / "report.css").read_text(encoding="utf8")}</style></head><body><main>
<header><h1>{escape(title)}</h1><p class="soft">{_heading(results)}</p></header>
<div class="grid scores">{"".join(map(_score_card, results))}</div>
{_curves(curves)}
{"".join(sections)}
</main></body></html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf8", errors="backslashreplace")


def _heading(results: Sequence[TaskResult]) -> str:
    samples, errors = sum(result.counts.n for result in results), sum(result.counts.errors for result in results)
    tasks = _counted(len(results), "task")
    return f"{tasks} · {_counted(samples, 'sample')} · {_counted(errors, 'error')} · vlm-kit {escape(__version__)}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _score_card(result: TaskResult) -> str:
    low_high = f"95 % interval {percent(result.interval[0])} – {percent(result.interval[1])}" if result.interval else ""
    chips = (
        _chip(result.counts.n, "sample"),
        _chip(result.counts.errors, "error", "alarm"),
        _chip(result.counts.empty, "empty answer", "warn"),
        _chip(result.counts.truncated, "truncated answer", "warn"),
    )
    return f"""<a class="panel" href="#{escape(result.task)}"><strong>{escape(result.task)}</strong>
<span class="soft">v{result.conditions.task_version}</span><div class="big">{percent(result.score)}</div>
<div class="soft">{_metric(result)}</div>{_gauge(result.score, result.interval)}<div class="soft">{low_high}</div>
<div class="chips">{"".join(chips)}</div></a>"""


def _chip(number: int, what: str, style: str = "") -> str:
    return f'<span class="chip {style if number else ""}">{_counted(number, what)}</span>'


def _metric(result: TaskResult) -> str:
    return escape(result.conditions.metric) + (" (lower is better)" if result.scale.better == "lower" else "")


def _gauge(score: float, interval: tuple[float, float] | None = None) -> str:
    ends = ""
    if interval:
        low, high = (100 * min(1.0, max(0.0, end)) for end in interval)
        ends = f'<i class="ends" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
    width = 100 * min(1.0, max(0.0, score))
    return f'<div class="gauge"><i class="fill" style="width:{width:.2f}%"></i>{ends}</div>'


def _curves(curves: Sequence[Path]) -> str:
    if not curves:
        return ""
    return f'<h2>Training</h2><div class="grid curves">{"".join(map(_curve, curves))}</div>'


def _curve(path: Path) -> str:
    try:
        shown = f'<img alt="Curve of {escape(path.stem)}" src="{_data_uri(path.read_bytes(), "png")}">'
    except OSError as error:
        shown = f'<p class="soft">cannot be read: {escape(str(error))}</p>'
    return f'<figure class="panel">{shown}</figure>'


def _section(result: TaskResult, rows: Sequence[Row], pictures: Pictures | None, seed: int) -> str:
    rng = random.Random(seed)
    mixed = rng.sample(list(rows), len(rows))  # equally bad answers come in no particular order
    missed = [row for row in mixed if row.verdict != "right"]
    worst = sorted(missed, key=lambda row: (_ORDER[row.verdict], row.score.goodness if row.score else 0))[:WORST]
    note = f"{len(worst)} of the {len(missed):,} that are not right" if missed else "every answer is right"
    return f"""<section id="{escape(result.task)}"><h2>{escape(result.task)}</h2>{_details(result)}
{_categories(result.categories)}
<h3>Worst first <small>{note}</small></h3>{_cards(worst, pictures)}
<h3>Random selection <small>{min(RANDOM, len(rows))} of {len(rows):,}</small></h3>{_cards(mixed[:RANDOM], pictures)}
</section>"""


def _details(result: TaskResult) -> str:
    conditions = result.conditions
    facts = {
        "prompt": conditions.prompt,
        "metric": conditions.metric,
        "data": ", ".join(f"{key}: {value}" for key, value in conditions.source.items()),
        "decoding": ", ".join(f"{key}: {value}" for key, value in conditions.decoding.items()),
        "model": conditions.model,
        "task version": conditions.task_version,
        "kit version": conditions.kit_version,
    }
    return f"<details><summary>How this was measured</summary><dl>{_terms(facts.items())}</dl></details>"


def _terms(facts: Iterable[tuple[str, Any]]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd>" for name, value in facts)


def _categories(categories: dict[str, CategoryScore]) -> str:
    if not categories:
        return ""
    bars = "".join(_category(name, category) for name, category in categories.items())
    return f'<h3>By category</h3><div class="panel bars">{bars}</div>'


def _category(name: str, category: CategoryScore) -> str:
    errors = f" · {_counted(category.errors, 'error')}" if category.errors else ""
    value = f'<strong>{percent(category.score)}</strong> <span class="soft">of {category.n:,}{errors}</span>'
    label = escape(name) or "(none)"
    return f'<span class="name">{label}</span>{_gauge(category.score)}<span class="value">{value}</span>'


def _cards(rows: Sequence[Row], pictures: Pictures | None) -> str:
    return f'<div class="grid">{"".join(_card(row, pictures) for row in rows)}</div>' if rows else ""


def _card(row: Row, pictures: Pictures | None) -> str:
    what, said = ("answer", row.answer) if row.error is None else ("error", row.error)
    said = escape(said) or '<span class="soft">(empty)</span>'
    truth = " · ".join(escape(reference) for reference in dict.fromkeys(row.question.references)) or "(none)"
    cut = " · truncated" if row.reply and row.reply.truncated else ""
    mark = _MARKS[row.verdict] + (f" ({percent(row.score.goodness)})" if row.score and row.verdict == "partly" else "")
    category = f" · {escape(row.question.category)}" if row.question.category else ""
    return f"""<article class="panel sample {row.verdict}">{_view(row, pictures)}<div class="said">
<p class="asked">{escape(row.question.prompt) or "(no question)"}</p>
<dl><dt>{what}</dt><dd class="answer">{said}</dd><dt>truth</dt><dd>{truth}</dd></dl>
<div class="foot"><span class="id" title="{escape(row.question.id)}">{escape(row.question.id)}{category}{cut}</span>
<span class="badge">{mark}</span></div></div></article>"""


def _view(row: Row, pictures: Pictures | None) -> str:
    if pictures is None:
        return ""
    try:
        images = list(pictures(row))
    except ValueError as error:  # ImageError and DataError say what is wrong in words for people
        return f'<div class="view"><p>{escape(str(error))}</p></div>'
    more = f"<p>and {len(images) - MOST_PICTURES} more views</p>" if len(images) > MOST_PICTURES else ""
    return f'<div class="view">{"".join(map(_picture, images[:MOST_PICTURES])) or "<p>no image</p>"}{more}</div>'


def _picture(image: Image.Image) -> str:
    image = open_image(image)
    image.thumbnail((LARGE, LARGE))
    small = max(image.size) < SMALL
    stream = io.BytesIO()
    kind = "png" if small else "jpeg"
    image.save(stream, kind, quality=88)
    size = f'width="{image.width}" height="{image.height}"'
    shape = f' class="small" style="aspect-ratio:{image.width}/{image.height}"' if small else ""
    return f'<img alt="what the encoder saw" {size}{shape} src="{_data_uri(stream.getvalue(), kind)}">'


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
