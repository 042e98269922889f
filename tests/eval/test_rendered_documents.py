"""Receipts, charts and tables: no text is cut or covered, and what is asked can be read off the picture."""

import json
import re
from collections import Counter
from itertools import combinations, pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.eval.test_drawing import by_hand
from vlm.eval.rendered import charts as drawing_charts
from vlm.eval.rendered import receipts as drawing_receipts
from vlm.eval.rendered import tables as drawing_tables
from vlm.eval.rendered.canvas import CONTRAST, LEVELS, Canvas, Placed, Sheet, slanted
from vlm.eval.rendered.faces import HELD_OUT, TRAIN, font, shows
from vlm.eval.rendered.lexicon import FRAME, Split, core
from vlm.eval.rendered.plots import Facts, Look, draw
from vlm.eval.rendered.sources import Charts, Document, Receipts, Tables
from vlm.views import Size

SOURCES: dict[ModuleType, type[Document]] = {
    drawing_receipts: Receipts,
    drawing_charts: Charts,
    drawing_tables: Tables,
}
KINDS = pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.__name__.rpartition("_")[2])
AT_LEVEL = pytest.mark.parametrize("level", LEVELS)


def sheets(
    kind: ModuleType, level: int, count: int, split: Split = "train", size: Size | None = None
) -> list[Sheet[Any]]:
    size = size or SOURCES[kind].default_size
    return [kind.compose(np.random.default_rng([level, number]), split, level, size) for number in range(count)]


def apart(one: Placed, other: Placed) -> bool:
    a, b = one.box, other.box
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@KINDS
@AT_LEVEL
@pytest.mark.parametrize("split", ["train", "test"])
def test_no_text_is_cut_or_covers_another(kind: ModuleType, level: int, split: Split) -> None:
    least = kind.LEAST_SIZE[level]
    for size in (None, least, (2 * least[0], least[1])):
        for sheet in sheets(kind, level, 6, split, size):
            height, width = sheet.page.size
            assert sheet.page.image.size == (width, height)
            for placed in sheet.page.placed:
                left, top, right, bottom = placed.box
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                if not placed.turn:
                    drawn = font(placed.face, placed.em).getmask(placed.text).getbbox()
                    assert right - left >= drawn[2] - drawn[0], "its ink is as wide as the box, or less"
                    assert bottom - top >= drawn[3] - drawn[1]
            assert sheet.em >= 9
            straight = [placed for placed in sheet.page.placed if not placed.turn]
            for one, other in combinations(straight, 2):
                assert apart(one, other), (one.text, other.text)
            _slanting_are_apart(sheet.page)


def _slanting_are_apart(page: Canvas) -> None:
    """Boxes of slanting labels overlap; their ink does not."""
    ink = np.zeros(page.size, np.int64)
    for placed in page.placed:
        left, top, right, bottom = placed.box
        spot = ink[top:bottom, left:right]
        spot += np.asarray(slanted(placed.text, placed.face, placed.em, placed.turn)) > 0 if placed.turn else 1
    assert ink.max() == 1


@KINDS
@AT_LEVEL
def test_every_letter_is_in_its_face_and_on_the_ground_it_says(kind: ModuleType, level: int) -> None:
    for split, allowed in (("train", TRAIN), ("test", HELD_OUT if level >= 3 else TRAIN)):
        for sheet in sheets(kind, level, 6, split):  # type: ignore[arg-type]
            pixels = np.asarray(sheet.page.image)
            for placed in sheet.page.placed:
                assert placed.face in allowed
                assert shows(placed.face, placed.text), placed.text
                left, top, right, bottom = placed.box
                spot = pixels[top:bottom, left:right].reshape(-1, 3).astype(np.int64)
                assert (spot == placed.ground).all(1).any()
                assert np.abs(spot - placed.ink).sum(1).min() < 120, "and it is there"
                found = by_hand(placed.ink, placed.ground)
                assert CONTRAST[level][0] - 1e-9 <= found <= 21.001


