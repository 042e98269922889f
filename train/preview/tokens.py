"""A sample's tokens as HTML: what is learned in colour, each run of placeholders as its length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vlm.collate import Example

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 8
"""Tokens that one character is waited for; then they are shown as they are."""


@dataclass(frozen=True)
class Piece:
    """Tokens that are shown as one: mostly a single one, several where a character has several."""

    text: str
    ids: Sequence[int]
    learned: bool = False
    special: bool = False
    image: int = -1
    """Number of the image that the placeholders stand for; -1 for text."""


def pieces(tokenizer: Any, example: Example) -> Iterator[Piece]:
    """A sample in the order of its positions."""
    ids, labels, owner = example.input_ids.tolist(), example.labels.tolist(), example.owner.tolist()
    special, start = set(tokenizer.all_special_ids), 0
    while start < len(ids):
        key = (owner[start], labels[start] >= 0)
        end = start + 1
        while end < len(ids) and (owner[end], labels[end] >= 0) == key:
            end += 1
        if owner[start] >= 0:
            yield Piece("", ids[start:end], image=owner[start])
        else:
            for text, group in _texts(tokenizer, ids[start:end]):
                yield Piece(text, group, learned=key[1], special=group[0] in special)
        start = end


def _texts(tokenizer: Any, ids: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """Each token's text; decoded behind the one before it, since some tokenizers drop the first space."""
    before: list[int] = []
    waiting: list[int] = []
    for number, token in enumerate(ids):
        waiting.append(token)
        text = _decoded(tokenizer, before + waiting)[len(_decoded(tokenizer, before)) :]
        if text.endswith(_UNFINISHED) and len(waiting) < _LONGEST and number < len(ids) - 1:
            continue
        yield text, waiting
        before, waiting = waiting, []


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def tokens_html(tokenizer: Any, example: Example) -> str:
    """The sample's text as HTML."""
    return "".join(_html(piece) for piece in pieces(tokenizer, example))


def _html(piece: Piece) -> str:
    if piece.image >= 0:
        return f'<b class="image">image {piece.image + 1} × {len(piece.ids):,}</b>'
    kinds = [name for name in ("learned", "special") if getattr(piece, name)]
    shown = escape(piece.text).replace("\n", "↵\n").replace("\t", "⇥\t")
    title = f' title="{len(piece.ids)} tokens"' if len(piece.ids) > 1 else ""
    return f'<i class="{" ".join(["t", *kinds])}"{title}>{shown}</i>'
