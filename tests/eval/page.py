"""A strict reader of the report, and results made by hand."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from vlm.eval.answer_log import Reply
from vlm.eval.metrics.scoring import Answered, Figure, Metric, Score, Tally
from vlm.eval.questions import Question
from vlm.eval.results import TaskResult, score_rows, summarise
from vlm.eval.task import Task

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Node:
    """One element."""

    tag: str
    attributes: dict[str, str]
    children: "list[Node]" = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Its own text and that of all inside it."""
        return "".join(self.texts)

    @property
    def inside(self) -> "Iterator[Node]":
        """All elements inside it."""
        for child in self.children:
            yield child
            yield from child.inside

    def all(self, tag: str = "", kind: str = "", **attributes: str) -> "list[Node]":
        """The elements inside it of a tag, a class and attributes (`data_verdict` is `data-verdict`)."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            node
            for node in self.inside
            if tag in ("", node.tag)
            and (not kind or kind in node.attributes.get("class", "").split())
            and wanted.items() <= node.attributes.items()
        ]

    def one(self, tag: str, kind: str = "", **attributes: str) -> "Node":
        """The only one of `all`."""
        (node,) = self.all(tag, kind, **attributes)
        return node


class Page(HTMLParser):
    """A page; fails on tags that are not closed in order, and on event handlers."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(html)
        assert self._open == [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attrs)
        node = Node(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for node in self._open:
            node.texts.append(data)

    @property
    def tags(self) -> list[str]:
        return [node.tag for node in self.root.inside]

    @property
    def links(self) -> list[str]:
        kinds = ("src", "href", "srcset", "data", "action")
        return [value for node in self.root.inside for name, value in node.attributes.items() if name in kinds]

    @property
    def text(self) -> str:
        """What is there to read."""
        return self.root.one("main").text

    def all(self, tag: str = "", kind: str = "", **attributes: str) -> list[Node]:
        return self.root.all(tag, kind, **attributes)

    def one(self, tag: str, kind: str = "", **attributes: str) -> Node:
        return self.root.one(tag, kind, **attributes)


def says(answer: str | None, **changes: Any) -> dict[str, Any]:
    """One sample of `made`: what is answered (None: nothing yet) and whatever else is to be said of it."""
    return {"answer": answer, **changes}


def made(samples: Sequence[dict[str, Any]], task: Task, **options: Any) -> TaskResult:
    """The result of a task on samples by `says`: fields of a question, of a reply, or the answer alone."""
    questions, replies = [], {}
    for index, sample in enumerate(samples):
        asked = {name: value for name, value in sample.items() if name in Question.__dataclass_fields__}
        defaults = {"id": f"id{index}", "prompt": f"Question {index}?", "image": f"i{index}", "references": ("yes",)}
        question = Question(**{"index": index, "key": f"key{index}", **defaults, **asked})
        questions.append(question)
        if sample["answer"] is not None:
            said = {name: sample[name] for name in ("answer", "error", "truncated") if name in sample}
            replies[question.key] = Reply(question.key, question.id, question.prompt, "", "m", {}, **said)
    return summarise(task, score_rows(task, questions, replies), **options)


def task(metric: str = "exact_match", **fields: Any) -> Task:
    """A task that nothing is read for."""
    return Task(**{"name": "toy", "version": 2, "source": {"name": "json"}, "metric": metric, **fields})


def several(score: Callable[[Answered], Score]) -> Metric:
    """A metric of three figures, as POPE's: the last one is neither good nor bad."""
    figures = (Figure("f1"), Figure("errors_made", "lower"), Figure("yes_ratio", "neither"))
    return Metric(lambda answers: [score(one) for one in answers], "", figures)


def yes_or_no(answered: Answered) -> Score:
    """Reads yes or no; anything else is unparsed."""
    said = (answered.answer or "").lower().rstrip(".")
    right = said in answered.references
    tallies = {"f1": Tally(right), "errors_made": Tally(not right), "yes_ratio": Tally(said == "yes")}
    return Score(tallies, float(right), said if said in ("yes", "no") or answered.answer is None else None)
