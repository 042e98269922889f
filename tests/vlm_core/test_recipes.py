"""Every shipped recipe: short, sourced, planned without a download, and trained stage by stage at toy size."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vlm
from tests.conftest import perturb, picture
from tests.vlm_core.toy_recipes import toy
from vlm.assembly import blueprint
from vlm.model import VLM
from vlm.parts import learning_rates, set_modes, set_trainable
from vlm.planning.plan import plan
from vlm.recipe import Recipe, StageSpec, read_recipe, read_yaml, shipped_recipes
from vlm.sample import Batch, Sample, Turn
from vlm.stages import Sight, own_sight, show, sight
from vlm.train.objectives import LanguageModelling

ROOT = Path(__file__).parent.parent.parent
FILES = {name: path for name, path in shipped_recipes().items() if name != "demo"}
VISION, BOTH, ALL = "encoders connector", "connector llm", "encoders connector llm"

# Who trains in which stage, as the papers have it; `*` marks a part of which not everything does.
TRAINS = {
    "aria": [ALL, ALL, ALL],
    "baichuan-omni": ["connector", VISION, ALL, ALL],
    "blip-2": ["encoders* connector"],
    "deepseek-vl": ["connector", BOTH, ALL],
    "deepseek-vl-hybrid": ["connector", BOTH, "encoders* connector llm"],
    "eagle": ["connector", ALL],
    "fuyu": [BOTH],
    "idefics2": [ALL, ALL, ALL],
    "idefics3": ["connector", ALL, ALL, ALL],
    "internvl": ["connector", ALL],
    "janus": ["connector", BOTH, ALL],
    "llava": ["connector", BOTH],
    "llava-1.5": ["connector", BOTH],
    "llava-next": ["connector", ALL],
    "llava-onevision": ["connector", ALL, ALL, ALL],
    "minicpm-v-2": ["connector", "encoders", VISION, ALL, ALL],
    "minicpm-v-2.5": ["connector", "encoders", VISION, ALL, ALL],
    "minicpm-v-2.6": ["connector", "encoders", VISION, ALL, ALL],
    "minigpt-4": ["connector*", "connector*"],
    "mm1": [ALL, ALL],
    "mm1.5": [ALL, ALL, ALL],
    "moondream": ["connector", ALL],
    "nvlm-d": ["connector", BOTH],
    "openelm-siglip": ["connector", BOTH],
    "phi3-clip": ["connector", ALL],
    "prismatic": [BOTH],
    "qwen-vl": [VISION, ALL, BOTH],
    "smolvlm": [ALL],
    "tinygpt-v": ["connector*", "connector* llm", "connector* llm", "connector* llm"],
}

# Visual tokens of an image of 1280 x 720 pixels, worked out by hand from the papers' rules.
TOKENS = {
    "aria": 256,  # one view of 980 pixels
    "baichuan-omni": 13 * 13 + 14 * (26 + 1),  # thumbnail; 2 x 2 tiles of 13 x 13: 14.6 rows of 26 are no padding
    "blip-2": 32,
    "deepseek-vl": 576,
    "deepseek-vl-hybrid": 576,
    "eagle": 1024,
    "fuyu": 43 * 24,
    "idefics2": 5 * 64,
    "idefics3": (5 * 3 + 1) * 169,  # 1820 x 1024 pixels, in whole tiles 1820 x 1092
    "internvl": (2 * 4 + 1) * 256,  # 1.78 is nearest to 2.0, and 2 x 4 tiles are not yet twice the image
    "janus": 576,
    "llava": 256,
    "llava-1.5": 576,
    "llava-next": 576 + 28 * (48 + 1),  # thumbnail; 2 x 2 tiles of 24 x 24: 27 rows of 48 and half a row more
    "llava-onevision": 729 + 54 * (96 + 1),  # 2 x 4 tiles of 27 x 27: 96 columns of 108; under 9 tiles' tokens
    "minicpm-v-2": 7 * 64,  # 4.59 times 448 x 448: 5 slices wanted, 2 x 3 is the nearest shape; and the thumbnail
    "minicpm-v-2.5": 7 * 96,
    "minicpm-v-2.6": 7 * 64,
    "minigpt-4": 32,
    "mm1": 5 * 144,
    "mm1.5": 5 * 144,  # 2 x 2 tiles of 672 hold it with the least waste
    "moondream": 729,
    "nvlm-d": (1 * 2 + 1) * 256,  # 1.78 is nearest to 2.0, and 2 x 4 tiles are more than 6
    "openelm-siglip": 729,
    "phi3-clip": 576,
    "prismatic": 729,
    "qwen-vl": 256,
    "smolvlm": (4 * 3 + 1) * 64,  # 2048 x 1152 pixels, in whole tiles 2048 x 1536
    "tinygpt-v": 32,
}


def test_all_that_were_asked_for_are_there() -> None:
    assert set(FILES) == set(TRAINS)


@pytest.mark.parametrize("name", FILES)
def test_recipe_is_short_says_where_it_is_from_and_has_no_problem(name: str) -> None:
    text = FILES[name].read_text(encoding="utf8")
    assert len(text.splitlines()) <= 40
    recipe = read_recipe(name)
    assert re.search(r"arXiv \d{4}\.\d{5}\b|https://\S+", recipe.description)
    assert len({stage.name for stage in recipe.stages}) == len(recipe.stages) == len(TRAINS[name])


@pytest.fixture(scope="module")
def catalogue() -> Any:
    """The script that writes docs/models.md; what it has planned is kept."""
    spec = spec_from_file_location("catalogue", ROOT / "benchmarks" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FILES)
def test_recipe_plans_without_a_download(name: str, catalogue: Any) -> None:
    """`conftest` has switched the hub off."""
    found = catalogue.planned(name)
    assert found.parameters["llm"] > 1e8
    assert list(found.tokens.values())[list(catalogue.SIZES).index("1280 x 720")] == TOKENS[name]
    for stage, who in zip(found.stages.values(), TRAINS[name], strict=True):
        counts = {"encoders": 0, "connector": 0, "llm": 0}
        totals = dict(counts)
        for part, count in stage.items():
            counts[part.partition(".")[0]] += count
            totals[part.partition(".")[0]] += found.parameters[part]
        marks = {
            part: "" if not count else part if count == totals[part] else part + "*" for part, count in counts.items()
        }
        assert " ".join(mark for mark in marks.values() if mark) == who


@pytest.mark.parametrize("name", ["aria", "deepseek-vl-hybrid", "llava-next", "minicpm-v-2.6"])
def test_nothing_of_a_plan_is_left_out(name: str) -> None:
    found = plan(name)
    assert found.notes == [], "something of it is not counted"
    assert list(found.training) == list(found.stages)
    assert all(cost.sample_flops > 0 and cost.memory.total() > 0 for cost in found.training.values())


def test_the_page_of_models_is_up_to_date(catalogue: Any) -> None:
    written = catalogue.PAGE.read_text(encoding="utf8")
    assert catalogue.page() == written, "run `python benchmarks/catalogue.py`"


def samples(seed: int) -> list[Sample]:
    """One image, two images, none."""
    hi, answers = Turn("user", "Hi"), [Turn("assistant", text) for text in ("Yes", "No", "Hm")]
    pictures = [[picture(seed, (1200, 240))], [picture(seed + 1, (18, 90)), picture(seed + 2, (64, 12))], []]
    return [Sample([hi, answer], images) for answer, images in zip(answers, pictures, strict=True)]


def trained_step(model: VLM, batch: Batch, rates: dict[str, float]) -> set[str]:
    """One optimiser step; the parameters that moved."""
    set_trainable(model, rates)
    set_modes(model)
    loss = LanguageModelling()(model, batch)
    (loss.total / loss.count).backward()
    named = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    torch.optim.AdamW([{"params": [named[name]], "lr": rate} for name, rate in rates.items()]).step()
    model.zero_grad()
    return {name for name, parameter in named.items() if not torch.equal(parameter, before[name])}


def check_stage(model: VLM, recipe: Recipe, stage: StageSpec, own: Sight, who: str) -> None:
    show(model, recipe.model, sight(stage, own))
    batch = model.processor(samples(1))
    assert [len(set(row.tolist()) - {-1}) for row in batch.owner] == [1, 2, 0]
    rates = learning_rates([name for name, _ in model.named_parameters()], stage.train)
    moved = trained_step(model, batch, rates)
    assert moved <= set(rates), "a frozen parameter moved"
    parts = {
        part: [name for name, _ in model.named_parameters() if name.startswith(part + ".")] for part in ALL.split()
    }
    for part, names in parts.items():
        wanted = part in who or part + "*" in who
        assert bool(moved & set(names)) == wanted, part
        assert (set(names) <= set(rates)) == (part in who.split() and bool(names)) or not names, part


def logits(model: VLM, seed: int) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(model.processor(samples(seed))).logits
    return found


@pytest.mark.parametrize("name", FILES)
def test_toy_trains_by_its_stages_and_answers(name: str) -> None:
    raw: dict[str, Any] = toy(read_yaml(FILES[name]))
    recipe, planned = blueprint(raw)
    model = perturb(vlm.assemble(raw))
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}
    assert sizes == {part: sum(p.numel() for p in module.parameters()) for part, module in planned.parts().items()}
    own = own_sight(recipe.model, model)
    for stage, who in zip(recipe.stages, TRAINS[name], strict=True):
        check_stage(model, recipe, stage, own, who)
    model.eval()
    one, other = logits(model, 1), logits(model, 5)
    assert one.isfinite().all()
    assert all((one[row] - other[row]).abs().max() > 1e-5 for row in (0, 1)), "the answer does not depend on the image"
    assert torch.equal(one[2], other[2])
    assert isinstance(model.ask(picture(2, (40, 30)), "What?", max_new_tokens=2), str)
