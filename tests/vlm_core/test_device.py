"""The fastest choice is the one that a clock finds fastest, and equal in what it computes."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from vlm import device
from vlm.attention import Implementation, attend
from vlm.errors import ConfigError

SIZES = {"heads": 2, "head_width": 4, "tokens": 5, "rows": 3}


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    for choice in (device.fastest_attention, device.fastest_precision):
        choice.cache_clear()
    yield
    for choice in (device.fastest_attention, device.fastest_precision):
        choice.cache_clear()


class Clock:
    """Stands for `_seconds`: runs each candidate once, looks at what it did, and says how long that took."""

    def __init__(self, **times: float) -> None:
        self.times = times
        self.seen: list[Any] = []
        self.measured: list[str] = []

    def __call__(self, run: Callable[[], None], where: str) -> float:
        assert where == "cpu"
        self.seen.clear()
        run()
        self.measured.append(str(self.seen[0]))
        return self.times[str(self.seen[0])]


def attention_clock(monkeypatch: pytest.MonkeyPatch, dtypes: set[torch.dtype], **times: float) -> Clock:
    clock = Clock(**times)

    def seen(q: Any, k: Any, v: Any, mask: Any, how: Implementation) -> Any:
        assert q.shape == k.shape == v.shape == (SIZES["rows"], SIZES["heads"], SIZES["tokens"], SIZES["head_width"])
        assert torch.equal(mask, torch.ones(5, 5).tril().bool()), "each sees itself and what came before"
        dtypes.add(q.dtype)
        clock.seen.append(how)
        return attend(q, k, v, mask, how)

    monkeypatch.setattr(device, "attend", seen)
    monkeypatch.setattr(device, "_seconds", clock)
    return clock


@pytest.mark.parametrize(
    ("eager", "sdpa", "wanted"),
    [(0.5, 1.0, "eager"), (1.0, 0.5, "sdpa"), (0.95, 1.0, "sdpa"), (0.89, 1.0, "eager"), (1.0, 1.0, "sdpa")],
)
def test_attention_takes_the_faster_if_it_is_worth_it(
    eager: float, sdpa: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes: set[torch.dtype] = set()
    clock = attention_clock(monkeypatch, dtypes, eager=eager, sdpa=sdpa)
    assert device.fastest_attention("cpu", **SIZES, precision="32-true") == wanted
    assert sorted(clock.measured) == ["eager", "sdpa"]
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_attention_is_timed_in_the_precision_of_the_run(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: set[torch.dtype] = set()
    attention_clock(monkeypatch, dtypes, eager=1.0, sdpa=1.0)
    device.fastest_attention("cpu", **SIZES, precision=precision)
    assert dtypes == {torch.bfloat16}


def precision_clock(monkeypatch: pytest.MonkeyPatch, **times: float) -> Clock:
    clock = Clock(**times)

    class Linear(nn.Linear):
        def forward(self, input: Any) -> Any:
            output = super().forward(input)
            clock.seen.append({torch.bfloat16: "low", torch.float32: "full"}[output.dtype])
            return output

    monkeypatch.setattr(torch.nn, "Linear", Linear)
    monkeypatch.setattr(device, "_seconds", clock)
    return clock


@pytest.mark.parametrize(
    ("low", "full", "wanted"),
    [
        (0.5, 1.0, "bf16-mixed"),
        (1.0, 0.5, "32-true"),
        (0.95, 1.0, "32-true"),
        (0.89, 1.0, "bf16-mixed"),
        (1.0, 1.0, "32-true"),
    ],
)
def test_precision_takes_the_faster_if_it_is_worth_it(
    low: float, full: float, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = precision_clock(monkeypatch, low=low, full=full)
    assert device.fastest_precision("cpu", width=8, rows=4) == wanted
    assert sorted(clock.measured) == ["full", "low"]


def test_each_question_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = attention_clock(monkeypatch, set(), eager=0.5, sdpa=1.0)
    for _ in range(3):
        device.fastest_attention("cpu", **SIZES, precision="32-true")
    assert len(clock.measured) == 2
    device.fastest_attention("cpu", **SIZES, precision="bf16-mixed")
    assert len(clock.measured) == 4, "other arguments, another measurement"
    clock = precision_clock(monkeypatch, low=0.5, full=1.0)
    for _ in range(3):
        device.fastest_precision("cpu", width=8, rows=4)
    assert len(clock.measured) == 2
    device.fastest_precision("cpu", width=8, rows=5)
    assert len(clock.measured) == 4


def test_what_a_gpu_decides_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_seconds", lambda *_: pytest.fail("nothing to measure"))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: False)
    assert device.fastest_attention("cuda", **SIZES, precision="32-true") == "sdpa"
    assert device.fastest_precision("cuda", width=8, rows=4) == "32-true"


def test_seconds_is_the_median_of_five_after_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], [100.0, 90.0, 3.0, 1.0, 2.0, 50.0, 4.0]

    def run() -> None:
        now[0] += durations.pop(0)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert device._seconds(run, "cpu") == 3.0
    assert durations == []


def test_measures_for_real() -> None:
    for precision in ("32-true", "bf16-mixed"):
        assert device.fastest_attention("cpu", **SIZES, precision=precision) in ("eager", "sdpa")
    assert device.fastest_precision("cpu", width=8, rows=4) in ("bf16-mixed", "32-true")


def loop(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v, one query at a time."""
    rows = []
    for query in range(q.shape[0]):
        weights = [math.exp(float(q[query] @ k[key]) / math.sqrt(q.shape[1])) for key in range(len(k))]
        if mask is not None:
            weights = [weight * bool(mask[query, key]) for key, weight in enumerate(weights)]
        rows.append(sum(weight / sum(weights) * v[key] for key, weight in enumerate(weights)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("masked", [False, True])
def test_both_routes_agree_with_each_other_and_with_a_loop(masked: bool) -> None:
    n, heads, queries, keys, width = 2, 3, 4, 6, 5
    mask = (torch.rand(n, 1, queries, keys) < 0.5).index_fill(-1, torch.tensor(2), True) if masked else None
    assert mask is None or not mask.all()
    given = [torch.randn(n, heads, length, width, dtype=torch.float64) for length in (queries, keys, keys)]
    weight = torch.randn(n, heads, queries, width, dtype=torch.float64)
    outputs, gradients = [], []
    routes: tuple[Implementation, ...] = ("sdpa", "eager")
    for how in routes:
        q, k, v = inputs = [tensor.clone().requires_grad_() for tensor in given]
        outputs.append(attend(q, k, v, mask, how))
        (outputs[-1] * weight).sum().backward()
        gradients.append([tensor.grad for tensor in inputs])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=1e-6)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for row in range(n):
        for head in range(heads):
            q, k, v = (tensor[row, head] for tensor in given)
            wanted = loop(q, k, v, None if mask is None else mask[row, 0])
            torch.testing.assert_close(outputs[1][row, head], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device: `{name}` cannot be used .*; there is cpu"):
        device.usable(name)
    assert device.usable("cpu") == "cpu"
