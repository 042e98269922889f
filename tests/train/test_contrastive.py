"""CLIP's and SigLIP's losses: open_clip's numbers, any number of processes, any chunk, towers, and runs."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import yaml
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, distributed, multiprocessing
from torch.nn import functional as F

import vlm
from tests.conftest import perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.sample import Sample, Turn
from vlm.train import run as runs
from vlm.train.contrastive import Clip, Contrastive, SigLip
from vlm.train.objectives import facts
from vlm.train.run import train

TOWER = {"width": 16, "depth": 2, "heads": 2}
BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
KINDS: dict[str, type[Contrastive]] = {"clip": Clip, "siglip": SigLip}


def make(kind: str, model: Any, **options: Any) -> Contrastive:
    """An objective whose every parameter is off its initial value."""
    from vlm.schema import check_options

    more = check_options(KINDS[kind], {"width": 12, "tower": TOWER, **options})
    torch.manual_seed(3)
    objective = KINDS[kind](**facts(model), **more)
    perturb(objective, seed=4)
    return objective


def vectors(count: int, width: int = 12) -> tuple[Tensor, Tensor]:
    """Images and texts that resemble each other a little; leaves."""
    generator = torch.Generator().manual_seed(7)
    images, noise = torch.randn(2, count, width, generator=generator)
    unit = F.normalize(images, dim=-1), F.normalize(images + noise, dim=-1)
    return unit[0].requires_grad_(), unit[1].requires_grad_()


def open_clips(kind: str, images: Tensor, texts: Tensor, objective: Contrastive) -> Tensor:
    scale = objective.log_scale.exp()
    if kind == "clip":
        return ClipLoss()(images, texts, scale)  # type: ignore[no-any-return]
    return SigLipLoss()(images, texts, scale, objective.shift)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_open_clips(kind: str, toy: Callable[..., Any]) -> None:
    objective = make(kind, toy())
    images, texts = vectors(9)
    trained = [images, texts, objective.log_scale, *([] if objective.shift is None else [objective.shift])]
    found = objective.compare(images, texts)
    wanted = open_clips(kind, images, texts, objective)
    assert found.count == 9
    assert float((found.total / found.count).detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    pairs = zip(
        torch.autograd.grad(found.total / found.count, trained), torch.autograd.grad(wanted, trained), strict=True
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    best = (images @ texts.T).argmax(1)
    assert float(found.figures["accuracy"]) == int((best == torch.arange(9)).sum())


def test_they_begin_as_published_and_the_scale_stays_within_bounds(toy: Callable[..., Any]) -> None:
    model = toy()
    clip, siglip = (KINDS[kind](**facts(model)) for kind in KINDS)
    reference = open_clip.create_model("ViT-B-32", pretrained=None, device="meta")
    assert clip.log_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert reference.logit_scale.shape == clip.log_scale.shape
    assert clip.shift is None
    assert siglip.log_scale.item() == pytest.approx(math.log(10))
    assert siglip.shift is not None
    assert siglip.shift.item() == -10
    for start, bound in ((7.0, math.log(100)), (-2.0, 0.0)):
        with torch.no_grad():
            clip.log_scale.fill_(start)
        loss = clip.compare(*vectors(4))
        assert clip.log_scale.item() == pytest.approx(bound)
        loss.total.backward()
        assert clip.log_scale.grad is not None
        assert clip.log_scale.grad.abs() > 0, "at the bound it can still turn back"
        clip.log_scale.grad = None


def samples(count: int = 6) -> list[Sample]:
    words = ("red", "a green one", "blue", "one more", "x", "the last of them")
    return [
        Sample([Turn("user", "What?"), Turn("assistant", words[n])], [picture(n)], id=f"s{n}") for n in range(count)
    ]


def gradients(objective: Contrastive, model: Any, total: Tensor) -> dict[str, Tensor]:
    named = {**dict(model.encoders.named_parameters()), **dict(objective.named_parameters())}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: one for name, one in zip(named, found, strict=True) if one is not None}


def _share(rank: int, size: int, folder: str) -> None:
    """One of several processes: the loss of its part of the batch, and the summed gradients."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    model = perturb(vlm.assemble(toy_recipe())).eval()
    batch = model.processor(samples()[:4] if rank == 0 else samples()[4:])  # type: ignore[union-attr, operator]
    found: dict[str, Any] = {}
    for kind in KINDS:
        objective = make(kind, model)
        loss = objective(model, batch)
        own = gradients(objective, model, loss.total)
        for gradient in own.values():
            distributed.all_reduce(gradient)
        found[kind] = (loss.total.detach(), loss.count, loss.figures["accuracy"], own)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_are_one_with_the_whole_batch(tmp_path: Path) -> None:
    """Losses and gradients, each process with a part of the batch, over gloo; one was left fewer samples."""
    multiprocessing.spawn(_share, args=(2, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    model: Any = perturb(vlm.assemble(toy_recipe())).eval()
    for kind in KINDS:
        objective = make(kind, model)
        whole = objective(model, model.processor(samples()))
        totals, counts, right, own = zip(*(part[kind] for part in parts), strict=True)
        assert sum(counts) == whole.count == 6
        torch.testing.assert_close(sum(totals), whole.total.detach(), rtol=1e-6, atol=1e-6)
        assert not torch.isclose(totals[0], totals[1], rtol=1e-3), "the parts differ"
        assert sum(right) == whole.figures["accuracy"]
        wanted = gradients(objective, model, whole.total)
        assert own[0].keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(own[0][name], gradient, rtol=1e-4, atol=1e-5, msg=f"{kind} {name}")


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("views", ["squash", "native"])
def test_chunks_change_nothing(chunk: int, views: str, toy: Callable[..., Any]) -> None:
    """Also where images of several sizes stand in groups; the encoder sees so many at a time."""
    model = toy(views={"name": "native", "multiple": 8} if views == "native" else views)
    shown = [
        Sample(one.turns, [picture(n, (48, 40) if n % 2 else (40, 64))], id=one.id) for n, one in enumerate(samples())
    ]
    batch = model.processor(shown)
    assert len(batch.groups) == (1 if views == "squash" else 2)
    found = []
    for size in (None, chunk):
        objective = make("clip", model, chunk=size)
        calls: list[int] = []
        handle = model.encoders[0].register_forward_pre_hook(lambda _, given, to=calls: to.append(len(given[0])))
        loss = objective(model, batch)
        assert max(calls) <= (size or 6)
        found.append((loss.total.detach(), gradients(objective, model, loss.total)))
        handle.remove()
    torch.testing.assert_close(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "attention"},
        {"text": "embeddings"},
        {"text": "last"},
        {"tower": {"config": BERT}},
        {"tower": {"config": BERT, "pool": "pooler"}},
    ],
)
def test_each_sample_has_the_vectors_it_has_alone(options: dict[str, Any], toy: Callable[..., Any]) -> None:
    """Whatever stands for images and captions: padding and order change nothing, and captions tell apart."""
    model = toy()
    objective = make("siglip", model, **options).eval()
    images, texts = objective.embed(model, model.processor(samples()))
    for number, sample in enumerate(samples()):
        image, text = objective.embed(model, model.processor([sample]))
        torch.testing.assert_close(image[0], images[number], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text[0], texts[number], rtol=1e-4, atol=1e-5)
    for one in (images, texts):
        assert torch.pdist(one.detach()).min() > 1e-4


