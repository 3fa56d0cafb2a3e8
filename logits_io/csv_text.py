"""CSV files of numbers alone, without a header, also compressed as a whole."""

from __future__ import annotations

import gzip
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from common.reading import regular_bytes
from common.unfolding import plausible_bytes, require_plausible

BLOCK = 1 << 20
TEXT_BYTES = 32  # of a value in a text, at most
GZIP_LEVEL, ZSTD_LEVEL = 1, 3


def write_csv(path: Path, table: np.ndarray, compression: str) -> None:
    """Write an (N, columns) table; equal values give equal bytes."""
    if compression == "none" and importlib.util.find_spec("polars"):
        import polars

        polars.DataFrame(table).write_csv(path, include_header=False)
        return
    text = csv_text(table)
    if compression == "gzip":
        text = gzip.compress(text, GZIP_LEVEL, mtime=0)
    elif compression == "zstd":
        import pyarrow

        text = pyarrow.Codec("zstd", ZSTD_LEVEL).compress(text, asbytes=True)
    path.write_bytes(text)


def csv_text(table: np.ndarray) -> bytes:
    """CSV text that reads back as the same float32 values.

    polars writes the shortest such text. Without polars, ``np.savetxt`` writes nine significant
    digits: another text, the same values.
    """
    buffer = io.BytesIO()
    try:
        import polars
    except ImportError:
        integers = np.issubdtype(table.dtype, np.integer)
        np.savetxt(buffer, table, fmt="%d" if integers else "%.9g", delimiter=",")
    else:
        polars.DataFrame(table).write_csv(buffer, include_header=False)
    return buffer.getvalue()


def read_csv(path: Path, dtype: type, values: int) -> Iterator[np.ndarray]:
    """Yield the table of a file of ``write_csv``, in one piece."""
    yield _parse(read_text(path, values), dtype)


def _parse(text: bytes, dtype: type) -> np.ndarray:
    """Parse CSV text with polars (4 times as fast as ``numpy.loadtxt``), else with pandas."""
    try:
        import polars
    except ImportError:
        import pandas as pd

        return pd.read_csv(io.BytesIO(text), header=None, dtype=dtype).to_numpy()
    columns = text[: text.find(b"\n") + 1].count(b",") + 1
    kind = polars.Float32 if dtype == np.float32 else polars.Int64
    schema = {f"column_{i + 1}": kind for i in range(columns)}
    table = polars.read_csv(io.BytesIO(text), has_header=False, schema=schema)
    if any(count for count in table.null_count().row(0)):
        raise ValueError("a row with too few numbers")
    return table.to_numpy().astype(dtype, copy=False)


def read_text(path: Path, values: int = 0) -> bytes:
    """The text of a CSV file, decompressed if its name says that it is compressed.

    Args:
        values: number of values that is expected.

    Raises:
        ValueError: the text is far larger.
    """
    content = regular_bytes(path)
    if path.suffix == ".csv":
        return content
    expected = TEXT_BYTES * values
    limit = plausible_bytes(len(content), expected)
    if path.suffix == ".gz":
        with gzip.open(io.BytesIO(content)) as handle:
            text = _read_most(handle, limit)
    else:
        import pyarrow

        with pyarrow.input_stream(io.BytesIO(content), compression="zstd") as stream:
            text = _read_most(stream, limit)
    require_plausible(len(text), len(content), expected)
    return text


def _read_most(stream: Any, limit: int) -> bytes:
    """Read until a stream's end, or more than ``limit`` bytes."""
    pieces: list[bytes] = []
    size = 0
    while size <= limit and (piece := stream.read(BLOCK)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)
