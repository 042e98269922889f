"""A task: data, prompt, metric and version, read from a small YAML file."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, PrivateAttr

from vlm import registry
from vlm.data import DataError, Source
from vlm.errors import ConfigError, Problem, join, unknown
from vlm.recipe import read_yaml
from vlm.sample import IMAGE_MARK, Sample, Turn
from vlm.schema import check_options, validate
from vlm.spec import Part, PartSpec

from .metrics import metric_named
from .metrics.scoring import Metric

DATA = "$DATA"
"""Stands in a source's options for the path that `--data` gives."""
QUESTION, OPTIONS = "question", "options"
"""Stand in a prompt, in braces, for the sample's question and for its choices, one `A. text` a line."""
DEFAULT = "default"
"""The name of a task's own prompt among its variants."""
_FIELD = re.compile(r"\{(\w+)\}")
_UNCLOSED = re.compile(r"\{\w+(?![\w}])")


class Published(BaseModel):
    """A published score, shown beside the user's where split, prompt, metric and questions are the same."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    score: float
    """In the units of the metric's figure: 78.5 for 78.5 %."""
    source: str
    """Where it was published."""
    figure: str = ""
    """Of the metric's; its own number if absent."""
    prompt: str = DEFAULT
    split: str = ""
    """The task's own if absent; a score of another split is listed and never set beside the user's."""
    differs: str = ""
    """What else was not as in this task (another scorer, other questions): the score is listed, never set beside."""
    note: str = ""


class Split(BaseModel):
    """Another part of a benchmark: what is different from the task's own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: dict[str, Any] = {}
    """Options of the source that replace the task's; null takes one away, and a mapping replaces key by key."""
    hub: dict[str, Any] | None = {}
    """The same for the hub's; null if the hub has no such part."""
    hidden: bool = False
    """Its answers are kept by a server: it can be answered, for a submission, and not scored."""
    size: NonNegativeInt = 0
    """How many questions it has; see `Task`."""


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
    hub: Part | None = None
    """The source where no `--data` is given: the same questions as a dataset of the Hugging Face hub."""
    split: str = ""
    """Which part of the benchmark this is, for the record."""
    size: NonNegativeInt = 0
    """How many questions this part has officially, 0 if that is not known. Where a source has another number, the
    result says so, and published scores do not stand beside it."""
    splits: dict[str, Split] = {}
    """Other parts by name; `TASK@NAME` asks one of them."""
    hidden: bool = False
    """Whether the samples come without answers; see `Split`."""
    metric: str
    """A name in `vlm.eval.metrics.METRICS`, or one of your own as `package.module:NAME`."""
    prompt: str = "{question}"
    """The user's last turn: `{question}` is the sample's own text, `{options}` its choices, and any other name in
    braces one of the fields that the source gives."""
    prompts: dict[str, str] = {}
    """Other prompts by name; `TASK:NAME` asks with one of them."""
    open_prompt: str = ""
    """The prompt of samples without choices, in a task that has both kinds; `prompt` if empty."""
    variant: str = DEFAULT
    """Which prompt is used."""
    max_new_tokens: PositiveInt = 64
    """The longest answer; one that reaches it is counted as truncated."""
    published: tuple[Published, ...] = ()
    submission: str = ""
    """The official server's file format, a name in `vlm.eval.submissions.FORMATS`; none if empty."""
    _opened: Source | None = PrivateAttr(None)

    @property
    def scoring(self) -> Metric:
        return metric_named(self.metric)

    @property
    def label(self) -> str:
        """The name, and the prompt where it is not the task's own: `textvqa:ocr`."""
        return self.name if self.variant == DEFAULT else f"{self.name}:{self.variant}"

    @property
    def folder(self) -> str:
        """The name of the folder that the answers go to."""
        return self.label.replace(":", "-")

    @property
    def template(self) -> str:
        """The prompt in use."""
        return self.prompt if self.variant == DEFAULT else self.prompts[self.variant]

    @property
    def takes_data(self) -> bool:
        """Whether `--data` says where the samples are."""
        return DATA in json.dumps(self.source.options)

    def with_data(self, data: str) -> "Task":
        """The task on the file or folder `data`."""
        options = _with_data(self.source.options, data)
        return self.changed(source=PartSpec(name=self.source.name, **options))

    def on_split(self, name: str) -> "Task":
        """The task on another part of the benchmark; its name then says which.

        Raises:
            ConfigError: there is no such part.
        """
        if name not in self.splits:
            known = f"; its own is {self.split}" if self.split else ""
            raise ConfigError(unknown(f"split of task `{self.name}`", name, self.splits) + known)
        split = self.splits[name]
        hub = None if split.hub is None or self.hub is None else _changed(self.hub, split.hub)
        return self.changed(
            name=f"{self.name}@{name}",
            split=name,
            source=_changed(self.source, split.source),
            hub=hub,
            hidden=split.hidden,
            size=split.size,
        )

    def on_hub(self) -> "Task":
        """The task on the hub's dataset, where there is one and `--data` was not given."""
        return self.changed(source=self.hub) if self.takes_data and self.hub else self

    def changed(self, **fields: Any) -> "Task":
        """The task with other values of some fields."""
        other = self.model_copy(update=fields)
        other._opened = None
        return other

    def part(self, asked: int, found: int) -> str:
        """Which part of the benchmark was asked, of `found` questions in the source; empty if all of it."""
        said = [f"{asked} of {found} questions"] if asked < found else []
        if self.size not in (0, found):
            said.append(f"{found} questions in the source, {self.size} in the benchmark's part")
        return "; ".join(said)

    def open(self) -> Source:
        """The samples; opened once, for opening large files takes seconds.

        Raises:
            ConfigError: the source cannot be opened with these options, or has no sample.
        """
        if self._opened is None:
            self._opened = self._open()
        return self._opened

    def _open(self) -> Source:
        if self.takes_data:
            raise ConfigError(Problem("source", f"task `{self.name}` runs on your own files: add --data PATH"))
        kind = registry.sources.get(self.source.name)
        try:
            source: Source = kind(**check_options(kind, self.source.options))
        except ConfigError as error:
            raise error.under("source") from error
        if not len(source):
            options = {key: value for key, value in self.source.options.items() if key != "sample"}
            raise ConfigError(Problem("source", f"holds no sample with the options {json.dumps(options)}"))
        return source

    def ask(self, sample: Sample) -> Sample:
        """The sample as the model gets it: the question inside the prompt; the answer is in `answers` alone.

        Raises:
            DataError: the sample does not end with a question and, perhaps, its answer; or the prompt leaves its
                question out or needs a field that it lacks.
        """
        asked = sample.question()
        if not asked.turns or asked.turns[-1].role != "user":
            raise DataError("the sample asks nothing: its last turn, or the one before the answer, must be the user's")
        plain = self.open_prompt if self.variant == DEFAULT and not asked.choices else ""
        text = fill(plain or self.template, asked)
        return replace(asked, turns=[*asked.turns[:-1], Turn("user", text)], answers=references(sample))


