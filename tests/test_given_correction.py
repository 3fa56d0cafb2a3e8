"""``python -m correction``: the figures of a run from its logits in plain files, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import main_imagenet
import verify_logits
from correction import ClusterAffineCorrection
from correction.__main__ import main
from loaders.plan import split_val
from logits_io import LogitsAnalyzer
from pipeline.networks import NetworkPair
from tests.conftest import GRID, RANGES

SEED = 7
RUN = "digits_resnet_w3bit_a3bit_seed7"
BITS = ["--quant_method", "rtn", "--n_bits_w", "3", "--n_bits_a", "3", *RANGES]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run on the digits, and the logits and labels of its val images, in order."""
    folder = tmp_path_factory.mktemp("run")
    found = {}
    original = NetworkPair.infer_both

    def keeping(self, quantized, images, description, *arguments):
        found[description] = original(self, quantized, images, description, *arguments)
        return found[description]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NetworkPair, "infer_both", keeping)
        flags = ["--correction_source", "val:0.3", "--num_samples", "64", "--seed", str(SEED)]
        flags += ["--no-plots", "--save_results", "selected", "--output_dir", str(folder)]
        assert main_imagenet.main([*BITS, *GRID, *flags]) == 0
    fitting, evaluation = found["correction images"], found["evaluation images"]
    count = len(fitting.targets) + len(evaluation.targets)
    part = split_val(count, 0.3, SEED)
    left = np.setdiff1d(np.arange(count), part)
    arrays = {"labels": np.empty(count, np.int64)}
    for rows, inference in ((part, fitting), (left, evaluation)):
        for kind, logits in inference.logits.items():
            arrays.setdefault(kind, np.empty((count, logits.shape[1]), np.float32))[rows] = logits
        arrays["labels"][rows] = inference.targets
    return folder / "rtn", arrays


@pytest.fixture
def files(whole, tmp_path) -> Path:
    """A folder with these logits as numpy writes them, and nothing of this suite."""
    _, arrays = whole
    np.savez(tmp_path / "all.npz", **arrays)
    for name, kind in (("a.csv", "quantized"), ("b.csv", "fullprecision")):
        np.savetxt(tmp_path / name, arrays[kind], delimiter=",")
    np.savetxt(tmp_path / "y.txt", arrays["labels"], fmt="%d")
    shutil.copy(whole[0] / f"run_{RUN}" / "correction.npz", tmp_path / "c.npz")
    return tmp_path


def correct(folder: Path, *words: object) -> int:
    """Run the command on the files of a folder, below which everything is written."""
    files = (".csv", ".npz", ".txt")
    grid = [] if "--load_correction" in words else GRID
    named = [str(folder / str(w)) if str(w).endswith(files) else str(w) for w in words]
    out = ["--seed", str(SEED), "--no-plots", "--output_dir", str(folder / "o")]
    return main([*grid, *out, *named])


CSV = ("--quantized", "a.csv", "--fullprecision", "b.csv")
LOADED = (*CSV, "--load_correction", "c.npz")  # fits nothing
NPZ = ("--quantized", "all.npz", "--fullprecision", "all.npz")


def tables(root: Path, tag: str) -> dict[str, bytes]:
    """The tables of a summary."""
    folder = root / f"logits_summary_{tag}"
    return {path.name.removeprefix(folder.name): path.read_bytes() for path in folder.glob("*.csv")}


def record(root: Path, tag: str) -> dict:
    return json.loads((root / f"run_{tag}" / "run.json").read_text())


def require_same(root: Path, ours: Path, tag: str) -> None:
    """Check that tables, record, correction and logits are those of the run."""
    assert len(tables(root, RUN)) == 3
    assert tables(ours, tag) == tables(root, RUN)
    for key in ("figures", "warning_signs"):
        assert record(ours, tag)[key] == record(root, RUN)[key]
    name = "correction.npz"
    assert (ours / f"run_{tag}" / name).read_bytes() == (root / f"run_{RUN}" / name).read_bytes()
    found = LogitsAnalyzer(ours).load(f"corrected_logits_{tag}")
    expected = LogitsAnalyzer(root).load(next(root.glob("results_*")).name)
    assert found.targets.tolist() == expected.targets.tolist()
    assert {kind: values.tobytes() for kind, values in found.logits.items()} == {
        kind: values.tobytes() for kind, values in expected.logits.items()
    }
    assert verify_logits.main(["--csv-dir", str(ours)]) == 0