@KINDS
def test_train_and_test_share_no_word_but_those_of_the_form(kind: ModuleType) -> None:
    seen: dict[str, set[str]] = {}
    for split in ("train", "test"):
        texts = [
            placed.text
            for level in LEVELS
            for sheet in sheets(kind, level, 15, split)  # type: ignore[arg-type]
            for placed in sheet.page.placed
        ]
        pieces = (core(piece) for text in texts for piece in text.split())
        seen[split] = {piece for piece in pieces if re.search(r"[^\W\d]", piece)}
    shared = seen["train"] & seen["test"]
    dates = {piece for piece in shared if re.fullmatch(r"\d{1,2}[a-z]{3}\d{2}|q[1-4]\d\d", piece)}
    sums = {piece for piece in shared if re.fullmatch(r"(eur)?[\d]+", piece)}
    assert shared - dates - sums <= FRAME
    assert len(seen["train"] - shared) > 50
    assert len(seen["test"] - shared) > 50


@KINDS
def test_levels_get_harder(kind: ModuleType) -> None:
    """Smaller and fainter text, and more of it; more wear."""
    ems, faint, many, far = [], [], [], []
    for level in LEVELS:
        found = sheets(kind, level, 24)
        ems.append(np.mean([sheet.em for sheet in found]))
        contrasts = [by_hand(sheet.page.placed[0].ink, sheet.page.placed[0].ground) for sheet in found]
        faint.append(np.median(contrasts))
        many.append(np.mean([sum(len(placed.text) for placed in sheet.page.placed) for sheet in found]))
        gaps = []
        for number, sheet in enumerate(found[:4]):
            worn = np.asarray(sheet.worn(np.random.default_rng(number)), np.float32)
            gaps.append(np.abs(worn - np.asarray(sheet.page.image, np.float32)).mean())
        far.append(np.mean(gaps))
    assert all(smaller <= larger * 1.01 for larger, smaller in pairwise(ems)), ems
    assert ems[-1] < 0.75 * ems[0]
    assert faint == sorted(faint, reverse=True)
    assert all(more > less * 0.9 for less, more in pairwise(many)), many
    assert many[-1] > 2 * many[0]
    assert far[:2] == [0, 0]
    assert 0 < far[2] < far[3] < far[4], far


# --- what is asked ---


def answers(kind: ModuleType, name: str, sheet: Sheet[Any], seed: int) -> tuple[str, list[str]]:
    found: tuple[str, list[str]] = kind.QUESTIONS[name](sheet.facts, np.random.default_rng(seed))
    return found


def rows_of(sheet: Sheet[Any]) -> list[list[str]]:
    """The texts of a sheet by their baselines, each row from left to right."""
    rows: list[list[Placed]] = []
    for placed in sorted(sheet.page.placed, key=lambda one: one.box[1] + one.box[3]):
        middle = (placed.box[1] + placed.box[3]) / 2
        if rows and middle - (rows[-1][0].box[1] + rows[-1][0].box[3]) / 2 < 0.7 * sheet.em:
            rows[-1].append(placed)
        else:
            rows.append([placed])
    return [[placed.text for placed in sorted(row, key=lambda one: one.box[0])] for row in rows]


@AT_LEVEL
def test_tables_answer_what_stands_in_the_picture(level: int) -> None:
    for number, sheet in enumerate(sheets(drawing_tables, level, 15)):
        rows = rows_of(sheet)
        assert [" ".join(rows.pop(0))] == [sheet.facts.title] if level >= 3 else not sheet.facts.title
        headings, cells = rows[0], rows[1:]
        assert len({len(row) for row in rows}) == 1
        column = {heading: [row[place] for row in cells] for place, heading in enumerate(headings)}
        names = [row[0] for row in cells]
        assert len(set(names)) == len(names)
        assert len(column) == len(headings)
        for name in drawing_tables.QUESTIONS:
            question, found = answers(drawing_tables, name, sheet, number)
            assert found == [_of_table(name, re.findall(r'"([^"]+)"', question), question, column, cells, names)], (
                question
            )


