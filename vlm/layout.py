"""What stands around an image's tokens in the text: tags, separators, newlines. Templates of the recipe, no code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlm.errors import ConfigError, Problem, unknown
from vlm.packer import Run
from vlm.sample import PLACEHOLDER

Piece = str | int
"""Text, or a run of so many placeholders."""

_IMAGE = {"views", "thumbnail", "tiles"}
_COUNTS = {"number", "ordinal", "height", "width"}
_FIELDS = {
    "image": _IMAGE | _COUNTS,
    "single": _IMAGE | _COUNTS,
    "thumbnail": {"tokens"},
    "tile": {"tokens", "row", "column", "index", "rows", "columns"},
    "stitched": {"tokens"},
    "column": set(),
    "row": set(),
    "line": set(),
}


class Layout(BaseModel):
    """Templates with fields in braces. The default puts an image's tokens side by side and no text around them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    image: str = "{views}"
    """The whole: `{views}`, or `{thumbnail}` and `{tiles}` apart; also `{number}` and `{ordinal}` (of the image in its
    sample, from 0 and from 1), `{height}` and `{width}` of the image in pixels."""
    single: str | None = None
    """In place of `image` when the image has one view only."""
    thumbnail: str = "{tokens}"
    """A view of the whole image."""
    tile: str = "{tokens}"
    """A tile: `{tokens}`, `{row}`, `{column}`, `{index}` (all from 1), `{rows}`, `{columns}`."""
    stitched: str = "{tokens}"
    """All tiles, where a packer has put them together to one map."""
    column: str = ""
    """Between two tiles of a row."""
    row: str = ""
    """Between two rows of tiles."""
    line: str = ""
    """Between two lines of tokens of a view, or of the map of all tiles."""
    joint: str = ""
    """Where one image ends and the next one begins with this text and nothing stands between them, it stands once."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: a template is no template, has a field that it cannot have, or lacks the tokens.
        """
        problems: list[Problem] = []
        for name, allowed in _FIELDS.items():
            template = getattr(self, name)
            if template is not None:
                problems += [Problem(name, message) for message in _mistakes(template, allowed)]
        if PLACEHOLDER in self.joint:
            problems.append(Problem("joint", _RESERVED))
        if problems:
            raise ConfigError(problems)

    def render(self, number: int, size: tuple[int, int], runs: Sequence[Run]) -> tuple[Piece, ...]:
        """The image as text and runs of placeholders, in the order of its views.

        Args:
            number: of the image in its sample.
            size: (height, width) of the image in pixels.
            runs: of the image's tokens, in order (see `vlm.packer.Run`).

        Raises:
            ConfigError: the templates leave a view out or order them otherwise than the view policy does.
        """
        name = "single" if self.single is not None and [run.shows for run in runs] == ["whole"] else "image"
        rendered = _Rendered(self, runs)
        pieces = _fill(
            getattr(self, name),
            {
                "views": rendered.some(lambda run: True),
                "thumbnail": rendered.some(lambda run: run.shows == "whole"),
                "tiles": rendered.some(lambda run: run.shows in ("tile", "tiles")),
                "number": number,
                "ordinal": number + 1,
                "height": size[0],
                "width": size[1],
            },
        )
        placed = [piece for piece in pieces if isinstance(piece, _Tokens)]
        if placed != rendered.order:
            raise ConfigError(Problem(f"layout.{name}", self._misplaced(name, placed, runs)))
        return _joined(pieces)

    def _misplaced(self, name: str, placed: "Sequence[_Tokens]", runs: Sequence[Run]) -> str:
        left_out = {run.shows for number, run in enumerate(runs) if number not in {one.run for one in placed}}
        where = f"`{getattr(self, name)}`"
        if "all" in left_out:
            return (
                f"{where} lacks {{views}}: the packer makes one sequence of all of them, thumbnail and tiles together"
            )
        if left_out:
            missing = "{thumbnail}" if "whole" in left_out else "{tiles}"
            return f"{where} leaves tokens out: it lacks {missing} (or write {{views}}, which is all in order)"
        return (
            f"{where} puts thumbnail and tiles in another order than the view policy; allowed: its order, or {{views}}"
        )


@dataclass(frozen=True)
class _Tokens:
    """One line of placeholders: which run and line of it, and how long."""

    run: int
    line: int
    length: int


_Template = Mapping[str, "str | int | Sequence[str | _Tokens]"]


