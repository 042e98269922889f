"""The kit against transformers, for every architecture that it imports: logits, generation, and the way back."""

from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, FuyuForCausalLM

import vlm
from tests.conftest import picture
from tests.parity.families import FAMILIES, reference
from vlm.interop import export_folder, from_transformers, import_folder, to_transformers
from vlm.sample import Batch, Sample, Turn, ask

Pair = tuple[Any, Any]


@cache
def pair(name: str, attention: str = "eager") -> Pair:
    """(reference, the same model in the kit)."""
    other = reference(name, attention)
    return other, from_transformers(other, preprocessor=FAMILIES[name].preprocessor)


def samples(name: str, seed: int = 0) -> list[Sample]:
    """One image, two images in the middle of the text, and none; the images differ in size."""
    first, second, third = (picture(seed + n, size) for n, size in enumerate(FAMILIES[name].images))
    two = Sample([Turn("user", "Is <image> larger than <image>?")], [second, third])
    return [ask("What is it?", [first]), two, ask("And without any picture?")]


def inputs(name: str, other: Any, batch: Batch) -> dict[str, Any]:
    family = FAMILIES[name]
    return {"input_ids": family.ids(batch), "attention_mask": batch.attention_mask, **family.inputs(other, batch)}


def _known(name: str) -> list[pytest.MarkDecorator]:
    """Older releases of transformers (5.17) know some towers only inside their VLM, and give Fuyu other patches."""
    tower = FAMILIES[name].config.get("vision_config", {}).get("model_type", "siglip_vision_model")
    other = name == "fuyu" and "pixel_values" not in signature(FuyuForCausalLM.forward).parameters
    if tower in CONFIG_MAPPING and not other:
        return []
    return [pytest.mark.skip(reason=f"not so in transformers {transformers.__version__}")]


BOTH = [pytest.param(name, how, marks=_known(name)) for name in FAMILIES for how in FAMILIES[name].attentions]
ALL = [pytest.param(name, marks=_known(name)) for name in FAMILIES]


@pytest.mark.parametrize(("name", "attention"), BOTH)
@torch.no_grad()
def test_logits_equal_the_reference(name: str, attention: str) -> None:
    other, model = pair(name, attention)
    batch = model.processor(samples(name))
    real = batch.attention_mask.bool()
    wanted, found = other(**inputs(name, other, batch)).logits, model(batch).logits
    assert (found[real] - wanted[real]).abs().max() <= 1e-4
    batch.groups = model.processor(samples(name, seed=7)).groups
    moved = (model(batch).logits - found).abs().amax(-1)
    assert moved[0][real[0]].max() > 1e-2, "the first sample's image is ignored"
    assert moved[1][real[1]].max() > 1e-2, "the second sample's images are ignored"
    assert moved[2].max() <= 1e-5, "a sample without images sees those of others"


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_greedy_generation_equals_the_reference(name: str) -> None:
    """With the KV cache, left padding, and images of different sizes."""
    other, model = pair(name)
    batch = model.processor(samples(name), side="left")
    given = inputs(name, other, batch)
    wanted = other.generate(
        **given, max_new_tokens=8, do_sample=False, eos_token_id=model.processor.chat.stop_ids, pad_token_id=0
    )
    found = model.generate(batch, max_new_tokens=8)
    assert torch.equal(found, wanted[:, -found.shape[1] :])


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_the_way_back_gives_the_same_model(name: str, tmp_path: Path) -> None:
    """In memory, and on disk: kit folder, Hugging Face folder, kit folder. Loading info is checked on the way."""
    other, model = pair(name)
    batch = model.processor(samples(name))
    given, real = inputs(name, other, batch), batch.attention_mask.bool()
    wanted, kit = other(**given).logits[real], model(batch).logits
    back = to_transformers(model)
    assert type(back) is type(other)
    assert {key: value.shape for key, value in back.state_dict().items()} == {
        key: value.shape for key, value in other.state_dict().items()
    }
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in back.state_dict().items())
    assert torch.equal(back(**given).logits[real], wanted)
    export_folder(vlm.load(model.save(tmp_path / "kit")), tmp_path / "hf")
    again = vlm.load(import_folder(str(tmp_path / "hf"), tmp_path / "again"))
    assert torch.equal(again.processor(samples(name)).input_ids, batch.input_ids)
    assert (again(batch).logits[real] - kit[real]).abs().max() <= 1e-5