def _of_table(
    kind: str, said: list[str], question: str, column: dict[str, list[str]], cells: list[list[str]], names: list[str]
) -> str:
    """The answer, from the grid of texts alone."""
    match kind:
        case "cell":
            return column[said[0]][names.index(said[1])]
        case "heading":
            return list(column)[int(re.findall(r"\d+", question)[0]) - 1]
        case "row":
            return ", ".join(cells[names.index(said[0])][1:])
        case "count":
            return str(len(cells))
        case "highest":
            values = [float(text) for text in column[said[0]]]
            assert values.count(max(values)) == 1
            return names[values.index(max(values))]
        case "sum":
            return _tidy(sum(float(text) for text in column[said[0]]), column[said[0]][0])
        case "difference":
            first, second = (float(column[said[2]][names.index(name)]) for name in said[:2])
            return _tidy(abs(first - second), column[said[2]][0])
    raise AssertionError(kind)


def _tidy(value: float, like: str) -> str:
    return f"{value:.1f}" if "." in like else f"{value:.0f}"


MONEY = re.compile(r"^(?:EUR |[€$£])?(\d+\.\d\d)$")


def cents(text: str) -> int:
    found = MONEY.match(text)
    assert found, text
    return int(found[1].replace(".", ""))


@AT_LEVEL
def test_receipts_answer_what_stands_on_the_paper(level: int) -> None:
    for number, sheet in enumerate(sheets(drawing_receipts, level, 12)):
        rows = rows_of(sheet)
        place = next(place for place, row in enumerate(rows) if row[0].startswith("Date "))
        end = next(place for place, row in enumerate(rows) if row[0] in ("Subtotal", "TOTAL"))
        lines, prices = rows[place + 1 : end], {}
        for before, line in zip([[""], *lines], lines, strict=False):
            if len(line) == 2:
                prices[line[0]] = cents(line[1])
            else:
                quantity, each = line[0].split(" x ")
                assert int(quantity) * cents(each) == prices[before[0]] > cents(each)
        total = next(cents(row[1]) for row in rows if row[0] == "TOTAL")
        assert total == sum(prices.values()), "a receipt's total is the sum of its items"
        paid = {row[0]: cents(row[1]) for row in rows[end:] if len(row) == 2}
        assert paid.get("Subtotal", total) == paid.get("Card", total) == total
        assert paid.get("Cash", total) - paid.get("Change", 0) == total
        dearest = max(prices, key=lambda name: prices[name])
        assert list(prices.values()).count(prices[dearest]) == 1
        for name in drawing_receipts.QUESTIONS:
            question, found = answers(drawing_receipts, name, sheet, number)
            if name == "json":
                said = json.loads(found[0])
                items = [{"name": item, "price": f"{price / 100:.2f}"} for item, price in prices.items()]
                date = rows[place][0].removeprefix("Date ")
                assert said == {"company": rows[0][0], "date": date, "total": f"{total / 100:.2f}", "items": items}
                continue
            wanted = {
                "shop": rows[0][0],
                "date": rows[place][0].removeprefix("Date "),
                "count": str(len(prices)),
                "dearest": dearest,
            }
            if name in wanted:
                assert found == [wanted[name]]
                continue
            named = set(re.findall(r"paid for (.+?) (?:in all|together)", question))
            parts = [part for text in named for part in text.split(" and ")] or list(prices)
            assert {cents(answer) for answer in found} == {sum(prices[part] for part in parts)}, question
            assert MONEY.fullmatch(found[0])
            assert found[0][0].isdigit(), "the plain number is the answer to learn"


# --- charts, measured ---


