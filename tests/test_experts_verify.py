"""verify_logits.py can say no: every kind of damage to experts' logits, on made-up ones."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import create_splits_fixed
import verify_logits
from common.files import sha256_file
from experts.splits import list_digest
from experts.verification import FileResult
from experts.verification_report import Verification, as_table
from loaders import load_dataset
from loaders.transforms import Preprocess
from logits_io.npz import npz_path, read_npz, side_path, write_npz
from tests.conftest import PROJECT

EXPERTS = ("balsoftmax_baseline", "ce_baseline")
SPLITS = ("val", "test", "tunev")


@pytest.fixture(scope="module")
def digits_labels() -> np.ndarray:
    return load_dataset("digits", None, Preprocess((0.0,) * 3, (1.0,) * 3)).val.labels


@pytest.fixture
def case(tmp_path, digits_labels):
    """Good logits of two experts on all splits."""
    splits = tmp_path / "splits"
    assert create_splits_fixed.main(["--dataset", "digits", "--output", str(splits)]) == 0
    root = tmp_path / "logits"
    for number, expert in enumerate(EXPERTS):
        for split in SPLITS:
            indices = json.loads((splits / f"{split}_indices.json").read_text())
            random = np.random.RandomState(number)
            targets = digits_labels[indices]
            logits = random.normal(0, 1, (len(indices), 10)).astype(np.float32)
            logits[np.arange(len(indices)), targets] += 3.0
            write(root, expert, split, logits, targets, indices)
    return Case(splits, root)


def write(root, expert, split, logits, targets, indices=None, **more) -> None:
    arrays = {
        "logits": logits,
        "targets": targets,
        "predictions": logits.argmax(1).astype(np.int64),
    }
    if indices is not None:
        arrays["indices"] = np.asarray(indices, dtype=np.int64)
    path = npz_path(root, expert, split)
    digest = write_npz(path, {**arrays, **more})
    side = {"indices_sha256": list_digest(indices or []), "npz_sha256": digest}
    side |= {"checkpoint_sha256": expert, "temperature_applied": False, "temperature": 1.0}
    side_path(path).write_text(json.dumps(side))


class Case:
    def __init__(self, splits: Path, root: Path):
        self.splits, self.root = splits, root

    def path(self, split: str = "val", expert: str = "ce_baseline") -> Path:
        return npz_path(self.root, expert, split)

    def change(self, edit, split: str = "val", expert: str = "ce_baseline") -> None:
        """Rewrite a file and the digest in its side file, so that only the edit is wrong."""
        path = self.path(split, expert)
        arrays = read_npz(path)
        edit(arrays)
        digest = write_npz(path, arrays)
        side = json.loads(side_path(path).read_text())
        side_path(path).write_text(json.dumps({**side, "npz_sha256": digest}))

    def verify(self, *flags: str) -> int:
        where = ["--logits-dir", str(self.root), "--splits-dir", str(self.splits)]
        return verify_logits.main([*where, *flags])

    def report(self, *flags: str) -> tuple[int, dict]:
        target = self.root.parent / "r.json"
        status = self.verify("--quiet", "--json", str(target), *flags)
        return status, json.loads(target.read_text())

    def failed(self, *flags: str) -> set[int]:
        """The checks that fail, of a verification that says no."""
        status, report = self.report(*flags)
        assert status == report["exit_code"] == 1
        return checks_of(report, "fail")


def checks_of(report: dict, status: str) -> set[int]:
    every = [check for file in report["files"] for check in file["checks"]]
    return {check["id"] for check in every + report["cross_checks"] if check["status"] == status}


def test_good_logits_pass(case, capsys):
    status, report = case.report()
    assert status == report["exit_code"] == 0
    assert capsys.readouterr().out == "VERIFICATION PASSED: 6 files, 0 failures, 0 warnings\n"
    assert case.verify() == 0
    out = capsys.readouterr().out
    assert out.startswith("Dataset: digits (the splits in ")
    for name in (
        "Shape consistency",
        "Predictions match argmax",
        "Accuracy reasonable (>60%)",
        "No NaN or Inf values",
        "Reweighted metrics computed correctly",
    ):
        assert out.count(f"✓ {name}") == 6
    for file in report["files"]:
        assert [check["id"] for check in file["checks"]] == list(range(1, 18))
        assert {check["status"] for check in file["checks"]} == {"pass"}
        metrics = file["metrics"]
        assert metrics["balanced"] == pytest.approx(metrics["accuracy"], abs=1e-12)
    assert report["groups"]["head"] == [0, 1, 2]
    assert set(report["best"]["balanced"]) == set(SPLITS)
    assert "SUMMARY: REWEIGHTED ACCURACY BY EXPERT AND SPLIT" in out
    assert "SUMMARY: BALANCED ACCURACY BY EXPERT AND SPLIT" in out


def set_nan(arrays):
    arrays["logits"][7, 2] = np.nan


def change_prediction(arrays):
    arrays["predictions"][3] = (arrays["predictions"][3] + 1) % 10


def remove_rows(arrays):
    for name in arrays:
        arrays[name] = arrays[name][:-10]


def permute_targets(arrays):
    arrays["targets"] = arrays["targets"][::-1].copy()


def drop_targets(arrays):
    del arrays["targets"]


def as_floats(arrays):
    arrays["targets"] = arrays["targets"].astype(np.float64)


def flatten(arrays):
    arrays["logits"] = arrays["logits"].ravel()


def nine_classes(arrays):
    arrays["logits"] = arrays["logits"][:, :9]


def wrong_target(arrays):
    arrays["targets"][0] = 10


def wrong_prediction(arrays):
    arrays["predictions"][0] = -1


def other_indices(arrays):
    arrays["indices"][:2] = arrays["indices"][1::-1]


def shuffled_classes(arrays):
    arrays["logits"] = np.roll(arrays["logits"], 1, axis=1)
    arrays["predictions"] = arrays["logits"].argmax(1)


def flat_class(arrays):
    arrays["logits"][:, 4] = -50.0
    arrays["predictions"] = arrays["logits"].argmax(1)


DAMAGE = {
    set_nan: {7},
    change_prediction: {10},
    remove_rows: {6, 11, 12, 18},
    permute_targets: {11, 14, 18},
    drop_targets: {2},
    as_floats: {3},
    flatten: {4},
    nine_classes: {5},
    wrong_target: {8, 11, 18},
    wrong_prediction: {9},
    other_indices: {12},
    shuffled_classes: {14},
    flat_class: {15},
}


@pytest.mark.parametrize("edit", DAMAGE, ids=lambda edit: edit.__name__)
def test_damage_is_found_and_named(case, edit, capsys):
    case.change(edit)
    assert case.failed() == DAMAGE[edit]
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith("VERIFICATION FAILED: ")
    assert "ce_baseline / val: ✗" in out
    assert "PASSED" not in out


def test_a_file_that_is_not_there_fails(case, capsys):
    case.path().unlink()
    assert case.failed() == {1}
    report = case.report()[1]
    missing = next(file for file in report["files"] if file["checks"][0]["status"] == "fail")
    assert {check["status"] for check in missing["checks"][1:]} == {"skipped"}
    assert missing["metrics"] is None
    case.verify()
    out = capsys.readouterr().out
    assert "- skipped: Predictions match argmax" in out
    assert "|         FAIL" in out


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


@pytest.mark.parametrize("content", [b"", b"PK\3\4nothing", b"\x93NUMPY", single_array()])
def test_files_that_cannot_be_read_fail(case, content):
    case.path().write_bytes(content)
    assert 1 in case.failed()


def test_pickled_arrays_are_not_unpickled(case):
    np.savez(case.path(), logits=np.array([{"a": 1}], dtype=object))
    assert 1 in case.failed()


def test_logits_of_older_splits_fail(case):
    """The targets are the same for every seed; only the indices tell."""
    flags = ["--dataset", "digits", "--output", str(case.splits), "--seed", "7", "--force"]
    assert create_splits_fixed.main(flags) == 0
    assert {12, 17} == case.failed()


def test_a_file_that_was_changed_later_fails(case):
    with case.path().open("ab") as handle:
        handle.write(b"\0")
    assert 17 in case.failed()


def test_another_checkpoint_on_one_split_fails(case):
    side = side_path(case.path())
    side.write_text(side.read_text().replace('"checkpoint_sha256": "ce', '"checkpoint_sha256": "x'))
    assert case.failed() == {20}


@pytest.mark.parametrize(
    ("key", "value"), [("split", "test"), ("slug", "x"), ("num_classes", 9), ("n", 49)]
)
def test_side_files_of_other_logits_fail(case, key, value, capsys):
    side = side_path(case.path())
    side.write_text(json.dumps({**json.loads(side.read_text()), key: value}))
    assert case.failed() == {17}
    assert f"the side file's {key} must be" in capsys.readouterr().out


def test_swapped_experts_are_a_warning(case):
    for split in SPLITS:
        for expert in EXPERTS:
            side = side_path(case.path(split, expert))
            other = EXPERTS[1 - EXPERTS.index(expert)]
            side.write_text(json.dumps({**json.loads(side.read_text()), "expert": other}))
    status, report = case.report()
    assert (status, checks_of(report, "warn")) == (0, {17})
    assert case.verify("--strict", "--quiet") == 1


def test_strict_names_its_warnings(case, capsys):
    side_path(case.path()).unlink()
    assert case.verify("--strict", "--quiet") == 1
    assert "ce_baseline / val: ⚠ Up to date [17]: no side file" in capsys.readouterr().out


def test_indices_that_were_changed_by_hand_fail(case):
    """Logits, indices and targets agree with the list; split_info.json does not."""
    path = case.splits / "val_indices.json"
    indices = json.loads(path.read_text())[::-1]
    path.write_text(json.dumps(indices))
    for expert in EXPERTS:
        arrays = read_npz(case.path("val", expert))
        logits, targets = arrays["logits"][::-1].copy(), arrays["targets"][::-1].copy()
        write(case.root, expert, "val", logits, targets, indices)
    assert 12 in case.failed()


def structured(arrays):
    arrays["indices"] = np.zeros(len(arrays["indices"]), dtype=[("a", int)])


def no_indices_but_floats(arrays):
    arrays["indices"] = arrays["indices"].astype(float)


@pytest.mark.parametrize("edit", [structured, no_indices_but_floats])
def test_indices_of_another_kind_fail(case, edit):
    case.change(edit)
    assert case.failed() == {12}


def test_a_folder_that_holds_sides_alone_is_an_expert(case):
    for split in SPLITS:
        case.path(split).unlink()
    assert case.failed() == {1}


def test_one_expert_under_two_names_is_a_warning(case, capsys):
    shutil.copytree(case.root / "ce_baseline", case.root / "copy")
    status, report = case.report()
    assert (status, checks_of(report, "warn"), report["warnings"]) == (0, {19}, 3)
    assert "3 warnings" in capsys.readouterr().out
    status, report = case.report("--strict")
    assert (status, report["failures"], report["warnings"]) == (1, 3, 0)


def test_what_cannot_be_checked_is_a_warning(case):
    side_path(case.path()).unlink()
    arrays = read_npz(case.path())
    del arrays["indices"]
    write_npz(case.path(), arrays)
    (case.splits / "split_info.json").unlink()
    case.splits.rename(case.splits.with_name("digits_lt_if10_splits_fixed"))
    case.splits = case.splits.with_name("digits_lt_if10_splits_fixed")
    status, report = case.report("--against-data", "no")
    assert (status, checks_of(report, "warn")) == (0, {11, 12, 17})
    status, report = case.report()
    assert (status, checks_of(report, "warn")) == (0, {12, 17})


def test_a_constant_prediction_is_not_perfect(case, capsys):
    """Logits e_0 for every sample: balanced accuracy is 1 / C."""

    def constant(arrays):
        arrays["logits"] = np.zeros_like(arrays["logits"])
        arrays["logits"][:, 0] = 1.0
        arrays["predictions"] = np.zeros_like(arrays["predictions"])

    case.change(constant, split="test")
    assert case.failed() == {14, 15}
    capsys.readouterr()
    assert case.verify("--experts", "ce", "--splits", "test") == 1
    out = capsys.readouterr().out
    assert "Balanced Acc: 0.1000 (10.00%)" in out
    assert "⚠ Accuracy reasonable (>60%) [13]: accuracy 10.00%" in out


@pytest.mark.parametrize(
    ("flags", "status", "warned"),
    [
        ([], 0, {13}),
        (["--accuracy-check", "off"], 0, set()),
        (["--accuracy-check", "fail"], 1, set()),
        (["--min-accuracy", "0.4"], 0, set()),
        (["--accuracy-metric", "reweighted", "--min-accuracy", "0.2"], 0, set()),
    ],
)
def test_the_bar_of_the_accuracy(case, flags, status, warned):
    def half_right(arrays):
        wrong = np.arange(len(arrays["targets"])) % 2 == 0
        arrays["logits"][wrong] = np.roll(arrays["logits"][wrong], 1, axis=1)
        arrays["predictions"] = arrays["logits"].argmax(1)

    for expert in EXPERTS:
        for split in SPLITS:
            case.change(half_right, split, expert)
    found, report = case.report(*flags)
    assert (found, checks_of(report, "warn")) == (status, warned)
    assert checks_of(report, "fail") == ({13} if status else set())


def test_classes_without_a_sample_are_told(case):
    def only_nine(arrays):
        keep = arrays["targets"] < 9
        for name in arrays:
            arrays[name] = arrays[name][keep]

    for expert in EXPERTS:
        case.change(only_nine, expert=expert)
    _, report = case.report("--splits", "val")
    file = report["files"][0]
    check = next(check for check in file["checks"] if check["id"] == 16)
    assert (check["status"], "have no sample" in check["detail"]) == ("warn", True)
    assert file["metrics"]["per_class"][9] is None


def test_ties_are_predictions_too(case):
    def tie(arrays):
        row = arrays["logits"][0]
        row[:2] = row.max() + 1
        arrays["predictions"][0] = 1

    case.change(tie)
    assert 10 not in checks_of(case.report()[1], "fail")


def test_groups_and_reports(case, capsys, real_plots):
    table, figure = case.root.parent / "t.csv", case.root.parent / "f" / "bars.png"
    flags = ["--group-by", "threshold", "--threshold", "30", "--csv", str(table)]
    status, report = case.report(*flags, "--plot", str(figure))
    assert (status, report["groups"]) == (
        0,
        {"head": list(range(6)), "medium": [], "tail": list(range(6, 10))},
    )
    assert report["files"][0]["metrics"]["medium"] is None
    with table.open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 6
    assert float(rows[0]["accuracy"]) == report["files"][0]["metrics"]["accuracy"]
    assert rows[0]["medium"] == ""
    assert figure.read_bytes().startswith(b"\x89PNG")
    rows = as_table(Verification([FileResult("=x", "-y", Path("@z"))], [], {}, False))
    assert rows.iloc[0][["expert", "split", "path"]].tolist() == ["'=x", "'-y", "'@z"]
    assert sha256_file(figure) == sha256_file(figure)


def test_marks_in_ascii(case, capsys):
    case.change(set_nan)
    assert case.verify("--ascii") == 1
    out = capsys.readouterr().out
    assert "[FAIL] No NaN or Inf values [7]: 1 samples, the first is 7" in out
    assert "[ok] File present" in out
    assert out.isascii()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--logits-dir", "nowhere"], "logits-dir must be a folder, got 'nowhere'"),
        (["--min-accuracy", "60"], "min-accuracy must be from 0 to 1, got 60"),
        (["--group-by", "halves"], "argument --group_by: invalid choice"),
        (["--threshold", "3"], "threshold must be left out without --group_by threshold"),
        (["--experts", "../x"], "experts must be a plain name"),
        (["--experts", ""], "experts must be a plain name"),
        (["--experts", "x" * 300], "experts must be a plain name"),
        (["--logits-dir", "x" * 300], "files and folders must be usable, got [Errno"),
        (["--splits-dir", "nowhere"], "splits must be in nowhere, got no such folder"),
        (["--dataset", "cifar10"], "must hold splits of cifar10, got those of digits"),
    ],
)
def test_nothing_to_check_is_status_2(case, flags, text, capsys):
    assert case.verify(*flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert text in captured.err
    assert "PASSED" not in captured.out


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("class_weights.json", None, "class_weights.json must exist"),
        ("class_weights.json", "[0.5, 0.4]", "weights must be positive with sum 1, got sum 0.9"),
        ("class_weights.json", '["a"]', "must be a list of numbers"),
        ("class_weights.json", str([float("nan")] * 10).replace("nan", "NaN"), "with sum 1"),
        ("class_weights.json", str([0.1] * 10), "must be the shares of train_class_counts.json"),
        ("class_weights.json", str([10**400] + [0] * 9), "must be of ordinary size"),
        ("split_info.json", '{"dataset": "digits", "slug": "../x"}', "must name dataset and slug"),
        ("train_class_counts.json", "[1, 2]", "must hold 10 positive counts, got 2"),
        ("split_info.json", "[]", "must name dataset and slug"),
    ],
)
def test_damaged_tables_are_status_2(case, name, content, text, capsys):
    path = case.splits / name
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    assert case.verify() == 2
    assert text in capsys.readouterr().err


def test_an_empty_folder_is_status_2(case, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert case.verify("--logits-dir", str(tmp_path / "empty")) == 2
    assert "per expert, got none" in capsys.readouterr().err


def test_a_required_expert_that_is_not_there_fails(case, capsys):
    assert case.verify("--experts", "ce", "decoupling", "--quiet") == 1
    assert "decoupling_twostage / val: ✗ File present [1]" in capsys.readouterr().out


def test_reports_are_checked_before_anything_else(case, capsys):
    target = case.root.parent / "no" / "r.json"
    assert case.verify("--quiet", "--json", str(target)) == 0
    assert json.loads(target.read_text())["exit_code"] == 0
    assert case.verify("--csv", str(case.root)) == 2
    wanted = f"error: {case.root}: must be new or a former report of --csv, got a folder\n"
    assert capsys.readouterr().err == wanted
    assert case.verify("--plot", str(target / "x.png")) == 2
    assert "output folder must be writable" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["json", "csv", "plot"])
def test_a_report_replaces_a_former_one_and_no_other_file(case, tmp_path, capsys, flag):
    target = tmp_path / "report"
    asked = [f"--{flag}", str(target), "--quiet"]
    target.write_text("mine")
    assert case.verify(*asked) == 2
    wanted = f"{target}: must be new or a former report of --{flag}, got another file (--force"
    assert capsys.readouterr().err.startswith(f"error: {wanted}")
    assert target.read_text() == "mine"
    assert case.verify(*asked, "--force") == 0
    report = target.read_bytes()
    assert case.verify(*asked) == 0
    assert target.read_bytes() == report
    link = tmp_path / "link"
    link.symlink_to(target)
    assert case.verify(f"--{flag}", str(link)) == 2
    assert "got a symbolic link (--force replaces it)" in capsys.readouterr().err


def test_splits_that_are_there_and_not_checked_are_told(case, capsys):
    assert case.verify("--splits", "val", "test") == 0
    assert "not checked: tunev (add them to --splits)" in capsys.readouterr().out


def test_flags_of_experts_do_not_go_with_csv_folders(case, capsys):
    assert verify_logits.main(["--csv-dir", str(case.root), "--strict"]) == 2
    assert "strict must be left out with --csv-dir" in capsys.readouterr().err


def test_verification_starts_without_torch():
    code = "import sys, verify_logits; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert result.stdout.strip() == "[]"
