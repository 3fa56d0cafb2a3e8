"""Files that prove their own content: whatever is damaged is not believed."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from common.sealed import SEAL, read_array, read_record, write_array, write_record

ARRAY = np.random.RandomState(0).randn(5, 7).astype(np.float32)
RECORD = {"figures": {"top1": 88.25, "names": ["a", "größe"]}, "n": 3, "none": None}


def damaged(content: bytes, seed: int) -> bytes:
    """Content with a flipped bit, a cut, an inserted or a repeated part, or nothing left."""
    random = np.random.RandomState(seed)
    where = int(random.randint(len(content)))
    kind = seed % 5
    if kind == 0:
        return content[:where] + bytes([content[where] ^ 1 << seed % 8]) + content[where + 1 :]
    if kind == 1:
        return content[:where]
    if kind == 2:
        return content[:where] + b"\0" + content[where:]
    if kind == 3:
        return content + content[where:]
    return b""


def warnings_of(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("in_place", [False, True])
def test_an_array_is_read_as_it_was_written(tmp_path, in_place):
    write_array(tmp_path / "a.npy", ARRAY, "origin")
    found = read_array(tmp_path / "a.npy", "origin", in_place)
    assert found.dtype == ARRAY.dtype
    assert np.array_equal(found, ARRAY)
    assert np.array_equal(np.load(tmp_path / "a.npy"), ARRAY)  # any reader of .npy takes it
    found[0] = 0
    assert np.array_equal(read_array(tmp_path / "a.npy", "origin"), ARRAY)


def test_an_array_of_another_origin_is_not_believed(tmp_path, caplog):
    write_array(tmp_path / "a.npy", ARRAY, "origin")
    assert read_array(tmp_path / "a.npy", "another") is None
    assert len(warnings_of(caplog)) == 1
    assert read_array(tmp_path / "none.npy", "origin") is None
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_array_is_not_believed(tmp_path, seed, caplog):
    path = tmp_path / "a.npy"
    write_array(path, ARRAY, "origin")
    path.write_bytes(damaged(path.read_bytes(), seed))
    assert read_array(path, "origin", bool(seed % 2)) is None
    assert warnings_of(caplog) == [
        f"{path} is damaged or of another origin and is made anew: its digest does not hold"
    ]


def test_a_folder_in_place_of_an_array_is_not_believed(tmp_path):
    (tmp_path / "a.npy").mkdir()
    assert read_array(tmp_path / "a.npy", "origin") is None


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "r.json", RECORD)
    assert read_record(tmp_path / "r.json") == RECORD
    assert SEAL in json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert read_record(tmp_path / "none.json") is None


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_record_is_not_believed_unless_it_means_the_same(tmp_path, seed):
    path = tmp_path / "r.json"
    write_record(path, RECORD)
    path.write_bytes(damaged(path.read_bytes(), seed))
    found = read_record(path)
    assert found is None or found == RECORD or set(found) - set(RECORD)  # the seal's own name


@pytest.mark.parametrize("text", ["3", "[]", "null", "{", "\ud800", "[" * 100_000, '{"a": NaN'])
def test_what_is_no_record_is_not_believed(tmp_path, text, caplog):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert read_record(path) is None
    assert len(warnings_of(caplog)) == 1
    assert "\n" not in warnings_of(caplog)[0]


def test_a_record_of_an_earlier_version_is_taken(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps(RECORD))
    assert read_record(tmp_path / "r.json") == RECORD


def test_a_changed_figure_is_not_believed(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, RECORD)
    path.write_text(path.read_text(encoding="utf-8").replace("88.25", "89.25"), encoding="utf-8")
    assert read_record(path) is None
