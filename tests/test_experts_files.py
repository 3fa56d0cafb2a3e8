"""Files of experts: those of the user are not touched, two processes at once give whole ones."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import create_splits_fixed
from common.errors import InputError
from common.files import lock_of, locked, sha256_file
from common.marks import MARK
from experts.checkpoints import load_expert
from experts.splits import SPLITS
from experts.stored_splits import check_indices, read_splits
from logits_io.npz import npz_path, read_side, side_path
from tests.script_process import ScriptProcess

CE = ["--expert", "ce", "--epochs", "2", "--quiet"]
TAKEN = "must be a file that this suite wrote and nobody changed, or be moved away, got"


def run_two(place, script, flags, folder):
    """Two processes that start while ``place`` is locked; their statuses, stdout and stderr."""
    with locked(lock_of(place)):
        pair = [ScriptProcess(script, flags, folder) for _ in range(2)]
        for process in pair:
            process.wait_for(waited(place))
    statuses = [process.wait() for process in pair]
    outs = [process.out.read_text() for process in pair]
    return statuses, outs, [process.err.read_text() for process in pair]


@pytest.fixture
def streams(tmp_path_factory):
    """A folder for the output of processes."""
    return tmp_path_factory.mktemp("streams")


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
    assert lab.train(tmp_path, *CE[:2], "--epochs", "1", "--no-calibrate", "--force") == 0
    found = weights(tmp_path / "best_ce_baseline.pth")
    assert found.keys() == weights(lab.folder / "best_ce_baseline.pth").keys()


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


@pytest.mark.slow
def test_two_trainings_at_once_leave_one_whole_expert(lab, tmp_path, streams):
    place = tmp_path / "ce_baseline"
    flags = ["--splits-dir", lab.splits, "--output-dir", tmp_path, *CE[:4]]
    statuses, outs, errors = run_two(place, "train_experts", flags, streams)
    assert statuses == [0, 0]
    assert all(error.startswith(waited(place)) for error in errors)
    assert sorted("ce_baseline: kept" in out for out in outs) == [False, True]
    names = ["best_ce_baseline.pth", "final_calibrated_ce_baseline.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [MARK, *names]
    for name in names:
        for key, value in weights(lab.folder / name).items():
            assert torch.equal(value, weights(tmp_path / name)[key]), (name, key)


VAL = ["--experts", "ce", "--splits", "val", "--quiet"]


@pytest.fixture
def val_logits(lab, tmp_path):
    """The npz file of an expert's logits on ``val``."""
    assert lab.recompute(tmp_path, *VAL) == 0
    return npz_path(tmp_path, "ce_baseline", "val")


@pytest.mark.parametrize("name", ["val_logits.npz", "val_logits.meta.json"])
def test_logits_of_the_user_are_not_replaced(lab, tmp_path, capsys, name):
    folder = tmp_path / "ce_baseline"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    assert lab.recompute(tmp_path, *VAL) == 2
    wanted = f"error: {folder / name}: {TAKEN} another file (--force replaces it)\n"
    assert capsys.readouterr().err == wanted
    assert [path.name for path in folder.iterdir()] == [name]
    assert lab.recompute(tmp_path, *VAL, "--force") == 0
    assert read_side(npz_path(tmp_path, "ce_baseline", "val"))["split"] == "val"


def test_logits_are_known_by_list_and_by_content(lab, val_logits, capsys):
    folder = val_logits.parent
    listed = json.loads((folder / MARK).read_text())["files"]
    assert listed == {path.name: sha256_file(path) for path in (val_logits, side_path(val_logits))}
    assert lab.recompute(folder.parent, *VAL) == 0
    (folder / MARK).unlink()
    assert lab.recompute(folder.parent, *VAL) == 0
    np.savez(val_logits, logits=np.zeros(3))
    capsys.readouterr()
    assert lab.recompute(folder.parent, *VAL) == 2
    assert capsys.readouterr().err.startswith(f"error: {val_logits}: {TAKEN} another file")


def test_links_in_place_of_logits_are_not_followed(lab, val_logits, tmp_path, capsys):
    folder, before = val_logits.parent, val_logits.read_bytes()
    other = tmp_path / "other"
    folder.rename(other)
    folder.symlink_to(other)
    assert lab.recompute(tmp_path, *VAL) == 2
    wanted = (
        f"error: {folder}: must be a folder or new, got a symbolic link (--force replaces it)\n"
    )
    assert capsys.readouterr().err == wanted
    calibrated = ["--checkpoint-prefix", "final_calibrated_", "--force"]
    assert lab.recompute(tmp_path, *VAL, *calibrated) == 0
    assert not folder.is_symlink()
    assert (other / val_logits.name).read_bytes() == before != val_logits.read_bytes()


def test_csv_logits_do_not_go_into_a_folder_of_the_user(lab, tmp_path, capsys):
    folder = tmp_path / "ce_baseline" / "val_csv"
    (folder / "mine").mkdir(parents=True)
    assert lab.recompute(tmp_path, *VAL, "--csv") == 2
    assert f"{folder}: must be a folder of logits or new" in capsys.readouterr().err
    assert not npz_path(tmp_path, "ce_baseline", "val").exists()