def test_prefix_is_the_cls_token(toy: Callable[..., Any]) -> None:
    config = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = toy(encoders={"name": "clip", "config": {**config, "image_size": 32, "patch_size": 8}})
    batch = model.processor(samples())
    objective = make("clip", model, pool="prefix")
    features = model.encoders[0](batch.groups[0].pixels[0])
    torch.testing.assert_close(objective.embed(model, batch)[0], objective.image_map(features.extra[:, 0]))
    plain = toy()
    with pytest.raises(ConfigError, match="no prefix token"):
        make("clip", plain, pool="prefix")(plain, plain.processor(samples()))


def test_what_it_cannot_compare_is_named(toy: Callable[..., Any]) -> None:
    model = toy()
    objective = make("clip", model)
    first = samples()[0]
    cases = {
        "s0 has 0": Sample(first.turns, id="s0"),
        "s0 has 2": Sample(first.turns, [picture(0), picture(1)], id="s0"),
        "without a caption: s0": Sample([Turn("user", "?")], [picture(0)], id="s0"),
    }
    for message, sample in cases.items():
        with pytest.raises(ConfigError, match=message):
            objective(model, model.processor([samples()[1], sample]))
    tiled = toy(views={"name": "tiles", "max_tiles": 4})
    with pytest.raises(ConfigError, match="one view an image"):
        make("clip", tiled)(tiled, tiled.processor([Sample(first.turns, [picture(0, (128, 64))])]))
    with pytest.raises(ConfigError, match=r"tower\.length.*`4`"):
        make("clip", model, tower={**TOWER, "length": 4})(model, model.processor(samples()))
    for options, place in (({"encoder": 1}, "encoder"), ({"chunk": 0}, "chunk"), ({"width": 0}, "width")):
        with pytest.raises(ConfigError) as caught:
            make("clip", model, **options)
        assert [problem.place for problem in caught.value.problems] == [place]


