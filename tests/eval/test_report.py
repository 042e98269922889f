"""The report: one file, everything in it, no code in it but the kit's own."""

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vlm.eval.report.page
from tests.eval.page import Page, made, says, several, task, yes_or_no
from vlm.data import DataError
from vlm.eval.metrics import METRICS
from vlm.eval.metrics.scoring import Answered, Figure, Metric, Score, Tally
from vlm.eval.report.images import Seen
from vlm.eval.report.page import write_report
from vlm.eval.report.select import DRAWN, FAULTY, FLAGS, ODD, WORST
from vlm.eval.results import TaskResult
from vlm.eval.run import pictures_of
from vlm.eval.task import Published, load_task
from vlm.eval.task_runner import evaluate
from vlm.images import ImageError

EVIL = "<script>alert(1)</script>\" onload='x' &amp; <img src=x onerror=y> ]]> -->"
REPLIES = {"one": "blue", "two": "", "three": EVIL, "four": "maroon"}
SCRIPT = (Path(vlm.eval.report.page.__file__).parent / "report.js").read_text("utf8")


@pytest.fixture
def report(stub: Any, mine: str, tmp_path: Path) -> Any:
    """A report of the task `mine`, evaluated."""

    def make(**options: Any) -> str:
        asked = load_task("mine", data=mine)
        model = stub(lambda sample: REPLIES[sample.id])
        result = evaluate(model, asked, out=tmp_path)
        options.setdefault("pictures", pictures_of(model, [asked]))
        write_report(tmp_path / "report.html", [result], title=f"Run {EVIL}", **options)
        return (tmp_path / "report.html").read_text("utf8")

    return make


@pytest.fixture
def page(tmp_path: Path) -> Any:
    """A report of results made by hand."""

    def make(*results: TaskResult, **options: Any) -> Page:
        write_report(tmp_path / "page.html", results, title="Run", **options)
        return Page((tmp_path / "page.html").read_text("utf8"))

    return make


@pytest.fixture
def yes_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "yes_no", several(yes_or_no))


def every_kind() -> list[dict[str, Any]]:
    """Answers of every kind for the metric `yes_no`."""
    return [
        *(says("yes", category="easy") for _ in range(60)),
        *(says("no", category="hard") for _ in range(40)),
        *(says("perhaps", category="hard") for _ in range(10)),
        *(says("", error="cut off") for _ in range(20)),
        *(says("Yes.", truncated=True) for _ in range(5)),
        *(says("") for _ in range(5)),
        *(says(None) for _ in range(3)),
        *(says(None, fault=f"row {number} has no answer") for number in range(30)),
    ]


def test_it_holds_all_it_must(report: Any) -> None:
    page = Page(report())
    for word in ("mine", "40.0", "loose_match", "1 error", "1 empty", "1 faulty", "0 truncated", "By category", "size"):
        assert word in page.text
    for word in ("Worst first", "✓ right", "✗ wrong", "⚠ error", "Colour?", "navy · blue", "(empty)", "sample 6"):
        assert word in page.text
    assert "missing.png: no such file" in page.text
    marks = [card.attributes["data-verdict"] for card in page.all("article")]
    assert marks == ["error", "wrong", "wrong", "right", "right"]  # the worst first
    assert page.all("img", "small")


def test_everything_is_escaped_and_inside(report: Any) -> None:
    page = Page(report())
    assert page.tags.count("script") == 1
    assert EVIL in page.text
    assert "<b>Tall?</b>" in page.text
    assert all(link.startswith(("data:image/", "#")) for link in page.links)


