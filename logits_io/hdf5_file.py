"""HDF5 files of one data set, read in blocks of rows (h5py, requirements-hdf5.txt).

The HDF5 library crashes when the disk is full, so it writes to memory, and Python to the disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.reading import require_regular
from common.unfolding import require_plausible

DATASET = "values"
BLOCK = 1 << 20  # bytes of the rows that are packed or read at once
GZIP_LEVEL = 1


def write_hdf5(path: Path, table: np.ndarray, compression: str) -> None:
    """Write an (N, columns) table; equal values give equal bytes.

    The file holds no time, and its layout is the oldest one, which every version of HDF5 reads and
    which is the same in all of them.
    """
    import h5py

    rows = _block_rows(table.shape[1], table.itemsize)
    packing: dict[str, Any] = {}
    if compression == "gzip":
        packing = {"chunks": (min(rows, len(table)), table.shape[1]), "shuffle": True}
        packing |= {"compression": "gzip", "compression_opts": GZIP_LEVEL}
    with h5py.File(
        path, "w", driver="core", backing_store=False, block_size=BLOCK, libver="earliest"
    ) as file:
        stored = file.create_dataset(
            DATASET, shape=table.shape, dtype=table.dtype, track_times=False, **packing
        )
        for start in range(0, len(table), rows):
            stored[start : start + rows] = table[start : start + rows]
        file.flush()
        image = file.id.get_file_image()
    path.write_bytes(image)


def read_hdf5(path: Path, dtype: type, values: int) -> Iterator[np.ndarray]:
    """Yield the table of a file of ``write_hdf5`` in blocks of rows.

    Args:
        values: number of values that is expected.

    Raises:
        ValueError: the file has no such table, refers to other files, or has far more values.
    """
    import h5py

    size = require_regular(path).stat().st_size
    with h5py.File(path, "r", locking=False) as file:
        stored = _own_dataset(file)
        width = stored.shape[1]
        described = len(stored) * width * stored.dtype.itemsize
        require_plausible(described, size, values * stored.dtype.itemsize)
        rows = _block_rows(width, stored.dtype.itemsize)
        for start in range(0, max(len(stored), 1), rows):
            yield stored[start : start + rows].astype(dtype, copy=False)


def _own_dataset(file: Any) -> Any:
    """The data set of a file that is open, which must hold its own numbers.

    Raises:
        ValueError: there is none, or it is a link or leads to other files.
    """
    import h5py

    if not isinstance(file.get(DATASET, getlink=True), h5py.HardLink):
        raise ValueError(f"no data set {DATASET!r} of its own")
    stored = file[DATASET]
    if not isinstance(stored, h5py.Dataset) or stored.is_virtual or stored.external:
        raise ValueError(f"no data set {DATASET!r} with its values in the file")
    if stored.ndim != 2 or stored.dtype.kind not in "fiu":
        raise ValueError(f"{stored.dtype} of shape {stored.shape}, not a table of numbers")
    return stored


def _block_rows(width: int, itemsize: int) -> int:
    return max(1, BLOCK // max(1, width * itemsize))
