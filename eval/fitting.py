"""Whether a metric can make anything of a task's references: a score by one that cannot would look like a score."""

from collections.abc import Callable, Sequence

from vlm.errors import ConfigError

from .boxes import parse_box
from .documents import read_document
from .questions import Question

_Fits = Callable[[Sequence[str]], bool]


def refuse_misfit(metric: str, label: str, questions: Sequence[Question]) -> None:
    """Some metrics read their references too: letters, yes and no, boxes, JSON, several people's answers.

    Args:
        metric: its name.
        label: the task's.
        questions: all of them; those that are faulty, or without references, are passed over.

    Raises:
        ConfigError: it needs such references, and not one of them is.
    """
    known = [one for one in questions if one.fault is None and one.references]
    if metric not in _NEEDS or not known:
        return
    needed, fits = _NEEDS[metric]
    if not any(fits(one.references) for one in known):
        first = f"{known[0].id} has {', '.join(f'`{text}`' for text in known[0].references[:3])}"
        raise ConfigError(f"metric `{metric}` needs {needed}; no reference of task `{label}` is one: {first}")


def _letter(references: Sequence[str]) -> bool:
    return any(len(text) == 1 and "A" <= text <= "Z" for text in references)


def _yes_or_no(references: Sequence[str]) -> bool:
    return any(text.strip().lower().rstrip(".") in ("yes", "no") for text in references)


def _box(references: Sequence[str]) -> bool:
    return any(parse_box(text) is not None for text in references)


def _json(references: Sequence[str]) -> bool:
    return any(read_document(text)[1] for text in references)


def _several(references: Sequence[str]) -> bool:
    return len(references) > 1


_NEEDS: dict[str, tuple[str, _Fits]] = {
    **dict.fromkeys(("multiple_choice", "circular_choice", "scienceqa"), ("a letter as the answer", _letter)),
    **dict.fromkeys(("pope", "pope_pooled", "mme"), ("yes or no as the answer", _yes_or_no)),
    **dict.fromkeys(("rec", "rec_anywhere"), ("a box [x1, y1, x2, y2] from 0 to 1 as the answer", _box)),
    **dict.fromkeys(("kie_f1", "nted"), ("JSON as the answer", _json)),
    **dict.fromkeys(
        ("vqa_accuracy", "vqa_accuracy_2021", "textvqa_accuracy", "vizwiz_accuracy"),
        ("several people's answers to a question", _several),
    ),
}
"""Metric -> what it needs, and whether a question's references are such."""
