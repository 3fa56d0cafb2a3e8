"""Checks that a logits folder is exactly as it was written, down to every byte of every file.

Each check returns the failures it finds as texts that name the file and, if possible, the row
(from 1, as editors count lines).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import sha256_file
from logits_io.csv_text import csv_text, read_text
from logits_io.formats import decode
from logits_io.naming import (
    CACHED_LOGITS,
    TARGETS,
    chunk_metadata_file,
    find_stems,
    metadata_file,
    owner,
)
from logits_io.records import FileRecord, damaged_row, read_file_records, row_sums
from logits_io.tables import read_records, seal_holds


def find_logits_folders(root: Path) -> list[Path]:
    """``root`` itself if it holds logits, else the folders below it that do; never the cache.

    Raises:
        InputError: there is no such folder.
    """
    try:
        if not root.is_dir():
            raise InputError(f"csv-dir must be a folder, got {root}")
        folders = sorted({path.parent for path in root.rglob("logits_*") if _is_logits_file(path)})
    except OSError as error:
        raise InputError(f"csv-dir must be readable, got: {error}") from None
    found = [folder for folder in folders if not folder.name.startswith(".")]
    if not found:
        raise InputError(f"csv-dir must hold logits files, or folders that do, got none in {root}")
    return [root] if root in found else found


def _is_logits_file(path: Path) -> bool:
    is_other = path.parent.name.startswith("logits_summary_") or CACHED_LOGITS.fullmatch(path.name)
    return path.is_file() and not is_other


def verify_folder(folder: Path) -> list[str]:
    """Texts of all failures in a folder; empty if it is as it was written."""
    try:
        return _verify(folder)
    except OSError as error:
        return [f"{folder}: must be readable, got: {error}"]


def _verify(folder: Path) -> list[str]:
    stems = find_stems(folder)
    if not stems:
        return [f"{folder}: no logits_*_metadata.csv describes the files"]
    failures: list[str] = []
    known: set[str] = set()
    read: dict[str, bool] = {}
    for stem in stems:
        found, names = _verify_stem(folder, stem)
        failures += found
        known |= names
        read[stem] = len(names) > 2  # more than the metadata files: its records were read
    unread = {stem for stem, is_read in read.items() if not is_read}
    for path in sorted(folder.iterdir()):
        if path.name not in known and owner(path.name, stems) not in unread:
            failures.append(f"{path}: is not named in any metadata; if it is yours, move it away")
    return failures


def _verify_stem(folder: Path, stem: str) -> tuple[list[str], set[str]]:
    """The failures of the files of a stem, and the file names in its metadata."""
    path = folder / metadata_file(stem)
    known = {path.name, chunk_metadata_file(stem)}
    if not seal_holds(path):
        return [f"{path}: row 2 is not as it was written, or was written without a SHA-256"], known
    try:
        metadata = read_records(path)[0]
        if metadata["stem"] != stem:
            return [
                f"{path}: must be the metadata of {stem}, got those of {metadata['stem']}"
            ], known
        metadata |= {key: int(metadata[key]) for key in ("samples", "classes")}
        if metadata["chunked"]:
            chunks = folder / chunk_metadata_file(stem)
            content = chunks.read_bytes() if chunks.is_file() else b""
            if hashlib.sha256(content).hexdigest() != metadata["sha256_chunked_metadata"]:
                return [f"{chunks}: is missing or not as it was written (SHA-256)"], known
        records = read_file_records(folder, stem, metadata)
    except (InputError, KeyError, TypeError, ValueError) as error:
        return [f"{path}: {error}"], known
    known |= {record.file for record in records}
    failures = list(_check_sequences(path, records, metadata))
    for record in records:
        failures += _check_file(folder, record, metadata)
    return failures, known


def _check_sequences(
    path: Path, records: list[FileRecord], metadata: dict[str, Any]
) -> Iterator[str]:
    """Check that the chunks of every kind and format cover all samples without gap or overlap."""
    for kind in str(metadata["kinds"]).split():
        for name in str(metadata["formats"]).split():
            chain = [r for r in records if (r.kind, r.format) == (kind, name)]
            rows = [0, *(record.last_row + 1 for record in chain)]
            whole = (
                [record.index for record in chain] == list(range(1, len(chain) + 1))
                and all(record.count == len(chain) for record in chain)
                and all(r.first_row == row for r, row in zip(chain, rows, strict=False))
                and rows[-1] == metadata["samples"]
            )
            if not whole:
                yield (
                    f"{path}: {name} files of {kind} must be chunks 1..count without a gap over "
                    f"{metadata['samples']} samples, got {len(chain)} ending at row {rows[-1]}"
                )


def _check_file(folder: Path, record: FileRecord, metadata: dict[str, Any]) -> Iterator[str]:
    path = folder / record.file
    if not path.is_file():
        yield (
            f"{path}: is missing (rows {record.first_row + 1} to {record.last_row + 1} of "
            f"{record.kind})"
        )
        return
    try:
        intact = sha256_file(path) == record.sha256
    except OSError as error:
        yield f"{path}: must be readable, got: {error}"
        return
    wanted = 1 if record.kind == TARGETS else int(metadata["classes"])
    try:
        dtype = np.int64 if record.kind == TARGETS else np.float32
        array = decode(path, dtype, record.rows * wanted)
    except InputError as error:
        yield f"{error}{_place_in_text(path, wanted)}"
        return
    if array.shape != (record.rows, wanted):
        yield (
            f"{path}: must hold {record.rows} rows of {wanted} values, got {array.shape[0]} of "
            f"{array.shape[1]}{_place_in_text(path, wanted)}"
        )
        return
    yield from _check_values(path, record, array, metadata)
    if not intact:
        yield f"{path}: {_where(path, array, record)} is not as it was written (SHA-256)"
    elif row_sums(array) != (record.row_sum, record.weighted_row_sum):
        yield f"{path}: the values do not match the sums in the metadata"


def _where(path: Path, array: np.ndarray, record: FileRecord) -> str:
    """The place of the change in a file of the right shape."""
    row = damaged_row(array, record)
    if row is not None:
        return f"row {row + 1}"
    if row_sums(array) != (record.row_sum, record.weighted_row_sum):
        return "more than one row"
    if path.name.endswith(".csv"):  # the same values in another text
        lines = (text.split(b"\n") for text in (path.read_bytes(), csv_text(array)))
        for number, (found, expected) in enumerate(zip(*lines, strict=False), 1):
            if found != expected:
                return f"row {number} (its text; the values are the same)"
    return "the file (its values are the same)"


def _check_values(
    path: Path, record: FileRecord, array: np.ndarray, metadata: dict[str, Any]
) -> Iterator[str]:
    if record.kind == TARGETS:
        outside = (array[:, 0] < 0) | (array[:, 0] >= int(metadata["classes"]))
        if outside.any():
            row = int(outside.argmax())
            yield (
                f"{path}: row {row + 1} must be a class from 0 to {metadata['classes'] - 1}, "
                f"got {array[row, 0]}"
            )
        return
    broken = ~np.isfinite(array).all(axis=1)
    if broken.any():
        yield f"{path}: row {int(broken.argmax()) + 1} must be finite, got NaN or Inf"


def _place_in_text(path: Path, columns: int) -> str:
    """The first row of a CSV file that does not hold ``columns`` numbers, as text; else empty."""
    if ".csv" not in path.suffixes:
        return ""
    try:
        content = read_text(path)
    except Exception:  # noqa: BLE001  (a damaged file fails in every possible way)
        return ""
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            good = line == b"" or len([float(value) for value in line.split(b",")]) == columns
        except ValueError:
            good = False
        if not good:
            return f" (row {number})"
    return ""
