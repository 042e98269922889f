"""Turns of talk -> token ids, with the tokenizer's own chat template; and which of them the assistant says."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlm.errors import ConfigError, Problem
from vlm.layout import Piece
from vlm.sample import IMAGE_MARK, PLACEHOLDER, Turn


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample, [T] each; see `vlm.processor.Example` for the fields. Shared: not to be written to."""

    input_ids: Tensor
    labels: Tensor
    owner: Tensor
    seen: Tensor


class ChatFormat:
    """Renders turns with a tokenizer's chat template, whichever of the two forms of content the template takes.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template and `PLACEHOLDER` as one token.
        stop_ids: further tokens that end an answer, e.g. from the LLM's own generation config.
        joint: text that stands once, not twice, where two images follow each other (see `Layout`).
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = (), joint: str = "") -> None:
        self.tokenizer = tokenizer
        self.joint = joint
        self.placeholder_id = int(tokenizer.convert_tokens_to_ids(PLACEHOLDER))
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self._special = torch.tensor(sorted(tokenizer.all_special_ids), dtype=torch.long)
        self._template = Template(tokenizer)
        self._tail = self._behind_last_turn()
        self.stop_ids = sorted({*stop_ids, *self._end_of_answer()})
        self._cached = lru_cache(maxsize=4096)(self._encode)  # one question is often asked about many images

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker process goes what it was made from: a cache cannot be sent."""
        return ChatFormat, (self.tokenizer, self.stop_ids, self.joint)

    def encode(self, turns: Sequence[Turn], images: Sequence[Sequence[Piece]], *, last: bool = False) -> Encoded:
        """Ids and labels of `turns`; each image is given as text and runs of so many placeholders.

        If the last turn is the user's, the prompt for an answer is appended.

        Args:
            turns: what is said.
            images: the images.
            last: label the last of the assistant's turns alone.

        Raises:
            ValueError: marks and images differ in number, or the template does not keep earlier turns as they are,
                so that what the assistant says cannot be told from the rest.
        """
        return self._cached(tuple(turns), tuple(tuple(image) for image in images), last)

    def _encode(self, turns: tuple[Turn, ...], images: tuple[tuple[Piece, ...], ...], last: bool) -> Encoded:
        turns = tuple(place_marks(turns, len(images)))
        text, spans = self._render(turns, images)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoding["input_ids"], dtype=torch.long)
        covered = spans[-1:] if last else spans
        spoken = _covered(encoding["offset_mapping"], covered, torch.isin(ids, self._special))
        return self._expand(ids, spoken, images)

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids -> the answer, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _render(self, turns: Sequence[Turn], images: Sequence[Sequence[Piece]]) -> tuple[str, list[tuple[int, int]]]:
        """The text and the (start, end) characters of each assistant turn incl. its end token."""
        layouts = ["".join(piece if isinstance(piece, str) else PLACEHOLDER for piece in image) for image in images]
        spans = []
        text = self._text(turns, layouts, prompt=turns[-1].role != "assistant")
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self._text(turns[:number], layouts, prompt=True)
                after = text if number == len(turns) - 1 else self._text(turns[: number + 1], layouts)
                after = after.removesuffix(self._tail)
                if not after.startswith(before):
                    raise ValueError("the chat template does not continue its own generation prompt")
                if not text.startswith(after):
                    raise ValueError("the chat template changes earlier turns when later ones follow")
                spans.append((len(before), len(before) + len(self._spoken(after[len(before) :]))))
        return text, spans

    def _spoken(self, text: str) -> str:
        """What the template puts after the end token (a newline, say) is not the assistant's to say."""
        end = self.tokenizer.eos_token
        return text[: text.rindex(end) + len(end)] if end and end in text else text.rstrip("\n")

    def _text(self, turns: Sequence[Turn], layouts: Sequence[str] = (), *, prompt: bool = False) -> str:
        text, *rest = self._template.render(turns, prompt=prompt)
        for number, (layout, piece) in enumerate(zip(layouts, rest, strict=False)):
            adjacent = number > 0 and not rest[number - 1]
            if adjacent and self.joint and text.endswith(self.joint):
                layout = layout.removeprefix(self.joint)
            text += layout + piece
        return text

    def _expand(self, ids: Tensor, spoken: Tensor, images: Sequence[Sequence[Piece]]) -> Encoded:
        """Each placeholder in the text becomes as many as its run is long."""
        runs = [(n, piece) for n, image in enumerate(images) for piece in image if isinstance(piece, int)]
        marks = ids == self.placeholder_id
        if int(marks.sum()) != len(runs):
            raise ValueError(f"{int(marks.sum())} placeholders in the tokens for {len(runs)} runs of visual tokens")
        repeats = torch.ones_like(ids)
        owner = torch.full_like(ids, -1)
        repeats[marks] = torch.tensor([length for _, length in runs], dtype=torch.long)
        owner[marks] = torch.tensor([number for number, _ in runs], dtype=torch.long)
        seen = owner.cummax(0).values if len(ids) else owner
        labels = torch.where(spoken & ~marks, ids, -100)
        return Encoded(*(part.repeat_interleave(repeats) for part in (ids, labels, owner, seen)))

    def _behind_last_turn(self) -> str:
        """The special token with which the template ends a talk, behind the last turn's own end (Phi-3); often none."""
        turns = [Turn("user", "question"), Turn("assistant", "answer")]
        try:
            alone, followed = self._text(turns), self._text([*turns, Turn("user", "another")])
        except ValueError:
            return ""  # a template for one question, or for no answer
        tokens = ["", *map(str, self.tokenizer.all_special_tokens)]
        tails = (token for token in tokens if alone.endswith(token) and followed.startswith(alone.removesuffix(token)))
        return next(tails, "")

    def _end_of_answer(self) -> set[int]:
        """The tokenizer's end token, and the special token that the template puts after an answer."""
        ends = set() if self.tokenizer.eos_token_id is None else {int(self.tokenizer.eos_token_id)}
        turns = [Turn("user", "question"), Turn("assistant", "answer")]
        tail = self._text(turns).rpartition("answer")[2]
        first = self.tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
        return ends | (set(first) & set(self.tokenizer.all_special_ids))


