"""Scores of models that answered the same questions, each trained with several seeds: what is sure about them.

Every model is trained S times, and each time it is asked all questions about I images: a table of S x I values in which
a seed's row rises and falls together, and an image's column too. Both were drawn at random (others would give other
numbers): both count, and two or three seeds must count as few. Studies in which several readers judge the same cases
have this design, and their analysis of variance is used (Dorfman, Berbaum and Metz 1992): readers are seeds, cases are
images. A bootstrap over three seeds would give intervals far too short: it draws no seed that it has not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.intervals import Array, Interval, combined, per_weight
from ..metrics.scoring import Over

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and images."""

    value: float
    interval: Interval | None
    """95 %; None where nothing varies, so that nothing can be said of other seeds or images."""
    p: float | None
    """Two-sided, of a true value of 0; None where nothing varies but the value is not 0."""
    seeds: int
    images: int


def pseudovalues(sums: Array, over: Over = "samples") -> Array:
    """What each image makes of a figure: the figure plus the image's influence on it, so that their mean is the figure.

    A mean's pseudovalues are the images' own values. A ratio of sums (an error rate, an F1) is taken as linear near its
    value, which is the delta method.

    Args:
        sums: points, weights and numbers of answers of S seeds, I images, K categories: [S, I, K, 3].
        over: what the figure is the ratio of (see `vlm.eval.metrics.scoring.Metric`).

    Returns:
        [S, I].
    """
    totals = sums.sum(1, keepdims=True)  # [S, 1, K, 3]
    points, weights, answers = (totals[..., part] for part in range(3))
    ratios = per_weight(points, weights)
    images = sums.shape[1]
    moved = np.where(weights != 0, sums[..., 0] - ratios * sums[..., 1], sums[..., 0] - points / images)
    influences = images * moved / np.where(weights != 0, weights, 1)
    return combined(ratios + influences, answers, over)


def estimate(values: Array) -> Estimate:
    """The mean of [S, I] values with an interval that holds for other seeds and other images of the same kind.

    The seeds' part of the variance comes with S - 1 degrees of freedom and the images' with I - 1; Student's t is that
    of each, weighted by its part (Cochran and Cox 1950), which is on the safe side. With one seed the interval is that
    of the images alone and says nothing of other seeds.
    """
    mean, (seeds, images) = float(values.mean()), values.shape
    parts = _variances(values)
    if sum(parts) <= 1e-24:
        return Estimate(mean, None, 1.0 if abs(mean) < 1e-12 else None, seeds, images)
    error = sum(parts) ** 0.5
    reach = _quantile(1 - LEVEL, parts, (seeds, images)) * error
    return Estimate(
        mean, (mean - reach, mean + reach), _p_value(abs(mean) / error, parts, (seeds, images)), seeds, images
    )


def _variances(values: Array) -> tuple[float, float]:
    """Of the mean of [S, I] values: what seeds contribute (with what is left unexplained), and what images do.

    With s, i, e for the variances of seeds, images and the rest, the mean's is s / S + i / I + e / (S I), and the mean
    squares of seeds, images and the rest are expected to be e + I s, e + S i and e.
    """
    seeds, images = values.shape
    by_seed, by_image, mean = values.mean(1, keepdims=True), values.mean(0, keepdims=True), values.mean()
    of_images = seeds * float(((by_image - mean) ** 2).sum()) / max(1, images - 1)
    if seeds == 1:
        return 0.0, of_images / images
    of_seeds = images * float(((by_seed - mean) ** 2).sum()) / (seeds - 1)
    rest = float(((values - by_seed - by_image + mean) ** 2).sum()) / max(1, (seeds - 1) * (images - 1))
    return of_seeds / (seeds * images), max(of_images - rest, 0.0) / (seeds * images)


def _quantile(p: float, parts: tuple[float, float], counts: tuple[int, int]) -> float:
    """What a mean over its standard error exceeds, up or down, with probability `p` if the true mean is 0."""
    from scipy.special import stdtrit

    quantiles = [-float(stdtrit(max(1, count - 1), p / 2)) for count in counts]
    return sum(part * quantile for part, quantile in zip(parts, quantiles, strict=True) if part) / sum(parts)


def _p_value(ratio: float, parts: tuple[float, float], counts: tuple[int, int]) -> float:
    """The p at which `_quantile` is `ratio`, by halving on a logarithmic scale."""
    low, high = -200.0, 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _quantile(10**middle, parts, counts) > ratio else (low, middle)
    return float(10**high)


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p-values of several tests, so corrected that the chance of even one false alarm stays below the level (Holm
    1979); what is None is no test."""
    order = sorted((p, number) for number, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for place, (p, number) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        corrected[number] = largest
    return corrected
