"""A packer that puts learned separators between views."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError, Problem
from vlm.features import Shape
from vlm.packer import ImagePlan, Packer, Run, separate
from vlm.views import View

Place = Literal["start", "line", "view", "grid", "column", "row", "end"]
Step = int | str
"""Number of a view, or name of a separator."""


class Separators(Packer):
    """Learned vectors around the views and between them; the default is Ovis2's (arXiv 2405.20797), for a thumbnail
    and then tiles: start, thumbnail, grid, tile, column, tile, row, tile, ..., end.

    Args:
        at: where there is one: `start` and `end` of the image; `grid` behind its views of the whole, be there tiles or
            not; `column` between two tiles of a row and `row` between two rows of tiles; `view` behind each view;
            `line` behind each line of its tokens. Each place has one vector, wherever it stands.
    """

    def __init__(self, width: int, *, at: Sequence[Place] = ("start", "grid", "column", "row", "end")) -> None:
        super().__init__()
        if not at:
            raise ConfigError(Problem("at", "is empty; leave the packer out where there are no separators"))
        self.at = nn.ParameterDict({place: nn.Parameter(torch.randn(width) * width**-0.5) for place in at})

    def forward(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], image: ImagePlan) -> Tensor:
        """V tensors [t, C] and their shapes -> [T, C]."""
        parts: list[Tensor] = []
        for step in self._steps(image.views[0]):
            if isinstance(step, str):
                parts.append(self.at[step][None].to(tokens[0]))
            else:
                parts.append(self._lines(tokens[step], shapes[step]))
        return torch.cat(parts)

    def runs(self, shapes: Sequence[Shape], image: ImagePlan) -> list[Run]:
        separate(shapes, image)  # refuses views that overlap
        steps = self._steps(image.views[0])
        total = sum(1 if isinstance(step, str) else self._length(shapes[step]) for step in steps)
        return [Run(Shape(total, shapes[0].width), "all")]

    def _steps(self, views: Sequence[View]) -> list[Step]:
        """Views and separators in order."""
        wholes = [number for number, view in enumerate(views) if view.cell is None]
        if "grid" in self.at and wholes != list(range(len(wholes))):
            raise ConfigError("`grid` stands between views of the whole image and tiles, so they must come first")
        steps: list[Step] = ["start"]
        before: View | None = None
        for number, view in enumerate(views):
            if number == len(wholes):
                steps.append("grid")
            if before is not None and before.cell is not None and view.cell is not None:
                steps.append("column" if before.cell[0] == view.cell[0] else "row")
            steps += [number, "view"]
            before = view
        steps += ["grid"] * (len(wholes) == len(views)) + ["end"]
        return [step for step in steps if isinstance(step, int) or step in self.at]

    def _lines(self, tokens: Tensor, shape: Shape) -> Tensor:
        if "line" not in self.at:
            return tokens
        rows = tokens.unflatten(0, _grid(shape))
        return torch.cat([rows, self.at["line"].to(rows).expand(len(rows), 1, -1)], dim=1).flatten(0, 1)

    def _length(self, shape: Shape) -> int:
        return shape.tokens + (_grid(shape)[0] if "line" in self.at else 0)


def _grid(shape: Shape) -> tuple[int, int]:
    if shape.grid is None:
        raise ConfigError("`line` stands behind lines of tokens, and the connector's tokens lie on no grid")
    return shape.grid
