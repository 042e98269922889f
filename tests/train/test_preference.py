"""Preferences: TRL's numbers on the same logits, a slow loop on whole models, the reference, and runs."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

import vlm
from tests.conftest import perturb, picture, toy_recipe
from vlm.data import JsonSource
from vlm.errors import ConfigError
from vlm.sample import IMAGE_MARK, Batch, Sample, Turn
from vlm.train import losses, preference
from vlm.train import run as runs
from vlm.train.objectives import Beginning
from vlm.train.plots import read_metrics
from vlm.train.preference import Answers, Dpo, Head, Orpo, Preference, answer_log_probabilities, log1mexp
from vlm.train.reference import Reference
from vlm.train.run import train

VECTORS = json.loads((Path(__file__).parent / "trl_vectors.json").read_text())
PAIRS, LENGTH, WORDS = 3, 9, 11
REFERENCE = torch.tensor([[-14.0, -7.5, -9.0], [-11.0, -16.0, -6.0]])


class Known(Reference):
    """The reference log-probabilities of the vectors; the key is a pair's number."""

    def __init__(self) -> None:
        self._known = {str(n): (float(c), float(r)) for n, (c, r) in enumerate(REFERENCE.T)}


def trl_logits() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [6, 9, 11], ids [6, 9] and which of them are spoken; the chosen answers' rows come first."""
    shape = (torch.arange(2 * PAIRS), torch.arange(LENGTH), torch.arange(WORDS))
    row, place, word = torch.meshgrid(*shape, indexing="ij")
    logits = 2.5 * torch.sin(1.7 * row + 0.9 * place * word + 2.3 * word)
    ids = (3 * row[..., 0] + 5 * place[..., 0]) % WORDS
    spoken = (place[..., 0] >= 3) & (place[..., 0] < torch.tensor([9, 6, 7, 8, 9, 5])[:, None])
    return logits, ids, spoken


