"""Which samples make which batch: every sample once, whatever the devices and wherever a run goes on; and what is left
out is said.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from tests.conftest import picture, toy_recipe
from tests.train.batching import loader_of, reader_of
from vlm.data import DataError, Source
from vlm.errors import ConfigError
from vlm.processor import Processor
from vlm.recipe import StageSpec
from vlm.sample import Sample, Skipped, Turn
from vlm.train.batches import Batches, Position
from vlm.train.mixture import Mixture, shared
from vlm.train.packing import pack, share
from vlm.train.reader import Extent, shortened
from vlm.train.run import train
from vlm.train.skips import Skips, TooManySkipped
from vlm.train.work import work_of

COUNT = 300


@pytest.fixture(scope="module")
def processor() -> Processor:
    return vlm.assemble(toy_recipe()).processor


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of 1 to 90 bytes; every third row shows a picture."""
    folder = tmp_path_factory.mktemp("rows")
    picture(1).save(folder / "a.png")
    path = folder / "rows.jsonl"
    lines = [
        {"id": str(n), "question": "?", "answer": "x" * (1 + n * n % 90), **({"image": "a.png"} if n % 3 else {})}
        for n in range(COUNT)
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def stage(rows: Path | str, **options: Any) -> StageSpec:
    common = {"name": "s", "train": {"connector": 1e-3}, "data": str(rows), "steps": 12, "batch_size": 4}
    return StageSpec.model_validate({**common, **options})


def numbers(step: Any) -> list[int]:
    return sorted(number for device in step for micro in device for row in micro for number in row)


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"pack": 300},
    {"group_by_length": True},
    {"pack": 300, "micro_batch_size": 1},
]


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.train.batches.WINDOW", 32)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("options", LAYOUTS)
def test_every_sample_comes_once_and_in_the_same_steps_for_any_number_of_devices(
    options: dict[str, Any], rows: Path, processor: Processor
) -> None:
    spec = stage(rows, **options)
    reader = reader_of(spec, processor)
    steps = {world: list(Batches(spec, reader, world=world).steps()) for world in (1, 2, 4)}
    assert len(steps[1]) == spec.steps
    for world, found in steps.items():
        assert list(map(numbers, found)) == list(map(numbers, steps[1]))
        for step in found:
            assert len(step) == world
            assert {sum(map(len, device)) for device in step} == {spec.batch_size // world}
    drawn = [number for step in steps[1] for number in numbers(step)]
    assert len(set(drawn)) == len(drawn)
    if options:
        whole = list(Batches(spec.model_copy(update={"steps": 40}), reader).steps())
        later = sorted(number for step in whole for number in numbers(step))
        assert later[:60] == list(range(60)), "what fills no step comes in the next window"


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("options", LAYOUTS[:3])
def test_any_step_can_be_gone_on_from(options: dict[str, Any], rows: Path, processor: Processor) -> None:
    spec = stage(rows, steps=60, **options)
    reader = reader_of(spec, processor)
    batches = Batches(spec, reader)
    whole = list(batches.steps())
    for step in (0, 1, 17, 42, 59):
        later = Batches(spec, reader_of(spec, processor))
        position = batches.position(step)
        later.go_on(step, Position(position.step, position.first, position.carried))
        assert list(later.steps()) == whole[step:]
    assert options == {} or len({batches.position(step) for step in range(60)}) > 2, "one window proves nothing"


def test_packed_rows_are_full_and_no_longer_than_they_may(rows: Path, processor: Processor) -> None:
    spec = stage(rows, pack=300, steps=10)
    lengths = [int((row >= 0).sum()) for batch in loader_of(spec, processor) for row in batch.segments]
    assert max(lengths) <= 300
    assert sum(lengths) / len(lengths) > 0.97 * 300


def test_grouped_by_length_pads_less(rows: Path, processor: Processor) -> None:
    def padded(**options: Any) -> float:
        masks = [batch.attention_mask for batch in loader_of(stage(rows, steps=40, **options), processor)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)

    assert padded(group_by_length=True) < 0.2 * padded()


def test_packing_is_near_the_fewest_rows_and_refuses_what_does_not_fit() -> None:
    lengths = [int(x) for x in torch.randint(1, 900, (500,), generator=torch.Generator().manual_seed(0))]
    found = pack(lengths, 1000)
    assert sorted(number for row in found for number in row) == list(range(500))
    assert max(sum(lengths[number] for number in row) for row in found) <= 1000
    assert len(found) <= 1.02 * max(sum(lengths) / 1000, sum(length > 500 for length in lengths))
    assert pack([], 10) == []
    with pytest.raises(ValueError, match="a sample of 11 positions does not go into a row of 10"):
        pack([3, 11], 10)


def test_work_is_shared_evenly_and_in_equal_numbers() -> None:
    work = torch.rand(64, generator=torch.Generator().manual_seed(0)).tolist()
    found = share(work, 8)
    assert sorted(number for device in found for number in device) == list(range(64))
    assert {len(device) for device in found} == {8}
    loads = [sum(work[number] for number in device) for device in found]
    assert max(loads) / (sum(loads) / 8) < 1.02


class Broken(Source):
    """Of ten rows one is no sample, one shows no picture, one has no answer and one is long."""

    def __init__(self, *, good: bool = False) -> None:
        self.good = good

    def __len__(self) -> int:
        return 200

    def __getitem__(self, index: int) -> Sample:
        kind = 9 if self.good else index % 10
        if kind == 0:
            raise DataError("row is bad", f"id-{index}")
        turns = [Turn("user", "Why?")] + ([] if kind == 2 else [Turn("assistant", "x" * (500 if kind == 3 else 5))])
        return Sample(turns, ["gone.png"] if kind == 1 else [], id=f"id-{index}")


@pytest.mark.parametrize("options", [{}, {"pack": 300}])
def test_what_cannot_be_used_is_left_out_counted_and_named(
    options: dict[str, Any], tmp_path: Path, processor: Processor
) -> None:
    spec = stage("x", data={"name": "tests.train.test_batches:Broken"}, steps=20, most_skipped=0.5, **options)
    skips = Skips(tmp_path / "skipped.jsonl", most=0.5)
    batches = []
    for batch in loader_of(spec.model_copy(update={"pack": options.get("pack")}), processor, skipped=skips):
        skips(batch.skipped)
        batches.append(batch)
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    causes = {"no sample": "row is bad", "broken image": "gone.png: no such file", "no answer": "nothing in it is"}
    causes |= {"too long": "positions; allowed: 300"} if options else {}
    assert set(skips.counts) == set(causes)
    assert len(lines) == len({line["sample"] for line in lines}) == sum(skips.counts.values())
    for line in lines:
        assert causes[line["cause"]] in line["why"]
        assert line["id"].startswith("id-")
    assert {one for batch in batches for one in batch.ids}.isdisjoint(line["id"] for line in lines)
    assert Skips(tmp_path / "skipped.jsonl", most=0.5).counts == skips.counts, "a stage that goes on knows them"


def test_too_many_stop_the_run(tmp_path: Path) -> None:
    recipe = toy_recipe()
    spec = stage("x", data={"name": "tests.train.test_batches:Broken"}, steps=100).model_dump(exclude_none=True)
    with pytest.raises(TooManySkipped, match=r"of 1\d\d samples cannot be used \(.*no answer \d+.*0.05.*skipped.jsonl"):
        train({**recipe, "stages": [spec]}, out=tmp_path / "run")
    good = {**spec, "data": {"name": "tests.train.test_batches:Broken", "good": True}, "steps": 2}
    run = train({**recipe, "stages": [good]}, out=tmp_path / "good")
    assert json.loads((run / "stages/01-s/done.json").read_text())["skipped"] == {}
    assert not (run / "stages/01-s/skipped.jsonl").exists()


def test_skips_are_counted_once(tmp_path: Path) -> None:
    skips = Skips(tmp_path / "skipped.jsonl", most=0.5)
    skips([Skipped(3, "a", "too long", "why"), Skipped(3, "a", "too long", "why")])
    skips([Skipped(3, "a", "too long", "why")])
    skips([])
    assert skips.counts == {"too long": 1}
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 1


def talk(*texts: str, images: int = 0) -> Sample:
    turns = [Turn("user" if number % 2 == 0 else "assistant", text) for number, text in enumerate(texts)]
    return Sample(turns, [f"{number}.png" for number in range(images)])


def test_a_long_sample_loses_whole_turns_and_whole_images() -> None:
    sample = talk("a <image>", "b", "c <image><image>", "d", "e", "f", images=3)
    once = shortened(sample)
    assert once is not None
    assert (len(once.turns), list(once.images)) == (4, ["0.png", "1.png", "2.png"])
    twice = shortened(once)
    assert twice is not None
    assert ([turn.text for turn in twice.turns], list(twice.images)) == (["a <image>", "b"], ["0.png"])
    assert shortened(twice) is None
    unmarked = shortened(talk("a", "b", "c", "d", images=2))
    assert unmarked is not None
    assert len(unmarked.images) == 2, "without marks they stand before the first turn"


def test_shortened_samples_are_the_same_when_measured_and_when_read(processor: Processor, tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    turns = [{"from": who, "value": text} for _ in range(9) for who, text in (("human", "Why?"), ("gpt", "y" * 20))]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "a.png", "conversations": turns}) + "\n")
    spec = stage(tmp_path / "rows.jsonl", pack=120, too_long="shorten", steps=2)
    reader = reader_of(spec, processor)
    extent, example = reader.measure(0), reader.read(0)
    assert not isinstance(extent, Skipped)
    assert not isinstance(example, Skipped)
    assert 60 < extent.positions == len(example.input_ids) <= 120
    assert int((example.owner >= 0).sum()) == 16, "the image is whole"
    assert processor.chat.decode(example.labels[example.labels >= 0].tolist()).endswith("y" * 20)
    dropped = reader_of(stage(tmp_path / "rows.jsonl", pack=120), processor).measure(0)
    assert isinstance(dropped, Skipped)
    assert dropped.cause == "too long"


