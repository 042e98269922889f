"""Bootstrap intervals: against the slow loop, against known errors, and with clusters that matter."""

from collections.abc import Sequence

import numpy as np
import pytest

from vlm.eval.metrics.intervals import RESAMPLES, intervals
from vlm.eval.metrics.scoring import Figure, Metric, Score, Tally

MEAN = Metric(lambda answers: [], "a mean")


def means(values: Sequence[float]) -> list[Score]:
    return [Score({"score": Tally(float(value))}, float(value)) for value in values]


def one(scores: list[Score], clusters: Sequence[str], metric: Metric = MEAN) -> tuple[float, float] | None:
    return intervals(metric, scores, clusters=clusters)["score"]


def names(count: int, per_image: int = 1) -> list[str]:
    return [str(number // per_image) for number in range(count)]


def test_the_error_of_a_mean() -> None:
    scores = means([number % 2 for number in range(200)])
    low, high = one(scores, names(200)) or (0, 0)
    assert low < 0.5 < high
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.15)
    assert one(scores, names(200)) == (low, high)  # seeded


def test_images_are_drawn_whole() -> None:
    low, high = one(means([number % 2 for number in range(200)]), names(200)) or (0, 0)
    low_two, high_two = one(means([number // 2 % 2 for number in range(200)]), names(200, 2)) or (0, 0)
    assert (high_two - low_two) / (high - low) == pytest.approx(2**0.5, rel=0.15)  # half as many independent images


def test_where_a_bootstrap_cannot_tell() -> None:
    assert one(means([1, 0]), ["a", "a"]) is None
    assert one(means([1, 1]), ["a", "b"]) is None
    assert one(means([1, 0]), ["a", "b"]) == (0, 1)
    assert one([], []) is None


def random_scores(rng: np.random.Generator, count: int) -> list[Score]:
    """Two figures; one adds nothing in some answers, and has no weight in others."""
    scores = []
    for _ in range(count):
        tallies = {"score": Tally(float(rng.integers(0, 3)), float(rng.integers(0, 4)))}
        if rng.random() < 0.5:
            tallies["other"] = Tally(float(rng.random()))
        scores.append(Score(tallies, 0.5))
    return scores


@pytest.mark.parametrize("over", ["samples", "mean of categories", "sum of categories"])
def test_against_the_slow_loop(over: str) -> None:
    """Every set drawn anew, answer by answer, its figures by `Metric.values`."""
    rng = np.random.default_rng(3)
    metric = Metric(lambda answers: [], "two", (Figure("score"), Figure("other")), over)  # type: ignore[arg-type]
    scores, clusters = random_scores(rng, 40), [str(rng.integers(0, 12)) for _ in range(40)]
    categories = [clusters[n][-1] if over != "samples" else "" for n in range(40)]
    places = list(dict.fromkeys(clusters))
    draws = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = [places[n] for n in draws.integers(0, len(places), len(places))]
        rows = [n for place in chosen for n in range(40) if clusters[n] == place]
        values = metric.values([scores[n] for n in rows], [categories[n] for n in rows])
        drawn.append((values["score"], values["other"]))
    found = intervals(metric, scores, clusters=clusters, categories=categories)
    for number, name in enumerate(("score", "other")):
        wanted = np.percentile([values[number] for values in drawn], [2.5, 97.5])
        assert found[name] == pytest.approx(tuple(wanted), abs=1e-9)


def test_it_covers_the_truth() -> None:
    """Of 150 experiments of 60 images with 5 questions each about 95 % hold the true share; drawing questions as if
    they were independent would hold it far less often."""
    rng = np.random.default_rng(0)
    hits = {5: 0, 1: 0}
    for _ in range(150):
        ease = rng.beta(0.2, 0.2, 60)  # an image is easy or hard: mean 1/2
        values = (rng.random((60, 5)) < ease[:, None]).astype(float).ravel()
        for per_image in hits:
            low, high = one(means(values), names(300, per_image)) or (0, 0)
            hits[per_image] += low <= 0.5 <= high
    assert 0.90 <= hits[5] / 150 <= 0.985
    assert hits[1] / 150 < 0.80