def answers_from(logits: Tensor, ids: Tensor, spoken: Tensor, rows: list[int]) -> Answers:
    """What the kit compares, where the hidden states are the logits themselves."""
    learned = spoken[rows, 1:]
    numbers = torch.arange(len(rows))[:, None].expand_as(learned)[learned]
    return Answers(logits[rows, :-1][learned], ids[rows, 1:][learned], numbers, len(rows) // 2)


def compared(objective: Preference, pair: int | None = None) -> dict[str, float]:
    """The mean loss of the vectors' pairs (or of one), its gradients and figures, as the script says them."""
    logits, ids, spoken = trl_logits()
    logits.requires_grad_()
    pairs = list(range(PAIRS)) if pair is None else [pair]
    rows = [*pairs, *(PAIRS + n for n in pairs)]
    head = Head(lambda hidden: hidden, [], WORDS)
    loss = objective.compare(answers_from(logits, ids, spoken, rows), head, [str(n) for n in pairs])
    (gradient,) = torch.autograd.grad(loss.total / loss.count, logits)
    along = (gradient.flatten() * torch.cos(0.37 * torch.arange(logits.numel()))).sum()
    figures = {name: float(figure) / loss.count for name, figure in loss.figures.items()}
    return {
        "loss": float(loss.total.detach()) / loss.count,
        "norm": float(gradient.norm()),
        "along": float(along),
        **figures,
    }


def dpo(**options: Any) -> Dpo:
    objective = Dpo(**options)
    objective._reference = Known()
    return objective


@pytest.mark.parametrize("piece", [WORDS, 5 * WORDS, 10**6])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sigmoid", {}),
        ("sigmoid_beta", {"beta": 0.7}),
        ("hinge", {"loss": "hinge", "beta": 0.3}),
        ("ipo", {"loss": "ipo"}),
        ("robust", {"loss": "robust", "label_smoothing": 0.2}),
        ("normalised", {"length_normalised": True, "beta": 2.0}),
        ("smoothed", {"label_smoothing": 0.15}),
        ("nll", {"nll": 0.4}),
    ],
)
def test_dpo_is_trls_on_the_same_logits(
    name: str, options: dict[str, Any], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients and figures of TRL 1.16.0 (`DPOTrainer._compute_loss`), which are in `trl_vectors.json`.

    They were made by calling that method with a stand-in for the trainer, whose model returns the log-probabilities of
    `trl_logits()` at the spoken positions, and whose settings are the defaults but for, by name: `sigmoid_beta`, beta
    0.7; `hinge`, beta 0.3; `robust`, label_smoothing 0.2; `normalised`, loss_type sigmoid_norm and beta 2;
    `smoothed`, loss_type aot with label_smoothing 0.15 on each pair alone, which is then the conservative DPO that TRL
    no longer has by itself; `nll`, loss_type [sigmoid, sft] with loss_weights [1, 0.4] on each pair alone, since TRL
    takes that term's mean over tokens. `along` is the sum of the gradient times cos(0.37 n), n counting the logits.
    """
    monkeypatch.setattr(losses, "ELEMENTS", piece)
    wanted = VECTORS[name]
    if isinstance(wanted, dict):
        found = compared(dpo(**options))
        assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    else:
        for pair, one in enumerate(wanted):
            found = compared(dpo(**options), pair)
            assert {key: found[key] for key in one} == pytest.approx(one, rel=1e-6, abs=1e-6)
        whole = compared(dpo(**options))["loss"]
        assert whole == pytest.approx(sum(one["loss"] for one in wanted) / PAIRS, rel=1e-6)


class OddsAlone(Orpo):
    """Without the term by which the chosen answer is learned: TRL takes that over the question's tokens too."""

    def losses(self, sums: Tensor, counts: Tensor, keys: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        whole, figures = super().losses(sums, counts, keys)
        return whole + sums[0] / counts[0], figures


def test_orpo_is_trls_on_the_same_logits() -> None:
    """`ORPOTrainer.odds_ratio_loss` of TRL 1.16.0 on `get_batch_logps(..., average_log_prob=True)`, beta 0.2."""
    found, wanted = compared(OddsAlone(beta=0.2)), VECTORS["orpo"]
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    logits, ids, spoken = trl_logits()
    chosen = [F.cross_entropy(logits[n, :-1][spoken[n, 1:]], ids[n, 1:][spoken[n, 1:]]) for n in range(PAIRS)]
    whole = compared(Orpo(beta=0.2))["loss"]
    assert whole == pytest.approx(wanted["loss"] + float(sum(chosen)) / PAIRS, rel=1e-6)


def test_log1mexp_where_one_form_or_the_other_cancels() -> None:
    x = -torch.tensor([1e-6, 1e-3, 0.3, 0.69, 0.7, 3.0, 30.0, 90.0])
    wide = x.double()  # there the first terms of log(1 - e^x) are exact enough where e^x is small
    exact = torch.where(wide < -20, -wide.exp() - (2 * wide).exp() / 2, torch.log(-torch.expm1(wide)))
    torch.testing.assert_close(log1mexp(x).double(), exact, rtol=1e-5, atol=1e-45)
    certain = torch.zeros(1, requires_grad=True)
    log1mexp(certain).sum().backward()
    assert certain.grad is not None
    assert bool(certain.grad.isfinite().all())


def pairs(images: bool = True) -> list[Sample]:
    """A question, several turns with an image in the middle, two images, text alone."""
    shown = [picture(n) for n in range(4)] if images else []
    talk = [Turn("user", "Hi"), Turn("assistant", "Hello!"), Turn("user", f"{IMAGE_MARK}Which?" * images or "Which?")]
    found = [
        Sample([Turn("user", "Why?"), Turn("assistant", "So it is.")], shown[:1], rejected="No."),
        Sample([*talk, Turn("assistant", "That one")], shown[1:2], rejected="That other one, I think"),
        Sample([Turn("user", "Both?"), Turn("assistant", "Yes")], shown[2:4], rejected="Never"),
        Sample([Turn("user", "And?"), Turn("assistant", "So on, so on.")], rejected="Ends"),
    ]
    return [replace(sample, id=f"pair-{number}") for number, sample in enumerate(found)]


def alone(model: Any, sample: Sample) -> tuple[Tensor, int]:
    """Log-probability and number of tokens of a sample's last turn, from all logits of the sample by itself."""
    batch = model.processor([replace(sample, rejected=None)])
    prompt = model.processor([sample.question()])
    logits = model(batch).logits[0]
    assert batch.labels is not None
    total, count = torch.zeros(()), 0
    for place in range(prompt.input_ids.shape[1], batch.input_ids.shape[1]):
        if batch.labels[0, place] >= 0:
            total = total + logits[place - 1].log_softmax(-1)[batch.labels[0, place]]
            count += 1
    return total, count


def slow(model: Any, samples: list[Sample], reference: list[tuple[float, float]], *, beta: float, nll: float) -> Tensor:
    """DPO's formula, a sample at a time."""
    total = torch.zeros(())
    for sample, known in zip(samples, reference, strict=True):
        assert sample.rejected is not None
        worse = [*sample.turns[:-1], Turn("assistant", sample.rejected)]
        (chosen, count), (rejected, _) = alone(model, sample), alone(model, replace(sample, turns=worse))
        gain = (chosen - known[0]) - (rejected - known[1])
        total = total + torch.log1p(torch.exp(-beta * gain)) - nll * chosen / count
    return total


@pytest.mark.parametrize("connector", ["mlp", {"name": "cross_attention", "every": 2}])
def test_dpo_on_a_model_is_the_slow_loop(
    connector: Any, toy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "ELEMENTS", 4 * 262)
    model, samples = toy(connector), pairs()
    known = [(-40.0, -30.0), (-35.5, -90.0), (-20.0, -18.0), (-66.0, -20.0)]
    batch = model.processor(samples)
    objective = Dpo(beta=0.05, nll=0.3)
    objective._reference = Known()
    objective._reference._known = dict(zip(batch.keys, known, strict=True))
    calls = []
    handle = model.encoders[0].register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    plain, pieces = preference.llms.logits, []
    monkeypatch.setattr(preference.llms, "logits", lambda llm, hidden: pieces.append(len(hidden)) or plain(llm, hidden))
    found = objective(model, batch)
    handle.remove()
    assert calls == [4], "each image once, for both answers"
    assert max(pieces) == 4, "logits of so many positions at a time"
    assert sum(pieces) == 2 * int(batch.supervised + batch.rejected.supervised)
    wanted = slow(model, samples, known, beta=0.05, nll=0.3)
    assert found.count == 4
    torch.testing.assert_close(found.total, wanted, rtol=1e-5, atol=1e-5)
    names, trained = zip(*model.named_parameters(), strict=True)
    gradients = [torch.autograd.grad(one, trained, allow_unused=True) for one in (found.total, wanted)]
    for name, one, other in zip(names, *gradients, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5, msg=name)


def test_packed_pairs_are_those_that_stand_alone(toy: Callable[..., Any]) -> None:
    model, samples = toy(), pairs()
    examples = [model.processor.encode(sample) for sample in samples]
    rows = answer_log_probabilities(model, model.processor.collate(examples))
    packed = answer_log_probabilities(model, model.processor.collate(examples, packs=[3, 1]))
    torch.testing.assert_close(packed, rows, rtol=1e-5, atol=1e-4)
    assert (rows.flatten().diff().abs() > 0.5).all(), "all differ, so that none can stand for another"


def test_only_the_last_turn_is_compared(toy: Callable[..., Any]) -> None:
    processor = toy().processor
    batch = processor(pairs())
    for one, last in ((batch, "That one"), (batch.rejected, "That other one, I think")):
        labels = one.labels[1]
        assert processor.chat.decode(labels[labels >= 0].tolist()) == last
    plain = processor([replace(pairs()[1], rejected=None)])
    labels = plain.labels[0]
    assert "Hello!" in processor.chat.decode(labels[labels >= 0].tolist())
    assert plain.rejected is None
    assert plain.keys == []
    assert processor([*pairs()[:1], replace(pairs()[1], rejected=None)]).rejected is None


def test_keys_tell_samples_apart(toy: Callable[..., Any]) -> None:
    processor = toy().processor
    base = pairs()[0]
    variants = [
        base,
        replace(base, rejected="Yes."),
        replace(base, images=[picture(9)]),
        replace(base, turns=[base.turns[0], Turn("assistant", "So.")]),
        replace(base, turns=[Turn("user", "How?"), base.turns[1]]),
    ]
    keys = processor(variants).keys
    assert len(set(keys)) == len(variants)
    assert processor([replace(base, id="other")]).keys == keys[:1]


def test_without_a_rejected_answer_it_says_so(toy: Callable[..., Any]) -> None:
    model = toy()
    batch = model.processor([replace(pairs()[0], rejected=None)])
    with pytest.raises(ConfigError, match=r"pair-0.*give `chosen` and `rejected`"):
        Orpo()(model, batch)
    with pytest.raises(ValueError, match="rejected answer and no other"):
        model.processor([Sample([Turn("user", "Why?")], rejected="x")])


@pytest.mark.parametrize(
    ("objective", "options", "place"),
    [
        (Dpo, {"beta": 0.0}, "beta"),
        (Dpo, {"label_smoothing": 0.5}, "label_smoothing"),
        (Dpo, {"label_smoothing": 0.1, "loss": "ipo"}, "label_smoothing"),
        (Dpo, {"nll": -1.0}, "nll"),
        (Orpo, {"beta": -0.1}, "beta"),
    ],
)
def test_options_are_checked(objective: Any, options: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        objective(**options)
    assert [problem.place for problem in caught.value.problems] == [place]


def rows(folder: Path, count: int = 6, *, text: bool = True) -> Path:
    """A file in RLAIF-V's columns, with one row of several turns and one of text alone."""
    found: list[dict[str, Any]] = []
    for number in range(count):
        picture(number).save(folder / f"{number}.png")
        found.append(
            {
                **{
                    "ds_name": "toy",
                    "image": f"{number}.png",
                    "question": "What is it?",
                    "chosen": f"A thing {number}.",
                },
                **{"rejected": "A cat and a dog." + "!" * number, "origin_dataset": "toy", "origin_split": "{}"},
                **{"idx": number, "image_path": f"elsewhere/{number}.png"},
            }
        )
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "<image>?"}]
    found[1] = {"image": "1.png", "conversations": talk, "chosen": "Yes", "rejected": "No"}
    if text:
        found[2] = {"question": "Text alone?", "chosen": "Yes", "rejected": "It is not"}
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_rows_in_rlaif_vs_columns_and_with_turns(tmp_path: Path) -> None:
    source = JsonSource(path=str(rows(tmp_path)))
    first, talk, text = source[0], source[1], source[2]
    assert (first.turns[-1], first.rejected) == (Turn("assistant", "A thing 0."), "A cat and a dog.")
    assert (first.id, [Path(str(image)).name for image in first.images]) == ("0", ["0.png"])
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "user", "assistant"]
    assert (talk.turns[-1].text, talk.rejected, len(talk.images)) == ("Yes", "No", 1)
    assert (text.images, text.rejected) == ([], "It is not")
    assert talk.question().rejected is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "?", "chosen": "a"}, "`rejected` is missing"),
        ({"question": "?", "rejected": "a"}, "`chosen` is missing"),
        ({"question": "?", "chosen": "a", "rejected": "a"}, "the same text"),
        ({"question": "?", "answer": "b", "chosen": "a", "rejected": "c"}, "already"),
        ({"question": "?", "chosen": "a", "rejectd": "c"}, "did you mean `rejected`"),
        ({"question": "?", "chosen": ["a"], "rejected": "c"}, "`chosen` is text"),
    ],
)
def test_rows_that_are_no_preference(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        JsonSource(path=str(tmp_path / "pairs.jsonl"))[0]


def test_image_path_is_read_where_there_is_no_image(tmp_path: Path) -> None:
    row = {"image_path": "x.png", "question": "?", "chosen": "a", "rejected": "b"}
    (tmp_path / "pairs.json").write_text(json.dumps([row]))
    assert JsonSource(path=str(tmp_path / "pairs.json"))[0].images == [str(tmp_path / "x.png")]


def recipe(path: Path, objective: Any, **stage: Any) -> dict[str, Any]:
    common = {"data": [{"path": str(path)}], "batch_size": 4, "micro_batch_size": 2, "precision": "32-true"}
    more = {"steps": 6, "checkpoint_every": 2, "clip": 0, "train": {"connector": 1e-2, "llm": 1e-3}}
    return {**toy_recipe(), "stages": [{"name": "prefer", "objective": objective, **common, **more, **stage}]}


def figures(run: Path) -> list[dict[str, float]]:
    lines = (run / "stages/01-prefer/metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    return [dict(zip(names, map(float, line.split(",")), strict=True)) for line in lines[1:]]


def test_a_run_begins_at_its_reference_and_learns(tmp_path: Path) -> None:
    folder = train(recipe(rows(tmp_path), {"name": "dpo", "beta": 0.5}, steps=12), out=tmp_path / "run")
    found = figures(folder)
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert found[-1]["loss"] < 0.3
    assert found[-1]["rewards/margins"] > 1
    assert found[-1]["rewards/accuracies"] == 1
    lines = [path.read_text() for path in (folder / "stages/01-prefer/reference").glob("*/*.jsonl")]
    assert len("".join(lines).splitlines()) == 6, "each sample once, though there were more steps"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_the_reference_is_in_the_stages_precision(precision: str, tmp_path: Path) -> None:
    """To the last bit: the first step reads the pairs as the reference did, in the same batches."""
    spec = recipe(rows(tmp_path), {"name": "dpo", "beta": 0.5}, steps=1, precision=precision)
    first = figures(train(spec, out=tmp_path / "run"))[0]
    assert first["rewards/margins"] == first["rewards/chosen"] == 0
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-6)


@pytest.mark.parametrize("stage", [{"pack": 256, "batch_size": 2, "micro_batch_size": 1}, {"group_by_length": True}])
def test_packed_and_grouped_pairs_begin_at_their_reference(stage: dict[str, Any], tmp_path: Path) -> None:
    """The reference reads each pair by itself, the stage in other rows."""
    found = figures(train(recipe(rows(tmp_path), {"name": "dpo", "beta": 0.5}, steps=3, **stage), out=tmp_path / "run"))
    assert found[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert found[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert found[2]["rewards/margins"] > 0.01


def test_a_pair_that_is_too_long_is_left_out_whole(tmp_path: Path) -> None:
    path = rows(tmp_path)
    long = {"image": "1.png", "conversations": [{"from": "human", "value": "<image>?"}], "chosen": "Yes"}
    with path.open("a") as file:
        file.write(json.dumps({**long, "rejected": "No! " * 200}) + "\n")
        file.write(json.dumps({"question": "No pair?", "answer": "No"}) + "\n")
    options = {"too_long": "shorten", "pack": 256, "most_skipped": 0.9, "batch_size": 1, "micro_batch_size": 1}
    with pytest.raises(ConfigError, match="a sample has no rejected answer"):
        train(recipe(path, {"name": "dpo"}, most_skipped=0.9), out=tmp_path / "run")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    folder = train(recipe(path, {"name": "dpo"}, **options), out=tmp_path / "other")
    assert "too long" in (folder / "stages/01-prefer/skipped.jsonl").read_text()


class PowerCut(RuntimeError):
    pass


class Failing(JsonSource):
    """Fails at the so-manieth sample that it is asked for."""

    left = -1

    def __getitem__(self, index: int) -> Sample:
        Failing.left -= 1
        if Failing.left == 0:
            raise PowerCut
        return super().__getitem__(index)


@pytest.mark.parametrize("name", ["dpo", "orpo"])
def test_a_run_that_was_cut_goes_on_as_if_it_had_not(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the middle of what the reference makes of the answers; the reference is not taken from the checkpoint."""
    spec = recipe(rows(tmp_path), {"name": name, "beta": 0.5})
    spec["stages"][0]["data"][0]["name"] = f"{__name__}:Failing"
    wanted = train(spec, out=tmp_path / "whole")
    survey = 7 if name == "dpo" else 1  # one to measure the device by, and all of the reference's
    for cut in (4, survey + 18):
        monkeypatch.setattr(Failing, "left", cut)
        with pytest.raises(PowerCut):
            train(spec, out=tmp_path / "run")
        assert any((tmp_path / "run").rglob("*.ckpt")) == (cut == survey + 18)
    found = train(spec, out=tmp_path / "run")
    assert figures(found) == figures(wanted)
    one, other = (vlm.load(run).state_dict() for run in (found, wanted))
    assert all(torch.equal(one[key], other[key]) for key in other)


def test_a_shared_cache_is_used_again_and_not_by_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Batch] = []
    plain = preference.answer_log_probabilities
    monkeypatch.setattr(
        preference, "answer_log_probabilities", lambda model, batch: (calls.append(batch), plain(model, batch))[1]
    )
    path = rows(tmp_path)
    objective = {"name": "dpo", "references": str(tmp_path / "cache")}
    train(recipe(path, objective, steps=2), out=tmp_path / "one")
    assert len(calls) == 3
    train(recipe(path, {**objective, "beta": 0.3}, steps=2), out=tmp_path / "two")
    assert len(calls) == 3, "the reference does not depend on beta"
    train({**recipe(path, objective, steps=2), "seed": 5}, out=tmp_path / "three")
    assert len(calls) == 6, "other weights"
    path.write_text(path.read_text().replace("Text alone?", "Other text?"))
    train(recipe(path, objective, steps=2), out=tmp_path / "four")
    assert len(calls) == 7, "the batch with what has changed"


def test_data_that_changes_while_a_stage_runs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = rows(tmp_path)
    spec = recipe(path, {"name": "dpo"})
    finish = runs._finish
    monkeypatch.setattr(runs, "_finish", lambda *_, **__: (_ for _ in ()).throw(PowerCut()))
    with pytest.raises(PowerCut):
        train({**spec, "stages": [{**spec["stages"][0], "steps": 6, "checkpoint_every": 4}]}, out=tmp_path / "run")
    monkeypatch.setattr(runs, "_finish", finish)
    path.write_text(path.read_text().replace("What is it?", "What else is it?"))
    with pytest.raises(ConfigError, match="the data has changed since the stage began"):
        train({**spec, "stages": [{**spec["stages"][0], "steps": 6, "checkpoint_every": 4}]}, out=tmp_path / "run")


def test_a_cut_last_line_is_done_again(tmp_path: Path) -> None:
    reference = Reference(tmp_path)
    reference.add(["a", "b"], torch.tensor([[-1.5, -2.25], [-3.0, -1 / 3]]))
    (file,) = tmp_path.glob("*.jsonl")
    file.write_text(file.read_text() + '{"key": "c", "chosen": -1')
    again = Reference(tmp_path)
    assert not again.knows(["a", "c"])
    assert torch.equal(again[["b", "a"]], torch.tensor([[-2.25, -1.5], [-1 / 3, -3.0]]))
    again.add(["c"], torch.tensor([[-1.0], [-2.0]]))
    assert torch.equal(Reference(tmp_path)[["c"]], torch.tensor([[-1.0], [-2.0]]))


def test_begin_gives_what_the_model_gives(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy()
    batch = model.processor(pairs())
    objective = Dpo()
    objective.begin(model, Beginning(tmp_path, False, lambda: [batch], lambda: None))
    assert objective._reference is not None
    chosen = [float(alone(model, sample)[0].detach()) for sample in pairs()]
    assert objective._reference[batch.keys][0].tolist() == pytest.approx(chosen, rel=1e-5)
    perturb(model, seed=3)
    again = Dpo()
    again.begin(model, Beginning(tmp_path, False, lambda: [batch], lambda: None))
    assert again._reference is not None
    assert again._reference.folder != objective._reference.folder


def test_two_processes_prefer_as_one(tmp_path: Path) -> None:
    spec = recipe(rows(tmp_path, text=False), {"name": "dpo", "beta": 0.5}, micro_batch_size=1, steps=3)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(spec))
    alone = train(spec, out=tmp_path / "alone")
    devices = {"PL_TRAINER_DEVICES": "2", "PL_TRAINER_ACCELERATOR": "cpu", "PL_TRAINER_STRATEGY": "ddp"}
    command = [sys.executable, "-m", "vlm", "train", str(file), "--out", str(tmp_path / "pair")]
    environment = {**os.environ, **devices, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(figures(alone), figures(tmp_path / "pair"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    kept = list((tmp_path / "pair/stages/01-prefer/reference").glob("*/*.jsonl"))
    assert sorted(len(path.read_text().splitlines()) for path in kept) == [3, 3], "each device did its share"
    assert read_metrics(alone / "stages/01-prefer/metrics.csv")["step"] == [0, 1, 2]