class Template:
    """A tokenizer's chat template. Some take a turn's content as text, others as a list of texts and images, and a few
    differ by role. Given the wrong form a template may leave the content out in silence, so each role is tried once.

    Raises:
        ConfigError: the template shows a user's turn in neither form.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._listed: dict[str, bool] = {}
        for role in ("user", "assistant", "system"):
            form = self._form(role)
            if form is not None:
                self._listed[role] = form
        if "user" not in self._listed:
            message = "shows a user's turn neither as a text nor as a list of texts"
            raise ConfigError(Problem("chat_template", message))
        self._mark = self._own_mark() if self._listed["user"] else ""

    def render(self, turns: Sequence[Turn], *, prompt: bool) -> list[str]:
        """The text of `turns`, in pieces: between two of them stands an image.

        Raises:
            ValueError: the template refuses the turns or leaves out some or an image, or they hold what stands for one.
        """
        for turn in turns:
            self._check(turn)
        messages = [{"role": turn.role, "content": self._content(turn)} for turn in turns]
        text = self._apply(messages, prompt)
        pieces = (text.replace(self._mark, PLACEHOLDER) if self._mark else text).split(PLACEHOLDER)
        images = sum(turn.text.count(IMAGE_MARK) for turn in turns)
        if len(pieces) - 1 != images:
            raise ValueError(f"the chat template shows {len(pieces) - 1} of {images} images")
        return pieces

    def _check(self, turn: Turn) -> None:
        if turn.role not in self._listed:
            raise ValueError(f"the chat template does not show what the {turn.role} says")
        text = turn.text.replace(IMAGE_MARK, "")
        for mark in (PLACEHOLDER, self._mark):
            if mark and mark in text:
                raise ValueError(f"its text holds `{mark}`, which stands for an image")

    def _content(self, turn: Turn) -> Any:
        """In the form that the template takes. Where it has no mark of its own for images, ours stands in the text."""
        if self._listed[turn.role] and self._mark:
            return _parts(turn.text)
        text = turn.text.replace(IMAGE_MARK, PLACEHOLDER)
        return [{"type": "text", "text": text}] if self._listed[turn.role] else text

    def _form(self, role: str) -> bool | None:
        """Whether the template wants this role's content as a list; None if it shows neither form."""
        for listed in (False, True):
            content: Any = [{"type": "text", "text": "probe"}] if listed else "probe"
            turns = [{"role": role, "content": content}]
            hello: Any = [{"type": "text", "text": "hello"}] if self._listed.get("user") else "hello"
            user = {"role": "user", "content": hello}
            messages = {"user": turns, "assistant": [user, *turns], "system": [*turns, user]}[role]
            try:
                text = self._apply(messages)
            except ValueError:
                continue
            if "probe" in text:
                return listed
        return None

    def _own_mark(self) -> str:
        """What the template itself writes for an image; nothing if it passes over images or has them elsewhere."""
        without, mark = self._between([]), self._between([{"type": "image"}])
        return "" if mark == without else mark

    def _between(self, parts: Sequence[dict[str, str]]) -> str:
        content = [{"type": "text", "text": "probe-a"}, *parts, {"type": "text", "text": "probe-b"}]
        text = self._apply([{"role": "user", "content": content}])
        if "probe-a" not in text or "probe-b" not in text:
            raise ConfigError(Problem("chat_template", "shows only one of two texts in a user's turn"))
        return text[text.index("probe-a") + len("probe-a") : text.index("probe-b")].strip()

    def _apply(self, messages: Sequence[dict[str, Any]], prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
        except (TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses the turns: {error}") from error


def _parts(text: str) -> list[dict[str, str]]:
    """`text` as the list form of content: texts and images in order."""
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def place_marks(turns: Sequence[Turn], images: int) -> list[Turn]:
    """Turns with one image mark an image: as written, or all in front of the first user turn if none is written.

    Raises:
        ValueError: marks are written, but not as many as there are images; or there is nobody to show them to.
    """
    if not turns:
        raise ValueError("it has no turns")
    written = sum(turn.text.count(IMAGE_MARK) for turn in turns)
    if written == images:
        return list(turns)
    if written:
        raise ValueError(f"its text has {written} {IMAGE_MARK} marks for {images} images")
    first = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise ValueError(f"it has {images} images and no user turn to put them in")
    text = IMAGE_MARK * images + "\n" + turns[first].text
    return [*turns[:first], Turn("user", text), *turns[first + 1 :]]


def _covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], special: Tensor) -> Tensor:
    """bool [T]: tokens whose characters (start, end) overlap a span.

    A special token that begins before the span is not the speaker's, though Phi-3's swallow white space behind them;
    any other that does so holds the first word and the space in front of it.
    """
    starts, ends = torch.tensor(list(offsets), dtype=torch.long).reshape(-1, 2).unbind(1)
    covered = torch.zeros(len(starts), dtype=torch.bool)
    for start, end in spans:
        covered |= (starts < end) & (ends > start) & ~(special & (starts < start))
    return covered
