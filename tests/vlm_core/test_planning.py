"""`vlm plan`: parameters, tokens, what is chosen to be counted, and how it is shown."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

import vlm
from tests.conftest import LLAMA, picture, toy_recipe
from tests.vlm_core.twins import RECIPES
from vlm.cli import app
from vlm.connector import Connector
from vlm.errors import ConfigError
from vlm.features import Features, Shape
from vlm.images import ImageError
from vlm.parts import learning_rates, set_trainable
from vlm.planning.costs import forward_costs
from vlm.planning.plan import plan
from vlm.planning.shadow_batch import shadow_batch
from vlm.planning.tables import flops, histogram, number, size
from vlm.views import Size, View, Views

ROOT = Path(__file__).parent.parent.parent
STAGE: dict[str, Any] = {
    "name": "align",
    "train": {"connector": 1e-3},
    "data": "none.json",
    "steps": 5,
    "batch_size": 8,
}


class Strips(Views):
    """As many views as the image is wide in hundreds of pixels; refuses what is too narrow."""

    def plan(self, image: Size, size: Size) -> list[View]:
        if image[1] < 100:
            raise ConfigError(f"{image[1]} pixels are too narrow")
        return [View(size, size)] * (image[1] // 100)


class Peeks(Connector):
    """Looks at what it is given, which a plan has not."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.out_width = out_width
        self.map = torch.nn.Linear(in_width, out_width)

    def forward(self, features: Features) -> Features:
        tokens = self.map(features.tokens)
        return features.with_tokens(tokens if float(tokens.detach().mean()) < 1e9 else tokens * 0, extra=None)

    def shape(self, shape: Shape) -> Shape:
        return Shape(shape.tokens, self.out_width, shape.grid)


HERE = "tests.vlm_core.test_planning"


def strips(**model: Any) -> dict[str, Any]:
    return {**toy_recipe(views=f"{HERE}:Strips", **model), "stages": [STAGE]}


@pytest.fixture
def file(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def write(recipe: dict[str, Any]) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return str(path)

    return write


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    recipe = {**RECIPES[name], "stages": [STAGE, {**STAGE, "name": "all", "train": {"*": 1e-3, "llm.*.1.*": 0}}]}
    found = plan(recipe)
    model = vlm.assemble(RECIPES[name])
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}
    assert found.parameters == counts
    for stage in recipe["stages"]:
        set_trainable(model, learning_rates([name for name, _ in model.named_parameters()], stage["train"]))
        trained = {
            part: sum(p.numel() for p in module.parameters() if p.requires_grad)
            for part, module in model.parts().items()
        }
        assert found.stages[stage["name"]] == trained
    assert found.stages["all"]["llm"] < counts["llm"]


def test_tied_weights_count_once() -> None:
    def llm(tied: bool) -> int:
        config = {**LLAMA, "tie_word_embeddings": tied}
        return plan(toy_recipe(llm={"tokenizer": "bytes", "config": config})).parameters["llm"]

    assert llm(False) - llm(True) == 262 * 32


def test_words_are_sizes_and_files_have_theirs_in_the_header(tmp_path: Path) -> None:
    upright, lying = tmp_path / "a.png", tmp_path / "b.jpg"
    picture(0, (250, 120)).save(upright)
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture(0, (130, 340)).save(lying, exif=exif)
    found = plan(strips(), images=["520x110", "110x520", str(tmp_path)])
    assert {name: image.size for name, image in found.images.items()} == {
        "520x110": (110, 520),
        "110x520": (520, 110),
        str(upright): (120, 250),
        str(lying): (130, 340),
    }
    assert [image.views for image in found.images.values()] == [5, 1, 2, 3]
    assert found.tokens == found.positions == {name: 16 * image.views for name, image in found.images.items()}


