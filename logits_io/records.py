"""Records of the files of a logits folder: digests, and sums that locate a damaged row.

The checksum of a row is the sum of the bit patterns of its values, each times an odd number of its
column. A record holds the sum of all row checksums, and their sum weighted by the row's position
from 1. One damaged row changes both sums, and the ratio of the changes is its position.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from logits_io.naming import chunk_metadata_file, metadata_file
from logits_io.tables import read_records

MODULUS = 1 << 64


@dataclass(frozen=True)
class FileRecord:
    """One file of a folder; rows are counted from 0 over all chunks of the kind."""

    kind: str
    index: int  # of the chunk, from 1
    count: int  # number of chunks of this kind and format
    first_row: int
    last_row: int
    file: str
    sha256: str
    row_sum: int
    weighted_row_sum: int
    format: str

    @property
    def rows(self) -> int:
        return self.last_row - self.first_row + 1


def row_sums(array: np.ndarray) -> tuple[int, int]:
    """Sum of the row checksums, and their sum weighted by position from 1, both modulo 2^64."""
    numbers = _row_numbers(array)
    weights = np.arange(1, len(numbers) + 1, dtype=np.uint64)
    return int(numbers.sum()), int((numbers * weights).sum())


def damaged_row(array: np.ndarray, record: FileRecord) -> int | None:
    """Index from 0 of the one row whose values have changed; None if no or several rows have."""
    plain, weighted = row_sums(array)
    change = (plain - record.row_sum) % MODULUS
    weighted_change = (weighted - record.weighted_row_sum) % MODULUS
    if change == 0:
        return None
    matches = [i for i in range(len(array)) if (i + 1) * change % MODULUS == weighted_change]
    return matches[0] if len(matches) == 1 else None


def _row_numbers(array: np.ndarray) -> np.ndarray:
    table = np.ascontiguousarray(array.reshape(len(array), -1))
    bits = table.view(np.uint32 if table.itemsize == 4 else np.uint64)
    return (bits * np.arange(1, 2 * bits.shape[1], 2, dtype=np.uint64)).sum(axis=1)


def chunk_rows(records: list[FileRecord]) -> list[dict[str, Any]]:
    """The records as rows of the chunk metadata."""
    return [dataclasses.asdict(record) for record in records]


def whole_columns(records: list[FileRecord]) -> dict[str, Any]:
    """The metadata columns that describe files that are not chunked."""
    columns: dict[str, Any] = {}
    for record in records:
        name = f"{record.kind}_{record.format}"
        columns[f"file_{name}"] = record.file
        columns[f"sha256_{name}"] = record.sha256
        columns[f"row_sum_{name}"] = record.row_sum
        columns[f"weighted_row_sum_{name}"] = record.weighted_row_sum
    return columns


def read_file_records(
    folder: Path, stem: str, metadata: Mapping[str, Any] | None = None
) -> list[FileRecord]:
    """Read the records of the files of a stem.

    Raises:
        InputError: the metadata are missing or damaged.
    """
    try:
        if metadata is None:
            metadata = read_records(folder / metadata_file(stem))[0]
        if metadata["chunked"]:
            rows = read_records(folder / chunk_metadata_file(stem))
            return [FileRecord(**_plain(row)) for row in rows]
        return [
            FileRecord(
                kind=kind,
                index=1,
                count=1,
                first_row=0,
                format=file_format,
                last_row=int(metadata["samples"]) - 1,
                file=str(metadata[f"file_{kind}_{file_format}"]),
                sha256=str(metadata[f"sha256_{kind}_{file_format}"]),
                row_sum=int(metadata[f"row_sum_{kind}_{file_format}"]),
                weighted_row_sum=int(metadata[f"weighted_row_sum_{kind}_{file_format}"]),
            )
            for kind in str(metadata["kinds"]).split()
            for file_format in str(metadata["formats"]).split()
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(
            f"{folder}: metadata of {stem} must describe its files, got: {error!r}"
        ) from None


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    numbers = ("index", "count", "first_row", "last_row", "row_sum", "weighted_row_sum")
    return {str(key): int(value) if key in numbers else str(value) for key, value in row.items()}
