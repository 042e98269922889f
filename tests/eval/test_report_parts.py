"""What a report shows: which samples, which published scores, and which pictures of an image."""

import base64
import io
import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.conftest import picture
from tests.eval.page import Page, made, says, several, task, yes_or_no
from vlm.eval.metrics import METRICS
from vlm.eval.report.html import Axis, axis_of, ticks
from vlm.eval.report.images import SIDES, Seen, boxes, view
from vlm.eval.report.published import comparisons, differences, others
from vlm.eval.report.select import DRAWN, ODD, WORST, flags, select
from vlm.eval.run import load_tasks, pictures_of
from vlm.eval.task import Published, Task, load_task
from vlm.eval.task_runner import evaluate


@pytest.fixture(autouse=True)
def yes_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "yes_no", several(yes_or_no))


def rows(*samples: dict[str, Any], metric: str = "yes_no") -> Any:
    return made(samples, task(metric)).rows


def verdicts(shown: Any) -> list[str]:
    return [row.verdict for row in shown]


def test_a_few_samples_are_all_shown_once_the_worst_first() -> None:
    chosen = select(rows(says("yes"), says("no"), says(None), says("", error="cut"), says(None, fault="bad")))
    assert verdicts(chosen.worst) == ["error", "missing", "wrong", "right"]
    assert not chosen.odd
    assert not chosen.drawn
    assert verdicts(chosen.faulty) == ["faulty"]
    assert (chosen.all_shown, chosen.asked, chosen.missed) == (True, 4, 3)