def test_what_cannot_be_used_is_named_and_the_rest_is_counted(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    found = plan(strips(), images=["640x200", "50x200", "0x10", "99999x99999", str(tmp_path), "missing.png"])
    assert list(found.images) == ["640x200"]
    assert set(found.unusable) == {"50x200", "0x10", "99999x99999", str(tmp_path / "broken.png"), "missing.png"}
    assert "too narrow" in found.unusable["50x200"]
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        plan(strips(), images=["missing.png"])
    with pytest.raises(ImageError, match="too narrow"):
        plan(strips(), images=["50x200"])


def test_flops_are_of_the_middle_image_and_memory_of_the_largest_that_fits() -> None:
    config = {**LLAMA, "max_position_embeddings": 120}
    recipe = strips(llm={"tokenizer": "bytes", "config": config})
    found = plan(recipe, images=["900x100", "100x100", "300x100", "600x100", "200x100"])  # 144, 16, 48, 96, 32 tokens
    sample, largest = found.sample, found.largest
    assert sample is not None
    assert largest is not None
    assert (sample.image, sample.tokens) == ("300x100", 48)
    assert (largest.image, largest.tokens) == ("600x100", 96)
    assert largest.length == 120, "the text fills what is left"
    assert sample.length == 120
    cost = found.training["align"]
    _, model = vlm.assembly.blueprint(recipe)
    wanted = forward_costs(model, shadow_batch(model, sample.plans(model), text=sample.text))[0]
    assert found.forward == wanted
    alone = plan(recipe, images=["600x100"]).training["align"]
    assert alone.memory == cost.memory
    assert alone.flops != cost.flops
    assert plan(recipe, images=["300x100"]).training["align"].flops == cost.flops
    full = plan(recipe, images=["900x100"])
    assert (full.sample, full.training, full.forward) == (None, {}, {})
    assert full.notes == ["FLOPs and memory are not counted: no image leaves room for text in the LLM's context"]
    assert full.tokens == {"900x100": 144}


def test_text_and_images_of_a_sample() -> None:
    recipe = strips()
    one, two = (plan(recipe, images=["200x100"], per_sample=count, text=30).sample for count in (1, 2))
    none = plan(recipe, per_sample=0, text=30, images=["200x100"]).sample
    assert [s.tokens for s in (none, one, two) if s] == [0, 32, 64]
    # the template's four tokens, and a newline after images
    assert [s.length for s in (none, one, two) if s] == [34, 34 + 1 + 32, 34 + 1 + 64]
    with pytest.raises(ConfigError, match=r"text: `5000`; the LLM's context leaves room for 2044 tokens"):
        plan(recipe, text=5000, images=["200x100"])


def test_a_stage_is_its_batch_times_its_steps_and_devices_share_it() -> None:
    found = plan({**toy_recipe(), "stages": [{**STAGE, "batch_size": 16, "steps": 7}]}, devices=4)
    cost = found.training["align"]
    assert (cost.micro_batch, cost.devices) == (4, 4)
    assert cost.stage_flops == 16 * 7 * (cost.flops.forward + cost.flops.backward)
    spread = cost.per_device()
    assert list(spread) == ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "FSDP"]
    assert spread["DDP"] == {"plain": cost.memory.total(), "checkpointed": cost.memory.total(checkpointing=True)}
    assert found.to_dict()["training"]["align"]["per_device"] == spread
    with pytest.raises(ConfigError, match=r"stages\.0\.batch_size: `8` does not divide by 3 devices"):
        plan({**toy_recipe(), "stages": [STAGE]}, devices=3)


def test_a_batch_of_millions_of_positions_is_planned() -> None:
    """Its masks are real numbers all the same: the LLM asks whether anything is padding."""
    huge, small = (plan({**toy_recipe(), "stages": [{**STAGE, "batch_size": size}]}, text=30) for size in (2**17, 2))
    assert huge.notes == []
    assert huge.training["align"].micro_batch * (huge.sample.length if huge.sample else 0) > 2**22
    assert huge.training["align"].flops == small.training["align"].flops


def test_precision_decides_dtypes() -> None:
    def memory(precision: str) -> Any:
        found = plan({**toy_recipe(), "stages": [{**STAGE, "train": {"*": 1e-3}, "precision": precision}]})
        assert found.training["align"].precision == ("bf16-mixed" if precision == "auto" else precision)
        return found.training["align"].memory

    full, mixed, low = memory("32-true"), memory("bf16-mixed"), memory("bf16-true")
    assert memory("auto") == mixed
    assert (mixed.weights, mixed.gradients, mixed.optimiser) == (full.weights, full.gradients, full.optimiser)
    assert full.gradients == 2 * low.gradients
    assert full.optimiser == 2 * low.optimiser
    assert low.activations < mixed.activations < full.activations
    assert mixed.copies == mixed.trained_copies > full.copies == 0
    llm = {"tokenizer": "bytes", "config": LLAMA, "dtype": "bfloat16"}
    for precision, dtypes in (("auto", ["bfloat16", "float32"]), ("bf16-true", ["bfloat16"])):
        found = plan({**toy_recipe(llm=llm), "stages": [{**STAGE, "precision": precision}]})
        assert found.training["align"].dtypes == dtypes


def test_the_demo_is_planned_with_its_own_objective() -> None:
    """Its first stage reads slots, whose targets only the data has."""
    found = plan("demo")
    assert found.notes == []
    assert found.training["warmup"].flops.forward < found.forward["encoders.0"] * 1.1


