"""Training experts: what is written, kept, resumed and refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import train_experts
from common.marks import MARK
from experts import training
from experts.checkpoints import load_expert
from experts.stored_splits import read_splits
from tests.script_process import ScriptProcess

BEST_KEYS = {
    "format",
    "format_version",
    "model_state_dict",
    "expert_name",
    "loss_type",
    "stage",
    "arch",
    "dataset",
    "splits_sha256",
    "train_class_counts",
    "hparams",
    "seed",
    "epoch",
    "val_accuracy",
    "temperature",
    "calibration",
    "torch_version",
    "created_utc",
}
ONE_EPOCH = ["--expert", "ce", "--epochs", "1"]
NAMES = ("ce_baseline", "balsoftmax_baseline", "logitadjust_baseline", "decoupling_twostage")


def content(path):
    return torch.load(path, weights_only=True)


def weights(path):
    return content(path)["model_state_dict"]


def test_every_expert_leaves_its_checkpoints(lab):
    found = sorted(path.name for path in lab.folder.iterdir() if path.name != MARK)
    expected = [
        f"{prefix}{name}.pth" for prefix in ("best_", "final_calibrated_") for name in NAMES
    ]
    assert found == sorted([*expected, "stage1_decoupling_twostage.pth"])
    splits = read_splits(lab.splits, "digits")
    for path in lab.folder.glob("*.pth"):
        stored = content(path)
        assert set(stored) == BEST_KEYS
        assert len(stored["model_state_dict"]) == 201
        assert stored["dataset"]["slug"] == splits.slug
        assert stored["splits_sha256"]["val"] == splits.recorded("val", "indices_sha256")
        assert stored["train_class_counts"] == splits.counts
        assert 1 <= stored["epoch"] <= 2


def test_calibration_changes_the_temperature_alone(lab):
    best, final = (
        content(lab.folder / f"{p}ce_baseline.pth") for p in ("best_", "final_calibrated_")
    )
    assert (best["temperature"], best["calibration"]) == (1.0, None)
    assert final["stage"] == "final_calibrated"
    assert final["calibration"]["nll_after"] <= final["calibration"]["nll_before"]
    assert set(final["calibration"]) == {
        "split",
        "nll_before",
        "nll_after",
        "ece_before",
        "ece_after",
    }
    temperature = final["model_state_dict"].pop("temperature")
    assert temperature.shape == (1,)
    assert float(temperature) == pytest.approx(final["temperature"])
    for key, value in final["model_state_dict"].items():
        assert torch.equal(value, best["model_state_dict"][key])


def test_the_second_stage_changes_the_head_alone(lab):
    first = weights(lab.folder / "stage1_decoupling_twostage.pth")
    second = weights(lab.folder / "best_decoupling_twostage.pth")
    changed = {key for key in first if not torch.equal(first[key], second[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_the_same_command_gives_the_same_weights(lab, tmp_path):
    assert lab.train(tmp_path, "--expert", "ce", "--epochs", "2", "--no-calibrate") == 0
    again = weights(tmp_path / "best_ce_baseline.pth")
    for key, value in weights(lab.folder / "best_ce_baseline.pth").items():
        assert torch.equal(value, again[key]), key
    assert not (tmp_path / "final_calibrated_ce_baseline.pth").exists()


@pytest.mark.parametrize(
    ("flags", "stop"),
    [
        (["--expert", "ce", "--epochs", "2"], 1),
        (["--expert", "decoupling", "--epochs", "1", "--stage2-epochs", "2"], 2),
    ],
)
def test_an_interrupted_training_goes_on_to_the_same_weights(
    lab, tmp_path, monkeypatch, flags, stop
):
    """Interrupted in epoch ``stop`` + 1, counted over the stages."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert lab.train(whole, *flags) == 0
    epoch, epochs = training._Training._epoch, []

    def interrupted(self, *arguments):
        epochs.append(1)
        if len(epochs) > stop:
            raise KeyboardInterrupt
        return epoch(self, *arguments)

    monkeypatch.setattr(training._Training, "_epoch", interrupted)
    assert lab.train(cut, *flags) == 130
    monkeypatch.undo()
    assert list(cut.glob("last_*"))
    assert lab.train(cut, *flags, "--resume") == 0
    assert not list(cut.glob("last_*"))
    for path in whole.glob("*.pth"):
        other = weights(cut / path.name)
        for key, value in weights(path).items():
            assert torch.equal(value, other[key]), (path.name, key)


