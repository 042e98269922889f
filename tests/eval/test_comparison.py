"""Runs side by side: which questions are paired, what is said where something is missing, tables, plots, the report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from vlm.eval.comparison.comparison import Comparison, Group, Run, compare, difference_of, score_of
from vlm.eval.comparison.labels import overlap, place
from vlm.eval.comparison.page import write_report
from vlm.eval.comparison.plots import plot_all
from vlm.eval.comparison.tables import markdown, tables
from vlm.eval.comparison.tallies import Line, Tallies, common, read_tallies, save_tallies, tallies_of
from vlm.eval.metrics.scoring import Figure
from vlm.eval.task import load_task
from vlm.eval.task_runner import evaluate

IMAGES = 40
PERCENT = Figure("score")


def run(skill: float, seed: int, *, leave: int = 0, figure: Figure = PERCENT, over: Any = "samples") -> Tallies:
    """A run that answers the easier of 3 questions about each image, each seed a little otherwise."""
    hard = np.random.default_rng(0).normal(0, 1, 3 * IMAGES)
    right = hard + np.random.default_rng([seed, int(1000 * skill)]).normal(0, 0.7, 3 * IMAGES) < skill
    lines = tuple(
        Line(f"q{number}", f"image {number // 3}", "abc"[number % 3], float(one), 1.0)
        for number, one in enumerate(right)
        if number >= leave
    )
    return Tallies("task", "exact_match", figure, over, float(np.mean([line.points for line in lines])), 0, lines)


def groups(**more: Any) -> list[Group]:
    found = []
    for name, skill in (("plain", 0.0), ("better", 0.9), ("same", 0.02)):
        for tokens in (4, 16):
            label = f"{name}, tokens {tokens}"
            runs = [
                Run(
                    f"{name}-{tokens}-seed{seed}",
                    str(seed),
                    {"task": run(skill + tokens / 40, seed)},
                    training=10.0 + seed,
                )
                for seed in range(3)
            ]
            baseline = None if name == "plain" else f"plain, tokens {tokens}"
            facts = {"parameters": 1234567, "tokens": tokens, "flops": 1e12 * tokens, "steps": (4, 20), **more}
            found.append(Group(label, {"connector": name, "tokens": str(tokens)}, runs, baseline, **facts))
    return found


def comparison(**more: Any) -> Comparison:
    return compare(groups(**more), title="Study", description="What is best.", budget="the same steps")


def text(found: Comparison, width: int = 200) -> str:
    console = Console(width=width, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(tables(found, width))
    return console.export_text()


def test_questions_are_paired_by_name_whatever_their_order() -> None:
    one, other = run(0.5, 1), run(0.9, 1)
    shuffled = Tallies(**{**vars(other), "lines": tuple(reversed(other.lines))})
    assert difference_of({"1": one}, {"1": other}) == difference_of({"1": one}, {"1": shuffled})
    found = difference_of({"1": one}, {"1": other})
    images = np.array([[line.points for line in side.lines] for side in (one, other)]).reshape(2, IMAGES, 3).mean(2)
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_rel(images[0], images[1]).pvalue)
    assert found.value == pytest.approx(one.value - other.value)


def test_only_questions_and_seeds_that_both_have_are_compared() -> None:
    whole, part = run(0.5, 1), run(0.9, 1, leave=30)
    found = difference_of({"1": whole, "2": run(0.5, 2)}, {"1": part, "3": run(0.9, 3)})
    assert found is not None
    assert (found.seeds, found.images) == (1, IMAGES - 10)
    assert difference_of({"2": whole}, {"3": part}) is None
    (sums,) = common([whole, part])
    assert sums.shape == (2, IMAGES - 10, 1, 3)


def test_a_score_is_the_mean_over_seeds_and_its_interval_stays_within_what_can_be() -> None:
    entry = comparison().tasks[0].entries[0]
    assert entry.score is not None
    assert entry.score.value == pytest.approx(np.mean(list(entry.scores.values())))
    assert (entry.score.seeds, entry.score.images, entry.score.p) == (3, IMAGES, None)
    nearly = [Run(f"r{seed}", str(seed), {"task": run(2.2 + seed / 4, seed)}) for seed in range(2)]
    found = compare([Group("g", {}, nearly)], title="", description="").tasks[0].entries[0].score
    assert found is not None
    assert found.interval is not None
    assert found.interval[1] == 1.0
    assert (score_of([one.tallies["task"] for one in nearly]).interval or (0, 0))[1] > 1.0


def test_figures_by_category_are_means_of_categories() -> None:
    runs = [run(0.5, seed, leave=2, over="mean of categories") for seed in range(2)]
    by_category = [
        [np.mean([line.points for line in one.lines if line.category == name]) for name in "abc"] for one in runs
    ]
    assert score_of(runs).value == pytest.approx(np.mean(by_category))


def test_each_group_is_tested_against_its_own_baseline_and_corrected_for_all() -> None:
    found = {entry.group: entry for entry in comparison().tasks[0].entries}
    assert found["plain, tokens 4"].difference is None
    raw = {name: entry.difference.p for name, entry in found.items() if entry.difference is not None}
    assert len(raw) == 4
    smallest = min(raw, key=lambda name: raw[name] or 0)
    assert found[smallest].p == pytest.approx(4 * (raw[smallest] or 0))
    assert found["better, tokens 4"].baseline == "plain, tokens 4"
    assert (found["better, tokens 4"].p or 1) < 0.05
    assert (found["same, tokens 4"].p or 0) > 0.1


def test_what_failed_is_shown_as_such_and_the_rest_is_compared() -> None:
    found = groups()
    first, second, last = found[2], found[3], found[0]
    broken = Run("better-4-seed1", "1", error="OutOfMemoryError: no room")
    found[2] = Group(**{**vars(first), "runs": [first.runs[0], broken, first.runs[2]]})
    lost = [Run(one.name, one.seed, error="killed by SIGKILL") for one in second.runs]
    found[3] = Group(**{**vars(second), "runs": lost})
    result = compare(found, title="Study", description="")
    shown = text(result)
    row = next(line for line in shown.splitlines() if "better, tokens 4" in line)
    assert "2 of 3" in row
    assert "FAILED" in next(line for line in shown.splitlines() if "better, tokens 16" in line)
    assert "FAILED: better-4-seed1: OutOfMemoryError: no room" in shown
    assert len(result.failed) == 4
    entry = result.tasks[0].entries[2]
    assert entry.difference is not None
    assert entry.difference.seeds == 2
    found[0] = Group(**{**vars(last), "runs": [Run(one.name, one.seed, error="x") for one in last.runs]})
    without = compare(found, title="", description="").tasks[0].entries
    assert without[2].difference is None, "its baseline failed"
    assert without[5].difference is not None


def test_where_all_failed_the_table_says_so(tmp_path: Path) -> None:
    found = compare([Group("g", {}, [Run("g-seed0", "0", error="no")], tokens=4)], title="Study", description="")
    assert found.tasks == []
    assert "FAILED" in text(found)
    assert plot_all(found, tmp_path) == {}
    write_report(tmp_path / "report.html", found, {})
    assert "FAILED" in (tmp_path / "report.html").read_text()


def test_table_says_on_what_and_how_sure() -> None:
    shown = text(comparison())
    assert "exact_match (%) on 120 questions about 40 images; intervals are over seeds and images" in shown
    assert "4 paired tests, corrected together" in shown
    assert "the same steps" in shown
    row = next(line for line in shown.splitlines() if "plain, tokens 16 (baseline)" in line)
    assert [cell.strip() for cell in row.split("│")][-4:-1] == ["16", "16.00 TFLOP", "11"]
    narrow = text(comparison(), 78)
    assert max(map(len, narrow.splitlines())) <= 78
    assert narrow.count("┏") == 2, "in two pieces"
    one = compare([Group("g", {}, [Run("g", "", {"task": run(0.5, 1)})])], title="", description="")
    assert "intervals are over images only, as there is one seed" in text(one)


def test_lower_is_better_and_points_are_shown_on_their_scale() -> None:
    figure = Figure("score", better="lower", scale=1000, unit="points")
    found = compare([Group("g", {}, [Run("g", "", {"task": run(0.5, 1, figure=figure)})])], title="", description="")
    shown = text(found)
    assert "exact_match (points), lower is better" in shown
    assert f"{1000 * run(0.5, 1).value:.0f}" in shown


def test_markdown_and_json_have_everything() -> None:
    found = comparison()
    lines = markdown(found, found.tasks[0]).splitlines()
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    content = json.loads(json.dumps(found.to_dict()))
    assert content["groups"][0]["runs"][0]["name"] == "plain-4-seed0"
    assert content["tasks"][0]["entries"][2]["difference"]["interval"]
    assert "q1" not in json.dumps(content), "single questions are in the runs' own folders"


def test_plots_are_drawn_and_the_report_holds_them(tmp_path: Path) -> None:
    found = comparison()
    pictures = plot_all(found, tmp_path)
    assert list(pictures["task"]) == ["tokens", "compute", "differences"]
    for path in pictures["task"].values():
        with Image.open(path) as image:
            assert image.width > 800
            assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    write_report(tmp_path / "report.html", found, pictures)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64") == 3
    assert "better, tokens 4" in page
    assert "http" not in page


def test_what_is_equal_is_no_axis(tmp_path: Path) -> None:
    found = comparison(flops=2e12)
    assert list(plot_all(found, tmp_path)["task"]) == ["tokens", "compute", "differences"]
    both = comparison(flops=2e12, tokens=9)
    assert list(plot_all(both, tmp_path)["task"]) == ["compute", "differences"], "one picture would say it twice"
    unknown = comparison(flops=None)
    assert "compute" not in plot_all(unknown, tmp_path)["task"]


@pytest.mark.parametrize("count", [3, 8, 16])
def test_labels_cover_neither_each_other_nor_what_is_there(count: int) -> None:
    rng = np.random.default_rng(count)
    points = [(float(x), float(y)) for x, y in rng.uniform((150, 100), (900, 500), (count, 2))]
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in points]
    placed = place(points, [(110, 18)] * count, taken=taken, inside=(0, 0, 1100, 620))
    boxes = [one.box for one in placed]
    assert all(overlap(a, b) == 0 for k, a in enumerate(boxes) for b in boxes[:k])
    assert all(overlap(a, b) == 0 for a in boxes for b in taken)
    assert all(left >= 0 and right <= 1100 and low >= 0 and high <= 620 for left, low, right, high in boxes)


def test_labels_of_points_on_one_spot_are_told_apart() -> None:
    placed = place([(300.0, 300.0)] * 4, [(90, 18)] * 4, taken=[(290, 290, 310, 310)], inside=(0, 0, 600, 600))
    boxes = [one.box for one in placed]
    assert all(overlap(a, b) == 0 for k, a in enumerate(boxes) for b in boxes[:k])


def test_tallies_of_an_evaluation_come_back_and_give_its_score(stub: Any, mine: str, tmp_path: Path) -> None:
    task = load_task("mine", mine)
    result = evaluate(stub(lambda sample: "yes"), task, out=tmp_path / "eval", progress=False)
    save_tallies(tmp_path / "tallies.json", [result])
    found = read_tallies(tmp_path / "tallies.json")["mine"]
    assert found == tallies_of(result)
    assert score_of([found]).value == pytest.approx(result.score)
    assert len(found.lines) == result.counts.n
    assert found.errors == result.counts.errors
