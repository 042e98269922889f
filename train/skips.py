"""Samples that were left out of training: counted by cause, named in a file, and too many stop the run."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlm.sample import Skipped

FEWEST = 100
"""Samples that have to be drawn before their share says anything."""


class TooManySkipped(RuntimeError):
    """The data cannot be what was meant."""


class Skips:
    """Keeps what was left out.

    Args:
        file: JSON lines, `{"sample", "id", "cause", "why"}`; a stage that goes on knows what stands there. Each process
            has one of its own.
        most: the largest share of the samples that may be left out.
        part: the share of all samples that this process gets to see.
    """

    def __init__(self, file: Path, *, most: float, part: float = 1.0) -> None:
        self._file, self._most, self._part = file, most, part
        self._known = _read(file)

    @property
    def counts(self) -> dict[str, int]:
        """By cause, the most frequent first: those of all processes of the stage, each sample once."""
        known: dict[int, str] = {}
        for file in self._file.parent.glob("skipped*.jsonl"):
            known |= _read(file)
        return dict(Counter(known.values()).most_common())

    def __call__(self, found: Sequence[Skipped]) -> None:
        """Take note of some; those that are known already do not count twice.

        Raises:
            TooManySkipped: there are too many by now.
        """
        fresh = list({one.number: one for one in found if one.number not in self._known}.values())
        if not fresh:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf8", errors="backslashreplace") as file:
            for one in fresh:
                self._known[one.number] = one.cause
                row = {"sample": one.number, "id": one.id, "cause": one.cause, "why": one.why}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        drawn = (1 + max(self._known)) * self._part
        if drawn >= FEWEST and len(self._known) > self._most * drawn:
            causes = ", ".join(f"{cause} {count:,}" for cause, count in Counter(self._known.values()).most_common())
            raise TooManySkipped(
                f"{len(self._known):,} of {drawn:,.0f} samples cannot be used ({causes}), more than the share of "
                f"{self._most:g} that `most_skipped` allows; the latest: {fresh[-1].why}. All are named in {self._file}"
            )


def _read(file: Path) -> dict[int, str]:
    """Sample -> cause."""
    lines = file.read_text(encoding="utf8").splitlines() if file.is_file() else []
    return {row["sample"]: row["cause"] for row in map(json.loads, lines)}