def test_resuming_with_other_settings_is_refused(lab, kept_progress, tmp_path, capsys):
    flags = [*ONE_EPOCH, "--keep-last"]
    shutil.copytree(kept_progress, tmp_path, dirs_exist_ok=True)
    assert (tmp_path / "last_ce_baseline.pth").is_file()
    before = (tmp_path / "best_ce_baseline.pth").read_bytes()
    assert lab.train(tmp_path, *flags, "--resume", "--lr", "0.01") == 1
    assert "last_ce_baseline.pth: hparams must be" in capsys.readouterr().err
    assert (tmp_path / "best_ce_baseline.pth").read_bytes() == before


def test_a_finished_expert_is_kept(lab, tmp_path, capsys):
    mine = lab.copy(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in mine.folder.iterdir()}
    assert mine.train(mine.folder, "--expert", "ce", "--epochs", "2") == 0
    captured = capsys.readouterr()
    assert "ce_baseline: kept" in captured.out
    assert captured.err == ""
    assert mine.train(mine.folder, "--expert", "ce", "--epochs", "3") == 0
    assert "was trained with other settings" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in mine.folder.iterdir()} == before
    assert mine.train(mine.folder, "--expert", "ce", "--epochs", "1", "--force") == 0
    assert content(mine.folder / "best_ce_baseline.pth")["epoch"] == 1


def test_a_backbone_is_taken_over(lab, tmp_path):
    mine = lab.copy(tmp_path)
    flags = ["--expert", "decoupling", "--stage1-from", "ce", "--stage2-epochs", "1", "--force"]
    assert mine.train(mine.folder, *flags) == 0
    taken = weights(mine.folder / "best_decoupling_twostage.pth")
    for key, value in weights(mine.folder / "best_ce_baseline.pth").items():
        assert torch.equal(value, taken[key]) or key.startswith("fc.")


def test_a_run_that_fails_leaves_the_former_expert(lab, tmp_path, monkeypatch):
    mine = lab.copy(tmp_path)
    before = {path.name: path.read_bytes() for path in mine.folder.glob("*ce_baseline*")}
    assert len(before) == 2
    make = training.make_loss

    def broken(kind, counts, tau):
        loss = make(kind, counts, tau)
        loss.shift += np.nan
        return loss

    monkeypatch.setattr(training, "make_loss", broken)
    assert mine.train(mine.folder, "--expert", "ce", "--epochs", "1", "--force") == 1
    assert {path.name: path.read_bytes() for path in mine.folder.glob("*ce_baseline*")} == before


def test_a_calibrated_expert_is_never_older_than_the_best(lab, tmp_path):
    mine = lab.copy(tmp_path)
    flags = ["--expert", "ce", "--epochs", "1", "--no-calibrate", "--force"]
    assert mine.train(mine.folder, *flags) == 0
    assert not (mine.folder / "final_calibrated_ce_baseline.pth").exists()


