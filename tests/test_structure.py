"""House rules: who may import whom, what an import costs, which packages are installed."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WINGS = ("encoders", "connectors", "train", "eval")
FILES = sorted(path for folder in ("vlm", *WINGS) for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_wings_import_the_core_and_themselves_only(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        pieces = name.split(".")
        assert pieces[0] not in WINGS, f"a wing is imported as vlm.{pieces[0]}"
        if pieces[0] == "vlm" and len(pieces) > 1 and pieces[1] in WINGS:
            assert pieces[1] == own, f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
            assert lines <= 60, f"{node.name} has {lines} lines"


def test_installed_packages_are_the_folders() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    top = {f"vlm.{wing}": wing for wing in WINGS} | {"vlm": "vlm"}
    assert settings["package-dir"] == top
    folders = {path.parent.relative_to(ROOT).parts for path in FILES}
    assert all(len(parts) <= 2 for parts in folders), "folders in a wing have none of their own"
    names = [".".join(parts if parts[0] == "vlm" else ("vlm", *parts)) for parts in folders]
    assert sorted(settings["packages"]) == sorted(names)
    for parts in folders:
        assert (ROOT.joinpath(*parts) / "__init__.py").exists(), f"{'/'.join(parts)} is no package"


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.split())


HEAVY = {"transformers", "timm", "open_clip", "lightning", "matplotlib", "sklearn", "peft"}


def test_importing_vlm_and_its_command_line_loads_nothing_heavy() -> None:
    assert not loaded_by("import vlm, vlm.cli") & (HEAVY | {"torch"})


def test_importing_parts_loads_no_model_library() -> None:
    modules = ", ".join(
        f"vlm.{path.parent.name}.{path.stem}" for path in FILES if path.parent.name in ("encoders", "connectors")
    )
    assert not loaded_by(f"import vlm.registry, {modules.replace('.__init__', '')}") & HEAVY


@pytest.mark.parametrize(
    "kind", ["encoders", "views", "merges", "connectors", "packers", "sources", "objectives", "optimisers"]
)
def test_every_registered_name_leads_to_a_part(kind: str) -> None:
    import vlm.registry

    entries = getattr(vlm.registry, kind)
    for name in entries:
        assert entries.get(name).__doc__, f"{name} has no docstring"
