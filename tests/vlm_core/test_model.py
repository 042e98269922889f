"""The model as a whole: batches, answers, several encoders, saving and loading."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vlm
from tests.conftest import LLAMA, SIGLIP, perturb, picture, toy_recipe
from vlm.errors import ConfigError
from vlm.planning.tables import tables
from vlm.processor import SampleError
from vlm.sample import Sample, Turn, ask
from vlm.saving import WeightsError, weights

SAM = {
    "hidden_size": 16,
    "output_channels": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 8,
    "window_size": 3,
    "global_attn_indexes": [1],
}
TWO = [{"name": "siglip", "config": SIGLIP}, {"name": "sam", "config": SAM}]
ROUTES = ["mlp", {"name": "perceiver", "latents": 5}, {"name": "cross_attention", "every": 2}]
MIXED = [
    ask("What is it?", [picture(1)], id="one"),
    ask("Hello, no image here", id="none"),
    Sample([Turn("user", "a <image> and <image>, which?")], [picture(2), picture(3, (90, 20))], id="two"),
]


def connector_id(value: Any) -> str:
    return value if isinstance(value, str) else value["name"]


@pytest.mark.parametrize("connector", ROUTES, ids=connector_id)
@torch.no_grad()
def test_batch_equals_single(toy: Callable[..., Any], connector: Any) -> None:
    """Text-only, one and several images together, padded on either side, give what each gives alone."""
    model = toy(connector)
    alone = [model(model.processor([sample])).logits[0] for sample in MIXED]
    for side in ("right", "left"):
        batch = model.processor(MIXED, side=side)
        logits = model(batch).logits
        for row, wanted in enumerate(alone):
            found = logits[row][batch.attention_mask[row].bool()]
            assert torch.allclose(found, wanted, atol=1e-5), (side, MIXED[row].id)
    together = list(model.answer(MIXED, max_new_tokens=6))
    singly = [next(iter(model.answer([sample], max_new_tokens=6))) for sample in MIXED]
    assert together == singly


@pytest.mark.parametrize("connector", ROUTES, ids=connector_id)
@torch.no_grad()
def test_every_image_reaches_its_own_sample_only(toy: Callable[..., Any], connector: Any) -> None:
    model = toy(connector)
    for block in getattr(model.connector.ops[-1], "blocks", []):
        for gate in ("attention_gate", "mlp_gate"):
            if hasattr(block, gate):
                torch.nn.init.constant_(getattr(block, gate), 0.7)
    before = model(model.processor(MIXED)).logits
    changed = [MIXED[0], MIXED[1], Sample(MIXED[2].turns, [MIXED[2].images[0], picture(9)], id="two")]
    after = model(model.processor(changed)).logits
    difference = (after - before).abs().amax((1, 2))
    assert difference[0] == difference[1] == 0
    assert difference[2] > 1e-3


@pytest.mark.parametrize("merge", ["channel", "sequence"])
@torch.no_grad()
def test_two_encoders_each_with_its_own_pixels(toy: Callable[..., Any], merge: str) -> None:
    """SigLIP and SAM as in DeepSeek-VL: sizes, statistics and patch counts of their own; both are looked at."""
    model = toy(encoders=TWO, merge=merge)
    batch = model.processor(MIXED)
    (group,) = batch.groups
    siglip, sam = group.pixels
    assert siglip.shape == (3, 3, 32, 32)
    assert sam.shape == (3, 3, 64, 64)
    specs = [encoder.image for encoder in model.encoders]
    assert specs[0].mean != specs[1].mean
    for pixels, spec in zip(group.pixels, specs, strict=True):
        resized = picture(1).resize(spec.size[::-1], Image.Resampling[spec.interpolation.upper()])
        assert torch.equal(pixels[0], spec.normalise(resized))
    tokens = 16 if merge == "channel" else 16 + 64
    assert model.processor.tokens(40, 48) == tokens
    assert int((batch.owner >= 0).sum()) == 3 * tokens
    before = model(batch).logits
    for encoder in (0, 1):
        group.pixels[encoder] = group.pixels[encoder] + 0.5
        assert (model(batch).logits - before).abs().max() > 1e-4, f"encoder {encoder} is ignored"
        group.pixels[encoder] = group.pixels[encoder] - 0.5


def test_frozen_encoder_keeps_no_graph(toy: Callable[..., Any]) -> None:
    model = toy()
    batch = model.processor(MIXED)
    model.encoders.requires_grad_(False)
    model(batch).logits.sum().backward()
    assert all(p.grad is None for p in model.encoders.parameters())
    assert all(p.grad is not None for p in model.connector.parameters())


def test_placeholders_that_do_not_fit_the_features_are_refused(toy: Callable[..., Any]) -> None:
    model = toy()
    batch = model.processor(MIXED)
    wrong = toy({"name": "perceiver", "latents": 5}).encode(batch)
    with pytest.raises(RuntimeError, match=r"\[16, 16, 16\] placeholders for images with \[5, 5, 5\] tokens"):
        model(batch, vision=wrong)


def test_sample_beyond_the_context_is_refused_by_name() -> None:
    model = vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": {**LLAMA, "max_position_embeddings": 40}}))
    model.processor([ask("short", [picture(1)])])
    with pytest.raises(
        SampleError, match=r"sample big: \d+ positions \(32 for 2 images\), but the LLM's context is 40"
    ):
        model.processor([ask("too long", [picture(1), picture(2)], id="big")])


def test_bad_image_is_one_error_and_the_rest_is_answered(toy: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n nothing")
    picture(4).save(tmp_path / "good.png")
    samples = [
        ask("What?", [str(tmp_path / name)], id=name) for name in ("good.png", "broken.png", "missing.png", "good.png")
    ]
    answers = list(toy().answer(samples, max_new_tokens=3, batch_size=2))
    assert [answer.id for answer in answers] == ["good.png", "broken.png", "missing.png", "good.png"]
    assert [answer.error is None for answer in answers] == [True, False, False, True]
    assert "broken.png" in str(answers[1].error)
    assert answers[0] == answers[3]


def test_generating_in_the_middle_of_training_leaves_modes_alone(toy: Callable[..., Any]) -> None:
    model = toy()
    model.llm.train()
    before = [module.training for module in model.modules()]
    model.ask(picture(1), "What?", max_new_tokens=2)
    assert [module.training for module in model.modules()] == before
    assert len(set(before)) == 2


def test_planning_a_large_model_needs_no_memory() -> None:
    from vlm.planning.plan import plan

    config = {
        **LLAMA,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    found = plan(toy_recipe(llm={"tokenizer": "bytes", "config": config}))
    attention = 8192 * 8192 * 2 + 8192 * 1024 * 2
    assert found.parameters["llm"] == 80 * (attention + 3 * 8192 * 28672 + 2 * 8192) + 2 * 262 * 8192 + 8192
    assert found.tokens == {"32x32": 16}


CODE = """
import sys, torch, vlm
torch.set_num_threads(1)
from tests.vlm_core.test_model import MIXED
model = vlm.load(sys.argv[1])
with torch.no_grad():  # as the other side: attention has another kernel when gradients are wanted
    torch.save(model(model.processor(MIXED)).logits, sys.argv[2])