def test_an_objective_that_cannot_be_planned_is_said() -> None:
    stage = {**STAGE, "objective": {"name": "read_slots", "fields": {"digits": [5, 11]}}, "train": {"encoders": 1e-3}}
    stage["train"]["objective"] = 1e-3
    found = plan({**toy_recipe(), "stages": [stage]})
    plain = plan({**toy_recipe(), "stages": [{**STAGE, "train": {"encoders": 1e-3}}]})
    assert found.training["align"].flops == plain.training["align"].flops
    assert "stage align is counted as language_modelling, since" in found.notes[0]
    assert "none.json" in found.notes[0]


def test_a_model_that_needs_values_is_said() -> None:
    found = plan({**toy_recipe(f"{HERE}:Peeks"), "stages": [STAGE]})
    assert found.tokens == {"32x32": 16}
    assert found.training == {}
    assert [note.partition(" is not counted, since it does not run without values")[0] for note in found.notes] == [
        "the forward pass",
        "stage align",
    ]
    assert "item" in found.notes[0]


def test_nothing_is_left_changed_for_other_meta_tensors() -> None:
    """Attention on the meta device is torch's own again: it falls back to products there."""
    plan(toy_recipe())
    q = torch.empty(1, 2, 3, 4, device="meta", requires_grad=True)
    found = torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert "Fused" not in type(found.grad_fn).__name__


def test_command_shows_tables_notes_and_json(file: Callable[..., str]) -> None:
    path = file(strips())
    result = run("plan", path, "640x480", "60x60", "--text", 20, "--devices", 2)
    assert result.exit_code == 0, result.output
    for words in ("640x480", "KV cache", "forward pass", "backward", "activations", "one of 2 devices", "ZeRO-3"):
        assert words in result.stdout
    assert "not counted: 60 pixels are too narrow" in result.stdout
    assert "FLOPs: 1 image (640x480), 96 visual tokens, 20 of text, 121 positions" in result.stdout
    found = json.loads(run("plan", path, "640x480", "--text", 20, "--json").stdout)
    assert found["tokens"] == {"640x480": 96}
    assert found["cache_bytes"] == {"640x480": 96 * 2 * 4 * 2 * 8 * 4}  # keys and values, layers, heads, width, bytes
    assert set(found["training"]["align"]["memory"]) >= {"weights", "gradients", "optimiser", "activations"}
    assert found["sample"]["length"] == 121
    assert (
        "not counted" in run("plan", path, "640x480", "--per-sample", 0).stdout
    )  # text alone has no image in the cache
    for words in (["--text", "0"], ["--devices", "0"], ["--per-sample", "-1"], ["--text", "9999"]):
        assert run("plan", path, *words).exit_code == 2


def test_many_images_are_a_histogram(file: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    widths = [100, 200, 200, 300, *range(1000, 2000, 50)]
    for place, width in enumerate(widths):
        Image.new("RGB", (width, 10)).save(tmp_path / "pictures" / f"{place}.png")
    result = run("plan", file(strips()), tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert "visual tokens of 24 images" in result.stdout
    tokens = [width // 100 * 16 for width in widths]
    assert f"least 16, median {median(tokens):.0f}, most 304; KV cache: 512 B a token" in result.stdout
    assert "█" in result.stdout
    assert "0.png" not in result.stdout.replace("(", " ").partition("FLOPs")[0]


def test_histogram_counts_every_value_once() -> None:
    assert histogram([3, 1, 3]) == [(1, 1, 1), (3, 3, 2)]
    values = [n * n for n in range(50)]
    bars = histogram(values, bars=7)
    assert len(bars) <= 7
    assert sum(count for _, _, count in bars) == 50
    for first, last, count in bars:
        assert count == sum(first <= value <= last for value in values)
    assert all(left[1] + 1 == right[0] for left, right in pairwise(bars))


def test_numbers_are_short() -> None:
    assert [number(n) for n in (999, 1500, 2_340_000, 72_700_000_000)] == ["999", "1.50 k", "2.34 M", "72.70 B"]
    assert [flops(n) for n in (10, 2_500_000_000, 12 * 10**20)] == ["10 FLOP", "2.50 GFLOP", "1.20 ZFLOP"]
    assert [size(n) for n in (0, 1023, 1536, 3 * 2**30)] == ["0 B", "1023 B", "1.50 KiB", "3.00 GiB"]


def test_72b_in_seconds_and_in_little_memory() -> None:
    """The bounds are wide, for machines that do other things; `benchmarks/plan_72b.py` measures."""
    command = [sys.executable, str(ROOT / "benchmarks/plan_72b.py"), "--seconds", "60", "--gib", "2"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("72.71 B parameters in the LLM")
    sys.stdout.write(done.stdout)
