"""`vlm data`: the page shows what the model gets, counts are those of a slow look at every sample."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from typer.testing import CliRunner

import vlm
from tests.conftest import picture, toy_recipe
from tests.vlm_core.chat_families import FAMILIES
from tests.vlm_core.test_masks import form
from vlm.cli import app
from vlm.errors import ConfigError
from vlm.sample import Sample, Turn
from vlm.train.converters.writers import Shards
from vlm.train.preview.measure import histogram, spread
from vlm.train.preview.opening import open_processor, open_samples
from vlm.train.preview.show import preview
from vlm.train.preview.tokens import pieces

VIEWS = {"name": "tiles", "max_tiles": 4, "thumbnail": "first"}


def rows(folder: Path) -> Path:
    for number in range(3):
        picture(number, (96, 64)).save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"no picture")
    talk = [{"from": "human", "value": "What <b>?\n"}, {"from": "gpt", "value": "Grüße & <i>"}]
    items: list[dict[str, Any]] = [
        {"id": "one", "image": "0.png", "conversations": talk},
        {"id": "two", "images": ["1.png", "2.png"], "question": "a<image>b<image>c", "answer": "d"},
        {"id": "text", "question": "why?", "answer": "so"},
        {"id": "mute", "question": "why?"},
        {"id": "broken", "image": "bad.png", "question": "q <u>", "answer": "a"},
        {"id": "lost", "image": "none.png", "caption": "c"},
        {"id": "odd", "question": "an <|end|> in it", "answer": " "},
        {"id": "marks", "image": "0.png", "question": "<image><image>", "answer": "a"},
        {"question": "q", "answer": None},
    ]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(toy_recipe(views=VIEWS)))
    return path


def plain(page: str) -> str:
    """What a reader of the page sees of a sample's tokens."""
    text = re.sub(r'<b class="image">(.*?)</b>', r"[\1]", page)
    return html.unescape(re.sub(r"<[^>]*>", "", text)).replace("↵\n", "\n")


