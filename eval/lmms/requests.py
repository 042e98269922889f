"""What lmms-eval hands over, as the kit takes it: settings of a task, and its messages and images as a sample."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, get_args

from PIL import Image

from vlm.errors import ConfigError, Problem
from vlm.images import IMAGE_SUFFIXES, ImageLike
from vlm.sample import IMAGE_MARK, Role, Sample, Turn, ask

_IDLE = ("top_p", "top_k", "min_p", "typical_p", "seed", "use_cache", "image_aspect_ratio")
"""Settings without an effect on a greedy answer; the last is LLaVA's own name for views, which a model here has."""

_ONLY: Mapping[str, tuple[Any, ...]] = {
    "do_sample": (False, None),
    "num_beams": (1, None),
    "repetition_penalty": (1, None),
    "n": (1, None),
    "best_of": (1, None),
    "num_return_sequences": (1, None),
    "skip_special_tokens": (True, None),
}
"""Settings that leave the one greedy answer only with these values."""

_LIMITS, _STOPS = ("max_new_tokens", "max_gen_toks"), ("until", "stop_sequences")


@dataclass(frozen=True)
class Settings:
    """How a task's answers are made."""

    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The answer up to the first of the strings that end it."""
        ends = [text.find(stop) for stop in self.until]
        return text[: min((end for end in ends if end >= 0), default=len(text))]


def settings_of(given: Mapping[str, Any], *, limit: int, task: str) -> Settings:
    """The settings in a task's `generation_kwargs`.

    Args:
        given: as the task has them.
        limit: the longest answer in tokens, if the task does not say.
        task: its name, for errors.

    Raises:
        ConfigError: every setting that asks for anything but the one greedy answer, or that is not known.
    """
    problems = [Problem(name, message) for name, value in given.items() if (message := _wrong(name, value, given))]
    if problems:
        raise ConfigError(problems, source=f"generation_kwargs of task {task}; `--gen_kwargs` changes them")
    limits = [int(given[name]) for name in _LIMITS if given.get(name) is not None]
    stops = [stop for name in _STOPS for stop in _listed(given.get(name)) if stop]
    return Settings(min(limits, default=limit), tuple(stops))


def _wrong(name: str, value: Any, given: Mapping[str, Any]) -> str | None:
    if name in _ONLY:
        return None if value in _ONLY[name] else f"`{value}`; allowed: {_ONLY[name][0]}, for answers must be repeatable"
    if name == "temperature":
        greedy = not value or given.get("do_sample") is False
        return None if greedy else f"`{value}`; allowed: 0, or do_sample=False with it, for answers must be repeatable"
    if name in _LIMITS:
        fine = value is None or (isinstance(value, int) and value > 0)
        return None if fine else f"`{value}`; allowed: a number of tokens, 1 or more"
    if name in _STOPS:
        fine = all(isinstance(stop, str) for stop in _listed(value))
        return None if fine else f"`{value}`; allowed: a string or a list of strings"
    known = (*_ONLY, "temperature", *_LIMITS, *_STOPS, *_IDLE)
    return None if name in _IDLE else f"not a setting that models of the kit have; allowed: {', '.join(known)}"


def _listed(value: Any) -> Sequence[Any]:
    return () if value is None else [value] if not isinstance(value, (list, tuple)) else value


class Pictures:
    """Pictures of equal content as one object, so that the model encodes an image that several questions show once.

    lmms-eval reads a document anew for each question.

    Args:
        most: how many are remembered, the latest.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._known: OrderedDict[str, Image.Image] = OrderedDict()

    def one(self, picture: Any, name: str) -> ImageLike:
        """What a task gives as an image.

        Raises:
            ConfigError: it is a video, sound or something else.
        """
        if isinstance(picture, str) and PurePath(picture).suffix.lower() in IMAGE_SUFFIXES:
            return picture
        if not isinstance(picture, Image.Image):
            what = f"`{picture}`" if isinstance(picture, str) else type(picture).__name__
            raise ConfigError(f"{name} shows {what}; models of the kit take images (Pillow's, or paths of image files)")
        if picture.mode != "RGB":
            return picture
        facts = repr((picture.size, picture.info.get("exif"), picture.info.get("transparency")))
        key = hashlib.sha256(picture.tobytes() + facts.encode()).hexdigest()
        found = self._known.setdefault(key, picture)
        self._known.move_to_end(key)
        if len(self._known) > self.most:
            self._known.popitem(last=False)
        return found


def simple_sample(context: str, visuals: Iterable[Any] | None, pictures: Pictures, name: str) -> Sample:
    """A text and images. `<image>` marks in the text are their places; without any the images go in front.

    Args:
        context: the text.
        visuals: the task's images; None for none.
        pictures: keeps them.
        name: the sample's, for errors.
    """
    return ask(context, [pictures.one(visual, name) for visual in visuals or ()], id=name)


def chat_sample(messages: Sequence[Mapping[str, Any]], pictures: Pictures, name: str) -> Sample:
    """Messages as turns. Images stand where the messages have them; if all stand in front of the first user's text,
    they are put there as the kit does it for tasks of its own, so that both ask the same.

    Args:
        messages: in lmms-eval's form, `{role, content: [{type: text, text} or {type: image, url}]}`.
        pictures: keeps the images.
        name: the sample's, for errors.

    Raises:
        ConfigError: another role, another kind of content, or the last message is not the user's.
    """
    images: list[ImageLike] = []
    turns = [Turn(_role(message, name), _text(message["content"], images, pictures, name)) for message in messages]
    if not turns or turns[-1].role != "user":
        raise ConfigError(f"{name}: its last message is not the user's; models of the kit do not continue an answer")
    lead, first = IMAGE_MARK * len(images), next(number for number, turn in enumerate(turns) if turn.role == "user")
    if images and turns[first].text.startswith(lead):
        turns[first] = Turn("user", turns[first].text.removeprefix(lead))
    return Sample(turns, images, id=name)


def _role(message: Mapping[str, Any], name: str) -> Role:
    role: Any = message.get("role")
    if role not in get_args(Role):
        raise ConfigError(f"{name}: message of role `{role}`; allowed: {', '.join(get_args(Role))}")
    return role  # type: ignore[no-any-return]


def _text(content: Any, images: list[ImageLike], pictures: Pictures, name: str) -> str:
    """The text of a message with a mark for each of its images, which are added to `images`."""
    if isinstance(content, str):
        return content
    text = ""
    for piece in content:
        kind = piece.get("type")
        if kind == "text":
            text += piece["text"]
        elif kind == "image":
            images.append(pictures.one(piece["url"], name))
            text += IMAGE_MARK
        else:
            raise ConfigError(f"{name} shows {kind}; models of the kit take text and images")
    return text
