"""verify_logits.py: a sound folder passes, every damage is found and named."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys

import numpy as np
import pytest

from logits_io import LogitsAnalyzer
from logits_io.checks import verify_folder
from logits_io.naming import cached_logits_file
from logits_io.tables import write_sealed
from tests.conftest import PROJECT
from verify_logits import main

STEM = "logits_net_w4bit_a4bit_seed1"


@pytest.fixture
def save(tmp_path):
    """Save a folder of 25 samples, or another number, and 4 classes and return it."""

    def saved(chunk_size=10, formats=("csv",), compression="none", samples=25):
        random = np.random.RandomState(1)
        logits = {
            kind: random.normal(0, 3, (samples, 4)).astype(np.float32)
            for kind in ("quantized", "fullprecision")
        }
        analyzer = LogitsAnalyzer(tmp_path, chunk_size, formats, compression)
        targets = np.arange(samples) % 4
        return analyzer.save_logits_to_csv("out", STEM, logits, targets, {"arch": "net"})

    return saved


def failures(folder, capsys) -> str:
    assert main(["--csv-dir", str(folder)]) == 1
    return capsys.readouterr().out


@pytest.mark.parametrize("chunk_size", [10, 1000])
@pytest.mark.parametrize("formats", [("csv",), ("csv", "parquet", "npz", "hdf5")])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_sound_folder_passes(save, capsys, chunk_size, formats, compression):
    folder = save(chunk_size, formats, compression)
    assert main(["--csv-dir", str(folder)]) == 0
    assert main(["--csv_dir", str(folder.parent)]) == 0
    line = "VERIFICATION PASSED: 1 folders, 0 failures"
    assert capsys.readouterr().out == 2 * f"ok     {folder}\n{line}\n"


@pytest.mark.parametrize("chunk_size", [3, 1000])
def test_any_flipped_byte_is_found_and_its_file_named(save, chunk_size):
    folder = save(chunk_size, samples=5)
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in range(0, len(content), 1 if len(content) < 100 else 7):
            path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            found = verify_folder(folder)
            assert found and path.name in found[0], (path.name, place)
        path.write_bytes(content)
    assert verify_folder(folder) == []


def test_the_damaged_row_is_named(save, capsys):
    folder = save()
    path = folder / f"{STEM}_quantized_chunk002_of_003.csv"
    lines = path.read_text().splitlines()
    for row, line, text in (
        (4, "1.5,2.5,3.5,4.5", "row 4 is not as it was written"),
        (7, "1.5,nan,3.5,4.5", "row 7 must be finite, got NaN or Inf"),
        (2, "1.5,2.5,3.5", "(row 2)"),
        (9, "1.5,2.5,x,4.5", "(row 9)"),
    ):
        path.write_text("\n".join([*lines[: row - 1], line, *lines[row:]]) + "\n")
        found = failures(folder, capsys)
        assert path.name in found and text in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("_quantized_chunk002_of_003.csv", "is missing (rows 11 to 20 of quantized)"),
        ("_targets_chunk003_of_003.csv", "is missing (rows 21 to 25 of targets)"),
        ("_chunked_metadata.csv", "is missing or not as it was written"),
        ("_metadata.csv", "no logits_*_metadata.csv describes the files"),
    ],
)
def test_a_missing_file_is_named(save, capsys, name, text):
    folder = save()
    (folder / f"{STEM}{name}").unlink()
    assert text in failures(folder, capsys)


def test_exchanged_and_foreign_files_are_found(save, capsys):
    folder = save()
    first, second = (folder / f"{STEM}_quantized_chunk00{i}_of_003.csv" for i in (1, 2))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    found = failures(folder, capsys)
    assert first.name in found and second.name in found
    save()
    shutil.copy(second, folder / f"{STEM}_quantized_chunk004_of_003.csv")
    (folder / "notes.txt").write_text("x")
    found = failures(folder, capsys)
    assert "chunk004_of_003.csv: is not named in any metadata" in found
    assert "notes.txt: is not named in any metadata" in found


def test_metadata_that_contradict_the_files_are_found(save, capsys):
    folder = save(1000)
    path = folder / f"{STEM}_metadata.csv"
    from logits_io.tables import SEAL, read_records

    record = {key: value for key, value in read_records(path)[0].items() if key != SEAL}
    for change, text in (
        ({"samples": 24}, "must hold 24 rows of 4 values, got 25 of 4"),
        ({"classes": 3}, "must hold 25 rows of 3 values, got 25 of 4"),
        ({"kinds": "quantized corrected targets"}, "file_corrected_csv"),
        ({"classes": "abc"}, "invalid literal"),
        ({"row_sum_quantized_csv": 7}, "the values do not match the sums in the metadata"),
    ):
        write_sealed(path, {**record, **change})
        assert text in failures(folder, capsys)


def test_swapped_values_and_other_words_are_named_by_row(save, capsys):
    folder = save()
    path = folder / f"{STEM}_quantized_chunk002_of_003.csv"
    lines = path.read_text().splitlines()
    values = lines[2].split(",")
    swapped = ",".join([values[1], values[0], *values[2:]])
    path.write_text("\n".join([*lines[:2], swapped, *lines[3:]]) + "\n")
    assert "row 3 is not as it was written" in failures(folder, capsys)
    path.write_text("\n".join([*lines[:4], lines[4] + "0", *lines[5:]]) + "\n")
    assert "row 5 (its text; the values are the same) is not" in failures(folder, capsys)


def test_metadata_of_another_stem_and_junk_are_found(save, capsys):
    folder = save()
    metadata = folder / f"{STEM}_metadata.csv"
    copy = folder / f"{STEM}_b_metadata.csv"
    shutil.copy(metadata, copy)
    (folder / f"{STEM}_b_junk.csv").write_text("1\n")
    assert f"must be the metadata of {STEM}_b, got those of {STEM}" in failures(folder, capsys)
    copy.unlink()
    assert f"{STEM}_b_junk.csv: is not named in any metadata" in failures(folder, capsys)


@pytest.mark.parametrize("name", ["_metadata.csv", "_quantized_chunk002_of_003.csv"])
def test_what_is_no_file_is_named(save, capsys, name):
    folder = save()
    path = folder / f"{STEM}{name}"
    path.unlink()
    path.mkdir()
    assert path.name in failures(folder, capsys)


@pytest.mark.parametrize(
    ("name", "ending"),
    [("csv", ".csv.gz"), ("parquet", ".parquet"), ("npz", ".npz"), ("hdf5", ".h5")],
)
def test_any_flipped_byte_of_a_binary_file_is_found(save, name, ending):
    folder = save(10, (name,), "gzip")
    path = folder / f"{STEM}_quantized_chunk002_of_003{ending}"
    content = path.read_bytes()
    for place in range(0, len(content), max(5, len(content) // 40)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 99]) + content[place + 1 :])
        assert path.name in verify_folder(folder)[0]


def test_a_target_that_is_no_class_is_found(tmp_path, capsys):
    logits = np.zeros((6, 4), dtype=np.float32)
    targets = np.array([0, 1, 2, 4, 1, 0])
    folder = LogitsAnalyzer(tmp_path).save_logits_to_csv(
        "out", STEM, {"quantized": logits}, targets, {}
    )
    assert "row 4 must be a class from 0 to 3, got 4" in failures(folder, capsys)


def test_damage_in_compressed_files_is_found(save, capsys):
    folder = save(10, ("csv", "parquet"), "gzip")
    path = folder / f"{STEM}_quantized_chunk002_of_003.csv.gz"
    text = gzip.decompress(path.read_bytes()).split(b"\n")
    path.write_bytes(gzip.compress(b"\n".join([*text[:5], b"1,2,3,4", *text[6:]])))
    assert f"{path.name}: row 6 is not as it was written" in failures(folder, capsys)
    save(10, ("csv", "parquet"), "gzip")
    path = folder / f"{STEM}_fullprecision_chunk001_of_003.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert f"{path.name}: must be a parquet file" in failures(folder, capsys)


def test_nothing_to_check_is_wrong_usage(tmp_path, capsys):
    for argument, text in (
        (tmp_path / "none", "csv-dir must be a folder, got"),
        (tmp_path, "csv-dir must hold logits files, or folders that do, got none in"),
    ):
        assert main(["--csv-dir", str(argument)]) == 2
        assert text in capsys.readouterr().err


def test_the_cache_of_the_float_network_is_no_folder_of_logits(save, tmp_path, capsys):
    folder = save()
    cache = tmp_path / "cache"
    cache.mkdir()
    for ending in ("npy", "lock"):
        (cache / cached_logits_file("key")).with_suffix(f".{ending}").touch()
    assert main(["--csv-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"ok     {folder}\nVERIFICATION PASSED: 1 folders")
    assert main(["--csv-dir", str(cache)]) == 2
    (folder / "logits_x.csv").touch()
    assert main(["--csv-dir", str(tmp_path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"VERIFICATION FAILED: 1 failure in 1 of 1 folders: {folder}"


def test_without_flags_and_experts_the_outputs_are_checked(save, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "logits_fixed" in capsys.readouterr().err
    save()
    (tmp_path / "outputs").mkdir()
    (tmp_path / "out").rename(tmp_path / "outputs" / "out")
    assert main([]) == 0
    assert "VERIFICATION PASSED: 1 folders, 0 failures" in capsys.readouterr().out
    assert main(["--experts", "ce_baseline"]) == 2  # a flag of the experts' checks
    (tmp_path / "outputs" / "logits_fixed").mkdir()
    assert main([]) == 2


def test_it_starts_without_torch():
    code = "import sys, verify_logits; print([m for m in ('torch', 'sklearn') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=True)
    assert result.stdout.strip() == "[]"
