"""Bootstrap intervals of a metric's figures, clustered by image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scoring import Metric, Over, Score

RESAMPLES = 1000
"""Sets drawn for an interval; its ends then vary by a few hundredths of its width."""

Interval = tuple[float, float]
Array = NDArray[Any]


def intervals(
    metric: Metric,
    scores: Sequence[Score],
    *,
    clusters: Sequence[str],
    categories: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """95 % percentile bootstrap interval of every figure, drawing whole clusters: an image's questions rise and fall
    together.

    The idea of arXiv 2411.00640, section 2.2; a bootstrap serves ratios (character error rate, F1) and sums over
    categories as well as means. What a metric takes from the whole set (CIDEr's document frequencies) stays as it is.
    None for a single cluster, and where all are worth the same: drawing from them again would claim certainty.

    Args:
        metric: whose figures.
        scores: of all answers.
        clusters: each answer's image.
        categories: each answer's, for metrics that go by category.
        seed: of the draws.
    """
    named = categories if categories is not None and metric.over != "samples" else [""] * len(scores)
    sums = _sums(metric, scores, clusters, named)  # [I, F, K, 3]
    drawn = _drawn(metric, sums, seed) if len(sums) > 1 else None
    found: dict[str, Interval | None] = {}
    for number, figure in enumerate(metric.figures):
        one = None if drawn is None or _alike(sums[:, number]) else drawn[:, number]
        found[figure.name] = None if one is None else _ends(one)
    return found


def _sums(metric: Metric, scores: Sequence[Score], clusters: Sequence[str], categories: Sequence[str]) -> Array:
    """Points, weights and numbers of answers of I clusters, F figures, K categories: [I, F, K, 3]."""
    places = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    kinds = {name: number for number, name in enumerate(dict.fromkeys(categories))}
    sums = np.zeros((len(places), len(metric.figures), len(kinds), 3))
    names = [figure.name for figure in metric.figures]
    for score, cluster, category in zip(scores, clusters, categories, strict=True):
        here = sums[places[cluster], :, kinds[category]]
        for number, name in enumerate(names):
            if (tally := score.tallies.get(name)) is not None:
                here[number] += tally.points, tally.weight, 1
    return sums


def _values(metric: Metric, sums: Array) -> Array:
    """[..., F, K, 3] -> the figures [..., F]."""
    return combined(per_weight(sums[..., 0], sums[..., 1]), sums[..., 2], metric.over)


def per_weight(points: Array, weights: Array) -> Array:
    """`vlm.eval.metrics.scoring.Tally.value` of many."""
    return np.divide(points, weights, out=points.copy(), where=weights != 0)  # type: ignore[no-any-return]


def combined(values: Array, answers: Array, over: Over) -> Array:
    """Values of K categories and their numbers of answers [..., K] -> the figure [...]: the mean of those that have an
    answer, or the sum."""
    present = np.maximum(1, (answers > 0).sum(-1)) if over == "mean of categories" else 1
    return values.sum(-1) / present  # type: ignore[no-any-return]


def _drawn(metric: Metric, sums: Array, seed: int) -> Array:
    """The figures of `RESAMPLES` sets of as many clusters, drawn with replacement: [R, F]."""
    rng = np.random.default_rng(seed)
    flat = sums.reshape(len(sums), -1)
    drawn = np.stack([_times(rng, len(sums)) @ flat for _ in range(RESAMPLES)])
    return _values(metric, drawn.reshape(RESAMPLES, *sums.shape[1:]))


def _times(rng: np.random.Generator, count: int) -> Array:
    """How often each of `count` clusters is drawn."""
    return np.bincount(rng.integers(0, count, count), minlength=count).astype(float)


def _alike(sums: Array) -> bool:
    """Whether all clusters [I, K, 3] that weigh anything are worth the same."""
    points, weights = sums[..., 0].sum(-1), sums[..., 1].sum(-1)
    values = per_weight(points, weights)[(points != 0) | (weights != 0)]
    return len(values) < 2 or bool(np.ptp(values) < 1e-12)


def _ends(values: Array) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
