"""Learning from pairs of answers, of which one is better."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlm import llm as llms
from vlm.errors import ConfigError, Problem
from vlm.features import VisionTokens
from vlm.model import VLM
from vlm.sample import Batch

from .losses import IGNORED, cross_entropy, log_probabilities
from .objectives import Beginning, Loss, Objective
from .reference import Reference, folder_of

PairLoss = Literal["sigmoid", "robust", "hinge", "ipo"]


FIGURES: tuple[str, ...] = (
    *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    *("logps/chosen", "logps/rejected"),
)
"""What is logged of every preference, under TRL's names."""


@dataclass
class Answers:
    """What is to be predicted, over both answers of P pairs: S positions with a label."""

    hidden: Tensor
    """[S, C], the last hidden states of the positions before."""
    targets: Tensor
    """long [S]."""
    numbers: Tensor
    """long [S]: which answer a position is of; the P chosen ones come first."""
    pairs: int
    """P."""


@dataclass
class Head:
    """What makes logits of hidden states."""

    logits: Callable[[Tensor], Tensor]
    """[s, C] -> [s, V]."""
    parameters: Sequence[Tensor]
    vocabulary: int
    """V."""

    @classmethod
    def of(cls, llm: nn.Module) -> "Head":
        """An LLM's own."""
        return cls(partial(llms.logits, llm), llms.head_parameters(llm), llms.vocabulary(llm))


