"""Loss curves."""

import csv
from pathlib import Path

import numpy as np

from . import validation


def join_logs(folder: Path, metrics: Path) -> Path:
    """One `metrics.csv` from the logs of each time a stage was taken up, with what `validation.jsonl` beside them says
    of some steps; steps that were done again count once."""
    rows: dict[int, dict[str, str]] = {}
    for log in sorted(folder.glob("*/metrics.csv")):
        with log.open(encoding="utf8") as file:
            rows.update({int(row["step"]): row for row in csv.DictReader(file) if row.get("loss")})
    ours = ("step", "loss", "lr")
    looks = validation.read(folder.parent / "validation.jsonl")
    for step in rows.keys() & looks.keys():
        rows[step] = {**rows[step], **{name: repr(value) for name, value in looks[step].items()}}
    figures = dict.fromkeys(name for row in rows.values() for name in row if name not in (*ours, "epoch"))
    with metrics.open("w", encoding="utf8", newline="") as file:
        writer = csv.DictWriter(file, [*ours, *figures], restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
    return metrics


def read_metrics(path: Path) -> dict[str, list[float]]:
    """The columns `step`, `loss` and `lr` of a `metrics.csv`."""
    with path.open(encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in ("step", "loss", "lr")}


def plot_stage(metrics: Path, picture: Path, *, title: str) -> Path:
    """Loss (each step and smoothed) and learning rate over the steps of one stage, as a PNG."""
    from matplotlib.figure import Figure

    columns = read_metrics(metrics)
    steps, loss = np.asarray(columns["step"]) + 1, np.asarray(columns["loss"])
    figure = Figure(figsize=(6.4, 3.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, loss, color="#9db7d5", linewidth=0.8, label="each step")
    axes.plot(steps, _smooth(loss), color="#1f4e8c", linewidth=1.8, label="smoothed")
    if len(loss) and loss.min() > 0 and loss.max() > 10 * loss.min():  # less than a decade reads better as it is
        axes.set_yscale("log")
    axes.set(title=title, xlabel="optimiser step", ylabel="loss per supervised term")
    axes.grid(alpha=0.25, which="both")
    rate = axes.twinx()
    rate.plot(steps, columns["lr"], color="#c46b2d", linewidth=1.0, linestyle="--", label="learning rate")
    rate.set_ylabel("learning rate", color="#c46b2d")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    lines = [*axes.get_lines(), *rate.get_lines()]
    axes.legend(lines, [str(line.get_label()) for line in lines], loc="upper right", fontsize=8)
    figure.savefig(picture)
    return picture


def _smooth(values: "np.ndarray") -> "np.ndarray":  # type: ignore[type-arg]
    """Centred mean over a twentieth of the steps."""
    if not len(values):
        return values
    half = max(1, len(values) // 40)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    first = np.maximum(np.arange(len(values)) - half, 0)
    last = np.minimum(np.arange(len(values)) + half + 1, len(values))
    smooth: np.ndarray = (sums[last] - sums[first]) / (last - first)  # type: ignore[type-arg]
    return smooth
