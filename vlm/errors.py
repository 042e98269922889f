"""The one error class for what a user wrote, and the helpers that make it teach."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what is wrong with it and what would be right."""

    place: str
    """Dotted place in the recipe, e.g. `model.encoders.0.layers`."""
    message: str

    def under(self, prefix: str) -> "Problem":
        """The same problem seen from the level above: `heads` under `model.connector` is `model.connector.heads`."""
        return replace(self, place=join(prefix, self.place))

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(ValueError):
    """What the user wrote cannot be used; lists every problem found, not only the first.

    Args:
        problems: one text or several `Problem`s.
        source: what was read, e.g. the recipe's path.
        headline: what the problems come to, where that is no number of mistakes.
    """

    def __init__(self, problems: str | Problem | Iterable[Problem], *, source: str = "", headline: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem("", problems)
        self.problems: list[Problem] = [problems] if isinstance(problems, Problem) else list(problems)
        self.source = source
        self.headline = headline
        super().__init__(self.problems, source)

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another: its own constructor takes keywords, which pickling would not give."""
        return partial(ConfigError, self.problems, source=self.source, headline=self.headline), ()

    def __str__(self) -> str:
        where = f" in {self.source}" if self.source else ""
        if len(self.problems) == 1 and not self.headline:
            return f"{self.problems[0]}{where and f' ({self.source})'}"
        lines = "\n".join(f"  - {problem}" for problem in self.problems)
        return f"{self.headline or f'{len(self.problems)} mistakes'}{where}:\n{lines}"

    def under(self, prefix: str) -> "ConfigError":
        """The same error seen from the level above (see `Problem.under`)."""
        return ConfigError(
            [problem.under(prefix) for problem in self.problems], source=self.source, headline=self.headline
        )


class Interrupted(RuntimeError):
    """What ran was asked to stop and did, with its work saved; the same command again goes on.

    Args:
        message: says so.
        status: the exit status of a program that ends by it.
    """

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message, status)

    def __str__(self) -> str:
        return str(self.args[0])


def join(*places: str | int) -> str:
    """`join("model", "encoders", 0)` is `model.encoders.0`; empty pieces are left out."""
    return ".".join(str(place) for place in places if str(place))


def choices(value: str, allowed: Sequence[str]) -> str:
    """` did you mean `x`? allowed: x, y, z`: the tail of every message about a name that is not known."""
    near = get_close_matches(value, allowed, n=1, cutoff=0.6)
    hint = f" did you mean `{near[0]}`?" if near else ""
    return f"{hint} allowed: {', '.join(allowed) if allowed else 'nothing'}"


def positive(**numbers: int) -> list[Problem]:
    """A problem for each of the named numbers that is not 1 or more."""
    return [Problem(name, f"`{number}`; allowed: 1 or more") for name, number in numbers.items() if number < 1]


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """The message for a name nobody knows: names it, the nearest known one, and all known ones."""
    return f"unknown {what} `{value}`;{choices(value, sorted(allowed))}"


class TrainingError(RuntimeError):
    """Training cannot go on; the message shows the samples it stopped at."""
