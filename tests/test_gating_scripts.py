"""train_gating.py and train_argse.py on made-up logits: files, repetition, and every bad input."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import create_splits_fixed
import train_argse
import train_gating
from common.files import sha256_file
from experts.selective import fit_rule
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
        return self.root / f"{SLUG}_splits_fixed"

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

    def side(self, expert: str, split: str, /, **changes: object) -> None:
        """Write the side file of logits; None leaves an entry out."""
        path = npz_path(self.logits, expert, split)
        content: dict[str, object] = {"npz_sha256": sha256_file(path), "expert": expert}
        content |= {"split": split, "slug": SLUG, **changes}
        known = {key: value for key, value in content.items() if value is not None}
        side_path(path).write_text(json.dumps(known))

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
    assert len(curves) == 2 * rules * (50 + 21)
    for row in summary:
        for risk in ("overall", "balanced", "worst"):
            value = float(row[f"aurc_{risk}_from_0"])
            low, high = (float(row[f"aurc_{risk}_from_0_{end}"]) for end in ("low", "high"))
            assert 0 <= low <= value <= high <= 1
    assert {"risk_coverage.png", "accepted_by_group.png"} <= set(before)
    record = json.loads((folder / "selective_summary.json").read_text())
    assert record["experts"] == list(EXPERTS)
    assert len(record["rules"]) == 2 * rules
    stored = torch.load(next((case.root / "rule").glob("*.ckpt")), weights_only=True)
    assert record["saved_rule"] == stored["rule"]


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


@pytest.mark.parametrize("coverage", ["0.6", "1"])
def test_an_applied_rule_does_what_its_row_of_the_table_says(coverage, case):
    assert case.selective("--coverage", coverage) == 0
    rule = case.root / "rule" / "gating_selective.ckpt"
    flags = ["--apply", str(rule), "--logits_dir", str(case.logits)]
    flags += ["--results_dir", str(case.root / "applied")]
    assert train_gating.main(flags) == 0
    (path,) = (case.root / "applied").glob(f"{SLUG}/gating_selective/applied_test.csv")
    found = rows_of(path)
    indices = json.loads((case.splits / "test_indices.json").read_text())
    assert [int(row["index"]) for row in found] == indices
    accepted = np.array([row["accepted"] == "1" for row in found])
    scores = np.array([float(row["score"]) for row in found])
    targets = read_npz(npz_path(case.logits, EXPERTS[0], "test"))["targets"]
    wrong = np.array([int(row["prediction"]) for row in found]) != targets
    table = rows_of(case.results / SLUG / "gating_selective" / "selective_summary.csv")
    row = next(row for row in table if (row["rule"], row["mixture"]) == ("plug-in", "gate"))
    assert float(row["coverage"]) == accepted.mean()
    assert float(row["risk_overall"]) == pytest.approx(wrong[accepted].mean())
    if coverage == "1":
        assert accepted.all()
    else:
        assert scores[accepted].min() > scores[~accepted].max()
    assert train_argse.main([*flags, "--split", "tunev"]) == 0
    assert train_gating.main(["--apply", str(case.pretrained), *flags[2:]]) == 2


def test_a_gate_of_other_experts_is_not_replaced_unasked(case, capsys):
    other = ["--experts", "ce", "balsoftmax"]
    assert case.pretrain(*other) == 2
    text = "must be a gate of ce_baseline, balsoftmax_baseline or new, got that of ce_baseline, bal"
    assert text in capsys.readouterr().err
    assert case.pretrain(*other, "--force") == 0


def test_an_untrained_gate_weighs_all_experts_alike(case, capsys):
    assert case.pretrain("--lr", "0") == 0
    text = capsys.readouterr().out
    assert "no epoch was better than the start: the gate weighs all experts alike" in text
    rows = json.loads(case.pretrained.with_suffix(".json").read_text())["val"]
    assert rows["gate"]["nll"] == pytest.approx(rows["uniform"]["nll"], rel=1e-6)


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
    "flags",
    [
        ["--epochs", "3"],
        ["--batch_size", "8"],
        ["--lr", "0.01"],
        ["--weight_decay", "3"],
        ["--seed", "7"],
        ["--experts", "balsoftmax", "ce", "logitadjust"],
    ],
    ids=lambda flags: flags[0],
)
def test_every_flag_of_the_training_changes_the_gate(flags, case):
    before = torch.load(case.pretrained, weights_only=True)
    assert case.pretrain(*flags, "--force") == 0
    after = torch.load(case.pretrained, weights_only=True)
    assert before["notes"]["record"]["train"] != after["notes"]["record"]["train"]


@pytest.mark.parametrize(
    ("flags", "key"),
    [
        (["--coverage", "0.4"], "coverage"),
        (["--objective", "balanced"], "objective_on_val"),
        (["--groups", "3"], "groups"),
        (["--head_above", "50"], "groups"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_flag_of_the_rule_changes_it(flags, key, case):
    rules = []
    for given in ([], flags):
        assert case.selective("--coverage", "1", *given) == 0  # with errors, on which all depend
        path = case.root / "rule" / "gating_selective.ckpt"
        rules.append(torch.load(path, weights_only=True)["rule"])
    assert rules[0][key] != rules[1][key]


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_are_the_fits_of_each_mixture(rounds, case, monkeypatch):
    fits: list[np.ndarray] = []

    def counted(*arguments, **options):
        fits.append(arguments[-1])
        return fit_rule(*arguments, **options)

    monkeypatch.setattr("experts.selective.fit_rule", counted)
    assert case.argse("--rounds", str(rounds), "--coverage", "1") == 0
    assert len(fits) == 2 * rounds
    assert all(weights.sum() == pytest.approx(1.0) for weights in fits)


def test_the_seed_changes_the_intervals_alone(case):
    tables = []
    for seed in ("1", "2"):
        assert case.selective("--seed", seed) == 0
        folder = case.results / SLUG / "gating_selective"
        tables.append(rows_of(folder / "selective_summary.csv"))
    different = {
        key for one, other in zip(*tables, strict=True) for key in one if one[key] != other[key]
    }
    assert different
    assert all(key.endswith(("_low", "_high")) for key in different)


def test_an_application_takes_the_short_names_of_experts(case, rule_file, tmp_path):
    flags = ["--apply", str(rule_file), "--logits_dir", str(case.logits)]
    flags += ["--results_dir", str(tmp_path / "out")]
    assert train_gating.main([*flags, "--experts", "ce", "balsoftmax", "logitadjust"]) == 0
    assert train_gating.main([*flags, "--experts", "balsoftmax", "ce", "logitadjust"]) == 2


def test_other_splits_than_those_of_the_gate_are_refused(case, capsys):
    damage_splits(case)
    assert case.selective() == 2
    assert "tunev must be as in the gate" in capsys.readouterr().err
    assert case.pretrain() == 1
    assert "check 12, Indices match split" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--coverage", "0"], "coverage must be above 0 and at most 1, got 0.0"),
        (["--coverage", "1.01"], "coverage must be above 0 and at most 1, got 1.01"),
        (["--coverage", "nan"], "coverage must be above 0 and at most 1, got nan"),
        (["--groups", "8"], "groups must be from 2 to 5 for 10 classes, got 8"),
        (["--groups", "1"], "groups must be from 2 to 5"),
        (
            ["--head_above", "500"],
            "every group must have at least 2 classes, got 0, 10 with head_above 500",
        ),
        (["--groups", "2", "--head_above", "9"], "head_above must be left out with groups, got 9"),
        (["--experts", "ce"], "experts must be as in the gate"),
        (["--experts", "ce", "ce", "ce"], "experts must differ"),
        (["--experts", *reversed(EXPERTS)], "experts must be as in the gate"),
        (["--experts", "nobody"], "logits of nobody must be in"),
        (["--gate", "nowhere.ckpt"], "train_gating.py --mode pretrain writes it"),
        (["--lr", "0.1"], "lr must be left out with --mode selective, got 0.1"),
        (["--split", "val"], "split must be left out without --apply, got val"),
        (["--seed", "-1"], "seed must be"),
        (["--ascii"], "got '--ascii'"),
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


@pytest.fixture(scope="module")
def rule_file(made) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experts.risk_coverage.BOOTSTRAPS", 2)
        folder = made.root / "whole"
        flags = ["--output_dir", str(folder), "--results_dir", str(folder)]
        assert made.selective(*flags) == 0
    return folder / "gating_selective.ckpt"


def of_rule(**changes: object) -> Callable[[dict], None]:
    return lambda content: content["rule"].update(changes)


def of_state(name: str, value: float) -> Callable[[dict], None]:
    return lambda content: content["state"][name].fill_(value)


def of_file(**changes: object) -> Callable[[dict], None]:
    return lambda content: content.update(changes)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (of_file(format="other"), "must be a gate of train_gating.py, got another file"),
        (of_file(version=0), "must be a gate of this version, got another; train it again"),
        (of_file(version=torch.zeros(2)), "must be a gate of this version"),
        (of_file(kind="other"), "impossible kind"),
        (of_file(slug="../x"), "impossible slug"),
        (of_file(slug=None), "impossible slug"),
        (of_file(num_classes=1), "impossible number of classes"),
        (of_file(num_classes=9), "impossible rule"),
        (of_file(experts=None), "impossible experts"),
        (of_file(experts=[1, 2, 3]), "impossible experts"),
        (of_file(experts=["a", "a", "b"]), "impossible experts"),
        (of_file(origins=None), "impossible origins"),
        (of_file(origins=[{}] * 3), "impossible origins"),
        (of_file(temperatures=[0.0] * 3), "impossible temperatures"),
        (of_file(temperatures=[float("nan")] * 3), "impossible temperatures"),
        (of_file(temperatures=["a"] * 3), "impossible temperatures"),
        (of_file(temperatures=[1.0] * 2), "impossible temperatures"),
        (of_file(state=None), "impossible tensors"),
        (of_file(state={"mean": torch.zeros(24)}), "impossible tensors"),
        (of_state("deviation", 0.0), "impossible tensors"),
        (of_state("layers.0.weight", float("nan")), "impossible tensors"),
        (of_file(rule={}), "impossible rule"),
        (of_file(rule="a"), "impossible rule"),
        (of_rule(alpha=[0.0, 1.0]), "impossible rule"),
        (of_rule(alpha=[1.0]), "impossible rule"),
        (of_rule(alpha=[float("nan"), 1.0]), "impossible rule"),
        (of_rule(mu=[0.0, 0.0, 0.0]), "impossible rule"),
        (of_rule(mu=[float("inf"), 0.0]), "impossible rule"),
        (of_rule(threshold=float("nan")), "impossible rule"),
        (of_rule(threshold=float("inf")), "impossible rule"),
        (of_rule(threshold="x"), "impossible rule"),
        (of_rule(groups=[0] * 9 + [-1]), "impossible rule"),
        (of_rule(groups=[0] * 9 + [7]), "impossible rule"),
        (of_rule(groups=[0, 1]), "impossible rule"),
    ],
)
def test_a_tampered_file_is_refused_in_one_line(change, text, rule_file, tmp_path, capsys):
    content = torch.load(rule_file, weights_only=True)
    change(content)
    path = tmp_path / "bad.ckpt"
    torch.save(content, path)
    logits = str(rule_file.parents[1] / "logits")
    flags = ["--apply", str(path), "--logits_dir", logits, "--results_dir", str(tmp_path / "out")]
    assert train_gating.main(flags) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert text in error
    assert not (tmp_path / "out").exists()


def test_a_truncated_gate_is_one_line(case, capsys):
    content = case.pretrained.read_bytes()
    case.pretrained.write_bytes(content[: len(content) // 2])
    assert case.selective() == 2
    assert "must be a whole torch.save file" in capsys.readouterr().err


def swapped(case: Case) -> None:
    for expert, other in (EXPERTS[:2], EXPERTS[1::-1]):
        case.side(expert, "test", expert=other)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda case: case.side(EXPERTS[0], "test", npz_sha256="0"), "another npz_sha256"),
        (lambda case: case.side(EXPERTS[0], "test", split="val"), "another split"),
        (lambda case: case.side(EXPERTS[0], "test", slug="other"), "another slug"),
        (lambda case: case.side(EXPERTS[0], "test", expert=None), "another expert"),
        (swapped, "another expert"),
        (lambda case: case.change(EXPERTS[0], "test", indices=np.arange(5)), "hold indices (N,)"),
        (lambda case: case.change(EXPERTS[0], "test", indices=np.arange(400)), "have the indices"),
        (lambda case: case.change(EXPERTS[0], "test", targets=np.ones(400)), "hold targets (N,)"),
        (lambda case: case.change(EXPERTS[0], "test", logits=np.zeros((400, 9))), "(N, 10)"),
        (lambda case: case.change(EXPERTS[0], "test", logits=np.full((400, 10), 1e99)), "ordinary"),
    ],
)
def test_logits_that_do_not_fit_are_refused_by_an_application(
    damage, text, case, rule_file, tmp_path, capsys
):
    damage(case)
    flags = ["--apply", str(rule_file), "--logits_dir", str(case.logits)]
    assert train_gating.main([*flags, "--results_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert text in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("split", "group"), [("tunev", "tail"), ("val", "head"), ("test", "tail")])
def test_a_split_without_a_group_is_refused(split, group, case, capsys):
    label = {"tail": 0, "head": 9}[group]
    targets = np.full({"test": 400}.get(split, 50), label)
    (case.splits / "split_info.json").unlink()
    for expert in EXPERTS:
        logits = read_npz(npz_path(case.logits, expert, split))["logits"].copy()
        logits[np.arange(len(logits)) % 3 > 0, label] += 20
        case.change(expert, split, logits=logits, targets=targets, predictions=logits.argmax(1))
    assert case.selective("--against_data", "no") == 2  # no such flag
    assert case.selective() == 2
    error = capsys.readouterr().err.strip()
    assert f"{split} must have samples of every group, got none of {group}" in error
    assert not case.results.exists()


def test_a_gate_whose_loss_is_not_finite_is_told(case, capsys):
    assert case.pretrain("--lr", "1e30") == 1
    assert "loss of the gate must be finite, got" in capsys.readouterr().err


def test_force_replaces_a_link_and_not_what_it_leads_to(case, tmp_path):
    mine, link = tmp_path / "mine", tmp_path / "link"
    mine.mkdir()
    (mine / "gating_pretrained.ckpt").write_text("user")
    link.symlink_to(mine)
    assert case.pretrain("--output_dir", str(link)) == 2
    assert case.pretrain("--output_dir", str(link), "--force") == 0
    assert (mine / "gating_pretrained.ckpt").read_text() == "user"
    assert not link.is_symlink()


def test_a_rule_in_the_place_of_a_gate_is_kept(case, rule_file):
    folder = case.root / "copy"
    folder.mkdir()
    shutil.copy(rule_file, folder / "gating_pretrained.ckpt")
    assert case.pretrain("--output_dir", str(folder)) == 2


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
