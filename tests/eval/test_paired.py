"""Intervals and p-values of S x I tables: against slow sums, SciPy's t-tests, a bootstrap, and what they promise."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from vlm.eval.comparison.paired import estimate, holm, pseudovalues


def drawn(
    rng: np.random.Generator, seeds: int, images: int, *, seed: float, image: float, rest: float, mean: float = 0.0
) -> Any:
    """Values of seeds that differ by `seed`, images by `image`, and both together by `rest` (standard deviations)."""
    of_seeds, of_images = rng.normal(0, 1, (seeds, 1)) * seed, rng.normal(0, 1, (1, images)) * image
    return mean + of_seeds + of_images + rng.normal(0, 1, (seeds, images)) * rest


def slow_variances(values: Any) -> tuple[float, float]:
    """The seeds' and the images' part of the mean's variance, by sums as a textbook has them."""
    seeds, images = values.shape
    mean = sum(values[s][i] for s in range(seeds) for i in range(images)) / (seeds * images)
    rows = [sum(values[s]) / images for s in range(seeds)]
    columns = [sum(values[s][i] for s in range(seeds)) / seeds for i in range(images)]
    by_seed = images * sum((row - mean) ** 2 for row in rows) / (seeds - 1)
    by_image = seeds * sum((column - mean) ** 2 for column in columns) / (images - 1)
    left = [values[s][i] - rows[s] - columns[i] + mean for s in range(seeds) for i in range(images)]
    rest = sum(one**2 for one in left) / ((seeds - 1) * (images - 1))
    return by_seed / (seeds * images), max(by_image - rest, 0.0) / (seeds * images)


def test_one_seed_is_the_t_test_over_images() -> None:
    values = np.random.default_rng(0).normal(0.1, 1, (1, 50))
    found, wanted = estimate(values), stats.ttest_1samp(values[0], 0)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval(0.95)))
    assert (found.seeds, found.images) == (1, 50)


def test_images_that_do_not_differ_leave_the_t_test_over_seeds() -> None:
    """Where all images of a seed are worth the same, only the seeds' means say anything."""
    rng = np.random.default_rng(1)
    values = np.repeat(rng.normal(0.5, 1, (4, 1)), 30, axis=1)
    found, wanted = estimate(values), stats.ttest_1samp(values.mean(1), 0)
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.interval == pytest.approx(tuple(wanted.confidence_interval(0.95)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_is_what_slow_sums_give(seeds: int) -> None:
    values = drawn(np.random.default_rng(seeds), seeds, 12, seed=0.3, image=0.5, rest=0.4, mean=0.2)
    parts = slow_variances(values)
    found = estimate(values)
    quantile = [stats.t.ppf(0.975, seeds - 1), stats.t.ppf(0.975, 11)]
    reach = sum(part * one for part, one in zip(parts, quantile, strict=True)) / sum(parts) * sum(parts) ** 0.5
    assert found.interval == pytest.approx((found.value - reach, found.value + reach))
    assert found.value == pytest.approx(np.mean(values))


def test_many_seeds_and_images_agree_with_drawing_them_again() -> None:
    """With many of both a bootstrap that draws seeds and images, each with replacement, has the same spread."""
    rng = np.random.default_rng(3)
    values = drawn(rng, 40, 200, seed=0.1, image=0.5, rest=0.3)
    means = []
    for _ in range(1500):
        rows, columns = rng.integers(0, 40, 40), rng.integers(0, 200, 200)
        means.append(values[rows][:, columns].mean())
    low, high = estimate(values).interval or (0, 0)
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(means), rel=0.1)


# Least coverage asked for: nominal 0.95 but for the noise of 600 draws (3 standard errors: 0.027).
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("seed", "image", "rest"), [(0.0, 0.3, 0.3), (0.02, 0.3, 0.3), (0.1, 0.3, 0.3), (0.3, 0.1, 0.3)]
)
def test_intervals_cover_the_truth_and_tests_keep_their_level(
    seeds: int, seed: float, image: float, rest: float
) -> None:
    rng = np.random.default_rng([seeds, int(1000 * seed)])
    if seeds == 1:
        seed = 0.0  # one seed can say nothing of others
    found = [estimate(drawn(rng, seeds, 60, seed=seed, image=image, rest=rest)) for _ in range(600)]
    covered = [one.interval is not None and one.interval[0] <= 0 <= one.interval[1] for one in found]
    assert np.mean(covered) >= 0.923
    assert [one.p is not None and one.p < 0.05 for one in found] == [not one for one in covered]