def test_the_figures_of_an_npz_file_are_those_of_the_run(whole, files, capsys):
    assert correct(files, *NPZ, "--fit", 0.3) == 0
    require_same(whole[0], files / "o" / "correction", f"all_seed{SEED}")
    out = capsys.readouterr().out
    run = record(whole[0], RUN)["figures"]
    for kind in ("fullprecision", "quantized", "corrected"):
        assert f"{run[kind]['top1_pct']:.2f}" in out.splitlines()[0]
    assert "oracle" in out and "VERIFICATION PASSED: 1 folders, 0 failures" in out


def test_the_figures_of_csv_files_are_those_of_the_run(whole, files):
    assert correct(files, *CSV, "--labels", "y.txt", "--fit", 0.3, "--logits_format", "npz") == 0
    require_same(whole[0], files / "o" / "correction", f"a_seed{SEED}")
    rows = pd.read_csv(files / "o" / "correction" / f"run_a_seed{SEED}" / "evaluation_ids.csv")
    labels = whole[1]["labels"]
    part = split_val(len(labels), 0.3, SEED)
    assert rows.image.tolist() == np.setdiff1d(np.arange(len(labels)), part).tolist()
    assert rows["class"].tolist() == labels[rows.image].tolist()


def test_other_samples_to_fit_on_give_the_same(whole, files):
    root, arrays = whole
    count = len(arrays["labels"])
    part = split_val(count, 0.3, SEED)
    left = np.setdiff1d(np.arange(count), part)
    for name, rows in (("fit.npz", part), ("all.npz", left)):
        np.savez(files / name, **{key: values[rows] for key, values in arrays.items()})
    assert correct(files, *NPZ, "--fit_quantized", "fit.npz", "--fit_fullprecision", "fit.npz") == 0
    require_same(root, files / "o" / "correction", f"all_seed{SEED}")


def test_without_labels_agreement_and_divergence_are_the_same(whole, files, capsys):
    assert correct(files, *CSV, "--fit", 0.3) == 0
    ours, tag = files / "o" / "correction", f"a_seed{SEED}"
    out = capsys.readouterr().out
    assert "Top-1" not in out and "oracle" not in out
    expected = pd.read_csv(whole[0] / f"logits_summary_{RUN}" / f"logits_summary_{RUN}.csv")
    found = pd.read_csv(ours / f"logits_summary_{tag}" / f"logits_summary_{tag}.csv")
    assert found[["top1_pct", "top5_pct"]].isna().all(axis=None) and not found.oracle.any()
    known = [name for name in found if name not in ("top1_pct", "top5_pct", "oracle")]
    pd.testing.assert_frame_equal(found[known], expected[known])
    corrected = record(ours, tag)["figures"]["corrected"]
    assert f"corrected {corrected['agreement_pct']:.2f} % (KL {corrected['kl_to_fp']:.4f})" in out
    saved = LogitsAnalyzer(ours).load(f"corrected_logits_{tag}")
    assert saved.targets is None
    assert sorted(tables(ours, tag)) == [".csv", "_comparison.csv"]
    assert verify_logits.main(["--csv-dir", str(files / "o")]) == 0
    LogitsAnalyzer(ours).to_duckdb(files / "all.duckdb")
    overall = LogitsAnalyzer(ours).compare(f"corrected_logits_{tag}", seed=SEED).overall
    assert overall.agreement_pct[2] == pytest.approx(corrected["agreement_pct"], abs=1e-6)


def test_a_correction_from_a_file_is_applied_to_all_rows(whole, files):
    assert correct(files, *LOADED) == 0
    saved = LogitsAnalyzer(files / "o" / "correction").load(f"corrected_logits_a_seed{SEED}")
    expected = ClusterAffineCorrection.load(files / "c.npz").transform(whole[1]["quantized"])
    assert saved.logits["corrected"].tobytes() == expected.tobytes()


def test_rows_in_another_order_are_doubted(whole, files, capsys):
    np.savetxt(files / "b.csv", whole[1]["fullprecision"][::-1], delimiter=",")
    assert correct(files, *LOADED) == 0
    out = capsys.readouterr().out
    assert "of the samples, no more than by chance" in out.split("warnings:")[1]


