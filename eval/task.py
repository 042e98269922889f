"""A task: data, prompt, metric and version, read from a small YAML file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from vlm import registry
from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.recipe import Part, PartSpec, read_yaml
from vlm.sample import Sample, Turn
from vlm.schema import check_options, validate

from .metrics import METRICS, Metric

DATA = "$DATA"
"""Stands in a source's options for the path that `--data` gives."""
QUESTION = "{question}"
"""Stands in a prompt for the sample's question."""


class Task(BaseModel):
    """What is asked, how it is asked, and how answers are scored.

    Whoever changes data, prompt or metric raises the version: scores of two versions are not comparable.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]*[A-Za-z0-9_-]$")
    """Also the name of the folder that the answers go to."""
    version: PositiveInt
    description: str = ""
    source: Part
    """A registered data source with its options; `$DATA` in an option is the path given with `--data`."""
    metric: str
    """A name in `vlm.eval.metrics.METRICS`."""
    prompt: str = QUESTION
    """Put around the question: the user's last turn with the sample's own text at `{question}`."""
    max_new_tokens: PositiveInt = 64
    """The longest answer; one that reaches it is counted as truncated."""

    @property
    def scoring(self) -> Metric:
        return METRICS[self.metric]

    @property
    def needs_data(self) -> bool:
        """Whether a path must still be given with `--data`."""
        return DATA in self.source.options.values()

    def with_data(self, data: str) -> "Task":
        """The task on the file `data`."""
        options = {key: data if value == DATA else value for key, value in self.source.options.items()}
        return self.model_copy(update={"source": PartSpec(name=self.source.name, **options)})

    def open(self) -> Source:
        """The samples.

        Raises:
            ConfigError: the source cannot be opened with these options, or has no sample.
        """
        if self.needs_data:
            raise ConfigError(Problem("source", f"task `{self.name}` runs on your own file: add --data PATH"))
        kind = registry.sources.get(self.source.name)
        try:
            source: Source = kind(**check_options(kind, self.source.options))
        except ConfigError as error:
            raise error.under("source") from error
        if not len(source):
            raise ConfigError(Problem("source", "holds no sample"))
        return source

    def ask(self, sample: Sample) -> Sample:
        """The sample as the model gets it: the question inside the prompt; the answer is in `answers` alone.

        Raises:
            DataError: the sample does not end with a question and, perhaps, its answer.
        """
        asked = sample.question()
        if not asked.turns or asked.turns[-1].role != "user":
            raise DataError("the sample asks nothing: its last turn, or the one before the answer, must be the user's")
        text = self.prompt.replace(QUESTION, asked.turns[-1].text)
        turns = [*asked.turns[:-1], Turn("user", text)]
        return Sample(turns, asked.images, asked.id, references(sample), asked.category, asked.targets)


def references(sample: Sample) -> tuple[str, ...]:
    """The accepted answers; where none are listed, the assistant's last turn."""
    spoken = [turn.text for turn in sample.turns[-1:] if turn.role == "assistant"]
    return tuple(sample.answers or spoken)


def shipped_tasks() -> dict[str, Path]:
    """Name -> file of the tasks that come with the kit."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "tasks").glob("*.yaml"))}


def load_task(name_or_path: str, data: str | None = None) -> Task:
    """A task that ships with the kit, by name, or one of your own, by the path of its YAML.

    Args:
        name_or_path: which one; a shipped name goes before a file of the same name.
        data: the path that `$DATA` stands for; a task without it takes no notice.

    Raises:
        ConfigError: no such task (the nearest and all known ones are given), or every mistake in the file.
    """
    shipped = shipped_tasks()
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ConfigError(unknown("task", name_or_path, shipped) + ", or the path of a YAML file")
    raw = read_yaml(path)
    problems = list(_problems(raw))
    if problems:
        raise ConfigError(problems, source=str(path))
    task: Task = validate(Task, raw)
    return task.with_data(data) if data is not None else task


def _problems(raw: dict[str, Any]) -> Iterator[Problem]:
    """Every mistake; outline and names are checked apart, so that one does not hide the other."""
    try:
        validate(Task, raw)
    except ConfigError as error:
        yield from error.problems
    metric, prompt, source = raw.get("metric"), raw.get("prompt", QUESTION), raw.get("source")
    if isinstance(metric, str) and metric not in METRICS:
        yield Problem("metric", unknown("metric", metric, METRICS))
    if isinstance(prompt, str) and prompt.count(QUESTION) != 1:
        yield Problem("prompt", f"`{prompt}` must hold {QUESTION} once, where the sample's question goes")
    yield from _source_problems({"name": source} if isinstance(source, str) else source)


def _source_problems(source: Any) -> Iterator[Problem]:
    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        return
    try:
        kind = registry.sources.get(source["name"])
    except ConfigError as error:
        yield from (Problem(join("source", "name"), problem.message) for problem in error.problems)
        return
    try:
        check_options(kind, {key: value for key, value in source.items() if key != "name"})
    except ConfigError as error:
        yield from error.under("source").problems


def descriptions() -> dict[str, str]:
    """Name -> what it is, of the tasks that come with the kit."""
    return {name: load_task(name).description for name in shipped_tasks()}
