"""The table in the terminal: everything is there, whatever the width."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from tests.eval.page import made, says, several, task, yes_or_no
from vlm.eval.metrics import METRICS
from vlm.eval.terminal import table


@pytest.fixture(autouse=True)
def yes_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "yes_no", several(yes_or_no))


def lines(*results: Any, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(results))
    return str(console.file.getvalue()).splitlines()  # type: ignore[attr-defined]


def joined(*results: Any, width: int) -> str:
    """The first column and the footnotes as one text: a long name goes on in the next line."""
    return "".join(re.split(r"\s{2,}", line.strip())[0] for line in lines(*results, width=width)).replace(" ", "")


SAMPLES = [says("yes", category="a"), says("no", category="b"), says("hm", category="b"), says("", error="cut")]


def test_every_figure_has_a_line_and_the_first_has_the_counts() -> None:
    result = made([*SAMPLES, says(None, fault="bad"), says(None)], task("yes_no"))
    text = lines(result)
    first = next(line for line in text if line.startswith("toy v2, f1"))
    assert first.split()[3:5] == ["20.0", "%"]
    assert first.split()[-3:] == ["5", "1", "missing"]
    further = [line.strip() for line in text if line.startswith(" " * 40) and line.strip()]
    assert further == ["1 error", "1 faulty", "1 unparsed"]
    assert any(line.startswith("  errors_made ↓") for line in text)
    assert any(line.startswith("  yes_ratio") for line in text)
    assert "↓ lower is better" in text


def test_no_problem_is_said_as_well() -> None:
    text = lines(made([says("yes"), says("no")], task()))
    assert next(line for line in text if line.startswith("toy v2")).rstrip().endswith("2   none")
    assert "problems not named are 0; looked for: missing, errors, faulty" in " ".join(text)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_nothing_is_cut_off(width: int) -> None:
    name, category = "a_task_with_a_name_that_is_rather_long", "Handwritten_Mathematical_Expression_Recognition"
    samples = [{**sample, "category": category} for sample in SAMPLES] + [says("yes", category="b")]
    asked = task("yes_no", name=name, prompts={"ocr-tokens": "{question}"}, variant="ocr-tokens", split="validation")
    result = made(samples, asked, model="0123456789abcdef", settings={"max_new_tokens": 16, "decoding": "greedy"})
    text = joined(result, width=width)
    for word in (f"{name}:ocr-tokensv2,f1", category, "yes_ratio", "splitvalidation"):
        assert word in text
    for word in ("promptocr-tokens", "max_new_tokens16", "0123456789abcdef", result.conditions.questions):
        assert word in text
    cells = [cell for line in lines(result, width=width) for cell in re.split(r"\s{2,}", line.strip())]
    assert {"1 error", "1 unparsed"} <= set(cells)
    assert "…" not in text
    assert all(len(line) <= width for line in lines(result, width=width))


def test_what_all_tasks_share_is_said_once() -> None:
    results = [made([says("yes")], task(name=name, split=name), model="abc123") for name in ("val", "test")]
    text = "\n".join(lines(*results))
    assert text.count("abc123") == 1
    assert "all tasks: prompt default" in text
    assert "val: split val" in text
    assert "test: split test" in text


def test_of_very_many_categories_it_says_how_many_are_not_shown() -> None:
    samples = [
        says("yes" if turn < number else "no", category=f"c{number}") for number in range(45) for turn in (9, 19)
    ]
    text = lines(made(samples, task()), width=100)
    assert any("… 25 between, in results.json and the report" in line for line in text)
    assert len([line for line in text if line.startswith("  c")]) == 20
    few = lines(made(samples[:60], task()), width=100)
    assert len([line for line in few if line.startswith("  c")]) == 30


def test_a_hidden_split_is_listed() -> None:
    text = lines(made([says("red", references=())], task(hidden=True)))
    assert next(line for line in text if line.startswith("toy v2, exact_match")).split()[3:5] == ["hidden", "1"]


def test_names_cannot_command_the_terminal() -> None:
    text = "\n".join(lines(made([says("yes", category="[bold]\x1b[31mred\nline")], task())))
    assert "\x1b" not in text
    assert "[bold]" in text
