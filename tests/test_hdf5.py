"""HDF5 files of logits: small memory, no time in them, nothing read from elsewhere, full disks."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from common.errors import InputError
from logits_io import LogitsAnalyzer
from logits_io.checks import verify_folder
from logits_io.formats import decode, read_pieces, write_array
from logits_io.hdf5_file import BLOCK
from tests.conftest import PROJECT
from tests.logits_lab import META, NAME, STEM, TARGETS, made_up_logits

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    """Logits of 10 MB."""
    return np.random.default_rng(0).standard_normal((2500, 1000), dtype=np.float32)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_large_table_is_read_in_blocks(tmp_path, large, compression):
    path = tmp_path / "a.h5"
    write_array(path, large, "hdf5", compression)
    tracemalloc.start()
    row = 0
    for piece in read_pieces(path, np.float32, large.size):
        assert piece.nbytes <= BLOCK
        assert piece.tobytes() == large[row : row + len(piece)].tobytes()
        row += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row == len(large)
    assert peak < 4 * BLOCK < large.nbytes / 2


def test_a_full_disk_ends_no_process(tmp_path, large):
    """The library crashes where it writes itself, at once or at its end."""
    code = """if True:
        import resource, signal, sys
        from pathlib import Path
        import numpy as np
        from logits_io.formats import write_array
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        for name in "ab":
            try:
                write_array(Path(sys.argv[1], name), np.zeros((1000, 1000)), "hdf5", "none")
            except OSError as error:
                print(error.errno)
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert (found.returncode, found.stdout.split()) == (0, 2 * [str(errno.EFBIG)]), found.stderr


def test_the_file_holds_no_time(tmp_path):
    paths = [tmp_path / name for name in ("a.h5", "b.h5")]
    for path in paths:
        write_array(path, np.arange(30), "hdf5", "gzip")
        time.sleep(1.01)  # HDF5 counts whole seconds
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_without_h5py_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    write_array(tmp_path / "a.h5", np.arange(3), "hdf5", "none")
    monkeypatch.setitem(sys.modules, "h5py", None)
    text = r"hdf5 needs h5py \(pip install -r requirements-hdf5.txt\), got: "
    with pytest.raises(InputError, match=text):
        LogitsAnalyzer(tmp_path, 10, ("csv", "hdf5"))
    with pytest.raises(InputError, match=text):
        decode(tmp_path / "a.h5")


def soft_link(file, folder):
    file["other"] = np.zeros((3, 2))
    file["values"] = h5py.SoftLink("/other")


def other_file(file, folder):
    with h5py.File(folder / "secret.h5", "w") as secret:
        secret["values"] = np.zeros((3, 2))
    file["values"] = h5py.ExternalLink("secret.h5", "/values")


def outside_values(file, folder):
    (folder / "raw").write_bytes(bytes(24))
    file.create_dataset("values", (3, 2), "f4", external=[(str(folder / "raw"), 0, 24)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((3, 2), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "values", (3, 2))
    file.create_virtual_dataset("values", layout)


DAMAGES = {
    "nothing": (lambda file, folder: None, "no data set 'values' of its own"),
    "a link": (soft_link, "no data set 'values' of its own"),
    "a link to a file": (other_file, "no data set 'values' of its own"),
    "values elsewhere": (outside_values, "with its values in the file"),
    "a view": (virtual, "with its values in the file"),
    "a folder": (lambda file, folder: file.create_group("values"), "with its values in the file"),
    "text": (lambda file, folder: file.create_dataset("values", data=["a"]), "not a table"),
    "a cube": (lambda file, folder: file.create_dataset("values", (1, 2, 3), "f4"), "not a table"),
    "2 GiB of zeros": (
        lambda file, folder: file.create_dataset("values", (1 << 19, 1 << 10), "f4", chunks=True),
        "unfolds to 2147483648, more than the plausible",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_table_of_its_own_numbers_is_refused(damage, tmp_path):
    make, text = DAMAGES[damage]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file, tmp_path)
    with pytest.raises(InputError, match=f"a.h5: must be a h5 file of numbers .*{text}"):
        decode(tmp_path / "a.h5")


def test_a_folder_of_hdf5_is_whole_and_a_database_is_made_of_it(tmp_path):
    import duckdb

    logits = made_up_logits()
    analyzer = LogitsAnalyzer(tmp_path, 10, ("hdf5",), "gzip")
    name = f"initial_logits_{NAME.tag}"
    folder = analyzer.save_logits_to_csv(name, STEM, logits, TARGETS, META)
    assert verify_folder(folder) == []
    assert len(list(folder.glob("*_chunk*_of_003.h5"))) == 9
    analyzer.save_logits_to_csv(name, STEM, logits, TARGETS, META)  # replaces its own files
    assert analyzer.load(name).logits["quantized"].tobytes() == logits["quantized"].tobytes()
    analyzer.to_duckdb(tmp_path / "all.duckdb")
    with duckdb.connect(str(tmp_path / "all.duckdb"), read_only=True) as database:
        query = "SELECT logits FROM logits WHERE kind = 'quantized' ORDER BY sample"
        values = np.array(database.execute(query).fetchall(), dtype=np.float32)[:, 0]
    assert values.tobytes() == logits["quantized"].tobytes()
