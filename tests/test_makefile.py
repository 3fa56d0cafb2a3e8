"""make clean keeps the results; make distclean deletes them for a yes from a terminal."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def project(tmp_path):
    """A folder with the Makefile, results, and what can be made again."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    for name in ("outputs/rtn/__pycache__", ".venv", "common/__pycache__", ".ruff_cache"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    return tmp_path


def make(project, goal, stdin=subprocess.DEVNULL):
    command = ["make", "--no-print-directory", "-C", str(project), goal]
    return subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False)


def at_terminal(project, goal, typed):
    """Run make with ``typed`` coming from a terminal."""
    master, slave = pty.openpty()
    try:
        os.write(master, f"{typed}\n".encode())
        return make(project, goal, slave)
    finally:
        os.close(master)
        os.close(slave)


def left(project):
    return sorted(path.name for path in project.iterdir())


def test_clean_keeps_the_results(project):
    assert make(project, "clean").returncode == 0
    assert left(project) == ["Makefile", "common", "outputs"]
    assert not (project / "common" / "__pycache__").exists()
    assert (project / "outputs" / "rtn" / "__pycache__" / "file").is_file()


def test_distclean_deletes_the_results_for_a_yes(project):
    found = at_terminal(project, "distclean", "yes")
    assert found.returncode == 0
    assert "deletes outputs/ with all results; type yes to go on" in found.stdout
    assert left(project) == ["Makefile", "common"]


@pytest.mark.parametrize("typed", ["", "y", "no"])
def test_distclean_deletes_nothing_for_another_word(project, typed):
    before = left(project)
    found = at_terminal(project, "distclean", typed)
    assert found.returncode == 2
    assert "distclean: nothing was deleted" in found.stderr
    assert left(project) == before


def test_distclean_deletes_nothing_without_a_terminal(project, tmp_path):
    before = left(project)
    assert make(project, "distclean").returncode == 2
    (answer := tmp_path.parent / "answer").write_text("yes\n")
    with answer.open() as handle:
        found = make(project, "distclean", handle)
    assert found.returncode == 2
    assert "distclean: yes must come from a terminal; nothing was deleted" in found.stderr
    assert left(project) == before
