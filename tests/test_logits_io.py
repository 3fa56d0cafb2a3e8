"""Logits on disk: names, bits, chunks, and what happens when writing fails."""

from __future__ import annotations

import builtins

import numpy as np
import pandas as pd
import pytest

from common import InputError
from files import sha256_file
from logits_io import LogitsAnalyzer, RunName
from logits_io.tables import read_csv, write_csv

NAME = RunName("resnet18", 4, 2, 1005)
STEM = "logits_resnet18_w4bit_a2bit_seed1005"
META = {"arch": "resnet18", "method": "rtn"}


def random_bits(rows: int, columns: int) -> np.ndarray:
    """Finite float32 values of every exponent, subnormals included."""
    bits = np.random.RandomState(0).randint(0, 2**32, (rows, columns), dtype=np.uint64)
    values = bits.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(1.5))


@pytest.fixture
def logits() -> dict[str, np.ndarray]:
    random = np.random.RandomState(1)
    return {
        kind: random.normal(0, 3, (25, 4)).astype(np.float32)
        for kind in ("quantized", "fullprecision")
    }


TARGETS = np.arange(25) % 4


@pytest.fixture(params=["polars", "numpy"])
def writer(request, monkeypatch):
    """Both writers of CSV; without polars the second is used."""
    if request.param == "numpy":
        original = builtins.__import__

        def without_polars(name, *arguments, **options):
            if name == "polars":
                raise ImportError(name)
            return original(name, *arguments, **options)

        monkeypatch.setattr(builtins, "__import__", without_polars)
    return request.param


def test_every_float_reads_back_bit_for_bit(writer, tmp_path):
    array = random_bits(500, 40)
    array[0, :4] = [0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
    write_csv(tmp_path / "a.csv", array)
    assert read_csv(tmp_path / "a.csv").view(np.uint32).tolist() == array.view(np.uint32).tolist()


def test_files_hold_numbers_only_and_no_header(writer, tmp_path):
    write_csv(tmp_path / "a.csv", np.array([[1.5, -2.0]], dtype=np.float32))
    write_csv(tmp_path / "b.csv", np.array([3, 1]))
    values = [float(text) for text in (tmp_path / "a.csv").read_text().strip().split(",")]
    assert values == [1.5, -2.0]
    assert (tmp_path / "b.csv").read_text() == "3\n1\n"


def test_names_are_those_given():
    assert NAME.tag == "resnet18_w4bit_a2bit_seed1005"
    assert NAME.initial_folder == "initial_logits_resnet18_w4bit_a2bit_seed1005"
    assert NAME.summary_folder == "logits_summary_resnet18_w4bit_a2bit_seed1005"
    assert (
        NAME.results_folder(0.4, 64, 50) == "results_alpha0.4_clusters64_pca50_resnet18_w4bit_a2bit"
    )
    assert NAME.results_folder(1.0, 8, 5).startswith("results_alpha1.0_clusters8_pca5_")
    assert NAME.file_stem == STEM


def test_a_small_folder_has_one_file_per_kind(tmp_path, logits):
    folder = LogitsAnalyzer(tmp_path).save_logits_to_csv("out", STEM, logits, TARGETS, META)
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{STEM}_fullprecision.csv",
        f"{STEM}_metadata.csv",
        f"{STEM}_quantized.csv",
        f"{STEM}_targets.csv",
    ]
    row = pd.read_csv(folder / f"{STEM}_metadata.csv").iloc[0]
    assert (row["arch"], row["samples"], row["classes"]) == ("resnet18", 25, 4)


def test_chunks_are_named_described_and_read_back(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path, chunk_size=10)
    folder = analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    names = sorted(path.name for path in folder.glob("*_quantized_*"))
    assert names == [f"{STEM}_quantized_chunk{i:03d}_of_003.csv" for i in (1, 2, 3)]
    table = pd.read_csv(folder / f"{STEM}_chunked_metadata.csv")
    columns = ["kind", "index", "count", "first_row", "last_row", "file", "sha256"]
    assert list(table) == columns
    rows = table[table.kind == "targets"]
    assert list(zip(rows.first_row, rows.last_row, strict=True)) == [(0, 9), (10, 19), (20, 24)]
    assert all(
        sha256_file(folder / file) == digest
        for file, digest in zip(table.file, table.sha256, strict=True)
    )
    saved = analyzer.load("out")
    assert list(saved.logits) == ["quantized", "fullprecision"]
    for kind, array in logits.items():
        assert saved.logits[kind].tobytes() == array.tobytes()
    assert saved.targets.tolist() == TARGETS.tolist()
    assert saved.metadata["method"] == "rtn"


