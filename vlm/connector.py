"""Everything between encoder features and the LLM: merges, connector ops, and the chain of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from vlm.features import Features, Shape
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

    def route(self) -> Route:
        """Where the tokens go: the sequence, unless the op says otherwise."""
        return SequenceRoute()


class Chain(Connector):
    """The whole way from encoders to LLM: an optional merge, then ops applied in order."""

    def __init__(self, merge: Merge | None, ops: Sequence[Connector]) -> None:
        super().__init__()
        self.merge = merge
        self.ops = nn.ModuleList(ops)

    def forward(self, features: Features | Sequence[Features]) -> Features:  # type: ignore[override]
        """One `Features` per encoder -> Features in the LLM's width."""
        merged = features if isinstance(features, Features) else self._merged(features)
        for op in self.ops:
            merged = op(merged)
        return merged

    def shape(self, shape: Shape | Sequence[Shape]) -> Shape:  # type: ignore[override]
        """The shape of one view's output, from one shape per encoder."""
        if not isinstance(shape, Shape):
            shape = shape[0] if self.merge is None else self.merge.shape(shape)
        found: Shape = shape
        for op in self.ops:
            found = op.shape(found)  # type: ignore[operator]
        return found

    def _merged(self, features: Sequence[Features]) -> Features:
        return features[0] if self.merge is None else self.merge(features)  # type: ignore[no-any-return]

    def tokens_per_image(self, views: Sequence[Sequence[Shape]]) -> int:
        """Visual tokens of one image from its views, each given as one shape per encoder."""
        return sum(self.shape(shapes).tokens for shapes in views)

    def attach(self, llm: nn.Module) -> None:
        for op in self.ops:
            op.attach(llm)  # type: ignore[operator]

    def route(self) -> Route:
        return self.ops[-1].route()  # type: ignore[operator, no-any-return]
