"""Logits on disk: names, bits, chunks, and what happens when writing fails."""

from __future__ import annotations

import builtins
import re

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from common.files import sha256_file
from logits_io import LogitsAnalyzer
from logits_io.checks import verify_folder
from logits_io.formats import FORMATS, decode, ending, write_array
from logits_io.naming import find_stems
from logits_io.records import damaged_row, read_file_records
from logits_io.tables import seal_holds
from tests.conftest import PROJECT
from tests.logits_lab import META, NAME, STEM, TARGETS, made_up_logits


def write(path, array, compression="none"):
    write_array(path, array, path.name.split(".")[1], compression)


def random_bits(rows: int, columns: int) -> np.ndarray:
    """Finite float32 values of every exponent, subnormals included."""
    bits = np.random.RandomState(0).randint(0, 2**32, (rows, columns), dtype=np.uint64)
    values = bits.astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(1.5))


@pytest.fixture
def logits() -> dict[str, np.ndarray]:
    return made_up_logits()


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
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return request.param


def test_every_float_reads_back_bit_for_bit(writer, tmp_path):
    array = random_bits(500, 40)
    array[0, :4] = [0.0, -0.0, np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal]
    write(tmp_path / "a.csv", array)
    assert decode(tmp_path / "a.csv").view(np.uint32).tolist() == array.view(np.uint32).tolist()


def test_files_hold_numbers_only_and_no_header(writer, tmp_path):
    write(tmp_path / "a.csv", np.array([[1.5, -2.0]], dtype=np.float32))
    write(tmp_path / "b.csv", np.array([3, 1]))
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
    assert list(table) == [*columns, "row_sum", "weighted_row_sum", "format"]
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


@pytest.mark.parametrize("damage", ["no metadata", "cut", "missing file", "other chunks"])
def test_a_source_that_cannot_be_shared_is_written_anew(tmp_path, logits, damage):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    source = analyzer.save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    metadata = source / f"{STEM}_metadata.csv"
    if damage == "no metadata":
        metadata.unlink()
    elif damage == "cut":
        metadata.write_text("arch\n")
    elif damage == "missing file":
        (source / f"{STEM}_quantized_chunk001_of_003.csv").unlink()
    else:
        LogitsAnalyzer(tmp_path, 9).save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    folder = analyzer.save_logits_to_csv("res", STEM, logits, TARGETS, META, same_as="initial")
    assert verify_folder(folder) == []
    assert len(list(folder.glob("*_quantized_chunk*_of_003.csv"))) == 3


def test_where_links_are_not_possible_files_are_copied(tmp_path, logits, monkeypatch):
    def refuse(*arguments, **keywords):
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

    monkeypatch.setattr("logits_io.writer.write_sealed", full)
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
        (
            lambda: chunk.write_text("\n".join(whole.split("\n")[:5])),
            r"must hold \(10, 4\) values, got \(5, 4\)",
        ),
        (lambda: chunk.write_text(whole.replace("\n", ",x\n", 1)), "must be a csv file of numbers"),
        (lambda: chunk.unlink(), "must be a csv file of numbers without header, got: "),
    ):
        damage()
        with pytest.raises(InputError, match=text):
            analyzer.load("out")


CHOICES = [(name, compression) for name, found in FORMATS.items() for compression in found.endings]


@pytest.mark.parametrize(("file_format", "compression"), CHOICES)
def test_every_format_reads_back_bit_for_bit(tmp_path, file_format, compression):
    array = random_bits(300, 7)
    array[0, :3] = [0.0, -0.0, np.finfo(np.float32).smallest_subnormal]
    for values in (array, np.arange(300)):
        path = tmp_path / f"a{ending(file_format, compression)}"
        digest = write_array(path, values, file_format, compression)
        again = decode(path, values.dtype.type)
        assert again.tobytes() == values.tobytes()
        assert digest == sha256_file(path)
        again_there = tmp_path / f"b{ending(file_format, compression)}"
        write_array(again_there, values, file_format, compression)
        assert again_there.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("file_format", "compression"), CHOICES)
