"""The import direction of the house, by parsing every import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

LAYER = {
    "common": 1,
    "files": 1,
    "rowwise": 1,
    "remote": 1,
    "metrics": 1,
    "cli": 1,
    "quant": 2,
    "correction": 2,
    "logits_io": 2,
    "loaders": 3,
    "models": 3,
    "evaluation": 3,
    "plots": 3,
    "logits_plots": 3,
    "quantization_log": 3,
    "reporting": 4,
    "recipes": 2,
    "job": 4,
    "experts": 5,
    "any_precision": 5,
    "summary": 5,
    "bitwidth_settings": 4,
    "bitwidth_sweep": 5,
    "sweeps": 5,
    "export": 5,
    "inference": 4,
    "pipeline": 6,
}
FORBIDDEN_LIBRARIES = {
    "correction": {"torch", "torchvision"},
    "logits_io": {"torch", "torchvision", "sklearn"},
    "quant": {"sklearn", "pandas", "torchvision"},
}
SCRIPT_LAYER = 7
NOT_LIBRARY = {".venv", "tests", "outputs", "data"}


def project_files() -> list[Path]:
    return [p for p in PROJECT.rglob("*.py") if p.relative_to(PROJECT).parts[0] not in NOT_LIBRARY]


def owner(path: Path) -> str:
    return path.relative_to(PROJECT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


SCRIPTS = {owner(path) for path in project_files()} - set(LAYER)


@pytest.mark.parametrize("path", project_files(), ids=lambda p: p.relative_to(PROJECT).as_posix())
def test_a_file_imports_only_what_lies_below_it(path: Path):
    me = owner(path)
    mine = LAYER.get(me, SCRIPT_LAYER)
    for name in imported(path) - {me}:
        assert name not in SCRIPTS, f"{path.name} imports the script {name}"
        if name in LAYER:
            level = LAYER[name]
            siblings = mine == level and mine in (1, 3)
            assert level < mine or siblings, f"{path.name} ({me}) must not import {name}"
        assert name not in FORBIDDEN_LIBRARIES.get(me, set()), f"{me} must not import {name}"


def test_loaders_never_import_models():
    for path in (PROJECT / "loaders").glob("*.py"):
        assert "models" not in imported(path)


def test_logits_io_starts_without_torch_and_sklearn():
    code = "import sys, logits_io; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert result.stdout.strip() == "[]"


def test_no_path_of_a_machine_is_in_the_sources():
    for path in project_files():
        text = path.read_text()
        assert "/ho" + "me/" not in text
        assert "/Us" + "ers/" not in text
