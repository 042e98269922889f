"""What stands around an image's tokens in the text: tags, separators, newlines. Templates of the recipe, no code."""

from collections.abc import Sequence
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict

from vlm.errors import ConfigError, Problem, unknown
from vlm.features import Shape
from vlm.views import View

Piece = str | int
"""Text, or a run of so many placeholders."""
_RUN = "\0"

_ALLOWED = {
    "image": ("views", "thumbnail", "tiles", "number", "height", "width"),
    "single": ("views", "thumbnail", "tiles", "number", "height", "width"),
    "thumbnail": ("tokens",),
    "tile": ("tokens", "row", "column", "index", "rows", "columns"),
    "column": (),
    "row": (),
    "line": (),
    "joint": (),
}


class Layout(BaseModel):
    """Templates with fields in braces. The default puts an image's tokens side by side and no text around them."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    image: str = "{views}"
    """The whole: `{views}`, or `{thumbnail}` and `{tiles}` apart; also `{number}` (of the image, from 0), `{height}`
    and `{width}` of the image in pixels."""
    single: str | None = None
    """In place of `image` when the image has one view only."""
    thumbnail: str = "{tokens}"
    """A view of the whole image."""
    tile: str = "{tokens}"
    """A tile: `{tokens}`, `{row}`, `{column}`, `{index}` (all from 1), `{rows}`, `{columns}`."""
    column: str = ""
    """Between two tiles of a row."""
    row: str = ""
    """Between two rows of tiles."""
    line: str = ""
    """Between two lines of tokens of a view."""
    joint: str = ""
    """Where two images follow each other at once, this text stands once between them, not twice."""

    def check(self) -> None:
        """
        Raises:
            ConfigError: a template is no template, has a field that it cannot have, or lacks the tokens.
        """
        problems: list[Problem] = []
        for name, allowed in _ALLOWED.items():
            template = getattr(self, name)
            if template is not None:
                problems += _template_problems(name, template, allowed)
        if problems:
            raise ConfigError(problems)

    def render(
        self, number: int, size: tuple[int, int], views: Sequence[View], shapes: Sequence[Shape]
    ) -> tuple[Piece, ...]:
        """The image as text and runs of placeholders, in the order of its views.

        Args:
            number: of the image in its sample.
            size: (height, width) of the image in pixels.
            views: of the image.
            shapes: of each view's tokens in the LLM; one in all where a packer has joined the views.

        Raises:
            ConfigError: the templates leave a view out or order them otherwise than the view policy does.
        """
        rendered = _Rendered(self, views, shapes)
        template = self.single if self.single is not None and len(views) == 1 else self.image
        text = template.format(
            views=rendered.views(),
            thumbnail=rendered.of(cell=False),
            tiles=rendered.of(cell=True),
            number=number,
            height=size[0],
            width=size[1],
        )
        found = _pieces(text)
        placed = [piece for piece in found if isinstance(piece, tuple)]
        if placed != rendered.order:
            raise ConfigError(
                f"layout: {template!r} puts the views' tokens in another order than the view policy, or leaves some "
                "out; it must hold {views}, or {thumbnail} and {tiles} in the policy's order (see its `thumbnail`)"
            )
        return tuple(piece if isinstance(piece, str) else piece[1] for piece in found)


class _Rendered:
    """The views of one image as text; a run is written between two NULs as `number of the run:its length`."""

    def __init__(self, layout: Layout, views: Sequence[View], shapes: Sequence[Shape]) -> None:
        self._layout = layout
        self._views = views
        self.order: list[tuple[int, int]] = []
        self._texts = [self._view(number, shape) for number, shape in enumerate(shapes)]

    def views(self) -> str:
        """All in order: those of the whole image by themselves, tiles by rows."""
        if len(self._texts) != len(self._views):  # a packer has made one sequence of them
            return "".join(self._texts)
        text, numbers = "", list(range(len(self._views)))
        while numbers:
            tiled = self._views[numbers[0]].cell is not None
            length = next(
                (n for n, i in enumerate(numbers) if (self._views[i].cell is not None) != tiled), len(numbers)
            )
            text += self._joined(numbers[:length])
            numbers = numbers[length:]
        return text

    def of(self, *, cell: bool) -> str:
        """Only the tiles, or only the views of the whole image."""
        if len(self._texts) != len(self._views):
            return ""
        return self._joined([n for n, view in enumerate(self._views) if (view.cell is not None) == cell])

    def _joined(self, numbers: Sequence[int]) -> str:
        text = ""
        for before, number in zip([None, *numbers], numbers, strict=False):
            old, new = None if before is None else self._views[before].cell, self._views[number].cell
            if old is not None and new is not None:
                text += self._layout.column if old[0] == new[0] else self._layout.row
            text += self._texts[number]
        return text

    def _view(self, number: int, shape: Shape) -> str:
        layout = self._layout
        lines = [shape.tokens]
        if layout.line:
            if shape.grid is None:
                raise ConfigError("layout.line separates lines of tokens, and these lie on no grid")
            lines = [shape.grid[1]] * shape.grid[0]
        tokens = layout.line.join(self._run(length) for length in lines)
        cell = self._views[number].cell if number < len(self._views) else None
        if cell is None:
            return layout.thumbnail.format(tokens=tokens)
        cells = [view.cell for view in self._views if view.cell is not None]
        rows, columns = max(row for row, _ in cells) + 1, max(column for _, column in cells) + 1
        return layout.tile.format(
            tokens=tokens,
            row=cell[0] + 1,
            column=cell[1] + 1,
            index=cells.index(cell) + 1,
            rows=rows,
            columns=columns,
        )

    def _run(self, length: int) -> str:
        self.order.append((len(self.order), length))
        return f"{_RUN}{len(self.order) - 1}:{length}{_RUN}"


def _pieces(text: str) -> list[str | tuple[int, int]]:
    pieces: list[str | tuple[int, int]] = []
    for number, part in enumerate(text.split(_RUN)):
        if number % 2:
            run, _, length = part.partition(":")
            pieces.append((int(run), int(length)))
        elif part:
            pieces.append(part)
    return pieces


def _template_problems(name: str, template: str, allowed: Sequence[str]) -> list[Problem]:
    try:
        fields: list[Any] = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        return [Problem(name, f"`{template}` is no template: {error}; write {{{{ and }}}} for braces themselves")]
    problems = [Problem(name, unknown("field", field, allowed)) for field in fields if field not in allowed]
    if "tokens" in allowed and "tokens" not in fields:
        problems.append(Problem(name, f"`{template}` lacks {{tokens}}"))
    if name in ("image", "single") and not set(fields) & {"views", "tiles", "thumbnail"}:
        problems.append(Problem(name, f"`{template}` lacks {{views}} (or {{thumbnail}} and {{tiles}})"))
    return problems
