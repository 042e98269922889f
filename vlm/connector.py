"""Everything between encoder features and the LLM: merges, connector ops, and the chain of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError
from vlm.features import Features, Shape, VisionTokens
from vlm.packer import ImagePlan, Packer, Run, separate
from vlm.routes import Route, SequenceRoute


class Merge(nn.Module, ABC):
    """Several encoders' features of the same views -> one. Built from the list of their shapes."""

    @abstractmethod
    def forward(self, features: Sequence[Features]) -> Features:
        """One `Features` [N, T_i, C_i] per encoder -> one `Features` for the N views."""

    @abstractmethod
    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of one merged view, from one shape per encoder."""


class Connector(nn.Module, ABC):
    """One op. Positional `__init__` parameters are given by the kit by name (see `vlm.assembly`): `in_width`,
    `out_width` (the LLM's, or the op's own when it is not the last), `llm_width`, `llm_layers`, `grid`;
    keyword-only ones are its options in a recipe.
    """

    @abstractmethod
    def forward(self, features: Features) -> Features:
        """Features [N, T, in_width] -> Features [N, T', out_width]."""

    @abstractmethod
    def shape(self, shape: Shape) -> Shape:
        """The shape of one view's output: the same arithmetic as `forward`, with no tensor."""

    def attach(self, llm: nn.Module) -> None:
        """Put what the connector owns into the LLM; a no-op except for routes inside the LLM. Called once."""

    def question(self, text: str) -> list[int] | None:
        """The ids that the op reads of what is asked about an image (`Features.question`); None: it reads nothing."""
        return None

    def tokenizer(self) -> Any:
        """What makes these ids, so that it is saved with the model; None where there is none."""
        return None

    def route(self) -> Route:
        """Where the tokens go: the sequence, unless the op says otherwise."""
        return SequenceRoute()


class Chain(nn.Module):
    """The whole way from encoders to LLM: ops of each encoder's own, a merge, ops for the merged, and a packer.

    Args:
        adapters: per encoder the ops that its features pass before they are merged.
        merge: for two encoders or more.
        ops: applied in order to the merged features.
        packer: makes one sequence of an image's views; they stand side by side without one.
    """

    def __init__(
        self,
        adapters: Sequence[Sequence[Connector]],
        merge: Merge | None,
        ops: Sequence[Connector],
        packer: Packer | None = None,
    ) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(nn.ModuleList(own) for own in adapters)
        self.merge = merge
        self.ops = nn.ModuleList(ops)
        self.packer = packer

    def forward(self, features: Sequence[Features], question: Tensor | None = None) -> Features:
        """One `Features` [N, T_i, C_i] per encoder, of the same N views -> Features in the LLM's width.

        Args:
            features: of each encoder.
            question: long [N, L], see `Features.question`.
        """
        adapted = [_through(own, one) for own, one in zip(self.adapters, features, strict=True)]
        merged = adapted[0] if self.merge is None else self.merge(adapted)
        return _through(self.ops, replace(merged, question=question))

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of one view's output, from one shape per encoder."""
        adapted = [_shape(own, one) for own, one in zip(self.adapters, shapes, strict=True)]
        return _shape(self.ops, adapted[0] if self.merge is None else self.merge.shape(adapted))

    def pack(self, tokens: Sequence[Tensor], shapes: Sequence[Shape], images: Sequence[ImagePlan]) -> VisionTokens:
        """The tokens [t, C] of all views of a batch, in order, and their shapes -> one sequence per image."""
        packer: Any = self.packer
        sequences: list[Tensor] = []
        first = 0
        for image in images:
            mine = slice(first, first + image.count)
            first += image.count
            if packer is None:
                sequences.append(torch.cat(list(tokens[mine])))
            else:
                sequences.append(packer(tokens[mine], shapes[mine], image))
        return VisionTokens(torch.cat(sequences), tuple(len(one) for one in sequences))

    def runs(self, shapes: Sequence[Shape], image: ImagePlan) -> list[Run]:
        """The runs of an image's tokens, from the shapes of its views: one a view unless a packer joins them.

        Raises:
            ConfigError: the packer cannot take such views, or they overlap and there is none.
        """
        try:
            return separate(shapes, image) if self.packer is None else self.packer.runs(shapes, image)
        except ConfigError as error:
            raise error.under("packer") from error

    def question(self, text: str) -> list[int] | None:
        """The ids that an op reads of what is asked about an image; None where none does."""
        ops: Any = self.ops
        return next((ids for op in ops if (ids := op.question(text)) is not None), None)

    def attach(self, llm: nn.Module) -> None:
        """Put what the connector owns into the LLM; a no-op except for routes inside the LLM."""
        for op in self.ops:
            op.attach(llm)  # type: ignore[operator]

    def route(self) -> Route:
        """Where the tokens go."""
        return self.ops[-1].route()  # type: ignore[operator, no-any-return]


def _through(ops: Any, features: Features) -> Features:
    for op in ops:
        features = op(features)
    return features


def _shape(ops: Any, shape: Shape) -> Shape:
    for op in ops:
        shape = op.shape(shape)
    return shape