def test_missing_experts_are_not_trained_over_files_of_the_user(lab, tmp_path, capsys):
    path = tmp_path / "e" / "digits_lt_if10" / "final_calibrated_ce_baseline.pth"
    path.parent.mkdir(parents=True)
    before = published(path)
    flags = [*VAL, "--experts-dir", str(tmp_path / "e"), "--train-experts", "--train-epochs", "1"]
    assert lab.recompute(tmp_path / "o", *flags) == 2
    assert f"error: {path}: {TAKEN} another file" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert not (tmp_path / "o").exists()


def test_two_computations_at_once_leave_whole_logits(lab, val_logits, tmp_path, streams):
    root = tmp_path / "o"
    where = ["--splits-dir", lab.splits, "--experts-dir", lab.experts, "--output-dir", root]
    place = root / "ce_baseline"
    statuses, _, errors = run_two(place, "recompute_logits", [*where, *VAL], streams)
    assert statuses == [0, 0]
    assert errors == [waited(root / "ce_baseline")] * 2
    path = npz_path(root, "ce_baseline", "val")
    assert path.read_bytes() == val_logits.read_bytes()
    assert read_side(path)["npz_sha256"] == sha256_file(path)
    names = [MARK, side_path(path).name, path.name]
    assert sorted(found.name for found in path.parent.iterdir()) == names
    assert [found.name for found in root.iterdir()] == ["ce_baseline"]


def test_two_draws_at_once_leave_whole_splits(tmp_path, streams):
    folder, alone = tmp_path / "s", tmp_path / "alone"
    flags = ["--dataset", "digits", "--output"]
    assert create_splits_fixed.main([*flags, str(alone)]) == 0
    statuses, outs, errors = run_two(folder, "create_splits_fixed", [*flags, folder], streams)
    assert statuses == [0, 0]
    assert errors == [waited(folder)] * 2
    assert sorted(f"already up to date: {folder}" in out for out in outs) == [False, True]
    for path in alone.glob("[!s]*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_split_files_of_the_user_are_not_replaced(tmp_path, capsys):
    folder = tmp_path / "s"
    flags = ["--dataset", "digits", "--output", str(folder)]
    folder.mkdir()
    (folder / "val_indices.json").symlink_to(tmp_path / "nowhere")
    assert create_splits_fixed.main(flags) == 2
    assert "val_indices.json must hold these splits, got others" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 1
    assert create_splits_fixed.main([*flags, "--force"]) == 0
    assert not (folder / "val_indices.json").is_symlink()
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "link").symlink_to(folder)
    assert create_splits_fixed.main([*flags[:-1], str(tmp_path / "link")]) == 2
    assert "link: must be a folder or new, got a symbolic link" in capsys.readouterr().err


def test_equal_splits_of_others_are_left_as_they_are(lab, tmp_path):
    """Files of the published scripts have no spaces at the same places."""
    mine = lab.copy(tmp_path)
    path = mine.splits / "val_indices.json"
    text = json.dumps(json.loads(path.read_text()))
    path.write_text(text)
    (mine.splits / "split_info.json").unlink()
    flags = ["--dataset", "digits", "--max-per-class", "60", "--output", str(mine.splits)]
    assert create_splits_fixed.main(flags) == 0
    assert path.read_text() == text
    assert read_splits(mine.splits, "digits").slug == "digits_lt_if10"


def damage(path, random):
    """Change bytes of a file at random: one, a block, or its end."""
    data = bytearray(path.read_bytes())
    place = random.randint(len(data))
    kind = random.randint(4)
    if kind == 0:
        data[place] ^= 1 << random.randint(8)
    elif kind == 1:
        data[place] = ord(random.choice(list("0123456789")))
    elif kind == 2:
        data[place : place + 16] = random.bytes(16)
    else:
        del data[place:]
    path.write_bytes(bytes(data))


def read_all_splits(folder):
    splits = read_splits(folder, "digits")
    sizes = {"train": 1297, "test": 500}
    return splits, check_indices(splits, SPLITS, sizes, allow_mismatch=False)


def read_weights(path):
    loaded = load_expert(path, 10)
    return loaded.metadata, {
        key: value.tolist() for key, value in loaded.expert.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["splits", "side", "checkpoint"])
def test_random_damage_is_an_error_or_changes_nothing(lab, val_logits, tmp_path, kind):
    mine = lab.copy(tmp_path / "lab")
    read, place, files = {
        "splits": (read_all_splits, mine.splits, sorted(mine.splits.iterdir())),
        "side": (read_side, val_logits, [side_path(val_logits)]),
        "checkpoint": (read_weights, mine.folder / "best_ce_baseline.pth", None),
    }[kind]
    files = files or [place]
    right = read(place)
    random = np.random.RandomState(0)
    refused = 0
    for number in range(40):
        path = files[number % len(files)]
        before = path.read_bytes()
        damage(path, random)
        try:
            assert read(place) == right, number
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        path.write_bytes(before)
    assert refused >= 20
    assert read(place) == right


def test_a_damaged_list_is_no_traceback(lab, val_logits, capsys):
    path, random = val_logits.parent / MARK, np.random.RandomState(0)
    before = path.read_bytes()
    for _ in range(10):
        damage(path, random)
        assert lab.recompute(val_logits.parents[1], *VAL, "--dry-run") in (0, 2)
        assert capsys.readouterr().err.count("\n") <= 1
        path.write_bytes(before)