def test_a_cut_file_is_named(tmp_path, file_format, compression):
    path = tmp_path / f"a{ending(file_format, compression)}"
    write_array(path, random_bits(300, 7), file_format, compression)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"x")
    with pytest.raises(InputError, match=f"{path.name}: must be a .* file of numbers"):
        decode(path)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_several_formats_hold_the_same(tmp_path, logits, compression):
    analyzer = LogitsAnalyzer(tmp_path, 10, FORMATS, compression)
    folder = analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    assert len(list(folder.iterdir())) == 3 * 3 * len(FORMATS) + 2
    arrays: dict = {}
    for record in read_file_records(folder, STEM):
        values = decode(folder / record.file, np.int64 if record.kind == "targets" else np.float32)
        assert arrays.setdefault((record.kind, record.index), values).tobytes() == values.tobytes()
    saved = LogitsAnalyzer(tmp_path).load("out")  # whatever the reader would write itself
    assert saved.logits["fullprecision"].tobytes() == logits["fullprecision"].tobytes()


@pytest.mark.parametrize(
    ("formats", "compression", "text"),
    [
        (["h5"], "none", "logits_format must be one of csv, parquet, npz, hdf5, got 'h5'"),
        ([], "none", "logits_format must be at least one format, got none"),
        (["csv"], "bz2", "compression must be one of none, gzip, zstd, got 'bz2'"),
        (["csv", "npz"], "zstd", "compression of npz must be none or gzip, got zstd"),
        (["hdf5"], "zstd", "compression of hdf5 must be none or gzip, got zstd"),
    ],
)
def test_formats_that_do_not_exist_are_refused(tmp_path, formats, compression, text):
    with pytest.raises(InputError, match=text):
        LogitsAnalyzer(tmp_path, 10, formats, compression)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"folder": "."}, "folder must be a name below the root, got '.'"),
        ({"folder": "x" * 201}, "folder must be a name below the root, got 'xxx"),
        ({"stem": "logits_" + "é" * 120}, "stem must be logits_ and"),
        ({"folder": ""}, "folder must be a name below the root, got ''"),
        ({"folder": "../x"}, "folder must be a name below the root, got '../x'"),
        ({"stem": "a"}, "stem must be logits_ and letters, digits, _ . or -, got 'a'"),
        ({"stem": "logits_a_chunked"}, "stem must be logits_ and letters"),
        ({"stem": "logits_../x"}, "stem must be logits_ and letters"),
        ({"logits": {"targets": np.zeros((25, 4), np.float32)}}, "kind must be letters, digits"),
        ({"logits": {"a b": np.zeros((25, 4), np.float32)}}, "kind must be letters, digits"),
        ({"logits": {}}, "logits must hold at least one kind, got none"),
        ({"logits": {"quantized": [[1.0]]}}, r"must be float32 of shape \(25, classes\), got list"),
        (
            {"logits": {k: np.zeros((25, n), np.float32) for k, n in (("a", 4), ("b", 3))}},
            "logits must be float32 of shape",
        ),
        ({"targets": np.full(25, 1.7)}, "targets must be integers, got float64"),
        ({"targets": np.array(["a"] * 25)}, "targets must be integers, got <U1"),
        ({"targets": np.zeros((25, 2))}, r"targets must be of shape \(samples,\), got \(25, 2\)"),
        ({"metadata": {"samples": 3}}, "metadata must not hold samples, which the writer adds"),
    ],
)
def test_what_could_not_be_read_back_is_refused(tmp_path, logits, change, text):
    asked = {"folder": "out", "stem": STEM, "logits": logits, "targets": TARGETS, "metadata": META}
    with pytest.raises(InputError, match=text):
        LogitsAnalyzer(tmp_path).save_logits_to_csv(**{**asked, **change})
    assert not list(tmp_path.iterdir())


def test_folders_that_hold_something_else_are_left_alone(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path)
    analyzer.save_logits_to_csv("rtn/out", STEM, logits, TARGETS, META)
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("rtn/out")
    for name, wanted in (
        ("rtn", "a folder of logits or new, got something else"),
        ("file", "a folder or new, got a file"),
        ("link", "a folder or new, got a symbolic link"),
    ):
        with pytest.raises(InputError, match=f"{name}: must be {wanted}"):
            analyzer.save_logits_to_csv(name, STEM, logits, TARGETS, META)
    assert verify_folder(tmp_path / "rtn" / "out") == []
    assert (tmp_path / "file").read_text() == "x"
    assert (tmp_path / "link").is_symlink()


