"""`vlm data`: samples looked at, a page of some of them, and a few lines for the terminal."""

from dataclasses import dataclass
from pathlib import Path

from vlm.files import replacing

from .measure import Totals, look, spread
from .opening import open_processor, open_samples
from .page import Page

_BARS = " ▁▂▃▄▅▆▇█"
_WIDE = 40
MOST_FAULTY = 12
"""Faulty samples that are shown beside those that are shown anyway."""


@dataclass(frozen=True)
class Preview:
    """What was found."""

    totals: Totals
    faults: list[str]
    """What is wrong, of each sample that cannot be used."""


def preview(samples: str, model: str, *, out: Path, show: int = 24, measure: int = 500) -> Preview:
    """Look at samples as a model will see them, and write the page.

    Args:
        samples: what `opening.open_samples` takes.
        model: a saved model or a recipe.
        out: where the page goes.
        show: samples on the page, evenly spread; the first faulty ones come on top.
        measure: samples that are looked at for the counts, evenly spread.

    Raises:
        ConfigError: samples or model cannot be opened.
    """
    name, source = open_samples(samples)
    called, processor = open_processor(model)
    page, totals, faults = Page(name, called, processor), Totals(len(source), processor.max_length), []
    measured = spread(len(source), max(show, measure))
    chosen, faulty = {measured[number] for number in spread(len(measured), show)}, 0
    for index in measured:
        seen = look(source, index, processor)
        totals.add(seen)
        if seen.error:
            faults.append(f"{seen.name}: {seen.error}" if seen.sample else seen.error)
        if index in chosen or (seen.faulty and faulty < MOST_FAULTY):
            faulty += seen.faulty and index not in chosen
            page.add(seen)
    with replacing(out) as file:
        file.write(page.html(totals))
    return Preview(totals, faults)


def lines(found: Preview) -> list[str]:
    """What was found, for a terminal."""
    totals, lengths = found.totals, sorted(found.totals.lengths)
    fine = f"{len(lengths):,} of {totals.looked_at:,} samples can be trained on (there are {totals.samples:,})"
    told = [fine]
    if lengths:
        shares = ", ".join(f"{share:.0%} {name}" for name, share in totals.shares().items())
        told.append(f"{totals.positions:,} positions: {shares}; {totals.images:,} images")
        bins = totals.histogram(_WIDE)
        most = max(count for _, _, count in bins)
        bars = "".join(_BARS[-(-8 * count // most)] for _, _, count in bins)
        middle, context = lengths[len(lengths) // 2], totals.context
        told.append(f"lengths {lengths[0]:,} {bars} {lengths[-1]:,}; median {middle:,}, the model takes {context:,}")
    for counts in (totals.causes, totals.oddities):
        told += [f"{count:,} × {text}" for text, count in counts.most_common()]
    return told
