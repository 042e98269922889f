"""Puts labels beside points so that they cover neither each other nor anything else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]
"""(left, bottom, right, top) in pixels."""
Point = tuple[float, float]

NEAR, FAR, RINGS, DIRECTIONS = 14.0, 80.0, 7, 16
"""Pixels from a point to its label, least and most; how many distances and directions are tried."""


@dataclass(frozen=True)
class Placed:
    """Where a label went."""

    box: Box
    distance: float
    """From its point, in pixels."""


def place(points: Sequence[Point], sizes: Sequence[Point], *, taken: Sequence[Box], inside: Box) -> list[Placed]:
    """A place for each label, as near to its point as it can be.

    Args:
        points: what the labels belong to, in pixels.
        sizes: width and height of the labels.
        taken: what no label should cover: marks, bars, lines.
        inside: where labels may be.
    """
    choices = [_choices(point, size) for point, size in zip(points, sizes, strict=True)]
    crowded = sorted(range(len(points)), key=lambda number: _room(points, number))
    chosen: dict[int, Placed] = {}
    for _ in range(4):  # a first place for each, then better ones now that the others are known
        for number in crowded:
            others = [one.box for other, one in chosen.items() if other != number]
            chosen[number] = min(choices[number], key=lambda one: _cost(one, others, taken, inside))
    return [chosen[number] for number in range(len(points))]


def _room(points: Sequence[Point], number: int) -> float:
    """Distance to the nearest other point: who has least chooses first."""
    x, y = points[number]
    return min((float(np.hypot(x - a, y - b)) for k, (a, b) in enumerate(points) if k != number), default=np.inf)


def _choices(point: Point, size: Point) -> list[Placed]:
    found = []
    for distance in np.linspace(NEAR, FAR, RINGS):
        for angle in np.linspace(0, 2 * np.pi, DIRECTIONS, endpoint=False):
            x, y = point[0] + distance * np.cos(angle), point[1] + distance * np.sin(angle)
            left = x - size[0] * (1 - np.cos(angle)) / 2  # the label's near side looks at its point
            bottom = y - size[1] * (1 - np.sin(angle)) / 2
            away = float(distance + 0.15 * NEAR * (1 - np.cos(angle)))
            found.append(Placed((left, bottom, left + size[0], bottom + size[1]), away))
    return found


def _cost(one: Placed, labels: Sequence[Box], taken: Sequence[Box], inside: Box) -> float:
    left, bottom, right, top = one.box
    outside = (
        max(0, inside[0] - left) + max(0, right - inside[2]) + max(0, inside[1] - bottom) + max(0, top - inside[3])
    )
    covered = 4 * sum(overlap(one.box, box, margin=2) for box in labels) + sum(
        overlap(one.box, box, margin=1) for box in taken
    )
    return covered + 50 * outside + one.distance


def overlap(one: Box, other: Box, *, margin: float = 0.0) -> float:
    """Pixels that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + margin
    height = min(one[3], other[3]) - max(one[1], other[1]) + margin
    return max(0.0, width) * max(0.0, height)