def test_a_file_of_the_user_stays_in_a_folder_of_logits(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    folder = analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    names = ("notes.txt", f"{STEM}_notes.csv", f"{STEM}_quantized_chunk001_of_002.csv.bak")
    for name in names:
        (folder / name).write_text(name)
    (folder / "dangling").symlink_to("nowhere")
    for damage in (False, True):
        if damage:
            (folder / f"{STEM}_chunked_metadata.csv").write_text("damaged")
        analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
        assert [(folder / name).read_text() for name in names] == list(names)
        assert (folder / "dangling").is_symlink()
        assert len(list(folder.iterdir())) == 3 * 3 + 2 + 4


@pytest.mark.parametrize("written_before", [False, True])
def test_a_file_of_the_user_is_not_overwritten_by_one_of_its_name(tmp_path, logits, written_before):
    analyzer = LogitsAnalyzer(tmp_path)
    if written_before:
        analyzer.save_logits_to_csv("out", STEM, logits, TARGETS, META)
    path = tmp_path / "out" / f"{STEM}_odd.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    before = sorted(path.parent.iterdir())
    with pytest.raises(OSError, match=f"odd.csv: must be a file of logits of {STEM}, got another"):
        analyzer.save_logits_to_csv("out", STEM, {"odd": logits["quantized"]}, TARGETS, META)
    assert sorted(path.parent.iterdir()) == before
    assert path.read_text() == "mine"


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_two_stems_written_at_once_are_both_there(tmp_path, logits, chunk_size):
    analyzer = LogitsAnalyzer(tmp_path, chunk_size)
    with analyzer.writer("out", STEM, META) as first:
        first.add(logits, TARGETS)
        with analyzer.writer("out", f"{STEM}_b", META) as second:
            second.add(logits, TARGETS)
    assert verify_folder(tmp_path / "out") == []
    assert find_stems(tmp_path / "out") == [STEM, f"{STEM}_b"]


def test_a_stem_that_begins_like_another_leaves_it_alone(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    for stem in (f"{STEM}_b", STEM, f"{STEM}_b", STEM):
        analyzer.save_logits_to_csv("out", stem, logits, TARGETS, META)
    assert verify_folder(tmp_path / "out") == []
    assert len(list((tmp_path / "out").iterdir())) == 2 * (3 * 3 + 2)


def test_files_are_shared_only_where_the_values_agree(tmp_path, logits):
    analyzer = LogitsAnalyzer(tmp_path, 10)
    first = analyzer.save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    changed = {kind: array.copy() for kind, array in logits.items()}
    changed["quantized"][12] += 1
    second = analyzer.save_logits_to_csv("res", STEM, changed, TARGETS, META, same_as="initial")
    shared = [p.name for p in first.iterdir() if (second / p.name).samefile(p)]
    assert len(shared) == 8 and f"{STEM}_quantized_chunk002_of_003.csv" not in shared
    assert analyzer.load("res").logits["quantized"].tobytes() == changed["quantized"].tobytes()


# --- digests


def test_every_flipped_byte_of_the_metadata_breaks_the_seal(tmp_path, logits):
    folder = LogitsAnalyzer(tmp_path).save_logits_to_csv("out", STEM, logits, TARGETS, META)
    path = folder / f"{STEM}_metadata.csv"
    content = path.read_bytes()
    assert seal_holds(path)
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not seal_holds(path)


def test_the_sums_find_the_damaged_row(tmp_path):
    array = random_bits(50, 9)
    folder = LogitsAnalyzer(tmp_path).save_logits_to_csv(
        "out", STEM, {"quantized": array}, np.zeros(50), {}
    )
    record = read_file_records(folder, STEM)[0]
    assert damaged_row(array, record) is None
    for row in (0, 17, 49):
        broken = array.copy()
        broken[row, 4] += np.float32(1.0) + abs(broken[row, 4])
        assert damaged_row(broken, record) == row
    broken[3, 1] = 12.5
    assert damaged_row(broken, record) is None  # two rows


# --- elsewhere


@pytest.mark.parametrize("scheme", ["memory", "file"])
@pytest.mark.parametrize("chunk_size", [10, 1000])
def test_a_root_may_be_a_url(tmp_path, logits, scheme, chunk_size):
    url = f"{scheme}://{tmp_path}/store"
    analyzer = LogitsAnalyzer(url, chunk_size)
    analyzer.save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    corrected = {**logits, "corrected": logits["quantized"] + 1}
    analyzer.save_logits_to_csv("res", STEM, corrected, TARGETS, META, same_as="initial")
    for folder, expected in (("initial", logits), ("res", corrected)):
        saved = LogitsAnalyzer(url).load(folder)
        assert {k: v.tobytes() for k, v in saved.logits.items()} == {
            k: v.tobytes() for k, v in expected.items()
        }
    LogitsAnalyzer(url, 7).save_logits_to_csv("initial", STEM, logits, TARGETS, META)
    again = LogitsAnalyzer(url).load("initial")  # no chunk of the former size is left
    assert again.logits["quantized"].tobytes() == logits["quantized"].tobytes()
    LogitsAnalyzer(url).save_logits_to_csv("m/initial", STEM, corrected, TARGETS, META)
    assert len(LogitsAnalyzer(url).load("m/initial").logits) == 3
    LogitsAnalyzer(url).to_duckdb(tmp_path / "all.duckdb")
    with pytest.raises(InputError, match="nothing: must be a folder with files, got none"):
        LogitsAnalyzer(url).load("nothing")


def test_storage_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="nowhere://x: must be storage that fsspec reaches, got"):
        LogitsAnalyzer("nowhere://x")


def test_a_database_of_the_user_is_not_replaced(tmp_path, logits):
    import duckdb

    analyzer, path = LogitsAnalyzer(tmp_path), tmp_path / "mine.duckdb"
    analyzer.save_logits_to_csv(f"initial_logits_{NAME.tag}", STEM, logits, TARGETS, META)
    analyzer.to_duckdb(path)
    with duckdb.connect(str(path)) as database:
        database.execute("CREATE TABLE mine AS SELECT 1 AS x")
    before = path.read_bytes()
    wanted = "mine.duckdb: must be new or a former output of to_duckdb, got another file"
    with pytest.raises(InputError, match=wanted):
        analyzer.to_duckdb(path)
    assert path.read_bytes() == before
    path.write_text("mine")
    with pytest.raises(InputError, match=wanted):
        analyzer.to_duckdb(path)
    analyzer.to_duckdb(path, force=True)
    analyzer.to_duckdb(path)


def test_runs_in_one_database(tmp_path, logits):
    import duckdb

    for method in ("rtn", "qdrop"):
        analyzer = LogitsAnalyzer(tmp_path / method, 10)
        meta = {**META, "method": method}
        analyzer.save_logits_to_csv(f"initial_logits_{NAME.tag}", STEM, logits, TARGETS, meta)
        corrected = {**logits, "corrected": logits["quantized"] + 1}
        analyzer.save_logits_to_csv("results_a", STEM, corrected, TARGETS, {**meta, "alpha": 0.5})
    LogitsAnalyzer(tmp_path).to_duckdb(tmp_path / "all.duckdb")
    with duckdb.connect(str(tmp_path / "all.duckdb"), read_only=True) as database:
        rows = database.execute("SELECT run, folder, method, alpha FROM metadata").fetchall()
        assert len(rows) == 4 and {row[2] for row in rows} == {"rtn", "qdrop"}
        counts = database.execute(
            "SELECT run, kind, count(*), avg((prediction = target)::INT) FROM logits GROUP BY ALL"
        ).fetchall()
        assert len(counts) == 6 and {row[2] for row in counts} == {25}
        for run, kind, _, accuracy in counts:
            assert run.endswith(NAME.tag)
            values = corrected[kind]
            assert accuracy == pytest.approx((values.argmax(1) == TARGETS).mean())
        values = database.execute(
            "SELECT logits FROM logits WHERE kind = 'quantized' AND run LIKE 'rtn/%' "
            "ORDER BY sample"
        ).fetchall()
        assert np.array(values, dtype=np.float32)[:, 0].tobytes() == logits["quantized"].tobytes()
        text = (PROJECT / "docs" / "outputs.md").read_text()
        queries = re.search("```sql\n(.*?)```", text, re.DOTALL)[1].split(";")[:3]
        assert len(queries) == 3
        for query in queries:
            database.execute(
                query.replace("n_bits_w", "arch").replace("n_bits_a", "alpha")
            ).fetchall()
    LogitsAnalyzer(tmp_path).to_duckdb(tmp_path / "all.duckdb")  # a former output is replaced
    with pytest.raises(InputError, match="must hold folders of logits, got none"):
        (tmp_path / "empty").mkdir()
        LogitsAnalyzer(tmp_path / "empty").to_duckdb(tmp_path / "x.duckdb")