"""


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("connector", ROUTES, ids=connector_id)
def test_saved_and_loaded_in_a_fresh_process_is_the_same_to_the_bit(
    toy: Callable[..., Any], connector: Any, tied: bool, tmp_path: Path
) -> None:
    llm = {"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": tied}}
    model = toy(connector, encoders=TWO, merge="channel", llm=llm)
    model.set_attention("eager" if tied else "sdpa")
    model.save(tmp_path / "model")
    with torch.no_grad():
        wanted = model(model.processor(MIXED)).logits
    arguments = [sys.executable, "-c", CODE, str(tmp_path / "model"), str(tmp_path / "logits.pt")]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[2])
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert torch.equal(found, wanted)


def test_tied_weights_are_saved_once_and_stay_tied(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy(llm={"tokenizer": "bytes", "config": {**LLAMA, "tie_word_embeddings": True}})
    loaded = vlm.load(model.save(tmp_path / "model"))
    assert "llm.lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")
    assert loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight


def test_low_precision_stays_as_it_is(toy: Callable[..., Any], tmp_path: Path) -> None:
    model = toy().to(torch.bfloat16)
    loaded = vlm.load(model.save(tmp_path / "model"))
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(weights(model).values(), weights(loaded).values(), strict=True))
    assert isinstance(loaded.ask(picture(1), "What?", max_new_tokens=3), str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("connector.ops.0.layers.0.weight"), "1 missing: connector.ops.0.layers.0.weight"),
        (lambda w: w.update({"llm.extra.weight": torch.zeros(2)}), "1 unexpected: llm.extra.weight"),
        (lambda w: w.update({"llm.model.norm.weight": torch.zeros(2)}), r"llm.model.norm.weight \(2,\) for \(32,\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    toy: Callable[..., Any], tmp_path: Path, change: Any, message: str
) -> None:
    folder = toy().save(tmp_path / "model")
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=message):
        vlm.load(folder)


def test_folders_that_are_no_model(toy: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no model"):
        vlm.load(tmp_path)
    folder = toy().save(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(WeightsError, match="cannot be read"):
        vlm.load(folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["connector"] = "mpl"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"unknown connector `mpl`.*config\.json"):
        vlm.load(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ConfigError, match="is not of this kit"):
        vlm.load(folder)


@pytest.mark.parametrize(
    "gone", ["model.safetensors", "tokenizer", "tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"]
)
def test_folder_that_lacks_a_file_is_refused(toy: Callable[..., Any], tmp_path: Path, gone: str) -> None:
    """Else another tokenizer would be looked for on the hub, or another template be used in its place."""
    folder = toy().save(tmp_path / "model")
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConfigError, match=f"is not complete: there is no .*{Path(gone).name}"):
        vlm.load(folder)


@pytest.mark.parametrize("module", ["evil", "model.evil"])
def test_code_in_a_model_folder_is_not_run(
    toy: Callable[..., Any], tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = toy().save(tmp_path / "model")
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    config = json.loads((folder / "config.json").read_text())
    config["model"]["connector"] = [{"name": f"{module}:C"}]
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(folder if module == "evil" else tmp_path)
    with pytest.raises(ConfigError, match="code from a model folder is not run"):
        vlm.load(folder)


def test_answer_ends_where_the_context_does() -> None:
    config = {**LLAMA, "max_position_embeddings": 50}
    model = perturb(vlm.assemble(toy_recipe(llm={"tokenizer": "bytes", "config": config}))).eval()
    model.processor.chat.stop_ids = [0]
    answer = next(iter(model.answer([ask("x" * 20, [picture(1)], id="a")], max_new_tokens=500)))
    used = len(model.processor.encode(ask("x" * 20, [picture(1)])).input_ids)
    assert (answer.tokens, answer.truncated) == (50 - used, True)
    full = next(iter(model.answer([ask("x" * (20 + 50 - used), [picture(1)], id="b")])))
    assert "no room for an answer" in str(full.error)
    with pytest.raises(SampleError, match="no room for an answer"):
        model.ask(picture(1), "x" * (20 + 50 - used))


def test_saving_over_an_older_model_keeps_it_until_the_new_one_is_complete(
    toy: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy()
    folder = model.save(tmp_path / "model")
    before = (folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(model.tokenizer, "save_pretrained", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        model.save(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    vlm.load(folder)


def test_a_cache_that_no_sample_tells_is_not_zero() -> None:
    """More images than the context holds, or none: what an image takes in the cache is unknown, not 0 bytes."""
    from vlm.planning.plan import plan

    for per_sample in (0, 10_000):
        found = plan(toy_recipe(), per_sample=per_sample)
        assert set(found.to_dict()["cache_bytes"].values()) == {None}
        assert tables(found)
    assert min(plan(toy_recipe()).to_dict()["cache_bytes"].values()) > 0


@pytest.mark.parametrize(
    "views",
    [
        {"name": "anyres", "grids": 3},
        {"name": "tiles", "max_tiles": 6},
        {"name": "edge_tiles", "longest": 3},
        {"name": "overlapping_crops", "max_crops": 4, "margins": [1, 1], "patch": 8},
        "pad",
    ],
    ids=lambda views: views if isinstance(views, str) else views["name"],
)
def test_encoders_of_different_sizes_see_the_same_parts(views: Any) -> None:
    """Tiles are planned once: a grid that each encoder chose for itself could differ."""
    encoders = [{"name": "siglip", "config": SIGLIP}, {"name": "siglip", "config": {**SIGLIP, "image_size": 48}}]
    packer = {"packer": {"name": "stitch", "newline": "none"}} if "overlapping" in str(views) else {}
    model = vlm.assemble(toy_recipe(encoders=encoders, merge="channel", views=views, **packer))
    for size in ((48, 40), (90, 31), (33, 100), (64, 64), (200, 120), (17, 16)):
        image = picture(3, size)
        plan = model.processor.plan(size[1], size[0])
        small, large = plan.views
        assert [view.cell for view in small] == [view.cell for view in large]
        assert {view.size for view in small} == {(32, 32)}
        assert {view.size for view in large} == {(48, 48)}
        for one, other in zip(small, large, strict=True):
            first = one.draw(image, model.encoders[0].image).resize((24, 24), Image.Resampling.BOX)
            second = other.draw(image, model.encoders[1].image).resize((24, 24), Image.Resampling.BOX)
            difference = np.abs(np.asarray(first, dtype=float) - np.asarray(second, dtype=float)).mean()
            assert difference < 12, (size, one, other)  # of 255; rounded sizes differ a little
        model.encode(model.processor([ask("?", [image])]))
