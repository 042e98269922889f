"""The command line as a user meets it."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import vlm
import vlm.sample
from tests.conftest import perturb, picture, toy_recipe
from vlm.cli import app

STAGE = {"name": "s", "train": {"connector": 1e-3}, "data": [{"name": "handwriting"}], "steps": 2, "batch_size": 4}


@pytest.fixture
def run() -> Callable[..., Any]:
    """`run("ask", ...)` -> the finished command (stdout, stderr, exit_code)."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return perturb(vlm.assemble(toy_recipe())).save(tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        picture(number).save(folder / f"{number}.png")
    return folder


def test_help_answers_at_once() -> None:
    """Far below this limit on a quiet machine (0.2 s); what matters is that nothing heavy is imported."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "vlm", "--help"], check=True, capture_output=True)
    assert time.perf_counter() - start < 3
    code = "import sys, vlm.cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_ask_files_folders_and_globs(run: Callable[..., Any], model: Path, images: Path) -> None:
    one = run("ask", model, images / "0.png", "-q", "What?", "--max-new-tokens", 3)
    assert one.exit_code == 0
    answer = vlm.load(model).ask(str(images / "0.png"), "What?", max_new_tokens=3)
    assert one.stdout == answer + "\n", "one image, one answer and nothing else"
    listed = run("ask", model, images, images / "[01].png", "-q", "What?", "--max-new-tokens", 3, "--json")
    rows = [json.loads(line) for line in listed.stdout.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "0.png", "1.png"]
    assert rows[0]["answer"] == answer
    assert {row["question"] for row in rows} == {"What?"}


def test_ask_writes_rows_and_one_bad_file_is_one_error(run: Callable[..., Any], model: Path, images: Path) -> None:
    (images / "1.png").write_bytes((images / "1.png").read_bytes()[:100])
    (images / "3.jpg").write_text("this is text")
    out = images.parent / "answers.jsonl"
    result = run("ask", model, images, images / "gone.png", "-q", "What?", "--out", out, "--batch-size", 2)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png", "3.jpg", "gone.png"]
    assert ["error" in row for row in rows] == [False, True, False, True, True]
    assert all("answer" not in row for row in rows if "error" in row)
    assert result.exit_code == 1
    assert "3 of 5 could not be answered" in result.stderr
    again = run("ask", model, images / "0.png", "-q", "What?", "--out", out)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_ask_reads_questions_from_jsonl(run: Callable[..., Any], model: Path, images: Path) -> None:
    file = images.parent / "questions.jsonl"
    file.write_text('{"image": "images/0.png", "question": "Who?"}\n\n{"image": "images/1.png"}\n')
    rows = [json.loads(line) for line in run("ask", model, file, "-q", "What?", "--json").stdout.splitlines()]
    assert [(row["image"], row["question"]) for row in rows] == [("images/0.png", "Who?"), ("images/1.png", "What?")]
    wrong = {
        "": "holds no question",
        "{not json": "line 1",
        '{"picture": "x"}': "line 1",
        '{"image": 3, "question": "?"}': "texts",
    }
    for line, words in wrong.items():
        file.write_text(line + "\n")
        result = run("ask", model, file)
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ask", "MODEL", "x.png"], "what should be asked about `x.png`"),
        (["ask", "MODEL", "FOLDER/*.gif", "-q", "?"], "*.gif"),
        (["ask", "FOLDER", "x.png", "-q", "?"], "holds no model"),
        (["plan", "no-such-recipe"], "unknown recipe `no-such-recipe`"),
        (["plan", "demo", "--set", "model.connector=mpl"], "did you mean `mlp`"),
        (["list", "encoder"], "did you mean `encoders`"),
        (["demo", "--connector", "percever"], "did you mean `perceiver`"),
        (["eval", "MODEL", "handwritin"], "did you mean `handwriting`"),
        (["eval", "MODEL", "mine"], "--data"),
    ],
)
def test_mistakes_are_one_clear_message(
    run: Callable[..., Any], model: Path, images: Path, words: list[str], message: str
) -> None:
    places = {"MODEL": str(model), "FOLDER": str(images)}
    result = run(*(places.get(word, word.replace("FOLDER", str(images))) for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_list_names_every_part(run: Callable[..., Any]) -> None:
    text = run("list").stdout
    for word in ("clip", "siglip", "perceiver", "cross_attention", "squash", "channel", "demo", "handwriting", "anls"):
        assert word in text
    found = json.loads(run("list", "llms", "--json").stdout)
    assert {"llama", "qwen2", "gemma3_text"} <= set(found["llms"])


def test_plan_counts_what_the_built_model_has(run: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    recipe = {**toy_recipe(), "stages": [STAGE, {**STAGE, "name": "t", "train": {"llm": 1e-3, "llm.*norm*": 0}}]}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    found = json.loads(run("plan", file, images / "0.png", "--json").stdout)
    model = vlm.assemble(recipe)
    counts = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts().items()}
    assert found["parameters"] == counts
    norms = sum(p.numel() for name, p in model.llm.named_parameters() if "norm" in name)
    assert found["stages"]["s"] == {"encoders.0": 0, "connector": counts["connector"], "llm": 0}
    assert found["stages"]["t"] == {"encoders.0": 0, "connector": 0, "llm": counts["llm"] - norms}
    batch = model.processor([vlm.sample.ask("x", [str(images / "0.png")])])
    assert found["tokens"] == found["positions"] == {str(images / "0.png"): int((batch.owner >= 0).sum())}
    table = run("plan", file).stdout
    assert "connector" in table
    assert "visual tokens" in table


def test_train_eval_and_ask_from_the_command_line(run: Callable[..., Any], tmp_path: Path) -> None:
    file, out = tmp_path / "recipe.yaml", tmp_path / "run"
    file.write_text(yaml.safe_dump({**toy_recipe(), "stages": [STAGE]}))
    trained = run("train", file, "--set", "stages.0.steps=3", "--out", out)
    assert trained.exit_code == 0, trained.stderr
    assert len((out / "stages/01-s/metrics.csv").read_text().splitlines()) == 4
    picture(1).save(tmp_path / "one.png")
    (tmp_path / "mine.jsonl").write_text('{"image": "one.png", "question": "What?", "answer": "nothing"}\n')
    scored = run("eval", out, "mine", "--data", tmp_path / "mine.jsonl")
    assert scored.exit_code == 0, scored.stderr
    assert (out / "eval/report.html").exists()
    assert (out / "eval/results.json").exists()
    (tmp_path / "one.png").rename(tmp_path / "two.png")
    lost = run("eval", out, "mine", "--data", tmp_path / "mine.jsonl", "--out", tmp_path / "lost")
    assert (lost.exit_code, "1 image files are missing" in lost.stderr) == (1, True)  # not one answer came
    (tmp_path / "two.png").rename(tmp_path / "one.png")
    assert run("ask", out, tmp_path / "one.png", "-q", "What?", "--max-new-tokens", 2).exit_code == 0
    other = run("train", file, "--out", out)
    assert other.exit_code == 2
    assert "another recipe (different: stages.0.steps)" in other.stderr


def test_demo_goes_all_the_way(run: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "my [demo]"
    result = run("demo", "--fast", "--out", out)
    assert result.exit_code == 0, result.stderr
    for name in ("01-warmup/loss.png", "02-align/loss.png", "03-instruct/loss.png"):
        assert (out / "stages" / name).stat().st_size > 1000
    report = (out / "eval/report.html").read_text()
    assert report.count("data:image/png;base64") >= 3 + 10
    assert json.loads((out / "eval/results.json").read_text())
    line = next(line for line in result.stdout.splitlines() if "What is the number?" in line)
    asked = run(*shlex.split(line)[1:])
    assert asked.exit_code == 0, asked.stderr