def test_failures_leave_room_for_wrong_answers() -> None:
    failing = [says("", error="cut") for _ in range(50)]
    chosen = select(rows(*failing, *(says("no") for _ in range(40)), *(says("yes") for _ in range(40))))
    assert Counter(verdicts(chosen.worst)) == {"error": WORST // 3, "wrong": WORST - WORST // 3}
    assert verdicts(chosen.worst) == sorted(verdicts(chosen.worst))  # errors first
    only = select(rows(*failing, *(says("yes") for _ in range(40))))
    assert verdicts(only.worst) == ["error"] * WORST


def test_partly_right_answers_come_by_their_worth() -> None:
    samples = [says("abcdefghij"[:length], references=("abcdefghij",)) for length in (9, 6, 8, 7)] * 30
    worst = select(rows(*samples, metric="cer")).worst
    assert {row.answer for row in worst} == {"abcdef"}


def test_what_is_odd_is_shown_even_where_it_is_not_wrong() -> None:
    samples = [says("yes") for _ in range(200)] + [says("no") for _ in range(100)]
    samples += [says("yes", truncated=True)] * 40 + [says("hm")] + [says("")] * 9
    chosen = select(rows(*samples))
    kinds = Counter(flags(row)[0] for row in chosen.odd)
    assert len(chosen.odd) == ODD
    assert kinds["truncated"] > 0
    shown = {row.question.index for row in chosen.worst}
    assert not shown & {row.question.index for row in chosen.odd}
    everywhere = {flag for row in (*chosen.worst, *chosen.odd) for flag in flags(row)}
    assert everywhere == {"truncated", "unparsed", "empty"}


def test_the_random_selection_is_of_all_that_was_asked() -> None:
    samples = [says("yes") for _ in range(150)] + [says("no") for _ in range(150)] + [says(None, fault="bad")] * 100
    chosen = select(rows(*samples), seed=3)
    assert len(chosen.drawn) == len({row.question.index for row in chosen.drawn}) == DRAWN
    assert set(verdicts(chosen.drawn)) == {"right", "wrong"}
    again, other = select(rows(*samples), seed=3), select(rows(*samples), seed=4)
    assert [row.question.id for row in again.drawn] == [row.question.id for row in chosen.drawn]
    assert [row.question.id for row in other.drawn] != [row.question.id for row in chosen.drawn]


def score(**fields: Any) -> Published:
    return Published(**{"model": "M", "score": 50.0, "source": "S", **fields})


ALIKE = (score(), score(split="val"), score(figure="f1"), score(figure="yes_ratio"))
UNLIKE = {
    "split test, here val": score(split="test"),
    "prompt ocr, here default": score(prompt="ocr"),
    "figure cider, not measured here": score(figure="cider"),
    "another scorer": score(differs="another scorer"),
}


@pytest.mark.parametrize("published", ALIKE)
def test_a_score_of_the_same_split_prompt_and_figure_is_comparable(published: Published) -> None:
    asked = task("yes_no", split="val", published=(published,))
    result = made([says("yes"), says("no")], asked)
    assert differences(published, result) == []
    (found,) = comparisons(result)
    assert (found[0].name, found[1]) == (published.figure or "f1", [published])
    assert others(result) == []


@pytest.mark.parametrize("why", UNLIKE)
def test_a_score_of_another_is_not(why: str) -> None:
    result = made([says("yes"), says("no")], task("yes_no", split="val", published=(UNLIKE[why],)))
    assert comparisons(result) == []
    assert others(result) == [(UNLIKE[why], [why])]


def test_a_score_is_comparable_with_its_own_prompt() -> None:
    asked = task("yes_no", prompts={"ocr": "{question}"}, variant="ocr", published=(score(), score(prompt="ocr")))
    result = made([says("yes")], asked)
    assert [one for _, found in comparisons(result) for one in found] == [asked.published[1]]


def test_no_score_stands_beside_a_part_of_the_questions_or_an_unfinished_run() -> None:
    asked = task("yes_no", split="val", published=(score(), score(split="test")))
    part = made([says("yes")], asked, subset="1 of 8 questions")
    assert comparisons(part) == []
    assert [why for _, why in others(part)] == [
        ["here 1 of 8 questions"],
        ["split test, here val", "here 1 of 8 questions"],
    ]
    assert others(made([says("yes"), says(None)], asked))[0][1] == ["here 1 answers are missing"]
    faulty = made([says("yes"), says(None, fault="bad")], asked)
    assert others(faulty)[0][1] == ["here 1 questions are left out as faulty"]
    hidden = made([says("yes")], asked.model_copy(update={"hidden": True}))
    assert others(hidden)[0][1] == ["no score here"]


def test_published_scores_are_those_of_the_tasks_own_metric(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    text = "name: own\nversion: 1\nsource: {name: json, path: $DATA}\nmetric: anls\n"
    path.write_text(text + "published: [{model: M, score: 50, source: S}]\n")
    assert load_tasks([str(path)], "x.jsonl")[0].published
    assert load_tasks([str(path)], "x.jsonl", "anls")[0].published
    assert not load_tasks([str(path)], "x.jsonl", "exact_match")[0].published


@pytest.mark.parametrize("values", [[58.2, 61.5], [0.0], [1510.7, 820.3], [99.9, 100.0], [50.0, 50.0], [0.02, 3.0]])
def test_ticks_are_round_and_hold_all_values(values: list[float]) -> None:
    marks = ticks(values)
    assert marks[0] <= min(values)
    assert marks[-1] >= max(values)
    assert 2 <= len(marks) <= 8
    steps = {round(second - first, 9) for first, second in pairwise(marks)}
    assert len(steps) == 1


def test_axes_of_shares_end_at_one() -> None:
    assert axis_of([0.2, 0.9]) == Axis(0, 1)
    assert axis_of([]) == Axis(0, 1)
    assert axis_of([15.1, 8.2]) == Axis(0, 20)
    assert Axis(0, 2).span(0.5, 1.5) == "left:25.00%;width:50.00%"
    assert Axis(0, 1).at(7) == 100


def images(html: str) -> list[Image.Image]:
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB") for source in sources]


def test_tiles_are_one_picture_with_every_tile_in_its_place() -> None:
    colours = {(0, 0): "red", (0, 1): "lime", (1, 0): "blue", (1, 1): "yellow"}
    tiles = [Image.new("RGB", (60, 60), colour) for colour in colours.values()]
    seen = Seen([Image.new("RGB", (60, 60), "white"), *tiles], [None, *colours])
    html = view(rows(says("yes"))[0], lambda row: [seen], 10**6)
    whole, mosaic = images(html)
    assert whole.getpixel((30, 30)) == (255, 255, 255)
    for (row, column), colour in colours.items():
        place = (30 + column * 64, 30 + row * 64)
        assert mosaic.getpixel(place) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    captions = [node.text for node in Page(html).all("figcaption")]
    assert captions == ["the whole image", "4 tiles, 2 × 2"]
    last = Seen([*tiles, Image.new("RGB", (60, 60))], [*colours, None])
    assert [node.text for node in Page(view(rows(says("yes"))[0], lambda row: [last], 10**6)).all("figcaption")] == [
        "4 tiles, 2 × 2",
        "the whole image",
    ]


def test_images_are_reduced_to_their_room_and_no_further() -> None:
    row, noise = rows(says("yes"))[0], Image.effect_noise((900, 450), 90).convert("RGB")
    widths = []
    for room in (10**7, 30_000, 1):
        html = view(row, lambda row: [Seen([noise])], room)
        widths.append(images(html)[0].width)
        assert room == 1 or sum(len(part) for part in re.findall(r"base64,([^\"]+)", html)) <= room * 4 / 3 + 4
    assert widths[0] == SIDES[0] > widths[1] > widths[2] == SIDES[-1]


def test_a_small_image_is_kept_as_it_is() -> None:
    html = view(rows(says("yes"))[0], lambda row: [Seen([picture(size=(96, 32))])], 1)
    assert images(html)[0].tobytes() == picture(size=(96, 32)).tobytes()


def test_boxes_are_drawn_where_they_are() -> None:
    row = rows(says("It is at [0.5, 0.25, 1, 0.75].", references=("[0.1, 0.2, 0.3, 0.6]",)))[0]
    assert boxes(row) == [("truth", (0.1, 0.2, 0.3, 0.6)), ("said", (0.5, 0.25, 1.0, 0.75))]
    seen = Seen([picture()], original=picture(size=(300, 200)))
    drawn = Page(view(row, lambda row: [seen], 10**6)).all("i", "box")
    assert [one.attributes["style"] for one in drawn] == [
        "left:10.00%;top:20.00%;width:20.00%;height:40.00%",
        "left:50.00%;top:25.00%;width:50.00%;height:50.00%",
    ]


@pytest.mark.parametrize(
    ("answer", "reference", "kinds"),
    [
        ("nowhere", "[0.1, 0.2, 0.3, 0.6]", ["truth"]),
        ("[0.5, 0.2, 0.3, 0.6]", "[0.1, 0.2, 0.3, 0.6]", ["truth"]),  # left of itself
        ("[0.1, 0.2, 30, 0.6]", "[0.1, 0.2, 0.3, 0.6]", ["truth"]),  # outside
        ("[0.1, 0.2, 0.3, 0.6]", "a list such as [0.1, 0.2, 0.3, 0.6]", []),
        ("[0.1, 0.2, 0.3, 0.6]", "red", []),
    ],
)
def test_what_is_no_box_is_not_drawn(answer: str, reference: str, kinds: list[str]) -> None:
    assert [kind for kind, _ in boxes(rows(says(answer, references=(reference,)))[0])] == kinds


def test_pictures_are_what_the_first_encoder_saw(toy: Any, mine: str, stub: Any, tmp_path: Path) -> None:
    asked: Task = load_task("mine", data=mine)
    result = evaluate(stub(lambda sample: "red"), asked, out=tmp_path)
    model = toy(views={"name": "tiles", "max_tiles": 6, "thumbnail": "last"})
    (seen,) = pictures_of(model, [asked])(result.rows[0])
    expected = model.processor.seen(tmp_path / "a.png")[0]
    assert [view.tobytes() for view in seen.views] == [view.tobytes() for view in expected]
    assert seen.cells[-1] is None
    assert {cell[0] for cell in seen.cells[:-1] if cell} == {0, 1}
    assert len(seen.cells) == len(expected) > 2
    assert seen.original is not None
    assert seen.original.size == (24, 16)


def test_no_score_stands_beside_another_number_of_questions(stub: Any, tmp_path: Path) -> None:
    """A shortened file is no less a part of the benchmark than `--limit`."""
    rows = [{"question": f"Is it {n}?", "answer": "yes"} for n in range(3)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    source = {"name": "json", "path": str(tmp_path / "rows.json")}
    whole = Task(name="own", version=1, source=source, metric="yes_no", size=3, published=(score(),))  # type: ignore[arg-type]
    short = whole.changed(size=9)

    def asked(task: Task, **options: Any) -> Any:
        return evaluate(stub(lambda sample: "yes"), task, out=tmp_path, progress=False, **options)

    assert [one for _, found in comparisons(asked(whole)) for one in found] == [score()]
    said = "3 questions in the source, 9 in the benchmark's part"
    assert [why for _, why in others(asked(short))] == [[f"here {said}"]]
    assert [why for _, why in others(asked(short, limit=2))] == [[f"here 2 of 3 questions; {said}"]]
