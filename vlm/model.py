"""The VLM: encoders + connector + LLM."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm import adapters
from vlm import llm as llms
from vlm.adapters import Adapted, AdapterSpec
from vlm.answering import Answer, in_order, read, replies, room
from vlm.attention import Implementation, set_attention
from vlm.chat import ChatFormat
from vlm.connector import Chain
from vlm.encoder import Encoder
from vlm.errors import ConfigError
from vlm.features import Features, Shape, VisionTokens
from vlm.generation import generate
from vlm.images import ImageLike
from vlm.layout import Layout
from vlm.packer import ImagePlan
from vlm.parts import evaluating
from vlm.prefixes import shared_cache
from vlm.processor import Processor
from vlm.sample import Batch, Sample, ViewGroup, ask
from vlm.saving import TOKENIZER, Origin, save
from vlm.views import Views


class VLM(nn.Module):
    """Encoders, a connector and a causal LM of any family.

    Args:
        encoders: built encoders, each with its own image spec.
        connector: the chain from their features to the LLM.
        llm: a Hugging Face causal LM.
        tokenizer: its tokenizer with a chat template (see `vlm.tokenizers.load_tokenizer`).
        views: the view policy.
        layout: what stands around an image's tokens in the text.
        spec: the resolved model part of the recipe, which a saved model carries.
    """

    def __init__(
        self,
        encoders: Sequence[Encoder],
        connector: Chain,
        *,
        llm: nn.Module,
        tokenizer: Any,
        views: Views,
        layout: Layout,
        spec: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.connector = connector
        self.llm = llm
        self.tokenizer = tokenizer
        self.views = views
        self.layout = layout
        self.spec = spec
        self.origin: Origin | None = None
        self.adapters: dict[str, Adapted] = {}
        connector.attach(llm)

    @cached_property
    def processor(self) -> Processor:
        """Makes batches for this model."""
        context = getattr(self.llm.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr, operator]
        llm: Any = self.llm
        ends = llm.generation_config.eos_token_id if llm.generation_config else None
        stop_ids = [ends] if isinstance(ends, int) else list(ends or [])
        encoders: Any = list(self.encoders)
        return Processor(
            encoders,
            self.connector,
            views=self.views,
            layout=self.layout,
            chat=ChatFormat(self.tokenizer, stop_ids, self.layout.joint),
            max_length=context if context and context > 0 else 1_000_000,  # XLNet says -1 for no limit
        )

    @property
    def device(self) -> torch.device:
        return llms.embedding(self.llm).weight.device

    def see(self, views: Views, spec: dict[str, Any]) -> None:
        """Take another view policy, or encoders' new sizes, into account.

        Args:
            views: the policy.
            spec: the resolved model part of the recipe, with it.
        """
        self.views = views
        self.spec = spec
        self.__dict__.pop("processor", None)  # it was made for what was seen before

    def parts(self) -> dict[str, nn.Module]:
        """Name -> module of each part: a total and disjoint partition of the parameters."""
        encoders = {f"encoders.{number}": encoder for number, encoder in enumerate(self.encoders)}
        return {**encoders, "connector": self.connector, "llm": self.llm}

    def adapt(self, part: str, spec: AdapterSpec) -> None:
        """Put adapters into a part (see `vlm.adapters`); what trains is said elsewhere, as for all parameters.

        Raises:
            ConfigError: the part has some already, or layers that cannot have one.
        """
        if part in self.adapters:
            raise ConfigError(f"`{part}` has adapters already; merge them first")
        module = self.parts()[part]
        adapted = adapters.choose(module, spec)
        adapters.insert(module, adapted)
        self.adapters[part] = adapted

    def merge(self, parts: Sequence[str] = ()) -> None:
        """Put the adapters' updates into the weights; a model without adapters is left.

        Args:
            parts: whose; all that have some if there are none.
        """
        for part in parts or list(self.adapters):
            adapters.absorb(self.parts()[part], self.adapters.pop(part))

    def encode(self, batch: Batch) -> VisionTokens | None:
        """Pixels -> the visual tokens of all images as the route takes them; None for a batch without images.

        Views of one size are encoded together, so nothing is padded. An encoder whose parameters are all frozen keeps
        no graph.
        """
        return self.visual(batch.groups, batch.images) if batch.images else None

    def visual(self, groups: Sequence[ViewGroup], images: Sequence[ImagePlan]) -> VisionTokens:
        """The visual tokens of some images.

        Args:
            groups: all their views, those of one size together.
            images: how each is shown.
        """
        tokens: dict[int, Tensor] = {}
        shapes: dict[int, Shape] = {}
        for group in groups:
            features = self.connector(self.features(group), group.question)
            numbers = group.index.tolist()
            tokens |= zip(numbers, features.rows(), strict=True)
            shapes |= {n: Shape(len(tokens[n]), features.width, features.grid) for n in numbers}
        order = sorted(tokens)
        return self.connector.pack([tokens[n] for n in order], [shapes[n] for n in order], images)

    def features(self, group: ViewGroup) -> list[Features]:
        """What each encoder makes of some views; computed, unless it is there already."""
        likes = [next(one.parameters(), llms.embedding(self.llm).weight) for one in self.encoders]  # patches have none
        if group.features is not None:
            pairs = zip(group.features, likes, strict=True)
            return [one.map(lambda tensor, like=like: tensor.to(like.dtype)) for one, like in pairs]  # type: ignore[misc]
        found = []
        for encoder, pixels, like in zip(self.encoders, group.pixels, likes, strict=True):
            trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters())
            with torch.set_grad_enabled(trains):
                found.append(encoder(pixels.to(like.dtype)))
        return found

    def inputs(self, batch: Batch, vision: VisionTokens | None = None) -> dict[str, Any]:
        """Keywords for the LLM's forward: embeddings with the visual tokens in place, mask and route's own.

        Args:
            batch: from this model's processor.
            vision: `encode(batch)`, if already at hand.
        """
        vision = self.encode(batch) if vision is None else vision
        ids = batch.input_ids.masked_fill(batch.owner >= 0, 0)  # a placeholder's id may lie beyond the vocabulary
        embeds = llms.embedding(self.llm)(ids)
        extra: dict[str, Any] = {}
        if vision is not None:
            embeds, extra = self.connector.route().apply(embeds, vision, batch.places)
        # transformers tells packed samples apart by positions that begin anew, where it is given no mask
        mask = batch.attention_mask if batch.segments is None else None
        return {"inputs_embeds": embeds, "attention_mask": mask, **extra}

    def forward(self, batch: Batch, vision: VisionTokens | None = None, **options: Any) -> Any:
        """Logits [B, T, V] (in a transformers output) for every position of the batch.

        Args:
            batch: from this model's processor.
            vision: `encode(batch)`, if already at hand.
            options: further keywords for the LLM's forward (`use_cache`, `logits_to_keep`, ...).
        """
        return self.llm(**self.inputs(batch, vision), position_ids=batch.positions, **options)

    def hidden(self, batch: Batch, vision: VisionTokens | None = None) -> Tensor:
        """The LLM's last hidden states [B, T, C]; `llms.logits` makes logits of those that are wanted."""
        return llms.hidden_states(self.llm, **self.inputs(batch, vision), position_ids=batch.positions)

    def generate(
        self,
        batch: Batch,
        *,
        max_new_tokens: int = 64,
        vision: VisionTokens | None = None,
        groups: Sequence[int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Answer ids [B, at most max_new_tokens], padded on the right; greedy unless `options` say otherwise.

        Args:
            batch: padded on the left.
            max_new_tokens: where an answer is cut.
            vision: `encode(batch)`, if already at hand.
            groups: per sample the number of what it shows, where samples may share that (see `vlm.prefixes`).
            options: further keywords of transformers' `generate`.
        """
        with torch.no_grad(), evaluating(self):
            inputs = self.inputs(batch, vision)
            if groups is not None and self.connector.route().in_sequence:
                prompts = [ids[real.bool()] for ids, real in zip(batch.input_ids, batch.attention_mask, strict=True)]
                read = (inputs["inputs_embeds"], inputs["attention_mask"])
                if (cache := shared_cache(self.llm, *read, prompts, groups)) is not None:
                    options["past_key_values"] = cache
            return generate(self.llm, inputs, self.processor.chat, max_new_tokens, **options)

    def ask(self, images: ImageLike | Sequence[ImageLike], question: str, *, max_new_tokens: int = 64) -> str:
        """The answer to one question about one or several images.

        Raises:
            ImageError, SampleError: an image cannot be opened, or the question does not fit.
        """
        images = images if isinstance(images, (list, tuple)) else [images]  # type: ignore[list-item]
        example = self.processor.encode(ask(question, images))
        limit = min(max_new_tokens, room(self, example))
        batch = self.processor.collate([example], side="left").to(self.device)
        return read(self, example.id, self.generate(batch, max_new_tokens=limit).tolist()[0]).text

    def answer(self, samples: Iterable[Sample], *, max_new_tokens: int = 64, batch_size: int = 16) -> Iterator[Answer]:
        """Answers to the samples' questions, one a sample and in order, made `batch_size` at a time.

        A sample that cannot be used gives an `Answer` with `error`; the others are answered. Samples that show one
        image should stand side by side: it is then encoded once.
        """
        return in_order(self.replies(samples, max_new_tokens=max_new_tokens, batch_size=batch_size))

    def replies(
        self, samples: Iterable[Sample], *, max_new_tokens: int = 64, batch_size: int = 16
    ) -> Iterator[tuple[int, Answer]]:
        """As `answer`, each with the number of its sample, as soon as its batch is done (see `vlm.answering`)."""
        return replies(self, samples, max_new_tokens=max_new_tokens, batch_size=batch_size)

    def save(self, folder: str | Path) -> Path:
        """Write the model as a folder that `vlm.load` needs nothing else for (see `vlm.saving`)."""
        llm = {**self.spec["llm"], "attention": self.attention}  # another would give other last bits
        spec, tokenizers = {**self.spec, "llm": llm}, {TOKENIZER: self.tokenizer}
        for number, op in enumerate(self.connector.ops):
            if (tokenizer := op.tokenizer()) is not None:  # type: ignore[operator]
                tokenizers[f"{TOKENIZER}_{number}"] = tokenizer
        return save(folder, self, spec=spec, tokenizers=tokenizers, adapters=self.adapters, origin=self.origin)

    @property
    def attention(self) -> str:
        """How the LLM computes attention: `eager`, `sdpa`, `flash_attention_2`, `flex_attention`."""
        return str(self.llm.config._attn_implementation)  # type: ignore[union-attr]

    def set_attention(self, how: str) -> None:
        """Choose how attention is computed: one of these in the LLM, and the like of it in
        every other part that has two ways (open_clip's own ViT and a few of timm's families have one).

        Raises:
            ValueError: transformers has no such attention for this family of LLM.
        """
        self.llm.set_attn_implementation(how)  # type: ignore[operator]
        own: Implementation = "eager" if how == "eager" else "sdpa"
        set_attention(self.connector, own)
        for encoder in self.encoders:
            encoder.set_attention(own)  # type: ignore[operator]