def fill(template: str, sample: Sample) -> str:
    """The prompt of a sample that ends with its question.

    Raises:
        DataError: the template leaves the question or its choices out, or names a field that the sample lacks.
    """
    question = sample.turns[-1].text
    options = "\n".join(f"{letter(number)}. {text}" for number, text in enumerate(sample.choices))
    texts = {**sample.fields, QUESTION: question, **({OPTIONS: options} if sample.choices else {})}
    names = _FIELD.findall(template)
    if QUESTION not in names and question.replace(IMAGE_MARK, "").strip():
        raise DataError(f"the prompt has no {{{QUESTION}}}, but the sample asks `{question}`")
    if OPTIONS not in names and sample.choices:
        raise DataError(f"the prompt has no {{{OPTIONS}}}, but the sample has {len(sample.choices)} choices")
    if missing := sorted(set(names) - set(texts)):
        raise DataError(f"the prompt needs {{{missing[0]}}}; this sample has {', '.join(texts)}")
    return _FIELD.sub(lambda found: texts[found[1]], template)


def letter(number: int) -> str:
    """The letter of choice `number`, from A."""
    return chr(ord("A") + number)


def _with_data(value: Any, data: str) -> Any:
    """`value` with the path in every text of it."""
    if isinstance(value, str):
        return value.replace(DATA, data)
    if isinstance(value, dict):
        return {key: _with_data(item, data) for key, item in value.items()}
    return [_with_data(item, data) for item in value] if isinstance(value, (list, tuple)) else value


def _changed(part: PartSpec, changes: Mapping[str, Any]) -> PartSpec:
    return PartSpec(name=part.name, **_merged(part.options, changes))


