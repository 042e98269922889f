"""A plan for a terminal."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from vlm.planning.plan import Plan
from vlm.planning.sample import PlanSample
from vlm.planning.stage import StageCost

if TYPE_CHECKING:
    from rich.table import Table

LISTED = 12
"""Images that are listed one by one; more are shown as a histogram."""
BAR = 30
"""Characters of the longest bar."""

Row = tuple[str, Callable[[StageCost], str]]


def tables(plan: Plan) -> list[Any]:
    """Parameters, visual tokens, FLOPs, memory; then notes."""
    from rich.text import Text

    found = [_parameters(plan), *(_images(plan) if len(plan.images) <= LISTED else _histogram(plan))]
    if plan.forward:
        found += [Text(f"FLOPs: {_said(plan.sample)}", "bold"), _forward(plan)]
    if plan.training:
        found += [_training(plan), Text(f"memory of one device: {_said(plan.largest)}", "bold"), _memory(plan)]
        if next(iter(plan.training.values())).devices > 1:
            found.append(_devices(plan))
    notes = [*plan.notes, *(f"not counted: {message}" for message in plan.unusable.values())]
    return [*found, *(Text(note) for note in notes)]


def _table(title: str, first: str, columns: Iterable[str]) -> "Table":
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold")
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _parameters(plan: Plan) -> "Table":
    table = _table("parameters", "part", ["all", *plan.stages])
    total = {part: [count, *(stage[part] for stage in plan.stages.values())] for part, count in plan.parameters.items()}
    for part, counts in total.items():
        table.add_row(part, *(number(count) for count in counts))
    table.add_section()
    table.add_row("sum", *(number(sum(column)) for column in zip(*total.values(), strict=True)))
    return table


def _images(plan: Plan) -> list[Any]:
    columns = ["views", "tokens", "positions in the sequence", "KV cache"]
    table = _table("visual tokens", "image", [*columns, *(f"tokens in {stage}" for stage in plan.earlier)])
    for name, image in plan.images.items():
        earlier = (f"{counts[name]:,}" if name in counts else "refused" for counts in plan.earlier.values())
        row = (str(image.views), f"{image.tokens:,}", f"{image.positions:,}", _held(plan.cache_of(image)), *earlier)
        table.add_row(name, *row)
    return [table]


def _held(memory: float | None) -> str:
    return "not counted" if memory is None else size(round(memory))


def _histogram(plan: Plan) -> list[Any]:
    from rich.text import Text

    tokens = sorted(plan.tokens.values())
    table = _table(f"visual tokens of {len(tokens):,} images", "tokens", ["images"])
    table.add_column("")
    counts = histogram(tokens)
    most = max(count for _, _, count in counts)
    for first, last, count in counts:
        label = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        table.add_row(label, f"{count:,}", "█" * round(BAR * count / most) or "▏" * bool(count))
    facts = f"least {tokens[0]:,}, median {median(tokens):,.0f}, most {tokens[-1]:,}"
    return [table, Text(f"{facts}; KV cache: {_held(plan.cache)} a token")]


def histogram(values: list[int], bars: int = LISTED) -> list[tuple[int, int, int]]:
    """(first, last, count) of each value where they are few, else of about so many equal ranges of whole numbers."""
    distinct = sorted(set(values))
    if len(distinct) <= bars:
        return [(value, value, values.count(value)) for value in distinct]
    width = -(-(distinct[-1] - distinct[0] + 1) // bars)
    starts = range(distinct[0], distinct[-1] + 1, width)
    return [(start, start + width - 1, sum(start <= value < start + width for value in values)) for start in starts]


def _forward(plan: Plan) -> "Table":
    table = _table("", "forward pass", ["FLOPs", "share"])
    total = sum(plan.forward.values())
    for part, count in plan.forward.items():
        table.add_row(part, flops(count), f"{100 * count / total:.1f} %")
    table.add_section()
    table.add_row("sum", flops(total), "")
    return table


def _training(plan: Plan) -> "Table":
    return _by_stage(
        plan,
        "training",
        [
            ("forward", lambda cost: flops(cost.flops.forward)),
            ("backward", lambda cost: flops(cost.flops.backward)),
            ("a sample", lambda cost: flops(cost.sample_flops)),
            ("  with checkpointing", lambda cost: flops(cost.sample_flops + cost.flops.recomputed)),
            ("a step's samples", lambda cost: f"{cost.batch:,}"),
            ("steps", lambda cost: f"{cost.steps:,}"),
            ("the stage", lambda cost: flops(cost.stage_flops)),
        ],
    )


def _memory(plan: Plan) -> "Table":
    return _by_stage(
        plan,
        "",
        [
            ("precision", lambda cost: cost.precision),
            ("weights in", lambda cost: ", ".join(cost.dtypes)),
            ("samples at a time", lambda cost: f"{cost.micro_batch:,}"),
            ("weights", lambda cost: size(cost.memory.weights)),
            ("gradients", lambda cost: size(cost.memory.gradients)),
            ("optimiser", lambda cost: size(cost.memory.optimiser)),
            ("activations", lambda cost: size(cost.memory.activations)),
            ("  with checkpointing", lambda cost: size(cost.memory.checkpointed)),
            ("low-precision copies", lambda cost: size(cost.memory.copies)),
            ("  with checkpointing", lambda cost: size(cost.memory.trained_copies)),
            ("temporary", lambda cost: size(cost.memory.temporary)),
            ("optimiser's step", lambda cost: size(cost.memory.step)),
            ("at most", lambda cost: size(cost.memory.total())),
            ("  with checkpointing", lambda cost: size(cost.memory.total(checkpointing=True))),
        ],
    )


def _devices(plan: Plan) -> "Table":
    devices = next(iter(plan.training.values())).devices
    table = _table("", f"one of {devices} devices", plan.training)
    spread = [cost.per_device() for cost in plan.training.values()]
    for key, tail in (("plain", ""), ("checkpointed", ", checkpointing")):
        for strategy in spread[0]:
            table.add_row(strategy + tail, *(size(stage[strategy][key]) for stage in spread))
        table.add_section()
    return table


def _by_stage(plan: Plan, first: str, rows: list[Row]) -> "Table":
    table = _table("", first, plan.training)
    for label, show in rows:
        table.add_row(label, *(show(cost) for cost in plan.training.values()))
    return table


def _said(sample: PlanSample | None) -> str:
    if sample is None:
        return ""
    images = {0: "", 1: f"1 image ({sample.image}), "}.get(sample.images, f"{sample.images} images ({sample.image}), ")
    return f"{images}{sample.tokens:,} visual tokens, {sample.text:,} of text, {sample.length:,} positions"


def number(count: int) -> str:
    """`1.23 M`."""
    return _scaled(count, ((1e9, "B"), (1e6, "M"), (1e3, "k")))


def flops(count: int) -> str:
    """`1.23 TFLOP`."""
    units = [(10.0**power, f"{letter}FLOP") for power, letter in zip(range(21, 0, -3), "ZEPTGMk", strict=True)]
    return _scaled(count, units, least="FLOP")


def size(count: int) -> str:
    """Bytes as `1.23 GiB`."""
    return _scaled(count, ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")), least="B")


def _scaled(count: int, units: Sequence[tuple[float, str]], least: str = "") -> str:
    for unit, name in units:
        if count >= unit:
            return f"{count / unit:.2f} {name}"
    return f"{count} {least}".strip()