def test_nothing_of_others_becomes_a_tag_or_a_handler(page: Any, yes_no: None) -> None:
    """Texts from everywhere: questions, answers, truths, choices, ids, categories, errors, faults, prompts, sources."""
    prompt = f"{EVIL}\nA. {EVIL}\nB. b\n{EVIL}"
    spot = says(EVIL, prompt=prompt, references=(EVIL, "B"), choices=(EVIL, "b"), id=EVIL, category=EVIL)
    samples = [spot, says("", error=EVIL, category="b"), says("yes"), says(None, fault=EVIL)]
    published = [
        Published(model=EVIL, score=50, source=EVIL, note=EVIL, figure="f1", split=split) for split in ("", EVIL)
    ]
    asked = task("yes_no", prompt=f"{{question}}\n{{options}}\n{EVIL}", split=f"val{EVIL}", published=tuple(published))
    # Without the faulty sample: only then may a published score stand beside.
    results = [made(some, asked, model=EVIL, settings={EVIL: EVIL}, subset="") for some in (samples, samples[:-1])]

    def pictures(row: Any) -> list[Seen]:
        raise ImageError(EVIL)

    pages: list[Page] = [page(result, pictures=pictures) for result in results]
    for seen in pages:
        assert [node.text for node in seen.all("script")] == [SCRIPT]
        assert "img" not in seen.tags
        assert {card.attributes["data-category"] for card in seen.all("article")} == {EVIL, "b", ""}
        assert all(link.startswith("#") for link in seen.links)
    places = ("p.asked", "dd.answer", "span.id", "ul.choices", "ol.panel", "div.view", "div.conditions", "div.chart")
    for place in (*places, "div.bars", "table.", "option."):
        assert any(EVIL in node.text for seen in pages for node in seen.all(*place.split("."))), place


