"""Preference pairs from responses whose claims were checked one by one, as RLAIF-V makes them (arXiv 2405.17220)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from vlm.errors import ConfigError, Problem

Row = Mapping[str, Any]


def claim_pairs(
    rows: Iterable[Row], *, wrong_below: float = 0.5, difference: int = 1, most: int = 2, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows with several scored responses to a question -> rows with `chosen` and `rejected`.

    A response's score is the number of its wrong claims, below zero: what it says that is right does not make up for
    what is not, and a longer one is not better for being long. Any two responses to a question whose scores differ
    make a pair; of those some are drawn, so that no question weighs more than others.

    Args:
        rows: `{..., "responses": [{"text": "...", "claims": [0.9, 0.2]}]}`; a claim is the probability that it is true,
            or `{"score": 0.9, ...}`, or `{"yes": 0.7, "no": 0.1}`, the checker's probabilities of its two answers.
            Whatever else a row has is kept.
        wrong_below: a claim is wrong whose probability is not above this.
        difference: least difference of two scores.
        most: pairs of one question; 0 is all.
        seed: of the draw, which depends on it and a row's number alone.

    Raises:
        ConfigError: a row is of another form; names its number.
    """
    for number, row in enumerate(rows):
        try:
            responses = [(str(one["text"]), _score(one["claims"], wrong_below)) for one in row["responses"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(Problem(f"row {number + 1}", f"no scored responses: {error!r}")) from error
        pairs = [pair for pair in map(_ordered, combinations(responses, 2)) if pair[0][1] - pair[1][1] >= difference]
        pairs = [pair for pair in pairs if pair[0][0].strip() != pair[1][0].strip()]
        if most and len(pairs) > most:
            drawn = np.random.default_rng([seed, number]).choice(len(pairs), most, replace=False)
            pairs = [pairs[place] for place in sorted(drawn)]
        rest = {key: value for key, value in row.items() if key != "responses"}
        yield from ({**rest, "chosen": better, "rejected": worse} for (better, _), (worse, _) in pairs)


def balanced(pairs: Sequence[Row], *, step: float = 0.02) -> list[Row]:
    """Those of the pairs whose chosen answer is not much shorter than the rejected one, so that being short is not what
    is learned: the limit is taken at which the chosen and the rejected answers are as long on average.

    Lengths are in words. A pair is left out whose chosen answer is shorter by more than the limit, a share of the
    rejected one's length.
    """
    words = np.array([[len(str(pair[key]).split()) for key in ("chosen", "rejected")] for pair in pairs], dtype=float)
    if not len(words):
        return []
    shorter = (words[:, 1] - words[:, 0]) / np.maximum(words[:, 1], 1)
    best: tuple[float, float] = (float("inf"), 1.0)
    for limit in np.arange(0, 1 + step / 2, step):
        kept = words[shorter <= limit]
        if len(kept):
            chosen, rejected = kept.mean(0)
            best = min(best, (abs(chosen - rejected) / max(rejected, 1e-9), float(limit)))
    return [pair for pair, share in zip(pairs, shorter, strict=True) if share <= best[1]]


def _score(claims: Sequence[Any], wrong_below: float) -> int:
    """Number of wrong claims, below zero."""
    return -sum(_is_wrong(claim, wrong_below) for claim in claims)


def _is_wrong(claim: Any, wrong_below: float) -> bool:
    if isinstance(claim, Mapping) and "yes" in claim:
        return float(claim["yes"]) <= float(claim["no"])
    score = float(claim["score"] if isinstance(claim, Mapping) else claim)
    if not 0 <= score <= 1:
        raise ValueError(f"a claim's score is {score}; allowed: 0 to 1")
    return score <= wrong_below


def _ordered(pair: tuple[tuple[str, int], tuple[str, int]]) -> tuple[tuple[str, int], tuple[str, int]]:
    """The better one first."""
    return pair if pair[0][1] >= pair[1][1] else (pair[1], pair[0])