def test_a_bootstrap_over_three_seeds_would_not_cover() -> None:
    """Why the usual way is not taken: percentiles of means of seeds and images that are drawn again."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(150):
        values = drawn(rng, 3, 60, seed=0.1, image=0.1, rest=0.1)
        rows, columns = rng.integers(0, 3, (200, 3)), rng.integers(0, 60, (200, 60))
        means = [values[row][:, column].mean() for row, column in zip(rows, columns, strict=True)]
        low, high = np.percentile(means, [2.5, 97.5])
        covered += low <= 0 <= high
    assert covered / 150 < 0.88


def test_p_values_are_uniform_where_nothing_is_different() -> None:
    rng = np.random.default_rng(6)
    one_seed = [estimate(drawn(rng, 1, 80, seed=0.0, image=0.4, rest=0.3)).p for _ in range(800)]
    assert stats.kstest(one_seed, "uniform").pvalue > 0.01
    several = [estimate(drawn(rng, 5, 80, seed=0.3, image=0.1, rest=0.1)).p for _ in range(800)]
    assert stats.kstest(several, "uniform").pvalue > 0.01


def test_a_difference_is_found_where_there_is_one() -> None:
    rng = np.random.default_rng(7)
    found = [estimate(drawn(rng, 3, 300, seed=0.01, image=0.4, rest=0.2, mean=0.15)).p or 0 for _ in range(200)]
    assert np.mean(np.array(found) < 0.05) > 0.95


def test_pairing_finds_what_two_separate_intervals_hide() -> None:
    rng = np.random.default_rng(8)
    hard = rng.normal(0, 0.4, (1, 300))
    one, other = (hard + rng.normal(mean, 0.05, (2, 300)) for mean in (0.0, 0.03))
    low, high = estimate(one).interval or (0, 0)
    assert low < float(other.mean()) < high
    paired = estimate(other - one)
    assert paired.p is not None
    assert paired.p < 0.05


def test_where_nothing_varies_nothing_is_claimed() -> None:
    assert estimate(np.zeros((3, 20))) == estimate(np.zeros((3, 20)))
    assert (estimate(np.zeros((3, 20))).interval, estimate(np.zeros((3, 20))).p) == (None, 1.0)
    assert (estimate(np.ones((2, 20))).interval, estimate(np.ones((2, 20))).p) == (None, None)
    assert estimate(np.ones((1, 1))).interval is None


def sums(points: Any, weights: Any) -> Any:
    """[S, I] points and weights as the sums of one category."""
    return np.stack([points, weights, np.ones_like(points)], -1)[:, :, None, :]


def test_pseudovalues_of_a_mean_are_the_values_and_of_any_figure_have_it_as_their_mean() -> None:
    rng = np.random.default_rng(9)
    points = rng.random((2, 15))
    assert pseudovalues(sums(points, np.ones_like(points))) == pytest.approx(points)
    weights = rng.integers(1, 9, (2, 15)).astype(float)
    found = pseudovalues(sums(points, weights))
    assert found.mean(1) == pytest.approx(points.sum(1) / weights.sum(1))


def test_pseudovalues_of_a_ratio_are_nearly_those_of_leaving_one_image_out() -> None:
    """Tukey's: I times the figure of all, less I - 1 times that without the image."""
    rng = np.random.default_rng(10)
    points, weights = rng.integers(0, 4, (1, 200)).astype(float), rng.integers(4, 9, (1, 200)).astype(float)
    whole = points.sum() / weights.sum()
    left_out = [
        (points.sum() - points[0, image]) / (weights.sum() - weights[0, image]) for image in range(points.shape[1])
    ]
    wanted = 200 * whole - 199 * np.array(left_out)
    assert pseudovalues(sums(points, weights))[0] == pytest.approx(wanted, abs=0.01)


def test_pseudovalues_by_category() -> None:
    rng = np.random.default_rng(11)
    tables = rng.random((2, 30, 3, 3))
    tables[..., 1:] = 1.0
    tables[:, ::2, 1] = 0.0  # half of the images have no question of the second category
    means = tables.sum(1)[..., 0] / tables.sum(1)[..., 1]
    assert pseudovalues(tables, "mean of categories").mean(1) == pytest.approx(means.mean(1))
    assert pseudovalues(tables, "sum of categories").mean(1) == pytest.approx(means.sum(1))
    empty = np.zeros((1, 4, 1, 3))
    empty[..., 0] = 2.0  # points over no weight count as they are
    assert pseudovalues(empty).mean() == pytest.approx(8.0)


def test_holm_corrects_step_by_step() -> None:
    assert holm([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert holm([None]) == [None]
