"""The samples of a task on the page: cards with image, question, answer and truth, and what filters them."""

from collections import Counter
from collections.abc import Callable, Sequence

from ..results import Row, percent
from ..task import letter
from .html import safe
from .select import FLAGS, Selection, flags
from .words import counted

View = Callable[[Row], str]
"""The HTML of a row's images."""

MARKS = {
    "error": ("⚠", "error"),
    "missing": ("⚠", "missing"),
    "wrong": ("✗", "wrong"),
    "partly": ("◐", "partly right"),
    "right": ("✓", "right"),
    "unscored": ("·", "hidden truth"),
    "faulty": ("⚠", "faulty annotation"),
}
"""Verdict -> its sign and its name, the worst first."""


def samples(selection: Selection, view: View, *, template: str = "", alone: bool = True) -> str:
    """All lists of a task's samples, and their filters.

    Args:
        selection: what is shown.
        view: gives a row's images.
        template: the task's prompt; the lines that it has after every question stand back.
        alone: whether the page shows no other task; else the random selection is folded up at first.
    """
    drawn = f"{len(selection.drawn):,} of {selection.asked:,}"
    tail = template.rpartition("}")[2]
    tail = tail if tail.startswith("\n") else ""  # of the same line as the question it is a part

    def made(rows: Sequence[Row]) -> str:
        return "".join(card(row, view(row), tail) for row in rows)

    odd = "answers that were cut, that the metric could not read, or that are empty"
    lists = (
        _list(*_worst_title(selection), selection.worst, made),
        _list("Odd answers", odd, selection.odd, made, shut=not alone),
        _list("Random selection", drawn, selection.drawn, made, shut=not alone),
        _faulty(selection.faulty),
    )
    return f'{_filters(selection)}{"".join(lists)}<p class="nothing soft" hidden>No sample fits.</p>'


def _worst_title(selection: Selection) -> tuple[str, str]:
    if selection.all_shown:
        return "Worst first", f"all {counted(selection.asked, 'sample')}"
    return "Worst first", f"{len(selection.worst):,} of the {selection.missed:,} that are not right"


def _list(title: str, note: str, rows: Sequence[Row], made: Callable[[Sequence[Row]], str], shut: bool = False) -> str:
    if not rows:
        return ""
    summary = f"<summary><h3>{title} <small>{note}</small></h3></summary>"
    return f'<details class="list"{"" if shut else " open"}>{summary}<div class="grid">{made(rows)}</div></details>'


def _faulty(rows: Sequence[Row]) -> str:
    """What is wrong with the annotations, one a line: there is no question to show."""
    if not rows:
        return ""
    items = "".join(_fault(row) for row in rows)
    note = f"the first {len(rows)}: not asked, not scored" if len(rows) > 1 else "not asked, not scored"
    summary = f"<summary><h3>Faulty annotations <small>{note}</small></h3></summary>"
    return f'<details class="list faults" open>{summary}<ol class="panel">{items}</ol></details>'


def _fault(row: Row) -> str:
    place = f"sample {row.question.index + 1:,}"
    return f'<li {_data(row)}><span class="soft">{place}</span> <span class="asked">{safe(row.error)}</span></li>'


def _data(row: Row) -> str:
    """What the filters go by."""
    category, kinds = safe(row.question.category), " ".join(flags(row))
    return f'data-verdict="{row.verdict}" data-category="{category}" data-flags="{kinds}"'


def card(row: Row, images: str, tail: str = "") -> str:
    """One sample.

    Args:
        row: the sample.
        images: its images, as HTML.
        tail: how every prompt of the task ends.
    """
    return f"""<article class="panel sample {row.verdict}" {_data(row)}>{images}<div class="said">
{_asked(row, tail)}<dl>{_answer(row)}{_truth(row)}</dl>
<div class="foot"><span class="id">{_id(row)}</span><span class="badges">{_badges(row)}</span></div></div></article>"""


def _asked(row: Row, tail: str) -> str:
    """The prompt as it was asked; the lines of its choices become a list that shows which is right and was chosen."""
    prompt, choices = row.question.prompt, row.question.choices
    ending = tail if prompt.endswith(tail) else ""
    question, options = prompt.removesuffix(ending), ""
    if choices:
        lines = "\n".join(f"{letter(number)}. {text}" for number, text in enumerate(choices))
        question = question.rstrip().removesuffix(lines).rstrip()
        options = "".join(_choice(row, letter(number), text) for number, text in enumerate(choices))
    listed = f'<ul class="choices">{options}</ul>' if options else ""
    return f'<p class="asked">{safe(question) or "(no question)"}</p>{listed}{_ending(ending)}'


