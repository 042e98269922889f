"""Metrics of what is extracted from documents: fields as JSON, and entities as tags."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

from .scoring import Answered, Score, Tally, total
from .trees import Node, tree_distance

DEEPEST = 64
"""JSON nested deeper than this is not read."""
UNREAD = "text_sequence"
"""The field that the text of an answer becomes which is no JSON."""
_LEAF = "<leaf>"


def kie_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """F1 of extracted fields over a set of documents: a field is right if its path and its text are.

    Follows donut `JSONParseEvaluator.cal_f1` (arXiv 2111.15664): hits and misses are summed over the set before F1 is
    taken; the order of keys does not matter, nor that of a list's items. Where there is nothing to find and nothing
    was found (the reference divides by zero) it is 1.

    Args:
        predictions: of each document what was read, as JSON gives it: dicts, lists, strings, numbers.
        references: of each document what there is.

    Raises:
        ValueError: not one reference a prediction.
    """
    tally = total(field_hits(*pair) for pair in zip(predictions, references, strict=True))
    return tally.value if tally.weight else 1.0


def field_hits(prediction: Any, reference: Any) -> Tally:
    """Twice the fields that are right, by the fields of both sides."""
    return _field_hits(_normalise(prediction), _normalise(reference))


def _field_hits(prediction: Any, reference: Any) -> Tally:
    found, wanted = Counter(_fields(prediction)), Counter(_fields(reference))
    return Tally(2.0 * (found & wanted).total(), float(found.total() + wanted.total()))


def nted_accuracy(prediction: Any, reference: Any) -> float:
    """1 - the edit distance of two documents as trees, by that of an empty one to the reference; at least 0.

    Follows donut `JSONParseEvaluator.cal_acc`: a text costs its edit distance, a key 1; keys are sorted, lists are
    not, so that their order matters. An empty reference gives 0.
    """
    return _nted(_normalise(prediction), _normalise(reference))


def _nted(prediction: Any, reference: Any) -> float:
    tree, truth = _tree(prediction, "<root>"), _tree(reference, "<root>")
    size, most = _weight(tree), _weight(truth)
    if abs(size - most) >= most:  # the distance is at least the difference
        return 0.0
    if tree == truth:
        return 1.0
    distance = tree_distance(tree, truth, alone=_cost, change=_change)
    return max(0.0, 1 - distance / most)


def _normalise(data: Any, depth: int = 0) -> Any:
    """A document as donut compares it: keys by length and name, texts in lists, nothing that is empty."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if not data:
        return {}
    if isinstance(data, dict):
        values = {key: _normalise(data[key], depth + 1) for key in sorted(data, key=lambda key: (len(key), key))}
        return {key: value if isinstance(value, list) else [value] for key, value in values.items() if value}
    if not isinstance(data, list):
        return [str(data).strip()]
    if all(isinstance(item, dict) for item in data):
        return [item for item in (_normalise(item, depth + 1) for item in data) if item]
    return [str(item).strip() for item in data if type(item) in (str, int, float) and str(item).strip()]


