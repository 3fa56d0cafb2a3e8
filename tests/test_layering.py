"""The import direction of the house, by parsing every import.

What stands on a floor imports only what stands below it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

# From the ground up; what is on no floor is a script or a tool, and nothing may import it.
FLOORS = (
    ("common",),
    ("evaluation",),
    ("correction", "loaders", "logits_io", "quant"),
    ("export", "models", "plots"),
    ("any_precision", "experts", "pipeline"),
    ("sweeps",),
)
QUANT_FLOORS = (
    ("arithmetic",),
    ("settings",),
    ("network",),
    ("distillation",),
    ("base",),
    ("registry",),
    ("bitwidth", "reconstruction"),
    ("methods",),
)
# Scripts that live in a package.
ENTRY_POINTS = ("correction/__main__.py", "quant/bitwidth/__main__.py")
FORBIDDEN_LIBRARIES = {
    "common": {"torch", "numpy", "pandas"},
    "correction": {"torch", "torchvision"},
    "logits_io": {"torch", "torchvision", "sklearn"},
    "quant": {"sklearn", "pandas", "torchvision", "matplotlib"},
}
NOT_LIBRARY = {".venv", "tests", "outputs", "data"}


def project_files() -> list[Path]:
    return [p for p in PROJECT.rglob("*.py") if p.relative_to(PROJECT).parts[0] not in NOT_LIBRARY]


def owner(path: Path) -> str:
    return path.relative_to(PROJECT).parts[0].removesuffix(".py")


def imported(path: Path, at_import: bool = False) -> set[str]:
    """The modules that a file imports; with ``at_import`` those alone that are imported with it."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
SCRIPTS = {owner(path) for path in project_files()} - set(FLOOR)


@pytest.mark.parametrize("path", project_files(), ids=lambda p: p.relative_to(PROJECT).as_posix())
def test_a_file_imports_only_what_lies_below_it(path: Path):
    me = owner(path)
    is_script = path.relative_to(PROJECT).as_posix() in ENTRY_POINTS
    mine = len(FLOORS) if is_script else FLOOR.get(me, len(FLOORS))
    for name in roots(imported(path)) - {me}:
        assert name not in SCRIPTS, f"{path.name} imports the script {name}"
        assert FLOOR.get(name, -1) < mine, f"{path.name} ({me}) must not import {name}"
    loaded = roots(imported(path, at_import=me == "common"))
    assert not loaded & FORBIDDEN_LIBRARIES.get(me, set())


def quant_modules() -> list[Path]:
    folder = PROJECT / "quant"
    entries = {PROJECT / name for name in ENTRY_POINTS}
    return [p for p in folder.rglob("*.py") if p not in entries and p != folder / "__init__.py"]


@pytest.mark.parametrize("path", quant_modules(), ids=lambda p: p.relative_to(PROJECT).as_posix())
def test_inside_quant_a_file_imports_only_what_lies_below_it(path: Path):
    floor = {room: number for number, rooms in enumerate(QUANT_FLOORS) for room in rooms}
    me = path.relative_to(PROJECT / "quant").parts[0].removesuffix(".py")
    parts = (name.split(".") for name in imported(path) if name.startswith("quant."))
    for name in {part[1] for part in parts} - {me}:
        assert name in floor, f"{path.name} must import from where a name is made, got quant.{name}"
        assert floor[name] < floor[me], f"{path.name} ({me}) must not import {name}"


def test_no_file_imports_itself_through_others():
    files = {module_name(path): path for path in project_files()}
    arrows = {name: imported(path) & set(files) - {name} for name, path in files.items()}
    while True:
        bottom = {name for name, above in arrows.items() if not above}
        if not bottom:
            break
        arrows = {name: above - bottom for name, above in arrows.items() if name not in bottom}
    assert not arrows, f"these import each other in a circle: {sorted(arrows)}"


def module_name(path: Path) -> str:
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


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