def rows(folder: Path) -> Path:
    found = []
    for number, sample in enumerate(samples()):
        picture(number).save(folder / f"{number}.png")
        found.append({"image": f"{number}.png", "caption": sample.turns[-1].text})
    path = folder / "captions.json"
    path.write_text(json.dumps(found))
    return path


def recipe(path: Path, kind: str, **stage: Any) -> dict[str, Any]:
    objective = {"name": kind, "width": 12, "tower": TOWER}
    common = {"data": [{"path": str(path)}], "batch_size": 6, "precision": "32-true", "clip": 0}
    more = {"steps": 6, "checkpoint_every": 2, "train": {"encoders": 1e-3, "objective": 1e-2}}
    return {**toy_recipe(), "stages": [{"name": "look", "objective": objective, **common, **more, **stage}]}


def figures(run: Path) -> list[dict[str, float]]:
    lines = (run / "stages/01-look/metrics.csv").read_text().splitlines()
    return [dict(zip(lines[0].split(","), map(float, line.split(",")), strict=True)) for line in lines[1:]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_goes_on_as_if_it_had_not_been_cut(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = recipe(rows(tmp_path), kind, steps=60, checkpoint_every=50)
    wanted = train(spec, out=tmp_path / "whole")
    found = figures(wanted)
    assert found[-1]["accuracy"] == 1
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert found[0]["scale"] == pytest.approx(1 / 0.07 if kind == "clip" else 10)
    assert found[-1]["scale"] != found[0]["scale"]
    if kind == "siglip":
        assert found[0]["bias"] == -10
    finish = runs._finish
    monkeypatch.setattr(runs, "_finish", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        train(spec, out=tmp_path / "run")
    monkeypatch.setattr(runs, "_finish", finish)
    again = train(spec, out=tmp_path / "run")
    assert figures(again) == found
    one, other = (vlm.load(run).state_dict() for run in (again, wanted))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert not any("objective" in name for name in one)


def test_micro_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"stages\.0\.micro_batch_size.*`3`, but clip compares all samples") as caught:
        train(recipe(rows(tmp_path), "clip", micro_batch_size=3), out=tmp_path / "run")
    assert "objective.chunk" in str(caught.value)


def test_features_on_disk_are_refused(tmp_path: Path) -> None:
    spec = recipe(rows(tmp_path), "clip", cache=True, train={"objective": 1e-3})
    with pytest.raises(ConfigError, match=r"stages\.0\.cache: clip needs the pixels themselves"):
        train(spec, out=tmp_path / "run")


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    spec = recipe(rows(tmp_path), "siglip", steps=3)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(spec))
    alone = train(spec, out=tmp_path / "alone")
    devices = {"PL_TRAINER_DEVICES": "2", "PL_TRAINER_ACCELERATOR": "cpu", "PL_TRAINER_STRATEGY": "ddp"}
    command = [sys.executable, "-m", "vlm", "train", str(file), "--out", str(tmp_path / "pair")]
    environment = {**os.environ, **devices, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for one, two in zip(figures(alone), figures(tmp_path / "pair"), strict=True):
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
    wanted, found = vlm.load(alone).state_dict(), vlm.load(tmp_path / "pair").state_dict()
    for name, weight in wanted.items():
        if not name.endswith("k_proj.bias"):  # its gradient is zero but for rounding, which AdamW makes steps of
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=2e-4, msg=name)
