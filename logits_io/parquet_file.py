"""Parquet files of one column, with a list of fixed size per sample."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.reading import regular_bytes
from common.unfolding import require_plausible

COLUMN = "values"
VALUE_BYTES = 8  # of a value, at most


def write_parquet(path: Path, table: np.ndarray, compression: str) -> None:
    """Write an (N, columns) table; equal values give equal bytes."""
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.ravel()), table.shape[1])
    floats = table.dtype == np.float32
    parquet.write_table(
        pyarrow.table({COLUMN: values}),
        path,
        compression=compression,
        use_dictionary=False,
        column_encoding={f"{COLUMN}.list.element": "BYTE_STREAM_SPLIT"} if floats else None,
    )


def read_parquet(path: Path, dtype: type, values: int) -> Iterator[np.ndarray]:
    """Yield the table of a file of ``write_parquet``, in one piece."""
    import pyarrow
    from pyarrow import parquet

    content = regular_bytes(path)
    with parquet.ParquetFile(pyarrow.BufferReader(content)) as file:
        width = file.schema_arrow.field(COLUMN).type.list_size
        described = file.metadata.num_rows * width * VALUE_BYTES
        require_plausible(described, len(content), VALUE_BYTES * values)
        column = file.read()[COLUMN].combine_chunks()
    table = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    yield table.astype(dtype, copy=False)
