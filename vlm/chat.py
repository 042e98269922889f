"""Turns of talk -> token ids, with the tokenizer's own chat template; and which of them the assistant says."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vlm.sample import IMAGE_MARK, Turn


@dataclass(frozen=True)
class Encoded:
    """Token ids of one sample, [T] each; see `vlm.processor.Example` for the fields. Shared: not to be written to."""

    input_ids: Tensor
    labels: Tensor
    owner: Tensor
    seen: Tensor


class ChatFormat:
    """Renders turns with a tokenizer's chat template.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a chat template and the image mark as one token.
        stop_ids: further tokens that end an answer, e.g. from the LLM's own generation config.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE_MARK))
        self.pad_id = int(tokenizer.pad_token_id or 0)
        self.stop_ids = sorted({*stop_ids, *self._end_of_answer()})
        self._cached = lru_cache(maxsize=4096)(self._encode)  # one question is often asked about many images

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker process goes what it was made from: a cache cannot be sent."""
        return ChatFormat, (self.tokenizer, self.stop_ids)

    def encode(self, turns: Sequence[Turn], tokens: Sequence[int]) -> Encoded:
        """Ids and labels of `turns`; image number i stands for `tokens[i]` placeholders.

        If the last turn is the user's, the prompt for an answer is appended.

        Raises:
            ValueError: marks and images differ in number, or the template does not keep earlier turns as they are,
                so that what the assistant says cannot be told from the rest.
        """
        return self._cached(tuple(turns), tuple(tokens))

    def _encode(self, turns: tuple[Turn, ...], tokens: tuple[int, ...]) -> Encoded:
        turns = tuple(place_marks(turns, len(tokens)))
        text, spans = self._render(turns)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = torch.tensor(encoding["input_ids"], dtype=torch.long)
        spoken = _covered(encoding["offset_mapping"], spans)
        return self._expand(ids, spoken, tokens)

    def decode(self, ids: Sequence[int]) -> str:
        """Generated ids -> the answer, without special tokens and surrounding space."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def _render(self, turns: Sequence[Turn]) -> tuple[str, list[tuple[int, int]]]:
        """The text and the (start, end) characters of each assistant turn incl. its end token."""
        spans = []
        text = self._text(turns, prompt=turns[-1].role != "assistant")
        for number, turn in enumerate(turns):
            if turn.role == "assistant":
                before = self._text(turns[:number], prompt=True)
                after = text if number == len(turns) - 1 else self._text(turns[: number + 1])
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

    def _text(self, turns: Sequence[Turn], *, prompt: bool = False) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))

    def _expand(self, ids: Tensor, spoken: Tensor, tokens: Sequence[int]) -> Encoded:
        """Each image mark becomes as many placeholders as its image has tokens in the sequence."""
        marks = ids == self.image_id
        if int(marks.sum()) != len(tokens):
            raise ValueError(f"{int(marks.sum())} image marks in the tokens for {len(tokens)} images")
        repeats = torch.ones_like(ids)
        repeats[marks] = torch.tensor(list(tokens), dtype=torch.long)
        image = torch.cumsum(marks, 0) - 1
        owner = torch.where(marks, image, -1)
        labels = torch.where(spoken & ~marks, ids, -100)
        return Encoded(*(part.repeat_interleave(repeats) for part in (ids, labels, owner, image)))

    def _end_of_answer(self) -> set[int]:
        """The tokenizer's end token, and the special token that the template puts after an answer."""
        ends = set() if self.tokenizer.eos_token_id is None else {int(self.tokenizer.eos_token_id)}
        turns = [Turn("user", "question"), Turn("assistant", "answer")]
        tail = self._text(turns).rpartition("answer")[2]
        first = self.tokenizer(tail, add_special_tokens=False)["input_ids"][:1]
        return ends | (set(first) & set(self.tokenizer.all_special_ids))


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


def _covered(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Tensor:
    """bool [T]: tokens whose characters (start, end) overlap a span."""
    starts, ends = torch.tensor(list(offsets), dtype=torch.long).reshape(-1, 2).unbind(1)
    covered = torch.zeros(len(starts), dtype=torch.bool)
    for start, end in spans:
        covered |= (starts < end) & (ends > start)
    return covered
