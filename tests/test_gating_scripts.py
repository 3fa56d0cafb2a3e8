"""train_gating.py and train_argse.py on made-up logits: files, repetition, and every bad input."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import create_splits_fixed
import train_argse
import train_gating
from common.files import sha256_file
from experts.splits import list_digest
from loaders import load_dataset
from loaders.transforms import Preprocess
from logits_io.npz import npz_path, read_npz, side_path, write_npz

EXPERTS = ("ce_baseline", "balsoftmax_baseline", "logitadjust_baseline")
SPLITS = ("val", "test", "tunev")
SLUG = "digits_lt_if10"


@dataclass(frozen=True)
class Case:
    """Splits and logits in a working folder."""

    root: Path

    @property
    def logits(self) -> Path:
        return self.root / "logits"

    @property
    def splits(self) -> Path:
        return self.root / "splits"

    @property
    def common(self) -> list[str]:
        return ["--logits_dir", str(self.logits), "--splits_dir", str(self.splits)]

    @property
    def pretrained(self) -> Path:
        return self.root / "gate" / "gating_pretrained.ckpt"

    def pretrain(self, *flags: str) -> int:
        return train_gating.main([*self.common, "--output_dir", str(self.root / "gate"), *flags])

    @property
    def fitting(self) -> list[str]:
        output = ["--output_dir", str(self.root / "rule"), "--results_dir", str(self.results)]
        return [*self.common, "--gate", str(self.pretrained), *output]

    @property
    def results(self) -> Path:
        return self.root / "results"

    def selective(self, *flags: str) -> int:
        return train_gating.main(["--mode", "selective", *self.fitting, *flags])

    def argse(self, *flags: str) -> int:
        return train_argse.main([*self.fitting, "--rounds", "3", *flags])

    def change(self, expert: str, split: str, **arrays: np.ndarray) -> None:
        path = npz_path(self.logits, expert, split)
        write_npz(path, {**read_npz(path), **arrays})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Case:
    """Three experts, each good at other classes, with a gate; tests write beside it."""
    case = Case(tmp_path_factory.mktemp("gating"))
    assert create_splits_fixed.main(["--dataset", "digits", "--output", str(case.splits)]) == 0
    labels = load_dataset("digits", None, Preprocess((0.0,) * 3, (1.0,) * 3)).val.labels
    for number, expert in enumerate(EXPERTS):
        for split in SPLITS:
            indices = json.loads((case.splits / f"{split}_indices.json").read_text())
            random = np.random.RandomState(len(split) + 10 * number)
            targets = labels[indices]
            logits = random.normal(0, 1, (len(indices), 10)).astype(np.float32)
            logits[np.arange(len(indices)), targets] += 3.5 - 0.4 * np.abs(targets - 4 * number)
            arrays = {"logits": logits, "targets": targets, "predictions": logits.argmax(1)}
            path = npz_path(case.logits, expert, split)
            write_npz(path, {**arrays, "indices": np.asarray(indices)})
    assert case.pretrain() == 0
    return case


@pytest.fixture
def case(made, tmp_path, monkeypatch) -> Case:
    monkeypatch.setattr("experts.risk_coverage.BOOTSTRAPS", 40)
    shutil.copytree(made.root, tmp_path, dirs_exist_ok=True)
    return Case(tmp_path)


def files_of(folder: Path) -> dict[str, str]:
    return {p.name: sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as handle:
        return list(csv.DictReader(handle))


def test_pretraining_says_how_the_gate_compares_and_repeats_itself(case, capsys):
    before = sha256_file(case.pretrained)
    assert case.pretrain() == 0
    assert sha256_file(case.pretrained) == before
    text = capsys.readouterr().out
    stored = torch.load(case.pretrained, weights_only=True)
    assert stored["experts"] == list(EXPERTS)
    assert list(stored["notes"]["val"]) == [*EXPERTS, "uniform", "mean of logits", "gate"]
    for key, better in stored["notes"]["beats_baselines"].items():
        row = stored["notes"]["val"]
        others = [row[name][key] for name in row if name != "gate"]
        own = row["gate"][key]
        assert better == (own > max(others) if key == "accuracy" else own < min(others))
        assert f"{'better' if better else 'not better'} by {key}" in text


@pytest.mark.parametrize("kind", ["selective", "argse"])
def test_a_rule_leaves_tables_figures_and_itself_with_the_same_bytes_each_time(case, kind):
    assert getattr(case, kind)() == 0
    before = files_of(case.results) | files_of(case.root / "rule")
    assert getattr(case, kind)() == 0
    assert files_of(case.results) | files_of(case.root / "rule") == before
    folder = next((case.results / SLUG).iterdir())
    rules = {"selective": 3, "argse": 4}[kind]
    summary = rows_of(folder / "selective_summary.csv")
    assert len(summary) == 2 * rules
    curves = rows_of(folder / "selective_curves.csv")
    assert len(curves) == 2 * rules * 21
    for row in summary:
        for risk in ("overall", "balanced", "worst"):
            value = float(row[f"aurc_{risk}_from_0"])
            low, high = (float(row[f"aurc_{risk}_from_0_{end}"]) for end in ("low", "high"))
            assert 0 <= low <= value <= high <= 1
    assert {"risk_coverage.png", "accepted_by_group.png"} <= set(before)
    record = json.loads((folder / "selective_summary.json").read_text())
    assert record["experts"] == list(EXPERTS)
    assert len(record["rules"]) == 2 * rules


def test_labels_of_test_change_no_parameter(case):
    assert case.selective() == 0
    rule = case.root / "rule" / "gating_selective.ckpt"
    table = case.results / SLUG / "gating_selective" / "selective_summary.csv"
    before, measured = sha256_file(rule), table.read_text()
    (case.splits / "split_info.json").unlink()  # it has a digest of the targets
    for expert in EXPERTS:
        targets = read_npz(npz_path(case.logits, expert, "test"))["targets"]
        case.change(expert, "test", targets=np.roll(targets, 10))
    flags = ["--results_dir", str(case.root / "other")]
    assert case.selective(*flags) == 0
    assert sha256_file(rule) == before
    slug = next((case.root / "other").iterdir())
    assert (slug / "gating_selective" / "selective_summary.csv").read_text() != measured


def test_an_applied_rule_says_what_it_says_in_the_measurement(case):
    assert case.selective("--coverage", "0.6") == 0
    rule = case.root / "rule" / "gating_selective.ckpt"
    flags = ["--apply", str(rule), "--logits_dir", str(case.logits)]
    flags += ["--results_dir", str(case.root / "applied")]
    assert train_gating.main([*flags, "--split", "tunev"]) == 0
    found = rows_of(case.root / "applied" / "applied_tunev.csv")
    indices = json.loads((case.splits / "tunev_indices.json").read_text())
    assert [int(row["index"]) for row in found] == indices
    accepted = np.array([int(row["accepted"]) for row in found])
    scores = np.array([float(row["score"]) for row in found])
    assert accepted.mean() == pytest.approx(0.6, abs=0.5 / len(found) + 1e-9)
    assert scores[accepted == 1].min() > scores[accepted == 0].max()
    assert train_argse.main(flags) == 0
    assert len(rows_of(case.root / "applied" / "applied_test.csv")) == 400
    assert train_gating.main(["--apply", str(case.pretrained), *flags[2:]]) == 2


def damage_nan(case: Case) -> None:
    logits = read_npz(npz_path(case.logits, EXPERTS[1], "val"))["logits"].copy()
    logits[3, 2] = np.nan
    case.change(EXPERTS[1], "val", logits=logits)


def damage_labels(case: Case) -> None:
    (case.splits / "split_info.json").unlink()
    targets = read_npz(npz_path(case.logits, EXPERTS[1], "val"))["targets"].copy()
    targets[0] = (targets[0] + 1) % 10
    case.change(EXPERTS[1], "val", targets=targets)


def damage_splits(case: Case) -> None:
    assert (
        create_splits_fixed.main(
            ["--dataset", "digits", "--seed", "7", "--output", str(case.root / "other")]
        )
        == 0
    )
    shutil.rmtree(case.splits)
    shutil.copytree(case.root / "other", case.splits)


def damage_other_split(case: Case) -> None:
    shutil.copy(
        npz_path(case.logits, EXPERTS[0], "val"), npz_path(case.logits, EXPERTS[0], "tunev")
    )


def damage_missing_file(case: Case) -> None:
    npz_path(case.logits, EXPERTS[2], "tunev").unlink()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_nan, "got a failure of check 7, No NaN or Inf values"),
        (damage_labels, "val: balsoftmax_baseline differ from ce_baseline"),
        (damage_splits, "check 12, Indices match split"),
        (damage_other_split, "check 12, Indices match split"),
        (damage_missing_file, "check 1, File present"),
    ],
)
@pytest.mark.parametrize("script", ["pretrain", "selective"])
def test_logits_that_fail_a_check_end_with_its_name(damage, text, script, case, capsys):
    damage(case)
    assert getattr(case, script)() == 1
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert text in error
    assert not case.results.exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--coverage", "0"], "coverage must be above 0 and at most 1, got 0.0"),
        (["--coverage", "1.01"], "coverage must be above 0 and at most 1, got 1.01"),
        (["--coverage", "nan"], "coverage must be above 0 and at most 1, got nan"),
        (["--groups", "8"], "every group must have at least 2 classes"),
        (["--groups", "1"], "every group must have at least 2 classes"),
        (["--threshold", "500"], "every group must have at least 2 classes, got 0, 10"),
        (["--groups", "2", "--threshold", "9"], "threshold must be left out with groups, got 9"),
        (["--experts", "ce"], "experts must be as in the gate"),
        (["--experts", "ce", "ce", "ce"], "experts must be as in the gate"),
        (["--experts", *reversed(EXPERTS)], "experts must be as in the gate"),
        (["--experts", "nobody"], "experts must be as in the gate"),
        (["--gate", "nowhere.ckpt"], "train_gating.py --mode pretrain writes it"),
        (["--lr", "0.1"], "lr must be left out with --mode selective, got 0.1"),
        (["--split", "val"], "split must be left out without --apply, got val"),
        (["--seed", "-1"], "seed must be"),
    ],
)
def test_wrong_usage_is_one_line_and_writes_nothing(flags, text, case, capsys):
    assert case.selective(*flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert text in error
    assert not case.results.exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--experts", "ce", "nobody"], "logits of nobody must be in"),
        (["--experts", "ce", "ce"], "experts must differ, got ce_baseline, ce_baseline"),
        (["--lr", "-1"], "lr must be at least 0 and finite, got -1.0"),
        (["--batch_size", "1"], "batch_size must be at least 2, got 1"),
        (["--epochs", "0"], "must be at least 1, got 0"),
        (["--coverage", "0.5"], "coverage must be left out with --mode pretrain, got 0.5"),
        (["--logits_dir", "nowhere"], "logits-dir must be a folder, got 'nowhere'"),
    ],
)
def test_wrong_usage_of_pretraining_is_one_line(flags, text, case, capsys):
    assert case.pretrain(*flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert text in error


def test_a_gate_of_logits_with_other_temperatures_is_refused(case, capsys):
    def write_sides(temperature: float) -> None:
        for expert in EXPERTS:
            for split in SPLITS:
                path = npz_path(case.logits, expert, split)
                side = {"npz_sha256": sha256_file(path), "temperature": temperature}
                indices = (case.splits / f"{split}_indices.json").read_text()
                side["indices_sha256"] = list_digest(json.loads(indices))
                side_path(path).write_text(json.dumps(side))

    write_sides(1.5)
    assert case.pretrain() == 0
    write_sides(2.0)
    assert case.selective() == 2
    assert "temperature of ce_baseline must be as in the gate" in capsys.readouterr().err


def test_a_damaged_gate_is_one_line(case, capsys):
    content = case.pretrained.read_bytes()
    case.pretrained.write_bytes(content[: len(content) // 2])
    assert case.selective() == 2
    torch.save({"format": "ptq-gate", "version": 1}, case.pretrained)
    assert case.selective() == 2
    stored = {"experts": ["a"], "state": {"mean": torch.zeros(3)}, "temperatures": [1.0]}
    stored |= {"kind": "x", "slug": "x", "num_classes": 10, "origins": [], "notes": {}}
    torch.save({"format": "ptq-gate", "version": 1, "rule": None, **stored}, case.pretrained)
    assert case.selective() == 2
    whole, keys, width = capsys.readouterr().err.strip().splitlines()
    assert "must be a whole torch.save file" in whole
    assert "must be a gate of train_gating.py, got another file" in keys
    assert "must hold a gate of 1 experts, got another" in width


def test_files_of_the_user_are_kept(case, capsys):
    case.pretrained.write_bytes(b"mine")
    assert case.pretrain() == 2
    assert case.pretrained.read_bytes() == b"mine"
    assert case.pretrain("--force") == 0
    table = case.results / SLUG / "gating_selective" / "selective_summary.csv"
    table.parent.mkdir(parents=True)
    table.write_text("mine")
    assert case.selective() == 2
    assert table.read_text() == "mine"
    assert not (case.root / "rule").exists()
    assert "selective_summary.csv" in capsys.readouterr().err
    assert case.selective("--force") == 0