def test_page_shows_what_the_model_gets(tmp_path: Path, recipe: Path) -> None:
    found = preview(str(rows(tmp_path)), str(recipe), out=tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    pattern = r'<article class="panel sample [a-z]*"><header><strong>(.*?)</strong>(.*?)</article>'
    found_cards = re.findall(pattern, page, re.S)
    cards = dict(found_cards)
    assert set(cards) == {"one", "two", "text", "mute", "broken", "lost", "odd", "marks", "sample 9"}
    processor = vlm.assemble(str(recipe)).processor
    _, source = open_samples(str(tmp_path / "rows.jsonl"))
    for number, name in enumerate(["one", "two", "text"]):
        example = processor.encode(source[number])
        runs = [int((example.owner == image).sum()) for image in range(len(example.looks))]
        shown = plain(re.search(r'<div class="text">(.*?)</div>', cards[name], re.S)[1])  # type: ignore[index]
        text = processor.chat.tokenizer.decode(example.input_ids[example.owner < 0])
        for image, run in enumerate(runs):
            assert f"[image {image + 1} × {run}]" in shown
        assert re.sub(r"\[image .*?\]", "", shown) == text
        learned = processor.chat.tokenizer.decode(example.labels[example.labels >= 0])
        marked = "".join(re.findall(r'<i class="t learned[^"]*"[^>]*>(.*?)</i>', cards[name], re.S))
        assert plain(marked) == learned
        assert f"{len(example.input_ids):,} positions" in cards[name]
    assert cards["one"].count("<img") == len(processor.encode(source[0]).looks[0].pixels) > 1
    assert cards["two"].count("<figure>") == 2
    assert not re.findall(r"<(?:i|u)>", page)  # nothing of the data is taken for HTML
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert found.totals.images == 3


def test_what_is_wrong_is_said_and_counted(tmp_path: Path, recipe: Path) -> None:
    found = preview(str(rows(tmp_path)), str(recipe), out=tmp_path / "page.html", show=1)
    assert found.totals.causes == {
        "images that cannot be opened": 2,
        "samples that the model cannot take": 1,
        "rows that are no sample": 1,
    }
    assert found.totals.oddities == {
        "nothing is learned from it: it has no answer": 1,
        "an answer is empty": 1,
        "`<|end|>` in its text is read as a special token": 1,
    }
    assert [fault.partition(":")[0] for fault in found.faults[:3]] == ["broken", "lost", "marks"]
    assert "rows.jsonl, row 9 (line 9): answer is text, not None" in found.faults[3]
    page = (tmp_path / "page.html").read_text()
    order = re.findall(r'<article class="panel sample ([a-z]*)"', page)
    assert sorted(order) == ["", "odd", "odd", *["refused"] * 4]
    assert order[-1] == ""  # the faulty ones come first
    assert "q &lt;u&gt;" in page


def test_counts_are_those_of_a_batch(tmp_path: Path, recipe: Path) -> None:
    found = preview(str(rows(tmp_path)), str(recipe), out=tmp_path / "page.html").totals
    processor = vlm.assemble(str(recipe)).processor
    _, source = open_samples(str(tmp_path / "rows.jsonl"))
    batches = [processor([source[number]]) for number in (0, 1, 2, 3, 6)]
    assert sorted(found.lengths) == sorted(batch.input_ids.shape[1] for batch in batches)
    assert found.visual == sum(int((batch.owner >= 0).sum()) for batch in batches)
    assert found.learned == sum(batch.supervised for batch in batches)
    assert found.text_only == 3
    assert sum(count for _, _, count in found.histogram()) == 5


@pytest.mark.parametrize("family", FAMILIES)
def test_no_character_is_lost_between_tokens(family: str) -> None:
    turns = [Turn("user", "number?"), Turn("assistant", "naïve 日本語 🙂👩‍👩‍👧  two\n\nlines\tend")]
    encoded = form(family).encode(turns, [])
    tokenizer = form(family).tokenizer
    example: Any = encoded
    found = list(pieces(tokenizer, example))
    assert [token for piece in found for token in piece.ids] == encoded.input_ids.tolist()
    learned = "".join(piece.text for piece in found if piece.learned)
    for part in ("日本語", "two\n\nlines\tend"):
        assert part in learned or tokenizer.unk_token_id in encoded.input_ids.tolist() or "<unk>" in learned
    if family in ("qwen2", "llama3"):
        assert "naïve 日本語 🙂👩‍👩‍👧  two\n\nlines\tend" in learned


def test_bins_are_even_and_round() -> None:
    assert histogram([], 5) == []
    assert histogram([7], 5) == [(7, 7, 1)]
    bins = histogram([3, 14, 15, 92, 65, 35], 12)
    assert bins[0][0] <= 3
    assert bins[-1][1] >= 92
    assert len(bins) <= 12
    assert {high - low + 1 for low, high, _ in bins} == {10}
    assert sum(count for _, _, count in bins) == 6
    assert spread(10, 3) == [0, 4, 9]
    assert spread(2, 5) == [0, 1]


def test_samples_by_any_name(tmp_path: Path) -> None:
    path = rows(tmp_path)
    data = datasets.Dataset.from_list([{"image": {"bytes": b"x"}, "caption": "c"}] * 3)
    data.to_parquet(tmp_path / "rows.parquet")
    data.save_to_disk(tmp_path / "saved")
    with Shards(tmp_path / "s.tar", 2) as shards:
        for _ in range(3):
            shards.write({"caption": "c"}, str(tmp_path / "0.png"))
    (tmp_path / "source.yaml").write_text(yaml.safe_dump([{"path": str(path), "weight": 2.0}]))
    for text, count in (
        (str(path), 9),
        (str(tmp_path / "source.yaml"), 9),
        (f"{{path: {path}}}", 9),
        ("{name: handwriting, count: 7}", 7),
        (str(tmp_path / "s-{000000..000001}.tar"), 3),
        (str(tmp_path / "rows.parquet"), 3),
        (str(tmp_path / "saved"), 3),
    ):
        assert len(open_samples(text)[1]) == count
    for text, message in (
        ("nothing", "names no samples; allowed: .json"),
        (str(tmp_path / "no.yaml"), "there is no file"),
        ("{name: jsn, path: x}", "did you mean `json`"),
        ("{path: [}", "is no YAML"),
        (str(tmp_path / "no.jsonl"), "is not a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_samples(text)


def test_a_saved_model_shows_the_same_as_its_recipe(tmp_path: Path, toy: Callable[..., Any]) -> None:
    model = toy(views=VIEWS)
    model.save(tmp_path / "model")
    _, processor = open_processor(str(tmp_path / "model"))
    sample = Sample([Turn("user", "What?"), Turn("assistant", "x")], [picture(0, (96, 64))])
    wanted, found = model.processor([sample]), processor([sample])
    assert found.input_ids.equal(wanted.input_ids)
    assert found.owner.equal(wanted.owner)
    for one, other in zip(found.groups, wanted.groups, strict=True):
        assert all(a.equal(b) for a, b in zip(one.pixels, other.pixels, strict=True))


def test_the_command(tmp_path: Path, recipe: Path) -> None:
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["data", str(rows(tmp_path)), "--model", str(recipe), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "5 of 9 samples can be trained on (there are 9)" in result.output
    assert re.search(r"lengths \d+ .*█.* \d+; median \d+", result.output)
    assert "2 × images that cannot be opened" in result.output
    assert out.stat().st_size > 1000
    result = CliRunner().invoke(app, ["data", "nothing", "--model", str(recipe)])
    assert result.exit_code == 2