def _fields(data: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(data, dict):
        for key, value in data.items():
            yield from _fields(value, f"{path}.{key}" if path else key)
    elif isinstance(data, list):
        for item in data:
            yield from _fields(item, path)
    else:
        yield path, data


def _tree(data: Any, label: str) -> Node:
    if isinstance(data, dict):
        return Node(label, tuple(_tree(value, key) for key, value in data.items()))
    if all(isinstance(item, dict) for item in data):
        return Node(label, tuple(_tree(item, "<subtree>") for item in data))
    return Node(label, tuple(Node(f"{_LEAF}{item}") for item in data))


def _weight(tree: Node) -> int:
    """What the tree costs beyond its root."""
    return sum(_cost(child.label) + _weight(child) for child in tree.children)


def _cost(label: str) -> int:
    return len(label.replace(_LEAF, "")) if _LEAF in label else 1


def _change(one: str, other: str) -> int:
    texts = one.replace(_LEAF, ""), other.replace(_LEAF, "")
    if _LEAF in one and _LEAF in other:
        return Levenshtein.distance(*texts)
    if _LEAF in one or _LEAF in other:
        return 1 + len(texts[0] if _LEAF in one else texts[1])
    return int(one != other)


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """F1 of entities over a set of sentences: an entity is right if its type, its first and its last word are.

    Follows seqeval in its default mode: an `I-` without a `B-` before it opens an entity too.

    Args:
        predictions: of each sentence a tag a word: `O`, `B-X`, `I-X`, `E-X`, `S-X`.
        references: of each sentence the right tags.

    Raises:
        ValueError: not one reference a prediction.
    """
    return total(entity_hits(*pair) for pair in zip(predictions, references, strict=True)).value


def entity_hits(prediction: Sequence[str], reference: Sequence[str]) -> Tally:
    """Twice the entities that are right, by the entities of both sides."""
    found, wanted = entities(prediction), entities(reference)
    return Tally(2.0 * len(found & wanted), float(len(found) + len(wanted)))


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of every entity."""
    found, start, before, kind_before = set(), 0, "O", ""
    for place, tag in enumerate((*tags, "O")):
        now, kind = tag[0], tag[1:].split("-", maxsplit=1)[-1] or "_"
        other = kind != kind_before
        if before in "ES" or (before in "BI" and now in "BSO") or (before not in "O." and other):
            found.add((kind_before, start, place - 1))
        if now in "BS" or (before in "ESO" and now in "EI") or (now not in "O." and other):
            start = place
        before, kind_before = now, kind
    return found


def read_document(text: str) -> tuple[Any, bool]:
    """The JSON in a text, as donut compares it, and whether there is any: the whole text, or from its first bracket to
    its last. A text without becomes the one field `text_sequence`, as in donut.
    """
    for piece in (text, _bracketed(text)):
        try:
            data = json.loads(piece)
            if isinstance(data, dict | list):
                return _normalise(data), True
        except (ValueError, RecursionError):
            continue
    return _normalise({UNREAD: text}), False


def _bracketed(text: str) -> str:
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    return text[min(starts, default=0) : max(text.rfind("}"), text.rfind("]")) + 1]


def document_fault(references: Sequence[str], choices: Sequence[str]) -> str | None:
    """Why no fields could be right."""
    wrong = [text for text in references if not read_document(text)[1]]
    return f"the answer `{wrong[0][:60]}` is no JSON object or list" if wrong else None


def kie_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores answers in JSON by `kie_f1`; of several references the one that fits best. A failure finds nothing."""
    return [_hit_score(answered, _field_tally) for answered in answers]


def entity_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores answers that are tags with spaces between them by `entity_f1`; a failure finds nothing."""
    return [_hit_score(answered, _entity_tally) for answered in answers]


_Hits = Callable[[str | None, str], tuple[Tally, bool]]
"""From an answer and a reference to the hits, and whether the answer could be read."""


def _field_tally(answer: str | None, reference: str) -> tuple[Tally, bool]:
    found, read = ({}, True) if answer is None else read_document(answer)
    return _field_hits(found, read_document(reference)[0]), read


def _entity_tally(answer: str | None, reference: str) -> tuple[Tally, bool]:
    return entity_hits((answer or "").split(), reference.split()), True


def _hit_score(answered: Answered, hits: _Hits) -> Score:
    outcomes = [hits(answered.answer, reference) for reference in answered.references] or [(Tally(0.0), True)]
    tally, read = max(outcomes, key=lambda outcome: (_share(outcome[0]), outcome[0].points, -outcome[0].weight))
    if answered.answer is None:
        return Score({"score": Tally(0.0, tally.weight or 1.0)}, 0.0)
    return Score({"score": tally}, _share(tally), "" if read else None)


def _share(tally: Tally) -> float:
    """F1 of one document; of nothing to find, where nothing was found, it is 1."""
    return tally.value if tally.weight else 1.0


def nted_scores(answers: Sequence[Answered]) -> list[Score]:
    """Scores answers in JSON by `nted_accuracy`, on the best of the references."""
    return [_nted_score(answered) for answered in answers]


def _nted_score(answered: Answered) -> Score:
    if answered.answer is None:
        return Score({"score": Tally(0.0)}, 0.0)
    found, read = read_document(answered.answer)
    truths = [read_document(reference)[0] for reference in answered.references]
    value = max((_nted(found, truth) for truth in truths), default=0.0)
    return Score({"score": Tally(value)}, value, "" if read else None)