def _ending(text: str) -> str:
    return f'<p class="asked soft"><small>{safe(text.strip())}</small></p>' if text.strip() else ""


def _choice(row: Row, name: str, text: str) -> str:
    right = name in row.question.references
    chosen = row.score is not None and row.score.read_as == name
    kinds = " ".join(kind for kind, true in (("fits", right), ("chosen", chosen)) if true)
    note = " ".join(word for word, true in (("right", right), ("chosen", chosen)) if true)
    said = f' <small class="note">{note}</small>' if note else ""
    return f'<li class="{kinds}"><b>{name}</b> <span>{safe(text)}{said}</span></li>'


def _answer(row: Row) -> str:
    if row.error is not None:
        return f'<dt>error</dt><dd class="answer">{safe(row.error)}</dd>'
    if row.reply is None:
        return '<dt>answer</dt><dd><span class="soft">(missing)</span></dd>'
    said = safe(row.answer) if row.answer.strip() else '<span class="soft">(empty)</span>'
    return f'<dt>answer</dt><dd class="answer">{said}</dd>{_read_as(row)}'


def _read_as(row: Row) -> str:
    """What the metric made of the answer, where that is not the answer itself."""
    if row.unparsed:
        return '<dt>read as</dt><dd><span class="soft">nothing</span></dd>'
    read = row.score.read_as if row.score else ""
    alike = (read or "").casefold() == row.answer.strip(" .\n").casefold()
    return "" if not read or alike else f"<dt>read as</dt><dd>{safe(read)}</dd>"


def _truth(row: Row) -> str:
    """The accepted answers; several people's with how many gave each."""
    people = Counter(row.question.references).most_common()
    if not people:
        return f"<dt>truth</dt><dd>{'(hidden)' if row.verdict == 'unscored' else '(none)'}</dd>"
    texts = [
        f'{safe(text)}<small class="soft"> × {number}</small>' if number > 1 else safe(text) for text, number in people
    ]
    rest = f'<span class="rest"> · {" · ".join(texts[1:])}</span>' if len(texts) > 1 else ""
    return f"<dt>truth</dt><dd>{texts[0]}{rest}</dd>"


def _id(row: Row) -> str:
    parts = (row.question.id, row.question.category)
    return " · ".join(safe(text) for text in parts if text)


def _badges(row: Row) -> str:
    sign, word = MARKS[row.verdict]
    worth = f" {percent(row.score.goodness)}" if row.score and row.verdict == "partly" else ""
    kinds = "".join(f'<span class="badge flag">{flag}</span>' for flag in flags(row))
    return f'{kinds}<span class="badge">{sign} {word}{worth}</span>'


def _filters(selection: Selection) -> str:
    """Boxes to tick, a choice of category and a search; shown by the script alone, as nothing else makes them work."""
    rows = [*selection.worst, *selection.odd, *selection.drawn, *selection.faulty]
    verdicts = Counter[str](row.verdict for row in rows)
    odd = Counter(flag for row in rows for flag in flags(row))
    ticks = [_tick("verdict", one, " ".join(MARKS[one]), verdicts[one]) for one in MARKS if verdicts[one]]
    ticks += [_tick("flag", flag, flag, odd[flag]) for flag in FLAGS if odd[flag]]
    boxes = f'<div class="ticks">{"".join(ticks)}</div>' if len(ticks) > 1 else ""
    return f"""<form class="filters" hidden>{boxes}{_categories(rows)}
<input type="search" name="words" placeholder="Search question, answer, truth" aria-label="Search the samples">
<button type="reset">Clear</button><output>{len(rows)} samples</output></form>"""


def _tick(name: str, value: str, text: str, number: int) -> str:
    box = f'<input type="checkbox" name="{name}" value="{value}">'
    return f'<label class="tick {value}">{box}{text} <b>{number}</b></label>'


def _categories(rows: Sequence[Row]) -> str:
    names = sorted({row.question.category for row in rows})
    if len(names) < 2:
        return ""
    options = "".join(f'<option value="{safe(name)}">{safe(name) or "(none)"}</option>' for name in names)
    return f'<select name="category" aria-label="Category"><option>all categories</option>{options}</select>'