@pytest.fixture(scope="module")
def kept_progress(lab, tmp_path_factory) -> Path:
    """The folder of an expert trained for one epoch and its progress; tests must not change it."""
    folder = tmp_path_factory.mktemp("progress")
    assert lab.train(folder, *ONE_EPOCH, "--keep-last") == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 10**9},
        {"stage": 3},
        {"best": None},
        {"model_state_dict": {}},
        {"optimizer_state_dict": 3},
        {"rng_state": {}},
        {"best_state_dict": None},
    ],
)
def test_damaged_progress_is_refused(lab, kept_progress, tmp_path, capsys, change):
    shutil.copytree(kept_progress, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "last_ce_baseline.pth"
    torch.save({**content(path), **change}, path)
    (tmp_path / MARK).unlink()  # as in a folder of an earlier version
    assert lab.train(tmp_path, *ONE_EPOCH, "--keep-last", "--resume") == 1
    assert "last_ce_baseline.pth: " in capsys.readouterr().err


def test_every_flag_reaches_the_training(lab, tmp_path):
    flags = ["--epochs", "1", "--lr", "0.01", "--weight-decay", "0.5", "--dropout", "0.25"]
    flags += ["--batch-size", "50", "--tau", "1.5", "--seed", "3", "--calib-split", "tunev"]
    assert lab.train(tmp_path, "--expert", "logitadjust", *flags) == 0
    stored = content(tmp_path / "final_calibrated_logitadjust_baseline.pth")
    first = {"epochs": 1, "lr": 0.01, "weight_decay": 0.5, "dropout": 0.25, "batch_size": 50}
    assert stored["hparams"] == {"stage1": {**first, "milestones": [1]}, "tau": 1.5}
    assert (stored["seed"], stored["calibration"]["split"]) == (3, "tunev")
    assert stored["arch"]["dropout_rate"] == 0.25


def test_one_failure_leaves_the_others(lab, tmp_path, monkeypatch, capsys):
    make = training.make_loss

    def broken(kind, counts, tau):
        loss = make(kind, counts, tau)
        if kind == "ce":
            loss.shift += np.nan
        return loss

    monkeypatch.setattr(training, "make_loss", broken)
    assert lab.train(tmp_path, "--expert", "ce", "balsoftmax", "--epochs", "1") == 1
    captured = capsys.readouterr()
    assert "error: expert 'ce_baseline': loss must be finite, got nan in epoch 1" in captured.err
    assert "1 of 2 experts" in captured.out
    assert (tmp_path / "final_calibrated_balsoftmax_baseline.pth").is_file()
    assert not (tmp_path / "best_ce_baseline.pth").exists()


def test_a_plan_writes_nothing(lab, tmp_path, capsys):
    assert lab.train(tmp_path / "x", "--dry-run", "--epochs", "8") == 0
    out = capsys.readouterr().out
    assert "balsoftmax_baseline: 8 epochs, lr 0.05 (a tenth after 5, 7), weight decay 0.0005" in out
    assert "then the head: 30 epochs, lr 0.1 (cosine)" in out
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--epochs", "0"], "epochs must be from 1 to"),
        (["--lr", "nan"], "lr must be from"),
        (["--dropout", "1"], "dropout must be from 0 to 0.999"),
        (["--batch-size", "-1"], "batch_size must be from 1"),
        (["--tau", "-1"], "tau must be from 0"),
        (["--expert", "cee"], "got 'cee'; did you mean ce_baseline?"),
        (["--backbone", "vgg"], "backbone must be a known name, got 'vgg'"),
        (["--device", "tpu"], "device must be"),
        (["--seed", "-1"], "seed must be"),
        (["--expert", "ce", "--tau", "2"], "tau must be left out without logitadjust"),
        (["--expert", "ce", "--stage1-from", "ce"], "stage1_from must be left out without"),
        (["--expert", "ce", "--stage2-epochs", "3"], "stage2_epochs must be left out without"),
        (["--no-calibrate", "--calib-split", "tunev"], "calib_split must be left out with"),
        (["--dataset", "cifar10"], "must hold splits of cifar10, got those of digits"),
    ],
)
def test_bad_requests_are_one_line(lab, tmp_path, capsys, flags, text):
    assert lab.train(tmp_path / "x", *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert text in captured.err
    assert not (tmp_path / "x").exists()


def test_splits_must_be_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_experts.main(["--dataset", "digits"]) == 2
    assert "python3 create_splits_fixed.py --dataset digits" in capsys.readouterr().err


def test_digits_needs_no_torchvision(lab, tmp_path):
    where = ["--splits-dir", lab.splits]
    training = ["--output-dir", tmp_path / "e/digits_lt_if10", "--expert", "ce", "--epochs", "1"]
    logits = ["--experts-dir", tmp_path / "e", "--experts", "ce", "--output-dir", tmp_path / "o"]
    for script, flags in (("train_experts", training), ("recompute_logits", logits)):
        folder = tmp_path / "streams"
        process = ScriptProcess(script, [*where, *flags], folder, without=["torchvision"])
        assert process.wait() == 0, process.err.read_text()
    assert (tmp_path / "o" / "ce_baseline" / "val_logits.npz").is_file()


def test_loaded_experts_are_in_evaluation_form(lab):
    loaded = load_expert(lab.folder / "best_ce_baseline.pth", 10)
    assert not loaded.expert.training
    assert loaded.tensors == 201
    assert loaded.metadata["expert_name"] == "ce_baseline"
