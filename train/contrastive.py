"""Encoder pretraining: images and their captions are to be found among those of a whole batch."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vlm.attention import MultiHead, default_heads
from vlm.errors import ConfigError, Problem
from vlm.features import Features
from vlm.layers import FeedForward
from vlm.model import VLM
from vlm.sample import Batch

from .gathering import gather
from .losses import IGNORED
from .objectives import Loss, Objective
from .text_towers import TextOptions, text_tower

LARGEST = math.log(100)
"""Of the logarithm of the scale (CLIP, arXiv 2103.00020)."""


class Contrastive(Objective):
    """Pooled images and captions in one space, compared over the global batch. Letters: n samples here, N over all
    devices, D width of the space.

    A sample is one image in one view, and its caption is what the assistant says about it. A term is a sample, and
    every term depends on the whole batch: it cannot be cut into micro-batches, but its images can be encoded `chunk`
    at a time, with the memory of one chunk (the activations are computed a second time, as GradCache has it, arXiv
    2101.06983). Maps into the space and the text tower are thrown away after the stage, as all of an objective.

    Args:
        widths: of the encoders.
        llm_width: of the LLM's embeddings.
        tokenizer: the LLM's.
        encoder: number of the encoder that is trained.
        width: D.
        pool: what stands for an image: the `mean` of its tokens, the first `prefix` token (CLS), or what a learned
            query finds (`attention`, as SigLIP's head).
        text: what stands for a caption: a `tower` of the objective's own; the mean of the LLM's input `embeddings`; or
            the LLM's `last` hidden state.
        tower: of the text.
        chunk: images encoded at a time; all if absent.
    """

    whole = True
    learns_answers = True
    reads_pixels = True
    figures: tuple[str, ...] = ("accuracy", "scale")
    scale: float
    """What similarities are multiplied with at first."""
    bias: float | None
    """What is added to them at first; None if nothing ever is."""

    def __init__(
        self,
        widths: Sequence[int],
        llm_width: int,
        tokenizer: Any,
        *,
        encoder: int = 0,
        width: int = 512,
        pool: Literal["mean", "prefix", "attention"] = "mean",
        text: Literal["tower", "embeddings", "last"] = "tower",
        tower: TextOptions = TextOptions(),  # noqa: B008 (frozen by use)
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= encoder < len(widths):
            raise ConfigError(Problem("encoder", f"`{encoder}`; allowed: 0 to {len(widths) - 1}"))
        if width < 1 or (chunk is not None and chunk < 1):
            raise ConfigError(Problem("width" if width < 1 else "chunk", "allowed: 1 or more"))
        self.encoder, self.pool, self.chunk = encoder, pool, chunk
        self.text = text_tower(text, tower, llm_width=llm_width, tokenizer=tokenizer)
        self.query = Query(widths[encoder]) if pool == "attention" else None
        self.image_map = nn.Linear(widths[encoder], width, bias=False)
        self.text_map = nn.Linear(self.text.width, width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale)))
        self.shift = None if self.bias is None else nn.Parameter(torch.tensor(self.bias))

    def forward(self, model: VLM, batch: Batch) -> Loss:
        """The sum of the losses of this device's n samples against all N.

        Raises:
            ConfigError: a sample has another number of images than one, of views than one, or no caption.
        """
        images, texts = self.embed(model, batch)
        device = "cpu" if images.is_meta else images.device.type
        with torch.autocast(device, enabled=False):  # similarities near 1 need all their digits
            return self.compare(F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1))

    def compare(self, images: Tensor, texts: Tensor) -> Loss:
        """The loss of unit vectors [n, D] and [n, D] against those of all devices."""
        with torch.no_grad():  # after each step, as open_clip does: within the loss it would stop the gradient for good
            self.log_scale.clamp_(0, LARGEST)
        scale = self.log_scale.exp()
        shift = 0.0 if self.shift is None else self.shift
        all_texts, first = gather(texts)
        mine = torch.arange(len(images), device=images.device) + first
        logits = scale * images @ all_texts.T + shift
        total = self.terms(logits, lambda: scale * texts @ gather(images)[0].T + shift, mine)
        found = (logits.detach().argmax(1) == mine).float().sum()
        figures = {"accuracy": found, "scale": scale.detach() * len(images)}
        if self.shift is not None:
            figures["bias"] = self.shift.detach() * len(images)
        return Loss(total, len(images), figures)

    @abstractmethod
    def terms(self, logits: Tensor, transposed: Any, mine: Tensor) -> Tensor:
        """The sum of n terms.

        Args:
            logits: [n, N], of this device's images with all texts.
            transposed: makes [n, N], of this device's texts with all images.
            mine: long [n], the numbers of this device's samples among all.
        """

    def embed(self, model: VLM, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images and captions in the common space, [n, D] each, of any length."""
        captions = _captions(batch)
        order, pieces = zip(*self._pieces(model, batch), strict=True)
        images = torch.cat(pieces)[torch.cat(order).argsort()]
        texts, dtype = self.text(model, captions), self.text_map.weight.dtype
        return self.image_map(images.to(dtype)), self.text_map(texts.to(dtype))

    def _pieces(self, model: VLM, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers of images and their vectors [s, C], a chunk at a time."""
        _check_images(batch)
        like = next(model.encoders[self.encoder].parameters(), self.image_map.weight)
        for group in batch.groups:
            size = self.chunk or len(group.index)
            pixels = group.pixels[self.encoder].to(like.dtype)
            for index, views in zip(group.index.split(size), pixels.split(size), strict=True):
                if self.chunk is not None and torch.is_grad_enabled():
                    yield index, checkpoint(self._vectors, model, views, use_reentrant=False)
                else:
                    yield index, self._vectors(model, views)

    def _vectors(self, model: VLM, views: Tensor) -> Tensor:
        features: Features = model.encoders[self.encoder](views)
        if self.query is not None:
            return self.query(features)  # type: ignore[no-any-return]
        if self.pool == "mean":
            return torch.stack([tokens.mean(0) for tokens in features.rows()])
        if features.extra is None or not features.extra.shape[1]:
            message = "`prefix`, but the encoder has no prefix token; allowed: mean, attention"
            raise ConfigError(Problem("objective.pool", message))
        return features.extra[:, 0]


class Clip(Contrastive):
    """CLIP's softmax loss (arXiv 2103.00020), as open_clip has it: the mean of finding the text of each image and the
    image of each text among all of the batch."""

    scale = 1 / 0.07
    bias = None

    def terms(self, logits: Tensor, transposed: Any, mine: Tensor) -> Tensor:
        both = (F.cross_entropy(one, mine, reduction="sum") for one in (logits, transposed()))
        return sum(both, start=logits.new_zeros(())) / 2


class SigLip(Contrastive):
    """SigLIP's sigmoid loss (arXiv 2303.15343), as open_clip has it: whether an image and a text belong together, of
    each pair by itself."""

    scale = 10.0
    bias = -10.0
    figures = ("accuracy", "scale", "bias")

    def terms(self, logits: Tensor, transposed: Any, mine: Tensor) -> Tensor:
        signs = torch.full_like(logits, -1.0).scatter(1, mine[:, None], 1.0)
        return -F.logsigmoid(signs * logits).sum()


class Query(nn.Module):
    """What a learned query finds in an image's tokens, with a feed-forward layer behind it (SigLIP's pooling head).

    Args:
        width: of the tokens.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, width) * width**-0.5)
        self.attention = MultiHead(width, heads=default_heads(width), bias=True)
        self.forth = FeedForward(width, 4 * width, norm=nn.LayerNorm(width))

    def forward(self, features: Features) -> Tensor:
        """Features of N views -> [N, C]."""
        mask = None if features.mask is None else features.mask[:, None, None]
        found = self.attention(self.query.expand(len(features.tokens), -1, -1), features.tokens, mask)[:, 0]
        return found + self.forth(found)  # type: ignore[no-any-return]


