"""Small pieces of HTML. Whatever comes from data, a model or a task passes through `safe`."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..metrics.intervals import Interval


def safe(text: object) -> str:
    """Text that no browser takes for anything else, in an attribute too."""
    return escape(str(text))


def soft(text: str) -> str:
    """What stands back behind the rest; `text` is HTML."""
    return f'<span class="soft">{text}</span>'


def terms(facts: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, both plain text."""
    return "".join(f"<dt>{safe(name)}</dt><dd><code>{safe(value)}</code></dd>" for name, value in facts)


@dataclass(frozen=True)
class Axis:
    """A straight line of values."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the line; what lies outside is at its end."""
        return 100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def span(self, low: float, high: float) -> str:
        """The style of what reaches from one value to another."""
        return f"left:{self.at(low):.2f}%;width:{self.at(high) - self.at(low):.2f}%"


def axis_of(values: Iterable[float]) -> Axis:
    """From 0 to 1, where shares end, or to the next round number for what is no share."""
    most = max(values, default=1.0)
    return Axis(0.0, 1.0 if most <= 1 else _round_up(most))


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 8, 10) if step * power >= value)


def ticks(values: Sequence[float], most: int = 6) -> list[float]:
    """Round numbers around all values, at even steps, at most so many."""
    low, high = min(values), max(values)
    room = max(high - low, abs(high) * 0.02, 1e-6) / (most - 2)
    power = 10.0 ** math.floor(math.log10(room))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= room)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def gauge(value: float, interval: Interval | None, axis: Axis) -> str:
    """A bar with the ends of its interval."""
    marks = "" if interval is None else f'<i class="ends" style="{axis.span(*interval)}"></i>'
    return f'<span class="gauge"><i class="fill" style="width:{axis.at(value):.2f}%"></i>{marks}</span>'
