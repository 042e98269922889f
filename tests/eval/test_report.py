"""The report: one file, everything in it, nothing of it code."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm.eval.report import write_report
from vlm.eval.run import pictures_of
from vlm.eval.runner import evaluate
from vlm.eval.task import load_task
from vlm.images import ImageError

EVIL = "<script>alert(1)</script>\" onload='x' &amp;"
REPLIES = {"one": "blue", "two": "", "three": EVIL, "four": "maroon"}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags, sources and text of a page; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def report(stub: Any, mine: str, tmp_path: Path) -> Any:
    def make(**options: Any) -> str:
        task = load_task("mine", data=mine)
        model = stub(lambda sample: REPLIES[sample.id])
        result = evaluate(model, task, out=tmp_path)
        options.setdefault("pictures", pictures_of(model, [task]))
        write_report(tmp_path / "report.html", [result], title=f"Run {EVIL}", **options)
        return (tmp_path / "report.html").read_text("utf8")

    return make


def test_it_holds_all_it_must(report: Any) -> None:
    html = report()
    page = Page(html)
    text = "".join(page.text)
    for word in ("mine", "40.0 %", "loose_match", "1 error", "1 empty answer", "By category", "colour", "size"):
        assert word in text
    for word in (
        "Worst first",
        "Random selection",
        "✓ right",
        "✗ wrong",
        "⚠ error",
        "Colour?",
        "navy · blue",
        "(empty)",
    ):
        assert word in text
    assert "missing.png: no such file" in text
    assert text.index("⚠ error") < text.index("✗ wrong") < text.index("✓ right")  # worst first
    assert "image-rendering: pixelated" in html


def test_everything_is_escaped_and_inside(report: Any) -> None:
    page = Page(report())
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert EVIL in "".join(page.text)
    assert "<b>Tall?</b>" in "".join(page.text)
    assert all(link.startswith(("data:image/", "#")) for link in page.links)


def test_curves(report: Any, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(tmp_path / "align.png")
    without = Page(report())
    page = Page(report(curves=[tmp_path / "align.png", tmp_path / "gone.png"]))
    assert len(page.links) == len(without.links) + 1
    assert any("gone.png" in text for text in page.text)


def test_pictures(report: Any) -> None:
    def pictures(row: Any) -> list[Image.Image]:
        if row.question.id == "two":
            raise ImageError("two.png: cut off")
        return {"one": [Image.new("RGB", (1600, 1200))], "three": [Image.new("L", (8, 8))] * 9}.get(row.question.id, [])

    html = report(pictures=pictures)
    text = "".join(Page(html).text)
    assert "two.png: cut off" in text
    assert "and 3 more views" in text
    assert "no image" in text
    assert 'width="640" height="480" src="data:image/jpeg' in html


def test_without_pictures(report: Any) -> None:
    assert "img" not in Page(report(pictures=None)).tags


def test_the_selection_is_seeded(report: Any) -> None:
    assert report(seed=1) == report(seed=1)
    assert report(seed=1) != report(seed=2)