class _Rendered:
    """The runs of one image between the texts of a layout."""

    def __init__(self, layout: Layout, runs: Sequence[Run]) -> None:
        self._layout = layout
        self._runs = runs
        self._cells = [run.cell for run in runs if run.cell is not None]
        self.order: list[_Tokens] = []
        self._pieces = [self._run(number, run) for number, run in enumerate(runs)]

    def some(self, wanted: Callable[[Run], bool]) -> list[str | _Tokens]:
        """The wanted runs in order, with the separators between tiles that follow each other."""
        pieces: list[str | _Tokens] = []
        before: tuple[int, int] | None = None
        for run, own in zip(self._runs, self._pieces, strict=True):
            if wanted(run):
                if before is not None and run.cell is not None:
                    pieces.append(self._layout.column if before[0] == run.cell[0] else self._layout.row)
                pieces += own
                before = run.cell
        return pieces

    def _run(self, number: int, run: Run) -> list[str | _Tokens]:
        tokens = self._lines(number, run)
        if run.shows == "all":
            return tokens
        if run.cell is None:
            return _fill(self._layout.thumbnail if run.shows == "whole" else self._layout.stitched, {"tokens": tokens})
        fields: dict[str, Any] = {"tokens": tokens, "row": run.cell[0] + 1, "column": run.cell[1] + 1}
        fields |= {"rows": max(row for row, _ in self._cells) + 1, "columns": max(col for _, col in self._cells) + 1}
        return _fill(self._layout.tile, fields | {"index": self._cells.index(run.cell) + 1})

    def _lines(self, number: int, run: Run) -> list[str | _Tokens]:
        lengths = [run.shape.tokens]
        if self._layout.line:
            if run.shape.grid is None:
                raise ConfigError(Problem("layout.line", "separates lines of tokens, and these lie on no grid"))
            lengths = [run.shape.grid[1]] * run.shape.grid[0]
        tokens: list[str | _Tokens] = []
        for line, length in enumerate(lengths):
            placed = _Tokens(number, line, length)
            self.order.append(placed)
            tokens += [self._layout.line, placed] if line else [placed]
        return tokens


def _fill(template: str, fields: _Template) -> list[str | _Tokens]:
    """The template with its fields in place; a field may be a list of pieces."""
    pieces: list[str | _Tokens] = []
    for literal, field, spec, _ in Formatter().parse(template):
        pieces.append(literal)
        value = "" if field is None else fields[field]
        pieces += [format(value, spec or "")] if isinstance(value, (str, int)) else value
    return pieces


def _joined(pieces: Sequence[str | _Tokens]) -> tuple[Piece, ...]:
    """Neighbouring texts as one, none of them empty."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, _Tokens):
            joined.append(piece.length)
        elif joined and isinstance(joined[-1], str):
            joined[-1] += piece
        elif piece:
            joined.append(piece)
    return tuple(joined)


_RESERVED = f"`{PLACEHOLDER}` is the kit's own token for visual tokens and cannot be written"


def _mistakes(template: str, allowed: set[str]) -> list[str]:
    try:
        parsed = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        return [f"`{template}` is no template: {error}; write {{{{ and }}}} for braces themselves"]
    fields = [str(field) for field, _, _ in parsed]
    strangers = [unknown("field", field, allowed) for field in fields if field not in allowed]
    if strangers:
        return strangers
    mistakes = [_bad_format(*part) for part in parsed if part[1] or part[2]]
    mistakes += [_RESERVED] * (PLACEHOLDER in template)
    mistakes += [f"`{template}` has {{{field}}} twice" for field in _IMAGE | {"tokens"} if fields.count(field) > 1]
    if "tokens" in allowed and "tokens" not in fields:
        mistakes.append(f"`{template}` lacks {{tokens}}")
    if "views" in allowed:
        mistakes += _view_mistakes(template, set(fields) & _IMAGE)
    return [mistake for mistake in mistakes if mistake]


def _view_mistakes(template: str, fields: set[str]) -> list[str]:
    if not fields:
        return [f"`{template}` lacks {{views}} (or {{thumbnail}} and {{tiles}})"]
    if "views" in fields and len(fields) > 1:
        return [f"`{template}` has {{views}}, which is thumbnail and tiles already, and one of the two besides"]
    return []


def _bad_format(field: Any, spec: Any, conversion: Any) -> str:
    """What is wrong with `{field!conversion:spec}`; only numbers have a format, such as `{row:02d}`."""
    shown = f"{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"
    if conversion or field in _IMAGE | {"tokens"}:
        return f"`{shown}` is no field: write {{{field}}}"
    try:
        format(1, spec)
    except ValueError as error:
        return f"`{shown}`: {error}"
    return ""