def runs(line: np.ndarray, ground: tuple[int, ...]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Stretches of one colour that is not the ground's: (first, behind the last, colour)."""
    found, start = [], 0
    for place in range(1, len(line) + 1):
        if place == len(line) or (line[place] != line[start]).any():
            colour = tuple(line[start].tolist())
            if colour != ground:
                found.append((start, place, colour))
            start = place
    return found


def counted(pixels: np.ndarray) -> list[tuple[tuple[int, ...], int]]:
    """Colours and how often they are there, the commonest first."""
    packed = pixels.reshape(-1, 3).astype(np.int64) @ (65536, 256, 1)
    colours, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts)[:40]
    return [
        ((c >> 16, c >> 8 & 255, c & 255), n)
        for c, n in zip(colours[order].tolist(), counts[order].tolist(), strict=True)
    ]


def charts(form: str, level: int, count: int) -> list[Sheet[Any]]:
    found = [sheet for sheet in sheets(drawing_charts, level, 3 * count) if sheet.facts.form == form]
    assert len(found) >= min(3, count // 4)
    return found[:count]


def scale(sheet: Sheet[Any], axis: int) -> tuple[float, float]:
    """Pixels of one unit, and where 0 is, from the middles of the printed ticks; axis 1 is upright."""
    said = sheet.facts
    ticks = {str(tick): float(tick) for tick in (0, said.top)}
    side = [one for one in sheet.page.placed if one.text in ticks]
    ends = sorted((ticks[one.text], (one.box[axis] + one.box[axis + 2]) / 2) for one in side)
    if axis == 1:  # only those left of the plot
        edge = min(one.box[2] for one in side if one.text == "0")
        side = [one for one in side if abs(one.box[2] - edge) <= 2]
        ends = sorted((ticks[one.text], (one.box[1] + one.box[3]) / 2) for one in side)
    (low, start), (high, stop) = ends[0], ends[-1]
    return (stop - start) / (high - low), start


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_bars_are_as_high_as_their_values(level: int) -> None:
    for sheet in charts("bars", level, 12):
        said, pixels = sheet.facts, np.asarray(sheet.page.image)
        unit, zero = scale(sheet, axis=1)
        base = next(y for y in range(round(zero) - 4, round(zero) + 6) if _is_axis(pixels[y], sheet))
        first = min(one.box[2] for one in sheet.page.placed if one.text == str(said.top)) + 1
        bars = runs(pixels[base - 1, first:], sheet.page.ground)
        assert len(bars) == len(said.labels) * len(said.series)
        for number, (left, right, colour) in enumerate(bars):
            column = pixels[base - 1 :: -1, first + (left + right) // 2]
            height = min(np.flatnonzero((column != colour).any(1)))
            place, series = divmod(number, len(said.series))
            assert height == pytest.approx(-unit * said.values[series][place], abs=2.0)
        assert answers(drawing_charts, "count", sheet, 0)[1] == [str(len(bars))]


def _is_axis(row: np.ndarray, sheet: Sheet[Any]) -> bool:
    return int((row == sheet.page.placed[0].ink).all(1).sum()) > sheet.page.size[1] // 2


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_sideways_bars_are_as_long_as_their_values(level: int) -> None:
    for sheet in charts("sideways", level, 12):
        said, pixels = sheet.facts, np.asarray(sheet.page.image).swapaxes(0, 1)
        unit, zero = scale(sheet, axis=0)
        start = next(x for x in range(round(zero) - 4, round(zero) + 6) if _upright_axis(pixels[x], sheet))
        ticks = [one.box[1] for one in sheet.page.placed if one.text == "0"]
        first = max(one.box[3] for one in sheet.page.placed if one.text in (said.title, *said.series)) + 1
        bars = runs(pixels[start + 2, first : max(ticks) - 2], sheet.page.ground)
        assert len(bars) == len(said.labels) * len(said.series)
        for number, (top, bottom, colour) in enumerate(bars):
            row = pixels[start:, first + (top + bottom) // 2]
            long = max(np.flatnonzero((row == colour).all(1)))
            place, series = divmod(number, len(said.series))
            assert long == pytest.approx(unit * said.values[series][place], abs=2.0)


def _upright_axis(column: np.ndarray, sheet: Sheet[Any]) -> bool:
    return int((column == sheet.page.placed[0].ink).all(1).sum()) > sheet.page.size[0] // 3


@pytest.mark.parametrize("level", [2, 3])
def test_marks_of_a_line_lie_at_their_values(level: int) -> None:
    """Over the middle of each label, the coloured pixels that reach furthest from the grid's few colours."""
    measured = 0
    for sheet in charts("lines", level, 14):
        said, pixels = sheet.facts, np.asarray(sheet.page.image)
        unit, zero = scale(sheet, axis=1)
        fill = next((colour for colour, _ in counted(pixels) if _chroma(colour, sheet)), None)
        if fill is None:
            continue  # the line has nearly the hue of the text
        measured += 1
        for label, value in zip(said.labels, said.values[0], strict=True):
            box = next(one.box for one in sheet.page.placed if one.text == label)
            middle = (box[0] + box[2]) // 2
            spot = (pixels[:, middle - 1 : middle + 2] == fill).all(2)
            marked = np.flatnonzero(spot.any(1))
            assert marked.size, "a mark over each label"
            assert (marked[0] + marked[-1]) / 2 - zero == pytest.approx(unit * value, abs=3.5)
    assert measured >= 4


def _chroma(colour: tuple[int, ...], sheet: Sheet[Any]) -> bool:
    """Whether a colour is no mixture of text and ground."""
    ink, ground = np.array(sheet.page.placed[0].ink, float), np.array(sheet.page.ground, float)
    along = (ink - ground) / np.linalg.norm(ink - ground)
    off = np.array(colour) - ground
    return float(np.linalg.norm(off - along * (off @ along))) > 40


@pytest.mark.parametrize("level", [2, 3, 4, 5])
def test_slices_are_as_large_as_their_shares(level: int) -> None:
    for sheet in charts("pie", level, 10):
        said, plain = sheet.facts, (sheet.page.ground, sheet.page.placed[0].ink)
        assert sum(said.values[0]) == 100
        assert min(said.values[0]) >= 5
        counts = [count for colour, count in counted(np.asarray(sheet.page.image)) if colour not in plain]
        largest = counts[: len(said.labels)]
        shares = [100 * count / sum(largest) for count in largest]
        assert shares == pytest.approx(sorted(said.values[0], reverse=True), abs=1.5)
        texts = " ".join(one.text for one in sheet.page.placed)
        assert all(f"{share}%" in texts for share in said.values[0])


@AT_LEVEL
def test_answers_about_charts_against_a_slow_reading(level: int) -> None:
    asked: Counter[str] = Counter()
    for number, sheet in enumerate(sheets(drawing_charts, level, 40)):
        said = sheet.facts
        table = {
            name: dict(zip(said.labels, values, strict=True))
            for name, values in zip(said.series, said.values, strict=True)
        }
        assert len(table) == len(said.series)
        assert all(len(row) == len(said.labels) for row in table.values())
        assert sheet.page.placed[0].text == said.title
        for name in ("value", "highest", "lowest", "difference", "sum", "title"):
            question, found = answers(drawing_charts, name, sheet, number)
            quoted = re.findall(r'"([^"]+)"', question)
            row = table[quoted.pop(0) if len(table) > 1 and name != "title" else next(iter(table))]
            answer = _of_chart(name, said.title, row, quoted)
            percent = said.form == "pie" and name in ("value", "difference", "sum")
            assert found == ([f"{answer}%", answer] if percent else [answer]), question
            asked[name] += 1
            if name == "difference":
                assert int(answer) >= (1 if said.printed else 0.25 * said.top)
        if said.form == "lines":  # no mark hides another
            for column in zip(*said.values, strict=True):
                assert all(abs(a - b) >= 0.03 * said.top for a, b in combinations(column, 2))
        top = said.top or 100
        for row in table.values():
            ranked = sorted(row.values())
            gap = drawing_charts.GAPS[level] * top * (0.5 if said.form == "pie" else 1)
            assert min(ranked[-1] - ranked[-2], ranked[1] - ranked[0]) >= gap > 0
            assert said.printed or ranked[0] >= top / 5
    assert min(asked.values()) == 40


@pytest.mark.parametrize("level", [3, 5])
def test_small_slices_side_by_side_keep_their_texts_apart(level: int) -> None:
    """The worst pies: seven of the smallest slices beside a large one, from wherever the large one begins."""
    names = ("Alpha", "Bravo", "Charlie", "Delta", "Echo", "Foxtrot", "Golf", "Hotel")
    fills = tuple((20 * number, 120, 200) for number in range(8))
    look = Look((0, 0, 0), (255, 255, 255), (200, 200, 200), fills, "DejaVuSans", 14, level)
    for start in range(8):
        shares = tuple(65 if number == start else 5 for number in range(8))
        said = Facts("pie", "Shares", names, ("",), (shares,), 0, 0, True)
        for size in ((480, 640), (300, 400)):
            page = draw(said, look, size)
            assert page is not None or size[0] == 300
            for one, other in combinations(page.placed if page else [], 2):
                assert apart(one, other), (one.text, other.text, start)


def test_slanting_labels_that_would_touch_are_not_drawn() -> None:
    labels = tuple(f"Long label {number}" for number in range(9))
    said = Facts("bars", "Bars", labels, ("",), (tuple(range(1, 10)),), 5, 10, False)
    drawn = []
    for em in range(10, 44, 2):
        look = Look((0, 0, 0), (255, 255, 255), (200, 200, 200), ((0, 120, 200),), "DejaVuSans", em, 3)
        page = draw(said, look, (900, 480))
        drawn.append(page is not None)
        if page is not None:
            assert page.placed[-1].turn
            _slanting_are_apart(page)
    assert drawn == sorted(drawn, reverse=True)
    assert 2 < sum(drawn) < len(drawn)


def _of_chart(kind: str, title: str, row: dict[str, int], quoted: list[str]) -> str:
    """The answer, from one series alone."""
    ordered = sorted(row, key=lambda label: row[label])
    match kind:
        case "title":
            return title
        case "highest":
            return ordered[-1]
        case "lowest":
            return ordered[0]
        case "value":
            return str(row[quoted[0]])
        case "difference":
            return str(abs(row[quoted[0]] - row[quoted[1]]))
        case "sum":
            return str(row[quoted[0]] + row[quoted[1]])
    raise AssertionError(kind)


@pytest.mark.parametrize("level", [4, 5])
def test_each_series_and_slice_has_a_colour_of_its_own_in_the_legend(level: int) -> None:
    for sheet in sheets(drawing_charts, level, 30):
        said, pixels = sheet.facts, np.asarray(sheet.page.image)
        names = said.labels if said.form == "pie" else said.series
        keys = []
        for name in names:
            one = next(placed for placed in sheet.page.placed if placed.text == name)
            keys.append(tuple(pixels[(one.box[1] + one.box[3]) // 2, one.box[0] - sheet.em].tolist()))
        assert sheet.page.ground not in keys
        assert min(np.abs(np.subtract(a, b)).sum() for a, b in combinations(keys, 2)) >= 40


@KINDS
def test_a_worn_sheet_has_the_size_of_the_page(kind: ModuleType) -> None:
    for level in LEVELS:
        sheet = sheets(kind, level, 1)[0]
        worn = sheet.worn(np.random.default_rng(0))
        assert isinstance(worn, Image.Image)
        assert (worn.mode, worn.size) == ("RGB", sheet.page.image.size)
