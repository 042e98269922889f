"""The report of a comparison: one HTML file that holds everything it shows."""

from base64 import b64encode
from collections.abc import Mapping
from html import escape
from pathlib import Path

from vlm import __version__

from .comparison import Comparison, Run, TaskComparison
from .words import FAILED, remarks, table

_CAPTIONS = {
    "tokens": "Score by visual tokens. Bars are 95 % intervals, small dots seeds, a hollow mark the baseline.",
    "compute": "Score by planned compute. Bars are 95 % intervals, small dots seeds, a hollow mark the baseline.",
    "differences": "Difference from the baseline, paired by question and seed, with its 95 % interval.",
}


def write_report(path: Path, comparison: Comparison, pictures: Mapping[str, Mapping[str, Path]]) -> None:
    """Write the report; it needs no network, no script and no other file, and leads to those of the runs.

    Args:
        path: where to.
        comparison: what was found.
        pictures: by task and kind, PNG files.
    """
    here = Path(__file__).parent
    files = (here.parent / "report/report.css", here / "comparison.css")
    styles = "".join(path.read_text(encoding="utf8") for path in files)
    sections = [_section(comparison, task, pictures.get(task.task, {})) for task in comparison.tasks]
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(comparison.title)}</title><style>
{styles}</style></head><body><main class="comparison">
<header><h1>{escape(comparison.title)}</h1><p class="soft">{_heading(comparison)}</p>{_about(comparison)}</header>
{_failures(comparison)}
{"".join(sections or [_section(comparison, None, {})])}
{_runs(comparison)}
</main></body></html>
"""
    path.write_text(page, encoding="utf8", errors="backslashreplace")


def _heading(comparison: Comparison) -> str:
    runs = [run for group in comparison.groups for run in group.runs]
    done = sum(bool(run.tallies) for run in runs)
    failed = f" · <strong class='failed'>{len(comparison.failed)} failed</strong>" if comparison.failed else ""
    return f"{len(comparison.groups)} cells · {done} of {len(runs)} runs{failed} · vlm-kit {escape(__version__)}"


def _about(comparison: Comparison) -> str:
    return f"<p>{escape(comparison.description)}</p>" if comparison.description else ""


def _failures(comparison: Comparison) -> str:
    if not comparison.failed:
        return ""
    rows = "".join(f"<dt>{escape(run.name)}</dt><dd>{escape(run.error or '')}</dd>" for run in comparison.failed)
    again = "The same command tries them again; the others are kept."
    return f'<div class="panel alarm"><strong>{FAILED}</strong><dl>{rows}</dl><p class="soft">{again}</p></div>'


def _section(comparison: Comparison, task: TaskComparison | None, pictures: Mapping[str, Path]) -> str:
    heading = "" if task is None else f"<h2>{escape(task.task)}</h2>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in remarks(comparison, task) if not note.startswith(FAILED))
    return f"""<section>{heading}{_plots(pictures)}
{_table(comparison, task)}<ul class="notes">{notes}</ul></section>"""


def _plots(pictures: Mapping[str, Path]) -> str:
    figures = [
        f'<figure class="panel"><img alt="{escape(_CAPTIONS[kind])}" src="data:image/png;base64,'
        f'{b64encode(path.read_bytes()).decode()}"><figcaption>{escape(_CAPTIONS[kind])}</figcaption></figure>'
        for kind, path in pictures.items()
    ]
    return f'<div class="plots">{"".join(figures)}</div>' if figures else ""


def _table(comparison: Comparison, task: TaskComparison | None) -> str:
    found = table(comparison, task)
    head = "".join(f'<th title="{escape(column.help)}">{escape(column.heading)}</th>' for column in found.columns)
    body = []
    for row in found.rows:
        first = f"<th>{escape(row[0])}</th>"
        cells = [f"<td{_style(cell)}>{escape(cell)}</td>" for cell in row[1:]]
        body.append(f"<tr{' class=baseline' if row[0].endswith('(baseline)') else ''}>{first}{''.join(cells)}</tr>")
    words = "".join(f"<dt>{escape(column.heading)}</dt><dd>{escape(column.help)}</dd>" for column in found.columns)
    return f"""<div class="panel wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>
<details><summary>What the columns say</summary><dl>{words}</dl></details>"""


def _style(cell: str) -> str:
    return ' class="failed"' if FAILED in cell else ""


def _runs(comparison: Comparison) -> str:
    rows = "".join(_run(run) for group in comparison.groups for run in group.runs)
    return f"""<h2>Runs</h2><div class="panel wide"><table><thead><tr><th>run</th><th>scores</th><th>train s</th>
<th>eval s</th><th>taken up</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def _run(run: Run) -> str:
    scores = ", ".join(f"{name} {one.figure.scale * one.value:.1f}" for name, one in run.tallies.items())
    shown = f'<td class="failed">{FAILED}</td>' if run.error else f"<td>{escape(scores) or 'not yet'}</td>"
    times = f"<td>{run.training:,.0f}</td><td>{run.evaluation:,.0f}</td><td>{run.attempts}</td>"
    link = f'<a href="cells/{escape(run.name)}/eval/report.html">{escape(run.name)}</a>' if scores else escape(run.name)
    return f"<tr><th>{link}</th>{shown}{times}</tr>"
