"""Small files that unfold to gigabytes are refused before they are; honest ones are read."""

from __future__ import annotations

import gzip
import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from common import unfolding
from common.errors import InputError
from common.unfolding import PLAUSIBLE_BYTES, read_arrays
from correction import ClusterAffineCorrection
from logits_io.formats import decode
from logits_io.npz import read_npz

GIGABYTES = 2 << 30


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()


def archive(path: Path, members: dict[str, bytes], zeros: int = 0) -> Path:
    """Write a compressed archive; ``zeros`` further bytes end its last member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, start in members.items():
            with file.open(name, "w", force_zip64=True) as handle:
                handle.write(start)
                if name == list(members)[-1]:
                    for _ in range(zeros >> 20):
                        handle.write(bytes(1 << 20))
    return path


@pytest.fixture(scope="module")
def bomb(tmp_path_factory) -> Path:
    """An array of 2 GiB in a file of 9 MB."""
    path = tmp_path_factory.mktemp("bomb") / "c.npz"
    return archive(path, {"values.npy": header("<f4", (1 << 19, 1 << 10))}, GIGABYTES)


READERS = {
    "correction": ClusterAffineCorrection.load,
    "logits of experts": read_npz,
    "logits": decode,
}


@pytest.mark.parametrize("reader", READERS)
def test_a_bomb_is_refused_without_unfolding_it(reader, bomb):
    assert bomb.stat().st_size < 10_000_000
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        READERS[reader](bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * bomb.stat().st_size
    text = f"{bomb}: must be a"
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)
    size = bomb.stat().st_size
    assert f"a file of {size} bytes that unfolds to {GIGABYTES + 128}, more than" in str(
        caught.value
    )


def test_as_much_as_is_expected_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(unfolding, "PLAUSIBLE_BYTES", 1000)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, logits=np.zeros((1000, 10), np.float32))
    with pytest.raises(InputError, match="unfolds to 40128"):
        read_npz(path, 100, 10)
    assert read_npz(path, 1000, 10)["logits"].shape == (1000, 10)
    np.savez_compressed(path, values=np.zeros((1000, 10), np.float32))
    with pytest.raises(InputError, match="unfolds to 40128"):
        decode(path, values=100)
    assert decode(path, values=10_000).shape == (1000, 10)


HEADERS = {
    "a shape that is not there": ({"a.npy": header("<f4", (1 << 40,))}, "a.npy of 128 bytes, not"),
    "a shape that overflows": ({"a.npy": header("<f4", (1 << 62, 8))}, "a.npy of 128 bytes, not"),
    "values without bytes": ({"a.npy": header("|V0", (1 << 40,))}, "not of values"),
    "objects": ({"a.npy": header("|O", (1,)) + bytes(8)}, "arrays of type object, not of values"),
    "more than the shape": (
        {"a.npy": header("<f4", (1,)) + bytes(8)},
        "a.npy of 136 bytes, not 132",
    ),
    "no array": ({"a.txt": b"text"}, "'a.txt', which is no array"),
    "text": ({"a.npy": b"text" * 10}, "magic"),
    "a long header": (
        {"a.npy": b"\x93NUMPY\x02\x00" + (1 << 30).to_bytes(4, "little")},
        "a header of 1073741824 bytes",
    ),
    "many": ({f"{n}.npy": b"" for n in range(1001)}, "more than 1000 arrays"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_headers_that_do_not_fit_are_refused(what, tmp_path):
    members, text = HEADERS[what]
    path = archive(tmp_path / "a.npz", members)
    with pytest.raises(InputError, match="must be a whole npz file of arrays, got: ") as caught:
        read_npz(path)
    assert text in str(caught.value)


def test_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", logits=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="arrays of type object, not of values"):
        read_npz(tmp_path / "a.npz")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?", "U5", ">f4"])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_honest_arrays_are_read(dtype, save, tmp_path):
    arrays = {
        "a": np.arange(6).reshape(2, 3).astype(dtype),
        "b": np.array(3).astype(dtype),
        "c": np.empty((0, 4), dtype),
        "d": np.asfortranarray(np.arange(6).reshape(2, 3).astype(dtype)),
    }
    save(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)


def test_texts_that_unfold_are_refused(tmp_path):
    path = tmp_path / "values.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as handle:
        for _ in range((PLAUSIBLE_BYTES >> 20) + 2):
            handle.write(b"0\n" * (1 << 19))
    with pytest.raises(InputError, match=r"values.csv.gz: must be a csv.gz file .* unfolds to"):
        decode(path)


def test_tables_that_unfold_are_refused(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    monkeypatch.setattr(unfolding, "PLAUSIBLE_BYTES", 1000)
    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.zeros(100_000, "f4")), 10)
    path = tmp_path / "values.parquet"
    parquet.write_table(pyarrow.table({"values": values}), path)
    with pytest.raises(InputError, match="unfolds to 800000, more than"):
        decode(path)
    assert decode(path, values=100_000).shape == (10_000, 10)
