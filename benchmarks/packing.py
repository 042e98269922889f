"""How much of 64 devices' time is lost by padding and by waiting: `python benchmarks/packing.py`.

A simulation: no model runs. Lengths are drawn like those of a mixture of LLaVA-1.5's kind whose images are cut into one
to seven tiles of 256 tokens, beside text alone. A device's time for a step is the work of its rows, padding included,
by floating-point operations of SigLIP-so400m and an LLM of 1.5 B parameters, all trained; a step takes as long as its
slowest device.
"""

import sys

import numpy as np

from vlm.train.packing import pack, share

DEVICES, ROWS, CAPACITY, STEPS = 64, 2, 4096, 60
LAYERS, WIDTH, PARAMETERS = 28, 1536, 1.5e9
VIEW = 3 * 2 * 0.4e9 * 729
"""Operations for one view, forward and backward."""


def samples(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """(positions, views) of each."""
    text = np.clip(rng.lognormal(5.2, 0.9, count), 16, 3000).astype(int)
    tiles = rng.choice([0, 1, 2, 3, 5, 7], count, p=[0.15, 0.35, 0.15, 0.15, 0.1, 0.1])
    return [(int(min(length + 256 * views, CAPACITY)), int(views)) for length, views in zip(text, tiles, strict=True)]


def work(lengths: list[int], views: int, padded: int) -> float:
    """Operations of a row whose samples have these lengths, `padded` positions in all."""
    attention = sum(length**2 for length in lengths) * 2 * WIDTH * LAYERS
    return 3 * (2 * PARAMETERS * padded + attention) + VIEW * views


def table(name: str, layout: list[list[list[int]]], drawn: list[tuple[int, int]], *, fill: int | None) -> str:
    """A line: positions that are padding, and devices' time spent waiting.

    Args:
        name: of the layout.
        layout: steps, in each the rows of all devices, one device after the other.
        drawn: the samples.
        fill: what rows are padded to; the longest of the device's if absent.
    """
    real = total = busy = spent = 0.0
    for step in layout:
        times = []
        for at in range(0, len(step), ROWS):
            rows = [[drawn[number][0] for number in row] for row in step[at : at + ROWS]]
            longest = fill or max(map(sum, rows))
            views = [sum(drawn[number][1] for number in row) for row in step[at : at + ROWS]]
            times.append(sum(work(row, seen, longest) for row, seen in zip(rows, views, strict=True)))
            real += sum(map(sum, rows))
            total += longest * len(rows)
        busy += sum(times)
        spent += max(times) * len(times)
    count = sum(len(row) for step in layout for row in step)
    return f"| {name} | {1 - real / total:.1%} | {1 - busy / spent:.1%} | {count / spent * 1e15:.1f} |"


def dealt(rows: list[list[int]], cost: list[float], *, balanced: bool) -> list[list[list[int]]]:
    """Rows in steps: as they come, or those of like work together and shared out evenly."""
    size = DEVICES * ROWS
    order = sorted(range(len(rows)), key=lambda number: cost[number]) if balanced else list(range(len(rows)))
    steps = [order[at : at + size] for at in range(0, len(order) - size + 1, size)]
    if not balanced:
        return [[rows[number] for number in step] for step in steps]
    shares = [share([cost[number] for number in step], DEVICES) for step in steps]
    return [
        [rows[step[place]] for device in shared for place in device] for step, shared in zip(steps, shares, strict=True)
    ]


def main() -> int:
    rng = np.random.default_rng(0)
    drawn = samples(rng, DEVICES * ROWS * STEPS * 6)
    alone = [[number] for number in range(len(drawn))]
    packed = pack([length for length, _ in drawn], CAPACITY)
    packed = [packed[number] for number in rng.permutation(len(packed))]
    say = sys.stdout.write
    say(f"{len(drawn):,} samples of {np.mean([length for length, _ in drawn]):.0f} positions and ")
    say(f"{np.mean([views for _, views in drawn]):.1f} views on average; {DEVICES} devices, {ROWS} rows each\n\n")
    say("| rows | padding | idle | samples per PFLOP |\n|---|---|---|---|\n")
    for name, rows, fill in (
        ("one sample each", alone, None),
        (f"packed to {CAPACITY:,}", packed, None),
    ):
        cost = [
            work([drawn[n][0] for n in row], sum(drawn[n][1] for n in row), sum(drawn[n][0] for n in row))
            for row in rows
        ]
        for balanced in (False, True):
            told = name + (", balanced by work" if balanced else "")
            say(table(told, dealt(rows, cost, balanced=balanced), drawn, fill=fill) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
