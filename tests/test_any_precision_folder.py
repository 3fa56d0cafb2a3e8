"""The folder of a training run: killed, resumed, repeated, shared, damaged, and the user's."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import train_any_precision
from any_precision import training
from common.files import lock_of, locked
from common.marks import MARK
from common.sealed import read_record, write_record
from tests.script_process import ScriptProcess
from train_any_precision import main

FLAGS = ["--epochs", "2", "--num_test_configs", "1", "--num_bitwidths", "1", "--gpu", "-1"]
TABLES = ("bitwidth_history.csv", "bitwidth_configs.csv")


@pytest.fixture(scope="module", autouse=True)
def few_images():
    """Few of the digits, so that an epoch takes a moment."""
    load = train_any_precision.load_images

    def load_few(config, download):
        images = load(config, download)
        parts = {"train": 64, "val": 32, "test": 32}
        few = {name: getattr(images, name).subset(range(n)) for name, n in parts.items()}
        return dataclasses.replace(images, **few)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_any_precision, "load_images", load_few)
        yield


def start(root: Path, *flags: str) -> int:
    return main([*FLAGS, "--experiments_dir", str(root), "--no_tensorboard", *flags])


def resume(folder: Path, *flags: str) -> int:
    return main([*FLAGS, "--no_tensorboard", "--resume", str(folder), *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    assert start(root, "--run_name", "whole") == 0
    return root / "whole"


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "whole"))


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="", encoding="utf-8") as handle:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(handle)]


def assert_same(folder: Path, finished: Path) -> None:
    """Tables without seconds, the best weights, and the summary are those of the other run."""
    for name in TABLES:
        assert rows(folder, name) == rows(finished, name)
    ours, theirs = (json.loads((p / "summary.json").read_text()) for p in (folder, finished))
    for key in (
        "status",
        "epochs",
        "best_acc",
        "best_epoch",
        "weights_digest",
        "test",
        "validation",
    ):
        assert ours[key] == theirs[key], key


def kill_in(monkeypatch, epoch: int) -> None:
    """Let training end in this epoch as a kill does: nothing is written behind it."""
    train = training.Trainer._train

    def killed(self, number):
        if number == epoch:
            raise MemoryError
        return train(self, number)

    monkeypatch.setattr(training.Trainer, "_train", killed)
    monkeypatch.setattr("any_precision.session.Session._write_summary", lambda self: None)


@pytest.mark.parametrize("again", ["resume folder", "resume checkpoint", "repeat"])
def test_a_run_killed_in_its_first_epoch_goes_on_or_starts_again(
    again, finished, tmp_path, monkeypatch
):
    folder = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        kill_in(patch, 0)
        start(tmp_path, "--run_name", "whole")
    assert (folder / "config.json").exists() and not (folder / "models/last_epoch.pth").exists()
    if again == "repeat":
        assert start(tmp_path, "--run_name", "whole") == 0
    else:
        last = folder / "models" / "last_epoch.pth"
        assert resume(folder if again == "resume folder" else last) == 0
    assert_same(folder, finished)


def test_another_configuration_is_refused_even_before_the_first_checkpoint(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        kill_in(patch, 0)
        start(tmp_path, "--run_name", "r")
    capsys.readouterr()
    assert resume(tmp_path / "r", "--seed", "7") == 2
    assert "config.json: seed must be 42 to resume, got 7" in capsys.readouterr().err


def test_a_real_kill_leaves_a_run_that_can_go_on(tmp_path):
    flags = [*FLAGS, "--experiments_dir", str(tmp_path), "--run_name", "whole"]
    process = ScriptProcess("train_any_precision", flags, tmp_path / "streams")
    folder = tmp_path / "whole"
    while not (folder / "config.json").exists():
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert resume(folder, "--tensorboard") == 0
    assert [row["epoch"] for row in rows(folder, TABLES[0])] == ["1", "2"]


@pytest.mark.parametrize("mode", ["final", "every_epoch"])
def test_resumed_after_its_end_nothing_doubles(mode, tmp_path):
    folder = tmp_path / "r"
    assert start(tmp_path, "--run_name", "r", "--test_mode", mode) == 0
    before = {name: rows(folder, name) for name in TABLES}
    summary = json.loads((folder / "summary.json").read_text())
    for _ in range(2):
        assert resume(folder, "--test_mode", mode) == 0
        assert {name: rows(folder, name) for name in TABLES} == before
    after = json.loads((folder / "summary.json").read_text())
    for key in ("validation", "epochs", "best_epoch", "weights_digest"):
        assert after[key] == summary[key]


def test_resumed_in_the_second_epoch_it_ends_as_if_uninterrupted(finished, tmp_path):
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        kill_in(patch, 1)
        start(tmp_path, "--run_name", "whole")
    with (tmp_path / "whole" / TABLES[0]).open("a") as handle:
        handle.write("2,0.5,0.")
    assert resume(tmp_path / "whole") == 0
    assert_same(tmp_path / "whole", finished)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a digit": lambda content: content.replace(b"0.", b"1.", 1),
    "zeros": lambda content: bytes(len(content)),
    "no text": lambda content: b"\xff\xfe" + content,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tables_and_summaries_are_written_again(damage, run, finished):
    for name in (*TABLES, "summary.json", "config.json", "config.yaml"):
        (run / name).write_bytes(DAMAGE[damage]((run / name).read_bytes()))
    assert resume(run, "--experiments_dir", str(finished.parent)) == 0
    assert_same(run, finished)
    for name in ("config.json", "config.yaml"):
        assert (run / name).read_bytes() == (finished / name).read_bytes()


def altered(path: Path, change: Callable[[dict], object]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


BROKEN = {
    "last_epoch.pth": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "a flipped byte": lambda path: path.write_bytes(
        path.read_bytes()[:40_000] + b"\x77\x77" + path.read_bytes()[40_002:]
    ),
    "no config": lambda path: altered(path, lambda content: content.pop("config")),
    "foreign config": lambda path: altered(path, lambda c: c.update(config={"a": 1})),
    "a text for a number": lambda path: altered(path, lambda c: c["config"].update(batch_size="x")),
    "no tables": lambda path: altered(path, lambda content: content.pop("tables")),
    "tables of numbers": lambda path: altered(path, lambda c: c.update(tables={TABLES[0]: 3})),
    "a foreign table": lambda path: altered(path, lambda c: c.update(tables={"../x": "y"})),
    "no best": lambda path: altered(path, lambda c: c.update(best=[])),
    "no rng": lambda path: altered(path, lambda c: c.update(rng_state=torch.zeros(3))),
    "no optimizer": lambda path: altered(path, lambda c: c.update(optimizer_state_dict={"a": 1})),
    "an epoch of text": lambda path: altered(path, lambda c: c.update(epoch="2")),
    "a list": lambda path: torch.save([1, 2], path),
    "nothing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_checkpoint_is_one_line_and_nothing_is_written(what, run, capsys):
    BROKEN[what](run / "models" / "last_epoch.pth")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert resume(run) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert str(run) in error and "must" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_best_checkpoint_is_written_again_or_refused(run, finished, capsys):
    best, last = run / "models" / "best_model.pth", run / "models" / "last_epoch.pth"
    epoch = json.loads((run / "summary.json").read_text())["best_epoch"]
    best.write_bytes(b"damaged")
    if epoch == 2:  # the last epoch is the best one: its checkpoint holds the same
        assert resume(run) == 0
        assert_same(run, finished)
        altered(last, lambda content: content.update(best=[0.5, 1]))
        best.write_bytes(b"damaged")
    assert resume(run) == 2
    assert "best_model.pth: must hold tensors and plain values only" in capsys.readouterr().err
    altered(last, lambda content: content.update(best=[0.5, 7]))
    shutil.copy(last, best)
    assert resume(run) == 2
    error = capsys.readouterr().err
    assert "must be the checkpoint of epoch 7, got epoch 2 (--force without --resume" in error


def test_a_second_process_waits_and_says_so(tmp_path, capsys):
    folder = tmp_path / "r"
    held, release = threading.Event(), threading.Event()

    def hold():
        with locked(lock_of(folder)):
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    timer = threading.Timer(1, release.set)
    timer.start()
    assert start(tmp_path, "--run_name", "r", "--test_mode", "off", "--num_test_configs", "10") == 0
    holder.join()
    text = f"warning: another process writes {folder}: waiting until it ends\n"
    assert capsys.readouterr().err.count(text) == 1
    assert not lock_of(folder).exists()


def test_a_run_that_another_process_finished_meanwhile_is_not_overwritten(
    finished, tmp_path, monkeypatch, capsys
):
    """The folder is looked at again when the lock is there."""
    monkeypatch.setattr(
        "train_any_precision.run_path",
        lambda options, config: Path(shutil.copytree(finished, tmp_path / "whole")),
    )
    assert start(tmp_path, "--run_name", "whole") == 2
    assert "run_name must be new below" in capsys.readouterr().err
    assert_same(tmp_path / "whole", finished)


def test_default_names_differ(tmp_path):
    flags = ["--test_mode", "off", "--num_test_configs", "10", "--epochs", "1"]
    for _ in range(2):
        assert start(tmp_path, *flags) == 0
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2


FOREIGN = (
    "config.json",
    "bitwidth_history.csv",
    "models/best_model.pth",
    "logs/train_quantization.log",
    "plots/bitwidth_vs_accuracy_epoch002.png",
)


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_of_the_user_is_not_overwritten(name, run, finished, capsys):
    """The list of the folder does not have it."""
    place = (run / name).parent
    listed = read_record(place / MARK)
    listed["files"].pop((run / name).name)
    write_record(place / MARK, listed)
    if not name.startswith("models/"):
        (run / name).write_text("mine")
    content = (run / name).read_bytes()
    assert resume(run) == 2
    error = capsys.readouterr().err
    assert f"{run / name}: must be a file that this suite wrote" in error
    assert "--force replaces it" in error and error.count("\n") == 1
    assert (run / name).read_bytes() == content
    assert start(run.parent, "--run_name", run.name) == 2
    assert "must be" in capsys.readouterr().err
    (run / "notes.txt").write_text("mine")
    assert start(run.parent, "--run_name", run.name, "--force") == 0
    assert_same(run, finished)
    assert (run / "notes.txt").read_text() == "mine"


def test_a_folder_with_files_of_the_user_alone_is_taken(tmp_path, finished, capsys):
    folder = tmp_path / "whole"
    folder.mkdir()
    for name in ("config.json", "summary.json", "bitwidth_configs.csv"):
        (folder / name).write_text("mine")
        assert start(tmp_path, "--run_name", "whole") == 2
        assert "must be" in capsys.readouterr().err
        assert (folder / name).read_text() == "mine"
    assert resume(folder) == 2
    assert "resume must be the folder of a run" in capsys.readouterr().err
    assert start(tmp_path, "--run_name", "whole", "--force") == 0
    assert_same(folder, finished)


@pytest.mark.parametrize("part", ["", "models", "logs", "plots"])
def test_nothing_is_written_behind_a_link(part, run, finished, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    (run / part).rename(elsewhere)
    (run / part).symlink_to(elsewhere)
    before = {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    for arguments in (["--resume", str(run)], ["--run_name", run.name]):
        assert start(run.parent, *arguments) == 2
        error = capsys.readouterr().err
        assert "must be a folder or new, got a symbolic link (--force replaces it)" in error
        assert error.count("\n") == 1
    if part in ("", "models"):  # what is to be resumed is behind the link
        assert resume(run, "--force") == 2
        assert "must be a folder or new, got a symbolic link" in capsys.readouterr().err
    assert start(run.parent, "--run_name", run.name, "--force") == 0
    assert_same(run, finished)
    assert not (run / part).is_symlink()
    assert {path: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()} == before


def test_a_run_of_an_earlier_version_goes_on(run, finished):
    for path in run.rglob(MARK):
        path.unlink()
    assert resume(run) == 0
    assert_same(run, finished)
    assert (run / MARK).is_file() and (run / "models" / MARK).is_file()


def test_events_of_an_attempt_are_removed_when_it_is_repeated(tmp_path):
    flags = [*FLAGS, "--experiments_dir", str(tmp_path), "--run_name", "r"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(MemoryError):
        kill_in(patch, 0)
        main(flags)
    board = tmp_path / "r" / "tensorboard"
    first = set(board.glob("events*"))
    assert len(first) == 1
    (board / "notes.txt").write_text("mine")
    assert main(flags) == 0
    assert not first & set(board.glob("events*"))
    assert (board / "notes.txt").read_text() == "mine"