def test_the_same_command_gives_the_same_bytes_and_replaces_its_own_files(files):
    contents = []
    for _ in range(2):
        assert correct(files, *LOADED, "--name", "my logits") == 0
        root = files / "o" / "correction"
        contents.append(
            {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        )
    changed = {path.name for path in contents[0] if contents[0][path] != contents[1][path]}
    assert contents[0].keys() == contents[1].keys() and changed == {"run.json"}
    assert (files / "o" / "correction" / f"run_my_logits_seed{SEED}").is_dir()


def test_files_of_the_user_are_not_replaced(files, capsys):
    root, tag = files / "o" / "correction", f"a_seed{SEED}"
    assert correct(files, *LOADED) == 0
    for path in (
        root / f"run_{tag}" / "correction.npz",
        root / f"logits_summary_{tag}" / "notes.md",
        root / f"logits_summary_{tag}" / f"logits_summary_{tag}.csv",
    ):
        before = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        path.symlink_to("nowhere")
        assert correct(files, *LOADED) == 2
        assert f"{path.name}: must be a file that this suite wrote" in capsys.readouterr().err
        path.unlink()
        if before is not None:
            path.write_bytes(before)
    notes = root / f"logits_summary_{tag}" / "notes.md"
    notes.write_text("mine")
    assert correct(files, *LOADED) == 2
    assert notes.read_text() == "mine"
    assert correct(files, *LOADED, "--force") == 0
    assert not notes.exists()


REFUSED = {
    "nothing": ((), "quantized must be given, got none"),
    "one file": (CSV[:2], "fullprecision must be given, got none"),
    "no such flag": (
        (*CSV, "--fitt", 0.3),
        "flag must be a known name, got '--fitt'; closest: --f",
    ),
    "nothing to fit on": ((*CSV, "--fit", 0), "fit must be above 0 and below 1, got 0"),
    "no number": ((*CSV, "--fit", "nan"), "fit must be above 0 and below 1, got nan"),
    "too few": ((*CSV, "--fit", 0.001), "correction must have at least 3 fitting samples, got 0"),
    "all": ((*CSV, "--fit", 0.9999), "evaluation set must keep at least one sample"),
    "half a pair": ((*CSV, "--fit_quantized", "a.csv"), "must be given together, got one"),
    "both": (
        (*CSV, "--fit", 0.3, "--fit_quantized", "a.csv", "--fit_fullprecision", "b.csv"),
        "fit must be left out with --fit_quantized, got both",
    ),
    "samples": (
        (*CSV, "--correction_samples", 5000),
        "correction_samples must be at most 100 (the",
    ),
    "alpha": ((*CSV, "--alpha_list", 2), "alpha must be between 0 and 1, got 2.0"),
    "dimensions": ((*CSV, "--pca_dim_list", 11), "pca_dim must be between 1 and 10 (10 classes"),
    "a name": ((*CSV, "--name", "../x"), "name must be a plain name"),
    "a seed": ((*CSV, "--seed", -1), "seed must be from 0 to 2^32 - 1, got -1"),
    "a grid": (
        (*LOADED, "--fit", 0.3),
        "fit must be left out with --load_correction, which fits nothing",
    ),
    "a schema": ((*CSV, "--schema", "logit=a"), "key of schema must be a known name, got 'logit'"),
    "classes to fit on": (
        (*CSV, "--fit_quantized", "few.npz", "--fit_fullprecision", "few.npz"),
        "few.npz: must have 10 classes as",
    ),
    "size": (("--quantized", "big.csv", "--fullprecision", "b.csv"), "must be at most 1e+15 in s"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(what, files, whole, capsys):
    words, text = REFUSED[what]
    arrays = whole[1]
    few = {kind: arrays[kind][:, :5] for kind in ("quantized", "fullprecision")}
    np.savez(files / "few.npz", **few)
    np.savetxt(files / "big.csv", 1e20 * arrays["quantized"], delimiter=",")
    assert correct(files, *words) == 2
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("error: ") and text in err[-1]
    assert not (files / "o").exists()


def test_logits_of_the_user_of_the_same_name_are_left_alone(files):
    ours, tag = files / "o" / "correction", f"a_seed{SEED}"
    path = ours / f"corrected_logits_{tag}" / f"logits_{tag}_quantized.csv"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    assert correct(files, *LOADED) == 3
    assert path.read_text() == "mine" and record(ours, tag)["folders"] == {}


def test_a_failure_to_save_is_told_and_the_rest_is_there(files, monkeypatch, capsys):
    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("logits_io.writer.write_sealed", full)
    assert correct(files, *LOADED) == 3
    ours, tag = files / "o" / "correction", f"a_seed{SEED}"
    assert record(ours, tag)["unsaved"] == ["the corrected logits"]
    assert (ours / f"run_{tag}" / "correction.npz").is_file()
    assert not (ours / f"corrected_logits_{tag}").exists()
