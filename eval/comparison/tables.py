"""A comparison in a terminal and in Markdown."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .comparison import Comparison, TaskComparison
from .words import FAILED, remarks, table
from .words import Table as Words


def tables(comparison: Comparison, width: int) -> RenderableType:
    """A table of each task with what must be said beneath it; in two pieces where there is no room for one.

    Args:
        comparison: the grid.
        width: characters of a line.
    """
    tasks: Sequence[TaskComparison | None] = comparison.tasks or [None]
    shown: list[RenderableType] = []
    for task in tasks:
        title = comparison.title if task is None else f"{comparison.title}: {task.task}"
        shown += _pieces(table(comparison, task).brief(), title, width)
        shown += [Text(remark, "red" if FAILED in remark else "dim") for remark in remarks(comparison, task)]
    return Group(*shown)


def _pieces(found: Words, title: str, width: int) -> list[RenderableType]:
    whole = _grid(found, range(len(found.columns)), title)
    if Console(width=1000).measure(whole).maximum <= width:
        return [whole]
    costs = next(k for k, column in enumerate(found.columns) if column.heading == "tokens")
    return [_grid(found, range(costs), title), _grid(found, [0, *range(costs, len(found.columns))], "")]


def _grid(found: Words, chosen: Sequence[int], title: str) -> Table:
    grid = Table(title=title or None)
    for number in chosen:
        grid.add_column(found.columns[number].heading, justify="right" if number else "left", no_wrap=number > 0)
    for row in found.rows:
        grid.add_row(*(Text(row[number], "bold red" if FAILED in row[number] else "") for number in chosen))
    return grid


def markdown(comparison: Comparison, task: TaskComparison) -> str:
    """All columns, for a page of docs."""
    found = table(comparison, task)
    lines = [
        [column.heading for column in found.columns],
        ["---"] * len(found.columns),
        *found.rows,
    ]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