@pytest.mark.parametrize(("samples", "chunks"), [(9, 0), (10, 0), (11, 2), (20, 2), (21, 3)])
def test_chunk_borders(tmp_path, samples, chunks):
    array = random_bits(samples, 3)
    analyzer = LogitsAnalyzer(tmp_path, chunk_size=10)
    folder = analyzer.save_logits_to_csv("o", STEM, {"quantized": array}, np.zeros(samples), {})
    assert len(list(folder.glob("*_quantized_chunk*"))) == chunks
    assert analyzer.load("o").logits["quantized"].tobytes() == array.tobytes()


@pytest.mark.parametrize("chunk_size", [10, 1000])
def test_results_share_the_files_of_the_initial_folder(tmp_path, logits, chunk_size):
    analyzer = LogitsAnalyzer(tmp_path, chunk_size)
    first = analyzer.save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    corrected = {**logits, "corrected": logits["quantized"] + 1}
    second = analyzer.save_logits_to_csv("res", STEM, corrected, TARGETS, META, same_as="initial")
    shared = [p for p in first.glob("*.csv") if "metadata" not in p.name]
    assert all((second / path.name).samefile(path) for path in shared)
    saved = analyzer.load("res")
    assert {k: v.tobytes() for k, v in saved.logits.items()} == {
        k: v.tobytes() for k, v in corrected.items()
    }


def test_where_links_are_not_possible_files_are_copied(tmp_path, logits, monkeypatch):
    def refuse(*arguments):
        raise OSError("no links here")

    analyzer = LogitsAnalyzer(tmp_path)
    first = analyzer.save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    monkeypatch.setattr("os.link", refuse)
    second = analyzer.save_logits_to_csv("res", STEM, logits, TARGETS, META, same_as="initial")
    name = f"{STEM}_quantized.csv"
    assert not (second / name).samefile(first / name)
    assert (second / name).read_bytes() == (first / name).read_bytes()


def test_a_failure_leaves_the_former_folder_and_nothing_half_written(tmp_path, logits, monkeypatch):
    analyzer = LogitsAnalyzer(tmp_path)
    analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)

    def full(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("logits_io.analyzer.write_records", full)
    changed = {kind: array + 1 for kind, array in logits.items()}
    with pytest.raises(OSError, match="disk full"):
        analyzer.save_logits_to_csv("out", STEM, changed, TARGETS, META)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert np.array_equal(analyzer.load("out").logits["quantized"], logits["quantized"])


def test_a_rerun_with_another_chunk_size_leaves_no_old_chunk(tmp_path, logits):
    LogitsAnalyzer(tmp_path, 5).save_logits_to_csv("out", STEM, logits, TARGETS, META)
    LogitsAnalyzer(tmp_path, 10).save_logits_to_csv("out", STEM, logits, TARGETS, META)
    assert len(list((tmp_path / "out").glob("*_quantized_chunk*"))) == 3


def test_the_results_of_another_seed_stay(tmp_path, logits):
    """The folder of a correction carries no seed in its name; its files do."""
    analyzer, other = LogitsAnalyzer(tmp_path, 10), STEM + "9"
    changed = {kind: array + 1 for kind, array in logits.items()}
    analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    analyzer.save_logits_to_csv("out", other, changed, TARGETS, META)
    analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    for stem, saved in ((STEM, logits), (other, changed)):
        loaded = analyzer.load("out", stem)
        assert np.array_equal(loaded.logits["quantized"], saved["quantized"])
    with pytest.raises(InputError, match=f"stem must be given, got {STEM}, {other}"):
        analyzer.load("out")


def test_arrays_that_do_not_fit_are_refused(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path)
    for bad in (logits["quantized"][:-1], logits["quantized"].astype(np.float64)):
        with pytest.raises(
            InputError, match=r"quantized logits must be float32 of shape \(25, classes\), got"
        ):
            analyzer.save_logits_to_csv("o", STEM, {"quantized": bad}, TARGETS, META)
    with pytest.raises(InputError, match="chunk_size must be at least 1, got 0"):
        LogitsAnalyzer(tmp_path, 0)
    assert not list(tmp_path.iterdir())


def test_loading_names_what_is_missing_or_damaged(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    with pytest.raises(
        InputError, match="must hold the metadata of one stem, or stem must be given, got none"
    ):
        analyzer.load("nothing")
    folder = analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    chunk = folder / f"{STEM}_quantized_chunk002_of_003.csv"
    whole = chunk.read_text()
    for damage, text in (
        (lambda: chunk.write_text("\n".join(whole.split("\n")[:5])), r"must hold \(25, 4\) values"),
        (lambda: chunk.write_text(whole.replace("\n", ",x\n", 1)), "must be a CSV file of numbers"),
        (lambda: chunk.unlink(), "must be a CSV file of numbers without header, got: "),
    ):
        damage()
        with pytest.raises(InputError, match=text):
            analyzer.load("out")
