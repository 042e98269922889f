"""Every command in README and docs/commands.md runs, and every recipe shown is one."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING
from typer.testing import CliRunner

from vlm.cli import app
from vlm.recipe import inspect_recipe, read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf8"), re.MULTILINE | re.DOTALL)


def commands(path: Path) -> list[str]:
    lines = [line.partition("  #")[0].strip() for block in blocks(path, "bash") for line in block.splitlines()]
    shown = re.findall(r"^\$ (.*)$", "\n".join(blocks(path, "console")), re.MULTILINE)
    return [line for line in [*lines, *shown] if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which `make demo` has run (in its fast form)."""
    place = tmp_path_factory.mktemp("readme")
    result = CliRunner().invoke(app, ["demo", "--fast", "--out", str(place / "runs/demo")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    sample = next((place / "runs/demo/samples").glob("*.png"))
    shutil.copy(sample, place / "photo.png")
    for name in ("number/a.png", "empty/b.png", "c.png"):
        (place / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample, place / "photos" / name)
    (place / "photos/empty/notes.txt").write_text("no image\n")
    (place / "questions.jsonl").write_text('{"image": "photo.png", "question": "What is the number?"}\n')
    mine = {"id": "1", "image": "photo.png", "question": "What is the number?", "answer": "7"}
    (place / "mine.jsonl").write_text(json.dumps(mine) + "\n")
    (place / "answers.json").write_text('[{"question_id": "1", "answer": "7"}]')
    _hugging_face_folder(place / "llava-1.5-7b-hf")
    (place / "grid.yaml").write_text(blocks(ROOT / "docs/compare.md", "yaml")[0])
    (place / "recipe.yaml").write_text((ROOT / "vlm/recipes/demo.yaml").read_text())
    return place


def _hugging_face_folder(place: Path) -> None:
    """A LLaVA of transformers at toy size."""
    from tests.parity.families import reference
    from vlm.interop import export_folder, from_transformers

    export_folder(from_transformers(reference("llava-clip")), place)


def test_readme_starts_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert [line.split()[:2] for line in blocks(ROOT / "README.md", "bash")[0].splitlines()] == [
        ["make", "demo"],
        ["make", "test"],
    ]
    assert text.index("make demo") < 200
    for target, wanted in (("demo", "vlm demo"), ("test", "pytest")):
        make = ["make", "--no-print-directory", "--dry-run", target]
        planned = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert planned.splitlines()[-1].endswith(wanted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for command in commands(page):
        words = shlex.split(command)
        if words[0] in ("make", "python", "source", "pip", "lmms-eval", "torchrun"):
            continue  # `make` is looked at above; the benchmarks take minutes, and lmms-eval is not installed here
        assert words[0] == "vlm", command
        if words[1] == "compare" and "--dry-run" not in words:
            words.append("--dry-run")  # whole grids take minutes; tests/vlm_core/test_compare.py goes through one
        if words[1] in ("demo", "train"):
            words += (
                ["--fast"]
                if words[1] == "demo"
                else ["--set", "stages.0.steps=2", "--set", "stages.1.steps=2", "--set", "stages.2.steps=2"]
            )
        result = CliRunner().invoke(app, words[1:], catch_exceptions=False)
        assert result.exit_code == 0, f"{command}\n{result.output}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_recipe_shown_is_one(page: Path, tmp_path: Path) -> None:
    """Whole recipes have no mistake that can be seen without weights but data files that are not there."""
    for block in blocks(page, "yaml"):
        (tmp_path / "shown.yaml").write_text(block)
        shown = read_yaml(tmp_path / "shown.yaml")
        if "model" in shown and "stages" in shown:
            found = inspect_recipe(shown)
            assert found.recipe is not None, found.problems
            assert found.problems == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_example_connector_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vlm
    from tests.conftest import toy_recipe

    (tmp_path / "docs_pkg").mkdir()
    (tmp_path / "docs_pkg/mine.py").write_text(blocks(ROOT / "docs/extend.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    model = vlm.assemble(toy_recipe({"name": "docs_pkg.mine:MeanConnector", "bias": False}))
    assert model.processor.tokens(32, 32) == 1


@pytest.mark.skipif("got_ocr2_vision" not in CONFIG_MAPPING, reason="an older transformers has no such tower by name")
def test_architecture_of_the_docs_is_the_shipped_one_and_its_comparison_holds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = ROOT / "docs/architectures.md"
    assert blocks(page, "yaml")[0] == (ROOT / "vlm/keymaps/got_ocr2.yaml").read_text()
    exec(compile(blocks(page, "python")[0], str(page), "exec"), {})
    difference, name = capsys.readouterr().out.splitlines()
    assert float(difference.removeprefix("tensor(").removesuffix(")")) <= 1e-4
    assert name == "GotOcr2ForConditionalGeneration"