def _merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes above options: key by key in mappings, null takes a key away."""
    found = dict(options)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return {key: value for key, value in found.items() if value is not None or key not in changes}


def references(sample: Sample) -> tuple[str, ...]:
    """The accepted answers; where none are listed, the assistant's last turn."""
    spoken = [turn.text for turn in sample.turns[-1:] if turn.role == "assistant"]
    return tuple(sample.answers or spoken)


def shipped_tasks() -> dict[str, Path]:
    """Name -> file of the tasks that come with the kit."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "tasks").glob("*.yaml"))}


def load_task(name_or_path: str, data: str | None = None) -> Task:
    """A task that ships with the kit, by name, or one of your own, by the path of its YAML; `@NAME` behind it chooses
    one of its splits, `:NAME` one of its prompts (`textvqa@test:ocr`).

    Args:
        name_or_path: which one; a shipped name goes before a file of the same name.
        data: the path that `$DATA` stands for; a task without it takes no notice.

    Raises:
        ConfigError: no such task, split or prompt (the nearest and all known ones are given), or every mistake in the
            file.
    """
    path, split, variant = _find(name_or_path)
    raw = read_yaml(path)
    problems = list(_problems(raw))
    if problems:
        raise ConfigError(problems, source=str(path))
    task: Task = validate(Task, raw)
    if variant not in (DEFAULT, *task.prompts):
        raise ConfigError(unknown(f"prompt of task `{task.name}`", variant, (DEFAULT, *task.prompts)))
    task = task.model_copy(update={"variant": variant})
    task = task.on_split(split) if split else task
    return task if data is None else task.with_data(data)


def _find(name: str) -> tuple[Path, str, str]:
    """The file of a task, and the split and the prompt that are asked for; a path may hold both marks itself."""
    shipped = shipped_tasks()
    for known, variant in ((name, DEFAULT), name.rpartition(":")[::2]):
        for bare, split in ((known, ""), known.rpartition("@")[::2]):
            path = shipped.get(bare, Path(bare))
            if bare and ":" not in split and path.is_file():
                return path, split, variant
    raise ConfigError(unknown("task", re.split("[:@]", name)[0], shipped) + ", or the path of a YAML file")


def _problems(raw: dict[str, Any]) -> Iterator[Problem]:
    """Every mistake; outline and names are checked apart, so that one does not hide the other."""
    try:
        validate(Task, raw)
    except ConfigError as error:
        yield from error.problems
    metric, prompts = raw.get("metric"), raw.get("prompts")
    if isinstance(metric, str):
        try:
            metric_named(metric)
        except ConfigError as error:
            yield from error.under("metric").problems
    prompts = {f"prompts.{key}": text for key, text in prompts.items()} if isinstance(prompts, dict) else {}
    for place, prompt in {**{key: raw.get(key) for key in ("prompt", "open_prompt")}, **prompts}.items():
        if isinstance(prompt, str) and prompt.count("{question}") > 1:
            yield Problem(place, f"`{prompt}` holds {{question}} more than once")
        if isinstance(prompt, str) and (open := _UNCLOSED.search(prompt)) is not None:
            yield Problem(place, f"`{prompt}`: `{open[0]}` lacks its closing brace")
    for key in ("source", "hub"):
        source = raw.get(key)
        source = {"name": source} if isinstance(source, str) else source
        problems = list(_source_problems(source, key))
        for name, split in [] if problems else _splits(raw):
            changes = split.get(key, {})
            if isinstance(source, dict) and isinstance(changes, dict):
                problems += _source_problems(_merged(source, changes), join("splits", name, key))
        yield from problems


def _splits(raw: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    splits = raw.get("splits")
    named = splits.items() if isinstance(splits, dict) else ()
    return [(name, split) for name, split in named if isinstance(split, dict)]


def _source_problems(source: Any, place: str) -> Iterator[Problem]:
    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        return
    try:
        kind = registry.sources.get(source["name"])
    except ConfigError as error:
        yield from (Problem(join(place, "name"), problem.message) for problem in error.problems)
        return
    try:
        check_options(kind, {key: value for key, value in source.items() if key != "name"})
    except ConfigError as error:
        yield from error.under(place).problems


def descriptions() -> dict[str, str]:
    """Name -> what it is, of the tasks that come with the kit."""
    return {name: load_task(name).description for name in shipped_tasks()}