class Preference(Objective):
    """A loss on the log-probabilities of a chosen and a rejected answer to each question. Letters: P pairs.

    The images of a pair are encoded once. A term is a pair, so that the mean is one over the pairs of the global batch
    however long the answers are. Logits exist a piece at a time: the log-probabilities come first, without gradients,
    and from them the loss and its derivatives; the gradients are those of a cross-entropy with these as weights.
    """

    compares = True
    learns_answers = True
    figures: tuple[str, ...] = FIGURES

    def forward(self, model: VLM, batch: Batch) -> Loss:
        """The sum of the losses of all pairs.

        Raises:
            ConfigError: a sample has no rejected answer.
        """
        return self.compare(read_answers(model, batch), Head.of(model.llm), batch.keys)

    def compare(self, answers: Answers, head: Head, keys: list[str]) -> Loss:
        """The sum of the losses of all pairs, from what the head makes of the answers."""
        sums, counts = summed(answers, head)
        with torch.enable_grad():
            losses, figures = self.losses(sums.requires_grad_(), counts, keys)
            total = losses.sum()
        logged = {name: figure.detach().sum() for name, figure in figures.items()}
        if not torch.is_grad_enabled():
            return Loss(total.detach(), answers.pairs, logged)
        (slopes,) = torch.autograd.grad(total, sums)
        weights = -slopes.flatten()[answers.numbers]
        carrier = cross_entropy(
            answers.hidden,
            answers.targets,
            head.logits,
            parameters=head.parameters,
            vocabulary=head.vocabulary,
            weights=weights,
        )
        return Loss(total.detach() + (carrier - carrier.detach()), answers.pairs, logged)

    @abstractmethod
    def losses(self, sums: Tensor, counts: Tensor, keys: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss [P] of each pair, and figures [P] to be logged.

        Args:
            sums: [2, P], the log-probabilities of the chosen and of the rejected answers.
            counts: [2, P], their numbers of tokens.
            keys: of the pairs (see `Batch.keys`).
        """


class Dpo(Preference):
    """Direct preference optimisation (arXiv 2305.18290): the chosen answer is to gain more over a reference, the model
    as it stood when the stage began, than the rejected one.

    What the reference makes of each answer is found out once, before the first step, and kept on disk: there is never a
    second model in memory.

    Args:
        beta: how dear it is to move away from the reference; for `ipo` its tau.
        loss: of the difference d between the two gains: `sigmoid`, -log sigmoid(beta d); `robust`, the same
            without bias where the share `label_smoothing` of the pairs is the wrong way round (arXiv 2403.00409);
            `hinge`, max(0, 1 - beta d) (arXiv 2305.10425); `ipo`, (d - 1 / (2 beta))^2 with gains per token
            (arXiv 2310.12036).
        label_smoothing: share of the pairs taken to be the wrong way round; for `sigmoid` and `robust`.
        length_normalised: gains are per token.
        nll: weight of the chosen answer's own negative log-likelihood per token, added to each pair's loss (RPO, arXiv
            2404.19733; MPO, arXiv 2411.10442).
        references: a folder that several runs share for what references make of answers; the stage's own if absent.
    """

    begins = True
    reads_pixels = True  # by which it knows a sample again

    def __init__(
        self,
        *,
        beta: float = 0.1,
        loss: PairLoss = "sigmoid",
        label_smoothing: float = 0.0,
        length_normalised: bool = False,
        nll: float = 0.0,
        references: str | None = None,
    ) -> None:
        super().__init__()
        _check(beta, label_smoothing, loss, nll)
        self.beta = beta
        self.loss: PairLoss = loss
        self.label_smoothing = label_smoothing
        self.length_normalised = length_normalised
        self.nll = nll
        self.references = references
        self.figures = (*FIGURES, "nll") if nll else FIGURES
        self._reference: Reference | None = None

    def begin(self, model: VLM, start: Beginning) -> None:
        """Find out what the model makes of all answers, unless it is known."""
        where = Path(self.references) if self.references else start.folder / "reference"
        reference = Reference(folder_of(where, model))
        if not start.again or not len(reference):
            for batch in start.batches():
                if not reference.knows(batch.keys):
                    reference.add(batch.keys, answer_log_probabilities(model, batch))
        start.wait()
        self._reference = Reference(reference.folder)

    def losses(self, sums: Tensor, counts: Tensor, keys: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        gains = sums - self._known(sums, keys)
        per_token = self.length_normalised or self.loss == "ipo"
        difference = _difference(gains / counts if per_token else gains)
        losses = pair_losses(difference, self.loss, beta=self.beta, label_smoothing=self.label_smoothing)
        figures = _figures(self.beta * gains, sums)
        if self.nll:
            figures["nll"] = -sums[0] / counts[0]
            losses = losses + self.nll * figures["nll"]
        return losses, figures

    def _known(self, sums: Tensor, keys: list[str]) -> Tensor:
        """What the reference made of the answers, [2, P]."""
        if self._reference is None:
            if sums.is_meta:  # planned, not computed
                return torch.zeros_like(sums)
            raise RuntimeError("dpo needs its reference: call `begin` before the first batch")
        return self._reference[keys].to(sums)


class Orpo(Preference):
    """Odds-ratio preference optimisation (arXiv 2403.07691): the chosen answer is learned as ever, and its odds are to
    be above the rejected one's. There is no reference.

    Args:
        beta: weight of the odds ratio (the paper's lambda).
    """

    figures = (*FIGURES, "nll", "log_odds")

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        _check(beta, 0.0, "sigmoid", 0.0)
        self.beta = beta

    def losses(self, sums: Tensor, counts: Tensor, keys: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        means = sums / counts
        odds = _difference(means - log1mexp(means))
        losses = -means[0] - self.beta * F.logsigmoid(odds)
        return losses, {**_figures(self.beta * means, sums), "nll": -means[0], "log_odds": odds}


def pair_losses(difference: Tensor, loss: PairLoss, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """[P] -> [P]; see `Dpo`."""
    if loss == "hinge":
        return F.relu(1 - beta * difference)
    if loss == "ipo":
        return (difference - 1 / (2 * beta)).square()
    right, wrong = -F.logsigmoid(beta * difference), -F.logsigmoid(-beta * difference)
    if loss == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation on either side of -ln 2."""
    x = x.clamp(max=-torch.finfo(x.dtype).eps)  # the odds of what is certain are beyond every number
    small = x > -0.6931471805599453
    near = torch.log(-torch.expm1(torch.where(small, x, -1.0)))
    return torch.where(small, near, torch.log1p(-torch.exp(torch.where(small, -1.0, x))))


def read_answers(model: VLM, batch: Batch) -> Answers:
    """Both answers of each pair as the model reads them; the images are encoded once.

    Raises:
        ConfigError: a sample has no rejected answer.
    """
    if batch.rejected is None:
        seen = f" (one of {', '.join(batch.ids[:5])})" if batch.ids else ""
        raise ConfigError(Problem("data", f"a sample has no rejected answer{seen}; give `chosen` and `rejected`"))
    vision = model.encode(batch)
    better, worse = (_spoken(model, one, vision) for one in (batch, batch.rejected))
    pairs = _count(batch)
    numbers = torch.cat([better[2], worse[2] + pairs])
    return Answers(torch.cat([better[0], worse[0]]), torch.cat([better[1], worse[1]]), numbers, pairs)


def answer_log_probabilities(model: VLM, batch: Batch) -> Tensor:
    """[2, P]: of the chosen and of the rejected answers, without gradients."""
    with torch.no_grad():
        return summed(read_answers(model, batch), Head.of(model.llm))[0]


def _spoken(model: VLM, batch: Batch, vision: VisionTokens | None) -> tuple[Tensor, Tensor, Tensor]:
    """Of the positions with a label: the hidden states before, the labels, and the numbers of their samples."""
    if batch.labels is None:
        raise RuntimeError("preferences need labels; the batch has none")
    targets = batch.labels[:, 1:]
    learned = targets != IGNORED
    hidden = model.hidden(batch, vision)[:, :-1][learned]
    return hidden, targets[learned], _numbers(batch)[:, 1:][learned]


def _numbers(batch: Batch) -> Tensor:
    """long [B, T]: the number of each position's sample; rows hold one sample, or several when packed."""
    rows = torch.arange(len(batch), device=batch.input_ids.device)[:, None].expand_as(batch.input_ids)
    if batch.segments is None:
        return rows
    counts = batch.segments.max(1).values + 1
    return batch.segments + (counts.cumsum(0) - counts)[:, None]


def _count(batch: Batch) -> int:
    """Number of samples."""
    return len(batch) if batch.segments is None else int((batch.segments.max(1).values + 1).sum())


def summed(answers: Answers, head: Head) -> tuple[Tensor, Tensor]:
    """Log-probability and number of tokens of each answer, two of [2, P], without gradients."""
    each = log_probabilities(answers.hidden.detach(), answers.targets, head.logits, vocabulary=head.vocabulary)
    sums = each.new_zeros(2 * answers.pairs).index_add(0, answers.numbers, each)
    counts = torch.bincount(answers.numbers, minlength=2 * answers.pairs).clamp(min=1)
    return sums.view(2, -1), counts.view(2, -1)


def _difference(both: Tensor) -> Tensor:
    """[2, P] -> [P]: chosen less rejected."""
    return both[0] - both[1]


def _figures(rewards: Tensor, sums: Tensor) -> dict[str, Tensor]:
    """[P] each."""
    margins = _difference(rewards)
    found = (rewards[0], rewards[1], margins, (rewards[0] > rewards[1]).float(), sums[0], sums[1])
    return dict(zip(FIGURES, found, strict=True))


def _check(beta: float, label_smoothing: float, loss: PairLoss, nll: float) -> None:
    problems = [] if beta > 0 else [Problem("beta", f"`{beta}`; allowed: above 0")]
    if not 0 <= label_smoothing < 0.5:
        problems.append(Problem("label_smoothing", f"`{label_smoothing}`; allowed: 0 to below 0.5"))
    elif label_smoothing and loss in ("hinge", "ipo"):
        problems.append(Problem("label_smoothing", f"`{label_smoothing}`, which `{loss}` has no place for"))
    if nll < 0:
        problems.append(Problem("nll", f"`{nll}`; allowed: 0 or more"))
    if problems:
        raise ConfigError(problems)
