"""Pictures of till receipts, and questions about them.

What each level has; where no range is given, it also has all that the ones before it have:

1. 2-3 items of one word; shop, date (2023-04-17) and total. White paper.
2. 3-5 items of one or two words; time, thanks, other ways of writing dates. Tinted paper.
3. 4-7 items, some of them several times; address, currency, subtotal, cash, change, bars. A shadow.
4. 6-10 items, some of a made-up brand; telephone, till, VAT. Photographed at an angle in uneven light.
5. 9-14 items, brands with accents, `250 g`; prices close to each other.

| level | tilt | shade | blur | noise | JPEG |
|---|---|---|---|---|---|
| 3 | | | | 4 | |
| 4 | 0.03 | 0.15 | 0.02 | 8 | 50-85 |
| 5 | 0.05 | 0.3 | 0.035 | 12 | 35-70 |

A receipt's total is the sum of its items: tax is included in them, and nothing is taken off. Wear:
`vlm.eval.rendered.canvas.Wear`; contrast: `vlm.eval.rendered.canvas.CONTRAST`; faces: `vlm.eval.rendered.faces`; words:
`vlm.eval.rendered.lexicon`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from vlm.views import Size

from . import lexicon
from .canvas import NO_WEAR, Asked, Canvas, Colour, Sheet, Wear, ink_and_ground, mixed
from .faces import choose, width
from .lexicon import Split

LEAST_EM = 9
LEAST_SIZE: dict[int, Size] = {1: (144, 176), 2: (192, 176), 3: (328, 184), 4: (416, 208), 5: (496, 240)}
"""(height, width) in pixels, by level."""
ITEMS: dict[int, tuple[int, int]] = {1: (2, 3), 2: (3, 5), 3: (4, 7), 4: (6, 10), 5: (9, 14)}
WEAR: dict[int, Wear] = {
    1: NO_WEAR,
    2: NO_WEAR,
    3: Wear(noise=4),
    4: Wear(tilt=0.03, shade=0.15, blur=0.02, noise=8, quality=(50, 85)),
    5: Wear(tilt=0.05, shade=0.3, blur=0.035, noise=12, quality=(35, 70)),
}


@dataclass(frozen=True)
class Item:
    """One line: a name, how many, and cents for one."""

    name: str
    quantity: int
    cents: int

    @property
    def price(self) -> int:
        """Cents for all of them."""
        return self.quantity * self.cents


@dataclass(frozen=True)
class Facts:
    """What a receipt says."""

    shop: str
    date: str
    items: tuple[Item, ...]
    currency: str

    @property
    def total(self) -> int:
        """Cents."""
        return sum(item.price for item in self.items)


@dataclass(frozen=True)
class Row:
    """One row of the form; `scale` is of the em."""

    left: str = ""
    right: str = ""
    form: Literal["pair", "under", "centre", "rule", "gap", "bars"] = "pair"
    scale: float = 1.0


def money(cents: int) -> str:
    """`1240` is `12.40`."""
    return f"{cents // 100}.{cents % 100:02d}"


def facts(rng: np.random.Generator, split: Split, level: int) -> Facts:
    """What a receipt of this level says."""
    kind = lexicon.pick(rng, lexicon.of_split(lexicon.SHOPS, split))
    shop = lexicon.name(rng, split) if level == 1 else f"{lexicon.name(rng, split)} {kind.capitalize()}"
    count = int(rng.integers(ITEMS[level][0], ITEMS[level][1] + 1))
    names: dict[str, None] = {}
    while len(names) < count:
        names[_item_name(rng, split, level)] = None
    while True:
        items = tuple(Item(name, _quantity(rng, level), _cents(rng, level)) for name in names)
        prices = sorted(item.price for item in items)
        if prices[-1] > prices[-2]:
            break
    currency = lexicon.pick(rng, ("", "$", "€", "£", "EUR ")) if level >= 3 else ""
    return Facts(shop, _date(rng, level), items, currency)


def _item_name(rng: np.random.Generator, split: Split, level: int) -> str:
    food = lexicon.pick(rng, lexicon.of_split(lexicon.FOODS, split))
    words = [food]
    if level >= 2 and rng.random() < 0.6:
        words.insert(0, lexicon.pick(rng, lexicon.of_split(lexicon.QUALITIES, split)))
    words[0] = words[0].capitalize()
    if level >= 4 and rng.random() < 0.4:
        brand = lexicon.pseudo(rng, split, (4, 7), accents=level == 5).capitalize()
        words = [brand, *(word.lower() for word in words)]
    if level >= 5 and rng.random() < 0.3:
        words.append(f"{int(rng.integers(1, 20)) * 50} g")
    return " ".join(words)


def _quantity(rng: np.random.Generator, level: int) -> int:
    return int(rng.integers(2, 5)) if level >= 3 and rng.random() < 0.25 else 1


def _cents(rng: np.random.Generator, level: int) -> int:
    if level <= 2:
        return 10 * int(rng.integers(5, 100))
    return int(rng.integers(150, 500)) if level == 5 else int(rng.integers(50, 2000))


def _date(rng: np.random.Generator, level: int) -> str:
    year, month, day = int(rng.integers(2001, 2030)), int(rng.integers(1, 13)), int(rng.integers(1, 29))
    name = lexicon.MONTHS[month - 1]
    forms = [f"{year}-{month:02d}-{day:02d}", f"{day:02d}.{month:02d}.{year}", f"{day:02d}/{month:02d}/{year}"]
    forms += [f"{day} {name} {year}", f"{name} {day}, {year}", f"{day:02d}-{name}-{year % 100:02d}"]
    return forms[0] if level == 1 else lexicon.pick(rng, forms)


def _rows(rng: np.random.Generator, split: Split, level: int, said: Facts) -> list[Row]:
    clock = f"{int(rng.integers(7, 22)):02d}:{int(rng.integers(60)):02d}"
    rows = [Row(said.shop, form="centre", scale=1.4), *_head(rng, split, level)]
    rows += [Row(f"Date {said.date}", clock if level >= 2 else ""), Row(form="rule")]
    for item in said.items:
        rows.append(Row(item.name, money(item.price)))
        if item.quantity > 1:
            rows.append(Row(f"{item.quantity} x {money(item.cents)}", form="under"))
    rows.append(Row(form="rule"))
    if level >= 3:
        rows.append(Row("Subtotal", money(said.total)))
    rows.append(Row("TOTAL", said.currency + money(said.total), scale=1.25))
    return rows + _foot(rng, level, said)


def _head(rng: np.random.Generator, split: Split, level: int) -> list[Row]:
    rows = []
    if level >= 3:
        street = lexicon.name(rng, split)
        rows.append(Row(f"{int(rng.integers(1, 200))} {street} Street", form="centre"))
    if level >= 4:
        digits = "".join(map(str, rng.integers(0, 10, 7)))
        rows += [Row(f"Tel. {digits[:3]} {digits[3:]}", form="centre"), Row(f"Till {int(rng.integers(1, 10))}")]
    return rows


def _foot(rng: np.random.Generator, level: int, said: Facts) -> list[Row]:
    rows = []
    if level >= 3:
        note = (500, 1000, 2000, 5000)[int(rng.integers(4))]
        cash = -(-said.total // note) * note
        paid = [Row("Cash", money(cash)), Row("Change", money(cash - said.total))]
        rows += paid if rng.random() < 0.7 else [Row("Card", money(said.total))]
    if level >= 4:
        rows.append(Row("incl. VAT 20%", money(round(said.total / 6))))
    if level >= 2:
        rows += [Row(form="gap"), Row("Thank you!", form="centre")]
    return [*rows, Row(form="bars")] if level >= 3 else rows


_HEIGHTS = {"pair": 1.45, "under": 1.45, "centre": 1.5, "rule": 0.9, "gap": 0.5, "bars": 3.0}
_SIDE, _END = 1.4, 1.2
"""Empty ems at the sides, and above and below."""


def _extent(rows: list[Row], face: str, em: int) -> tuple[float, float]:
    """Height and width of the sheet at `em`."""
    widest = 15.0 * em
    for row in rows:
        used = round(em * row.scale)
        space = 1.5 * em if row.right else 0
        widest = max(widest, width(row.left, face, used) + width(row.right, face, used) + space)
    height = sum(_HEIGHTS[row.form] * row.scale for row in rows) + 2 * _END
    return height * em, widest + 2 * _SIDE * em


def compose(rng: np.random.Generator, split: Split, level: int, size: Size) -> Sheet[Facts]:
    """A receipt on a desk, in a picture of `size`, (height, width) in pixels."""
    ink, paper = ink_and_ground(rng, level, paper=True)
    margin = max(4, round(min(size) * 0.025))
    em = 0
    while em < LEAST_EM:  # a receipt too long for the picture is drawn anew
        said = facts(rng, split, level)
        rows = _rows(rng, split, level, said)
        face = choose(rng, level, split, "".join(row.left + row.right for row in rows))
        em = _largest(rows, face, size, margin)
    desk = (215, 218, 222) if level == 1 else _desk(rng)
    height, wide = (round(side) for side in _extent(rows, face, em))
    room = (size[1] - 2 * margin - wide, size[0] - 2 * margin - height)
    left, top = (margin + int(rng.integers(max(1, spare + 1))) for spare in room)
    page = Canvas(size, desk)
    _sheet(rng, page, (left, top, left + wide, top + height), paper, level)
    _write(rng, page, rows, (left, top, left + wide), face, em, ink, paper)
    return Sheet(page, said, em, desk, WEAR[level])


def _desk(rng: np.random.Generator) -> Colour:
    """Wood, stone or cloth: dark and not gaudy."""
    base = int(rng.integers(60, 130))
    red, green, blue = (base + change for change in rng.integers(-18, 19, 3).tolist())
    return red, green, blue


def _largest(rows: list[Row], face: str, size: Size, margin: int, tried: int = 24) -> int:
    """The largest em with which the sheet fits."""
    inner = (size[0] - 2 * margin, size[1] - 2 * margin)
    height, wide = _extent(rows, face, tried)
    em = int(tried * min(inner[0] / height, inner[1] / wide)) + 2  # widths are not quite in proportion to the em
    while em > 1:
        height, wide = _extent(rows, face, em)
        if height <= inner[0] and wide <= inner[1]:
            break
        em -= 1
    return em


def _sheet(rng: np.random.Generator, page: Canvas, box: tuple[int, int, int, int], paper: Colour, level: int) -> None:
    """The paper, its edge torn at the bottom from level 2 on, with a shadow from level 3 on."""
    left, top, right, bottom = box
    if level >= 3:
        for step in range(4, 0, -1):
            shade = mixed(page.ground, (0, 0, 0), 0.12 * (5 - step) / 2)
            page.pen.rectangle((left + step, top + step, right + step - 1, bottom + step - 1), fill=shade)
    page.pen.rectangle((left, top, right - 1, bottom - 1), fill=paper)
    if level >= 2:
        tooth = max(4, (right - left) // 40)
        for x in range(left, right - tooth // 2, tooth):
            ends = [
                (x, bottom),
                (min(x + tooth, right - 1), bottom),
                (min(x + tooth // 2, right - 1), bottom - tooth // 2),
            ]
            page.pen.polygon(ends, fill=page.ground)


def _write(
    rng: np.random.Generator,
    page: Canvas,
    rows: list[Row],
    corner: tuple[int, int, int],
    face: str,
    em: int,
    ink: Colour,
    paper: Colour,
) -> None:
    """All rows, from the top left corner of the sheet to its right edge."""
    left, right = corner[0] + _SIDE * em, corner[2] - _SIDE * em
    y = corner[1] + _END * em
    for row in rows:
        used, height = round(em * row.scale), _HEIGHTS[row.form] * row.scale * em
        base = y + height * 0.72
        if row.form == "centre":
            page.text(((left + right) / 2, base), row.left, face, used, ink, anchor="ms", over=paper)
        elif row.form == "rule":
            _dashes(page, (left, right), round(y + height / 2), em, ink)
        elif row.form == "bars":
            _bars(rng, page, (left, right), (y + 0.6 * em, y + height), em, ink)
        elif row.form != "gap":
            indent = 1.5 * em if row.form == "under" else 0
            page.text((left + indent, base), row.left, face, used, ink, over=paper)
            if row.right:
                page.text((right, base), row.right, face, used, ink, anchor="rs", over=paper)
        y += height


def _dashes(page: Canvas, ends: tuple[float, float], y: int, em: int, ink: Colour) -> None:
    count = round((ends[1] - ends[0]) / (0.6 * em))
    step = (ends[1] - ends[0]) / (count - 0.45)  # the last dash ends where the rule does
    for number in range(count):
        x = ends[0] + number * step
        page.pen.rectangle((round(x), y, round(x + step * 0.55) - 1, y + max(0, em // 16)), fill=ink)


def _bars(
    rng: np.random.Generator, page: Canvas, ends: tuple[float, float], rows: tuple[float, float], em: int, ink: Colour
) -> None:
    """A bar code that says nothing."""
    unit = max(1, em // 9)
    middle, x = (ends[0] + ends[1]) / 2, (ends[0] + ends[1]) / 2 - 4.5 * em
    while x < middle + 4.5 * em:
        thick, gap = (unit * int(step) for step in rng.integers(1, 4, 2))
        page.pen.rectangle((round(x), round(rows[0]), round(x) + thick - 1, round(rows[1]) - 1), fill=ink)
        x += thick + gap


def as_json(said: Facts) -> str:
    """The receipt as one line of JSON: company, date, total, and items with name and price; all values are texts."""
    items = [{"name": item.name, "price": money(item.price)} for item in said.items]
    row = {"company": said.shop, "date": said.date, "total": money(said.total), "items": items}
    return json.dumps(row, ensure_ascii=False)


def _price(said: Facts, rng: np.random.Generator) -> Asked:
    item = said.items[int(rng.integers(len(said.items)))]
    return f"What was paid for {item.name} in all?", _amount(item.price, said)


def _sum(said: Facts, rng: np.random.Generator) -> Asked:
    first, second = (said.items[int(number)] for number in rng.permutation(len(said.items))[:2])
    question = f"What was paid for {first.name} and {second.name} together?"
    return question, _amount(first.price + second.price, said)


def _amount(cents: int, said: Facts) -> list[str]:
    """As it is printed, and with the receipt's currency in front."""
    return [money(cents)] + ([said.currency + money(cents)] if said.currency else [])


def _dearest(said: Facts, rng: np.random.Generator) -> Asked:
    return "For which item was the most paid?", [max(said.items, key=lambda item: item.price).name]


_JSON = 'Give the receipt as JSON with the keys "company", "date", "total" and "items", a list of "name" and "price".'
QUESTIONS: Mapping[str, Callable[[Facts, np.random.Generator], Asked]] = MappingProxyType(
    {
        "shop": lambda said, _: ("What is the name of the shop?", [said.shop]),
        "date": lambda said, _: ("What is the date on the receipt?", [said.date]),
        "total": lambda said, _: ("What is the total?", _amount(said.total, said)),
        "price": _price,
        "count": lambda said, _: ("How many different items were bought?", [str(len(said.items))]),
        "dearest": _dearest,
        "sum": _sum,
        "json": lambda said, _: (_JSON, [as_json(said)]),
    }
)
"""What asks each kind of question and answers it."""
