"""What one sees of `vlm compare` in a terminal: the cells before they run, and how far they are."""

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlm.compare.grid import budget_said
from vlm.compare.jobs import Job
from vlm.planning.tables import flops, number

if TYPE_CHECKING:
    from rich.console import Console

    from vlm.compare.study import Study


def dry_run(found: "Study") -> list[Any]:
    """The cells with what each takes."""
    from rich.table import Table
    from rich.text import Text

    baselines = set(found.cells.baselines.values())
    table = Table(title=found.name)
    table.add_column("cell", overflow="fold")
    for heading in ("seeds", "parameters", "tokens", "positions", "steps", "compute"):
        table.add_column(heading, justify="right", no_wrap=True)
    for key, group in found.cells.groups().items():
        plan, steps = found.plans[key], found.steps[key]
        whole = plan.total("flops", steps)
        table.add_row(
            group[0].group + (" (baseline)" if key in baselines else ""),
            str(len(group)),
            number(plan.parameters),
            f"{plan.tokens:,.0f}",
            f"{plan.positions:,.0f}",
            " + ".join(f"{count:,}" for count in steps),
            "not known" if whole is None else flops(round(whole)),
        )
    jobs = len(found.jobs)
    done = sum(one.done for one in found.jobs)
    first = [f"trained first: {', '.join(found.cells.prepared)}"] if found.cells.prepared else []
    notes = [budget_said(found.grid), *first, f"{jobs} runs, {done} of them done"]
    notes += [note for plan in found.plans.values() for note in plan.notes]
    return [table, *(Text(note) for note in dict.fromkeys(notes))]


class Progress:
    """A line for each run that ends, and below them what is running."""

    def __init__(self, jobs: Sequence[Job], console: "Console") -> None:
        self.total = len(jobs)
        self.done = sum(one.done for one in jobs)
        self.console = console
        self._began: dict[str, float] = {}
        self._status: Any = None

    def __enter__(self) -> "Progress":
        self._status = self.console.status("")
        if self.console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def tick(self, running: Sequence[Job]) -> None:
        """Called often."""
        now = time.monotonic()
        said = [f"{one.name} {now - self._began.setdefault(one.name, now):.0f} s" for one in running]
        self._status.update(f"{self.done} of {self.total} done; running: {', '.join(said) or 'nothing'}")

    def ended(self, one: Job) -> None:
        """Called with each run that has ended."""
        from rich.text import Text

        self.done += one.done
        seconds = time.monotonic() - self._began.get(one.name, time.monotonic())
        told = f"{seconds:.0f} s{_scores(one)}" if one.done else f"FAILED: {one.error}"
        self.console.print(Text(f"[{self.done}/{self.total}] {one.name}: {told}", "" if one.done else "red"))


def _scores(one: Job) -> str:
    file = one.folder / "eval" / "results.json"
    if not file.is_file():
        return ""
    results = json.loads(file.read_text(encoding="utf8"))["results"]
    figures = [(task["task"], next(iter(task["figures"].values()), None)) for task in results]
    return "".join(f", {name} {figure['value']:.3f}" for name, figure in figures if figure)
