"""Every chain that docs/connectors.md shows is one, with the token counts it states; every op and option is in it."""

import re
from pathlib import Path

import pytest
import torch

from vlm import registry
from vlm.features import Shape
from vlm.recipe import read_yaml
from vlm.schema import options

from .chains import chain

PAGE = (Path(__file__).parents[2] / "docs/connectors.md").read_text(encoding="utf8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
STATED = re.compile(r"# (.*): grid (\d+) x (\d+), (\d+) wide; LLM (\d+) wide: (\d+) -> (\d+) tokens")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: STATED.search(block).group(1))
def test_chains_give_the_tokens_stated(block: str, tmp_path: Path) -> None:
    height, width, wide, llm, before, after = map(int, STATED.search(block).groups()[1:])
    assert before == height * width
    shape = Shape(before, wide, (height, width))
    (tmp_path / "shown.yaml").write_text(block)
    with torch.device("meta"):
        made = chain(read_yaml(tmp_path / "shown.yaml")["connector"], shape, llm)
    found = made.shape(shape)
    assert (found.tokens, found.width) == (after, llm)


@pytest.mark.parametrize("kind", ["connectors", "merges"])
def test_tables_hold_every_name_and_its_options(kind: str) -> None:
    entries = getattr(registry, kind)
    rows = {row.split("`")[1]: row for row in PAGE.splitlines() if row.startswith("| `")}
    for name in entries:
        assert name in rows, name
        for option in options(entries.get(name)):
            assert f"`{option}`" in rows[name], f"{name}: {option}"