def test_a_browser_may_run_our_script_and_load_nothing(report: Any) -> None:
    page = Page(report())
    policy = page.one("meta", http_equiv="Content-Security-Policy").attributes["content"]
    digest = base64.b64encode(hashlib.sha256(page.one("script").text.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "url(" not in page.one("style").text
    assert "@import" not in page.one("style").text


def test_what_the_filters_go_by_is_true_of_each_sample(page: Any, yes_no: None) -> None:
    result = made(every_kind(), task("yes_no"))
    seen = page(result)
    rows = {row.question.id: row for row in result.rows}
    cards = seen.all("article")
    assert len(cards) == WORST + ODD + DRAWN
    for card in cards:
        row = rows[re.split(" · ", card.one("span", "id").text)[0]]
        assert card.attributes["data-verdict"] == row.verdict
        assert card.attributes["data-category"] == row.question.category
        true = {"unparsed": row.unparsed, "empty": row.empty, "truncated": row.question.index in range(130, 135)}
        assert card.attributes["data-flags"].split() == [flag for flag in FLAGS if true[flag]]
        assert row.question.prompt in card.one("p", "asked").text


def test_filters_offer_what_is_there(page: Any, yes_no: None) -> None:
    seen = page(made(every_kind(), task("yes_no")))
    samples = [node for node in seen.root.inside if "data-verdict" in node.attributes]
    verdicts = Counter(node.attributes["data-verdict"] for node in samples)
    flags = Counter(flag for node in samples for flag in node.attributes["data-flags"].split())
    offered: dict[str, dict[str, int]] = {"verdict": {}, "flag": {}}
    for label in seen.all("label", "tick"):
        box = label.one("input").attributes
        offered[box["name"]][box["value"]] = int(label.one("b").text)
    assert offered == {"verdict": verdicts, "flag": flags}
    assert {"error", "missing", "wrong", "right", "faulty"} == set(verdicts)
    assert set(flags) == set(FLAGS)
    options = [option.attributes.get("value") for option in seen.all("option")]
    assert options == [None, *sorted({node.attributes["data-category"] for node in samples})]
    assert seen.one("form", "filters").one("output").text == f"{len(samples)} samples"
    assert "hidden" in seen.one("form", "filters").attributes  # of no use without the script


def test_the_script_finds_what_it_looks_for(page: Any, yes_no: None) -> None:
    def pictures(row: Any) -> list[Seen]:
        return [Seen([Image.new("RGB", (8, 8))])]

    seen = page(made(every_kind(), task("yes_no")), pictures=pictures)
    section = seen.one("section")
    form = section.one("form", "filters")
    assert section.all("details", "list")
    assert "hidden" in section.one("p", "nothing").attributes
    assert {"category", "words", "verdict", "flag"} == {
        node.attributes["name"] for node in form.inside if "name" in node.attributes
    }
    assert form.one("button", type="reset")
    assert section.all("article", "sample")[0].one("span", "frame").one("img")
    for name in ("form.filters", "details.list", ".nothing", "output", "data-verdict", ".frame", ".sample"):
        assert name in SCRIPT


def test_faulty_samples_are_listed_with_their_place(page: Any, yes_no: None) -> None:
    seen = page(made(every_kind(), task("yes_no")))
    faults = seen.one("details", "faults").all("li")
    assert len(faults) == FAULTY
    assert faults[0].text == "sample 144 row 0 has no answer"
    assert "the first 20" in seen.one("details", "faults").text


def test_each_figure_has_its_value_interval_and_direction(page: Any, yes_no: None) -> None:
    result = made([says("yes"), says("no"), says("yes"), says("no")] * 10, task("yes_no"))
    card = page(result).one("div", "score")
    assert "yes_no: f1" in card.text
    assert card.one("div", "big").text == "50.0 %"
    cells = [cell.text for cell in card.one("div", "figures").children]
    low, high = result.figures["errors_made"].interval or (0, 0)
    assert cells[0] == f"errors_made ↓50.0 %{100 * low:.1f} – {100 * high:.1f}"
    assert cells[1].startswith("yes_ratio50.0 %")
    low, high = result.interval or (0, 0)
    assert f"95 % interval {100 * low:.1f} – {100 * high:.1f}" in card.text
    marks = card.one("i", "ends").attributes["style"]
    assert marks == f"left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"


def test_counts_are_quiet_at_zero_and_loud_above(page: Any, yes_no: None) -> None:
    chips = page(made(every_kind(), task("yes_no"))).one("div", "score").all("span", "chip")
    told = {chip.text: chip.attributes["class"].split()[1:] for chip in chips}
    assert told == {
        "143 samples": [],
        "3 missing": ["alarm"],
        "20 errors": ["alarm"],
        "30 faulty": ["alarm"],
        "5 empty": ["warn"],
        "15 unparsed": ["warn"],
        "5 truncated": ["warn"],
    }
    quiet = page(made([says("yes")], task("yes_no"))).one("div", "score").all("span", "chip")
    assert [chip.attributes["class"] for chip in quiet] == ["chip", *["chip zero"] * 6]


def test_conditions_stand_beside_the_score(page: Any) -> None:
    asked = task(prompt="{question}\nIn a word.", split="val", prompts={"ocr": "{question} {ocr}"})
    made_here = made([says("yes")], asked, model="abc123", settings={"decoding": "greedy"}, subset="1 of 9 questions")
    seen = page(made_here).one("div", "conditions")
    line = seen.one("summary").text
    for word in (
        "split val",
        "1 of 9 questions",
        "default",
        "{question} ↵ In a word.",
        "greedy",
        "model abc123",
        "kit",
    ):
        assert word in line
    assert made_here.conditions.questions in line
    details = seen.one("dl").text
    for word in ("{question}\nIn a word.", "version 2", "json", "exact_match"):
        assert word in details


def test_what_all_prompts_end_with_stands_back(page: Any) -> None:
    asked = task(prompt="{question}\nIn a word.")
    seen = page(made([says("yes", prompt="Red?\nIn a word."), says("no", prompt="Other")], asked))
    texts = [[part.text for part in card.all("p", "asked")] for card in seen.all("article")]
    assert sorted(texts) == [["Other"], ["Red?", "In a word."]]
    inline = page(made([says("yes", prompt='Where is "it"?')], task(prompt='Where is "{question}"?')))
    assert [part.text for part in inline.all("p", "asked")] == ['Where is "it"?']


def test_choices_show_which_is_right_and_which_was_chosen(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def letter(answered: Answered) -> Score:
        said = (answered.answer or "")[:1]
        return Score({"f1": Tally(0.0)}, float(said in answered.references), said if said in "ABC" else None)

    monkeypatch.setitem(METRICS, "letter", several(letter))
    spot = {"prompt": "Which?\nA. red\nB. blue", "choices": ("red", "blue"), "references": ("B",)}
    seen = page(made([says("A. red", **spot), says("B", **spot), says("?", **spot)], task("letter")))
    found = {}
    for card in seen.all("article"):
        items = card.one("ul", "choices").all("li")
        found[card.one("dd", "answer").text] = [(item.attributes["class"], item.text) for item in items]
        assert [part.text for part in card.all("p", "asked")] == ["Which?"]
    assert found["A. red"] == [("chosen", "A red chosen"), ("fits", "B blue right")]
    assert found["B"] == [("", "A red"), ("fits chosen", "B blue right chosen")]
    assert found["?"] == [("", "A red"), ("fits", "B blue right")]
    readings = {card.one("dd", "answer").text: card.text for card in seen.all("article")}
    assert "read asA" in readings["A. red"]
    assert "read as" not in readings["B"]
    assert "read asnothing" in readings["?"]


def test_many_categories_are_folded_and_none_is_lost(page: Any) -> None:
    samples = [
        says("yes" if turn < number else "no", category=f"c{number}") for number in range(40) for turn in (9, 19)
    ]
    bars = page(made(samples, task())).all("div", "bars")
    names = [name.text for name in bars[0].all("span", "name")]
    assert sorted(names) == sorted(f"c{number}" for number in range(40))
    assert names[:2] == ["c20", "c21"]  # the best first, of equal ones by number
    assert [name.text for name in bars[1].all("span", "name")] == names[15:25]
    assert "10 between the best 15 and the worst 15" in bars[0].text
    few = page(made(samples[:60], task())).all("div", "bars")
    assert [len(one.all("span", "name")) for one in few] == [30]


def test_where_lower_is_better_the_lowest_category_comes_first(page: Any) -> None:
    samples = [says("abcd", references=("abcd",), category="good"), says("abxx", references=("abcd",), category="bad")]
    bars = page(made(samples, task("cer"))).one("div", "bars")
    assert [name.text for name in bars.all("span", "name")] == ["good", "bad"]


def test_equal_categories_come_by_the_numbers_in_their_names(page: Any) -> None:
    names = ["level 10", "level 2", "Level 1", "a"]
    bars = page(made([says("yes", category=name) for name in names], task())).one("div", "bars")
    assert [name.text for name in bars.all("span", "name")] == ["a", "Level 1", "level 2", "level 10"]


def test_a_hidden_split_has_no_score_and_shows_its_answers(page: Any) -> None:
    seen = page(made([says("red", references=())], task(hidden=True)), made([says("yes")], task(name="other")))
    assert seen.all("div", "big")[0].text == "hidden"
    assert "(hidden)" in seen.all("article")[0].text
    assert seen.one("nav").all("div", "line")[0].text.startswith("toyhidden1 sample")
    assert [len(line.children) for line in seen.one("nav").all("div", "line")] == [5, 5]  # cells of one grid


def test_what_is_no_share_has_an_axis_of_its_own(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def points(answered: list[Answered]) -> list[Score]:
        return [Score({"score": Tally(1.5)}, 1.0) for _ in answered]

    figure = Figure("score", unit="points")
    monkeypatch.setitem(METRICS, "points", Metric(points, "", (figure,), "sum of categories"))
    samples = [says("yes", category=name) for name in "abcdefghij"]
    card = page(made(samples, task("points"))).one("div", "score")
    assert card.one("div", "big").text == "1500.0 points"
    assert "bar to 1500" in card.text
    assert card.one("i", "fill").attributes["style"] == "width:100.00%"


def test_published_scores_stand_beside_where_conditions_match(page: Any, yes_no: None) -> None:
    published = (
        Published(model="Ours-7B", score=40, source="paper"),
        Published(model="Low", score=61.58, source="paper", figure="errors_made"),
        Published(model="Elsewhere", score=99, source="paper", split="test"),
    )
    asked = task("yes_no", split="val", published=published)
    seen = page(made([says("yes"), says("no")] * 10, asked))
    charts = seen.all("div", "chart")
    names = [[name.texts[0] for name in chart.all("span", "name")] for chart in charts]
    assert names == [
        ["this model", "Ours-7B", "f1 %"],
        ["this model", "Low", "errors_made ↓ %"],
    ]  # the better one first
    assert [value.text for value in charts[1].all("span", "value")] == ["50.0", "61.58"]
    assert len(charts[0].all("i", "band")) == 2  # the interval goes through all rows
    assert "Elsewhere" not in charts[0].text + charts[1].text
    assert "split test, here val" in seen.one("table").text
    cut = page(made([says("yes"), says("no")], asked, subset="2 of 9 questions"))
    assert not cut.all("div", "chart")
    assert cut.one("table").text.count("here 2 of 9 questions") == 3


def test_a_dot_lies_where_the_axis_says(page: Any, yes_no: None) -> None:
    asked = task("yes_no", published=(Published(model="M", score=40, source="s"),))
    chart = page(made([says("yes"), says("no")], asked)).one("div", "chart")
    ticks = {float(tick.text): _left(tick) for tick in chart.one("span", "scale").all("i")}
    (low, start), (high, end) = min(ticks.items()), max(ticks.items())
    assert (start, end) == (0, 100)
    mine, theirs = map(_left, chart.all("i", "dot"))
    assert mine == pytest.approx(100 * (50 - low) / (high - low), abs=0.01)
    assert theirs == pytest.approx(100 * (40 - low) / (high - low), abs=0.01)


def _left(node: Any) -> float:
    return float(re.search(r"left:([\d.]+)%", node.attributes["style"])[1])  # type: ignore[index]


def test_curves(report: Any, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "align.png")
    without = Page(report())
    page = Page(report(curves=[tmp_path / "align.png", tmp_path / "gone.png"]))
    assert len(page.all("img")) == len(without.all("img")) + 1
    assert "gone.png" in page.text


def test_pictures_that_cannot_be_had_are_said(report: Any) -> None:
    def pictures(row: Any) -> list[Seen]:
        if row.question.id == "two":
            raise DataError("two.png: cut off")
        return {"one": [Seen([Image.new("RGB", (1600, 1200))])], "three": [Seen([Image.new("L", (8, 8))] * 9)]}.get(
            row.question.id, []
        )

    page = Page(report(pictures=pictures))
    assert "two.png: cut off" in page.text
    assert "and 3 more views" in page.text
    assert "no image" in page.text
    assert page.all("img", width="640", height="480")


def test_without_pictures(report: Any) -> None:
    assert "img" not in Page(report(pictures=None)).tags


def test_several_tasks_share_the_page(page: Any) -> None:
    results = [made([says("yes")], task(name=name)) for name in ("first", "second")]
    seen = page(*results)
    lines = [link.attributes["href"][1:] for link in seen.one("nav").all("a")]
    assert lines == [section.attributes["id"] for section in seen.all("section")] == ["task-first", "task-second"]
    assert "2 tasks · 2 samples · 0 errors" in seen.one("header").text
    assert all("100.0 %1 sampleexact_match" in line.text for line in seen.one("nav").all("div", "line"))


def test_the_selection_is_seeded(page: Any, yes_no: None, tmp_path: Path) -> None:
    result = made(every_kind(), task("yes_no"))

    def written(seed: int) -> str:
        page(result, seed=seed)
        return (tmp_path / "page.html").read_text("utf8")

    assert written(1) == written(1)
    assert written(1) != written(2)


def test_a_page_stays_small_whatever_its_images(page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.eval.report.page.ROOM", 60_000)
    noise = Image.effect_noise((400, 400), 90).convert("RGB")
    page(made([says("yes")] * 8, task()), pictures=lambda row: [Seen([noise])])
    assert (tmp_path / "page.html").stat().st_size < 60_000 * 4 / 3 + 40_000
