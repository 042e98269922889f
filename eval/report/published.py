"""Which published scores may stand beside a result: those measured under the same conditions, and no others."""

from ..metrics.scoring import Figure
from ..results import TaskResult
from ..task import Published


def differences(published: Published, result: TaskResult) -> list[str]:
    """Why a published score must not stand beside the result, in words; empty if it may."""
    conditions = result.conditions
    found = []
    if published.split not in ("", conditions.split):
        found.append(f"split {published.split}, here {conditions.split or 'not stated'}")
    if published.prompt != conditions.variant:
        found.append(f"prompt {published.prompt}, here {conditions.variant}")
    if figure_of(published, result) is None:
        found.append(f"figure {published.figure}, not measured here" if result.figures else "no score here")
    if published.differs:
        found.append(published.differs)
    if conditions.subset:
        found.append(f"here {conditions.subset}")
    if result.counts.missing:
        found.append(f"here {result.counts.missing:,} answers are missing")
    if result.counts.faulty:
        found.append(f"here {result.counts.faulty:,} questions are left out as faulty")
    return found


def figure_of(published: Published, result: TaskResult) -> Figure | None:
    """The figure that a published score is of, if it was measured."""
    if not published.figure:
        return result.scale if result.figures else None
    return next((figure for figure in result.scales if figure.name == published.figure), None)


def comparisons(result: TaskResult) -> list[tuple[Figure, list[Published]]]:
    """The published scores that may stand beside the user's, by figure, the best first."""
    alike = [one for one in result.published if not differences(one, result)]
    found = []
    for figure in result.scales:
        sign = 1 if figure.better == "lower" else -1
        same = [one for one in alike if figure_of(one, result) == figure]
        if same:
            found.append((figure, sorted(same, key=lambda one: (sign * one.score, one.model))))
    return found


def others(result: TaskResult) -> list[tuple[Published, list[str]]]:
    """The published scores under other conditions, each with what differs."""
    each = [(one, differences(one, result)) for one in result.published]
    return [(one, why) for one, why in each if why]
