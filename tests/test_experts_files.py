"""Files of experts: those of the user are not touched, two processes at once give whole ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch

from common.files import lock_of, locked, sha256_file
from common.marks import MARK
from tests.conftest import PROJECT

CE = ["--expert", "ce", "--epochs", "2", "--quiet"]
TAKEN = "must be a file that this suite wrote and nobody changed, or be moved away, got"


def run_two(place, script, flags):
    """Two processes that start while ``place`` is locked; their statuses, stdout and stderr."""
    command = [sys.executable, str(PROJECT / script), *map(str, flags)]
    with locked(lock_of(place)):
        pair = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        lines = [process.stderr.readline() for process in pair]
    found = [process.communicate(timeout=300) for process in pair]
    errors = [line + error for line, (_, error) in zip(lines, found, strict=True)]
    return [process.returncode for process in pair], [out for out, _ in found], errors


def waited(place):
    return f"warning: another process writes {place}: waiting until it ends\n"


def weights(path):
    return torch.load(path, weights_only=True)["model_state_dict"]


def published(path):
    """A checkpoint as the published scripts write it."""
    torch.save({"model_state_dict": {"fc.weight": torch.ones(2, 2)}, "epoch": 3}, path)
    return path.read_bytes()


@pytest.mark.parametrize("prefix", ["best_", "final_calibrated_", "last_"])
def test_a_checkpoint_of_the_user_is_neither_replaced_nor_deleted(lab, tmp_path, capsys, prefix):
    path = tmp_path / f"{prefix}ce_baseline.pth"
    before = published(path)
    assert lab.train(tmp_path, *CE) == 2
    assert capsys.readouterr().err == f"error: {path}: {TAKEN} another file (--force replaces it)\n"
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_force_replaces_a_checkpoint_of_the_user(lab, tmp_path):
    published(tmp_path / "best_ce_baseline.pth")
    assert lab.train(tmp_path, *CE, "--force") == 0
    for key, value in weights(lab.folder / "best_ce_baseline.pth").items():
        assert torch.equal(value, weights(tmp_path / "best_ce_baseline.pth")[key]), key


def test_the_first_stage_is_asked_for_only_where_it_is_trained(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path)
    path = mine.folder / "stage1_decoupling_twostage.pth"
    (mine.folder / "best_decoupling_twostage.pth").unlink()
    before = published(path)
    flags = ["--expert", "decoupling", "--epochs", "1", "--stage2-epochs", "1", "--quiet"]
    assert mine.train(mine.folder, *flags) == 2
    assert f"{path}: {TAKEN} another file" in capsys.readouterr().err
    assert mine.train(mine.folder, *flags, "--stage1-from", "ce") == 0
    assert path.read_bytes() == before


def test_checkpoints_that_are_kept_may_be_anyone_s(lab, tmp_path):
    """Whole checkpoints of another place are used, and nothing is written."""
    for prefix in ("best_", "final_calibrated_"):
        shutil.copy(lab.folder / f"{prefix}ce_baseline.pth", tmp_path)
    assert lab.train(tmp_path, *CE) == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoints_of_an_earlier_version_are_known_by_their_content(lab, tmp_path):
    shutil.copy(lab.folder / "best_ce_baseline.pth", tmp_path)
    assert lab.train(tmp_path, *CE) == 0
    listed = json.loads((tmp_path / MARK).read_text())["files"]
    for name in ("best_ce_baseline.pth", "final_calibrated_ce_baseline.pth"):
        assert listed[name] == sha256_file(tmp_path / name)


def test_an_expert_that_the_user_changed_is_the_user_s(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path)
    path = mine.folder / "best_ce_baseline.pth"
    torch.save({**torch.load(path, weights_only=True), "mine": 1}, path)
    (mine.folder / "final_calibrated_ce_baseline.pth").unlink()
    assert mine.train(mine.folder, *CE) == 2
    assert f"{path}: {TAKEN} another file" in capsys.readouterr().err


def test_links_are_not_followed(lab, tmp_path, capsys):
    folder, other, link = tmp_path / "e", tmp_path / "other", tmp_path / "link"
    folder.mkdir()
    before = published(other)
    (folder / "best_ce_baseline.pth").symlink_to(other)
    assert lab.train(folder, *CE) == 2
    assert f"best_ce_baseline.pth: {TAKEN} a symbolic link (--force" in capsys.readouterr().err
    link.symlink_to(folder)
    assert lab.train(link, *CE) == 2
    wanted = f"error: {link}: must be a folder or new, got a symbolic link (--force replaces it)\n"
    assert capsys.readouterr().err == wanted
    assert lab.train(link, *CE, "--force") == 0
    assert not link.is_symlink()
    assert (link / "best_ce_baseline.pth").is_file()
    assert [path.name for path in folder.iterdir()] == ["best_ce_baseline.pth"]
    assert other.read_bytes() == before


def test_a_folder_in_place_of_a_checkpoint_is_refused_with_force_too(lab, tmp_path, capsys):
    (tmp_path / "best_ce_baseline.pth").mkdir()
    assert lab.train(tmp_path, *CE, "--force") == 2
    assert f"best_ce_baseline.pth: {TAKEN} a folder\n" in capsys.readouterr().err


def test_two_trainings_at_once_leave_one_whole_expert(lab, tmp_path):
    place = tmp_path / "ce_baseline"
    flags = ["--splits-dir", lab.splits, "--output-dir", tmp_path, *CE[:4]]
    statuses, outs, errors = run_two(place, "train_experts.py", flags)
    assert statuses == [0, 0]
    assert all(error.startswith(waited(place)) for error in errors)
    assert sorted("ce_baseline: kept" in out for out in outs) == [False, True]
    names = ["best_ce_baseline.pth", "final_calibrated_ce_baseline.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK, *names]
    for name in names:
        for key, value in weights(lab.folder / name).items():
            assert torch.equal(value, weights(tmp_path / name)[key]), (name, key)
