"""The page: one HTML file that holds all it shows, without a script."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from vlm import __version__
from vlm.processor import Processor

from .cards import card
from .measure import Seen, Totals

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass
class Page:
    """What is shown, made while samples are looked at: their pixels are not kept."""

    name: str
    """Of the samples."""
    model: str
    processor: Processor
    faulty: list[str] = field(default_factory=list)
    fine: list[str] = field(default_factory=list)

    def add(self, seen: Seen) -> None:
        """Show one more sample."""
        (self.faulty if seen.faulty else self.fine).append(card(seen, self.processor))

    def html(self, totals: Totals) -> str:
        """The whole page."""
        style = (Path(__file__).parent / "page.css").read_text(encoding="utf8")
        cards = [*self.faulty, *self.fine]
        shown = f"{len(cards):,} of {totals.samples:,} samples" + ", the faulty ones first" * bool(self.faulty)
        return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(self.name)}</title><style>
{style}</style></head><body><main>
<h1>{escape(self.name)}</h1><p class="soft">as {escape(self.model)} sees it · vlm-kit {escape(__version__)}</p>
{_overview(totals)}
<h2>{shown}</h2>
{_key()}
{"".join(cards)}
</main></body></html>
"""


def _overview(totals: Totals) -> str:
    lengths = sorted(totals.lengths)
    refused, odd = totals.causes.total(), totals.oddities.total()
    figures = [
        (f"{totals.looked_at:,}", f"looked at, of {totals.samples:,}", ""),
        (f"{refused:,}", "cannot be trained on", "wrong" * bool(refused)),
        (f"{odd:,}", "oddities", "odd" * bool(odd)),
        (f"{totals.images:,}", f"images; {totals.text_only:,} × text alone", ""),
        (f"{lengths[len(lengths) // 2]:,}" if lengths else "–", "positions, median", ""),
        (f"{lengths[-1]:,}" if lengths else "–", f"at most, of {totals.context:,}", ""),
    ]
    cells = "".join(f'<div class="{kind}"><strong>{value}</strong>{text}</div>' for value, text, kind in figures)
    return f"""<section class="panel"><div class="figures">{cells}</div>
{_bar(totals.shares())}{_shares(totals.shares())}{_columns(totals.histogram())}{_causes(totals)}</section>"""


def _bar(shares: dict[str, float]) -> str:
    classes = {"visual": "visual", "read": "read", "learned": "learnt"}
    parts = (f'<i class="{classes[name]}" style="width:{100 * share:.2f}%"></i>' for name, share in shares.items())
    return f'<div class="bar">{"".join(parts)}</div>'


def _shares(shares: dict[str, float]) -> str:
    names = {"visual": ("visual", "of images"), "read": ("read", "read"), "learned": ("learnt", "learned")}
    items = (
        f'<span><b class="{names[name][0]}"></b>{share:.1%} {names[name][1]}</span>' for name, share in shares.items()
    )
    return f'<div class="key">{"".join(items)}</div>'


def _columns(bins: Sequence[tuple[int, int, int]]) -> str:
    if not bins:
        return ""
    most = max(count for _, _, count in bins)
    columns = "".join(
        f'<div style="height:{100 * count / most:.1f}%" title="{low} to {high}">'
        f"{f'<span>{count:,}</span>' if count else ''}</div>"
        for low, high, count in bins
    )
    ends = f"<span>{bins[0][0]:,}</span><span>positions of a sample</span><span>{bins[-1][1]:,}</span>"
    return f'<div class="columns">{columns}</div><div class="ends">{ends}</div>'


def _causes(totals: Totals) -> str:
    kinds = (("wrong", totals.causes), ("odd", totals.oddities))
    items = "".join(
        f'<li class="{kind}">{count:,} × {escape(text)}</li>'
        for kind, counts in kinds
        for text, count in counts.most_common()
    )
    return f'<ul class="causes">{items}</ul>' if items else ""


def _key() -> str:
    items = (
        '<span><i class="t learned">learned</i></span>',
        '<span><i class="t">read, not learned</i></span>',
        '<span><i class="t special">special token</i></span>',
        '<span><b class="image" style="width:auto;height:auto;margin:0">image 1 × 576</b> placeholders</span>',
    )
    return f'<div class="key">{"".join(items)}</div>'