def _captions(batch: Batch) -> list[Tensor]:
    """The token ids that the assistant says, [T] a sample.

    Raises:
        ConfigError: a sample has none.
    """
    if batch.labels is None or batch.segments is not None:
        raise RuntimeError("a contrastive loss needs labels, and rows of one sample each")
    captions = [labels[labels != IGNORED] for labels in batch.labels]
    silent = [name for name, caption in zip(_names(batch), captions, strict=True) if not len(caption)]
    if silent:
        raise ConfigError(Problem("data", f"samples without a caption: {', '.join(silent[:5])}"))
    return captions


def _check_images(batch: Batch) -> None:
    """
    Raises:
        ConfigError: a sample has not one image in one view.
    """
    counts = torch.bincount(batch.rows, minlength=len(batch)).tolist()
    odd = [f"{name} has {count}" for name, count in zip(_names(batch), counts, strict=True) if count != 1]
    if odd:
        raise ConfigError(Problem("data", f"a contrastive loss takes one image a sample; {', '.join(odd[:5])}"))
    if any(image.count != 1 for image in batch.images):
        raise ConfigError(Problem("views", "a contrastive loss takes one view an image, e.g. `squash`"))


def _names(batch: Batch) -> list[str]:
    return [name or f"row {row}" for row, name in enumerate(batch.ids)]