class Kind(Source):
    def __init__(self, *, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Sample:
        return Sample([Turn("user", "?")], ["a.png"] * self.images)


def test_the_share_of_text_alone_in_one_number() -> None:
    sources = [Kind(images=1), Kind(images=0), Kind(images=2), Kind(images=0)]
    weights = shared(sources, [1.0, 5.0, 3.0, 1.0], 0.1)
    assert weights == pytest.approx([0.225, 0.1 * 5 / 6, 0.675, 0.1 / 6])
    mixture = Mixture(sources, weights, seed=0)
    assert sum(not mixture[number].images for number in range(4000)) / 4000 == pytest.approx(0.1, abs=0.015)
    for same, said in (([1, 2], "no source is text alone"), ([0, 0], "all sources are text alone")):
        with pytest.raises(ConfigError, match=f"text_share: `0.1`: {said}"):
            shared([Kind(images=number) for number in same], [1.0, 1.0], 0.1)


def slow_order(seed: int, shares: list[float], count: int) -> Iterator[tuple[int, int]]:
    """(source, how many came from it before) by numpy's own choice of all at once."""
    import numpy as np

    seen = [0] * len(shares)
    for number in np.random.default_rng([seed, 0]).choice(len(shares), size=count, p=shares):
        yield int(number), seen[number]
        seen[number] += 1


def test_the_order_may_be_entered_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.train.mixture.BLOCK", 64)
    wanted = list(slow_order(5, [0.5, 0.3, 0.2], 1000))
    sources = [Kind(images=0)] * 3
    assert [Mixture(sources, [5.0, 3.0, 2.0], seed=5)._drawn(number) for number in (999, 3, 640, 63)] == [
        wanted[number] for number in (999, 3, 640, 63)
    ]
    mixture = Mixture(sources, [5.0, 3.0, 2.0], seed=5)
    assert [mixture._drawn(number) for number in range(1000)] == wanted
    assert mixture.epoch(300) == pytest.approx(300 / 150)


def test_work_is_what_the_matrices_do() -> None:
    """Counted by torch while the model runs, but for the head, whose logits are few, and small things."""
    from torch.utils.flop_counter import FlopCounterMode

    model = vlm.assemble(toy_recipe())
    work = work_of(model)
    short, long = (Extent(positions, 2) for positions in (40, 400))
    for extent in (short, long):
        with FlopCounterMode(display=False) as counter:
            model.llm(inputs_embeds=torch.zeros(1, extent.positions, 32))
            model.encoders[0](torch.zeros(extent.views, 3, 32, 32))
        masked = 2 * 32 * 4 * extent.positions**2  # torch counts what the causal mask leaves out as well
        assert 2 * work(extent) == pytest.approx(counter.get_total_flops() - masked, rel=0.15)
    assert work_of(model, cached=True)(short) < work(short)


def test_each_of_several_processes_keeps_what_it_left_out(tmp_path: Path) -> None:
    """A share of the samples each sees, and a file of its own; together they are counted once."""
    skips = [Skips(tmp_path / name, most=0.3, part=0.5) for name in ("skipped.jsonl", "skipped-1.jsonl")]
    for rank, one in enumerate(skips):
        one([Skipped(number, "", "too long", "") for number in range(rank, 80, 2)][:14])
    skips[1]([Skipped(0, "", "too long", "")])
    assert skips[0].counts == {"too long": 28}
    with pytest.raises(TooManySkipped, match=r"of 1\d\d samples cannot be used"):
        skips[0]([Skipped(number, "", "too long", "") for number in range(28, 240, 2)])


def test_samples_of_which_none_can_be_used_end_the_search(
    monkeypatch: pytest.MonkeyPatch, processor: Processor
) -> None:
    monkeypatch.setattr("vlm.train.batches.WINDOW", 4)
    spec = stage("x", data={"name": "tests.train.test_batches:Broken"}, pack=8, most_skipped=1.0)
    with pytest.raises(ConfigError, match=r"none of \d+ samples can be used"):
        next(Batches(spec, reader_of(spec, processor)).steps())
