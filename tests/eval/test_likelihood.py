"""The likelihood of an answer against a slow loop, token by token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.conftest import picture
from vlm.eval.lmms.likelihood import likelihoods
from vlm.sample import Sample, Turn


def slowly(model: Any, sample: Sample) -> tuple[float, bool, int]:
    """Token by token: the log-probability of each, given all before it."""
    model, answer = model.eval(), sample.turns[-1].text
    ids = model.processor.chat.tokenizer(answer, add_special_tokens=False)["input_ids"]
    batch = model.processor([sample.question()])
    start = batch.input_ids.shape[1]
    whole = model.processor([sample])
    assert whole.input_ids[0, start : start + len(ids)].tolist() == ids
    total, greedy = 0.0, True
    for number, token in enumerate(ids):
        part = model.processor([sample])
        for name in ("input_ids", "attention_mask", "owner", "seen"):
            setattr(part, name, getattr(part, name)[:, : start + number])
        logits = model(part).logits[0, -1].double()
        total += float(logits[token] - logits.logsumexp(0))
        greedy &= int(logits.argmax()) == token
    return total, greedy, len(ids)


CHOICES = [
    Sample([Turn("user", "What is it?"), Turn("assistant", "a ship")], [picture(1)]),
    Sample([Turn("user", "No image"), Turn("assistant", "B")]),
    Sample([Turn("user", "<image> or <image>, which?"), Turn("assistant", "the first")], [picture(2), picture(3)]),
]


@torch.no_grad()
@pytest.mark.parametrize("connector", ["mlp", {"name": "cross_attention", "every": 2}], ids=["sequence", "attention"])
def test_likelihoods_equal_a_slow_loop(toy: Callable[..., Any], connector: Any) -> None:
    model = toy(connector)
    said = next(iter(model.answer([CHOICES[0].question()], max_new_tokens=3)))
    likeliest = Sample([CHOICES[0].turns[0], Turn("assistant", said.text)], CHOICES[0].images)
    samples = [*CHOICES, likeliest]
    found = likelihoods(model, samples)
    for sample, one in zip(samples, found, strict=True):
        value, greedy, tokens = slowly(model, sample)
        assert one.value == pytest.approx(value, abs=1e-4)
        assert (one.greedy, one.tokens) == (greedy, tokens)
    assert [one.greedy for one in found] == [False, False, False, True]
    changed = Sample(CHOICES[0].turns, [picture(9)])
    assert abs(likelihoods(model, [changed])[0].value - found[0].value) > 1e-3
    assert likelihoods(model, [Sample([Turn("user", "x"), Turn("assistant", "")])])[0].value == 0
