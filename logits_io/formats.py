"""Conversion of arrays to CSV, Parquet or npz and back, float32 bit for bit.

CSV holds only numbers, without a header. Parquet holds one column, with a list of fixed size per
sample. npz holds one array, named like the column.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import sha256_file
from common.reading import regular_bytes
from common.unfolding import plausible_bytes, read_arrays, require_plausible

FORMATS = ("csv", "parquet", "npz")
COMPRESSIONS = ("none", "gzip", "zstd")
BLOCK = 1 << 20
VALUE_BYTES, TEXT_BYTES = 8, 32  # of a value at most, in an array and in a text
COLUMN = "values"  # name of the Parquet column and of the npz array
GZIP_LEVEL, ZSTD_LEVEL = 1, 3
CSV_ENDINGS = {"none": ".csv", "gzip": ".csv.gz", "zstd": ".csv.zst"}


def ending(file_format: str, compression: str) -> str:
    """Ending of a file name; Parquet and npz store inside how they are compressed."""
    return CSV_ENDINGS[compression] if file_format == "csv" else f".{file_format}"


def require_formats(formats: tuple[str, ...], compression: str) -> None:
    """Check a choice of formats and compression.

    Raises:
        InputError: unknown or repeated names, a combination that is not possible, or pyarrow is
            needed and missing.
    """
    for name in formats:
        if name not in FORMATS:
            raise InputError(f"logits_format must be one of {', '.join(FORMATS)}, got {name!r}")
    if len(set(formats)) < len(formats):
        raise InputError(f"logits_format must name each format once, got {', '.join(formats)}")
    if not formats:
        raise InputError("logits_format must be at least one format, got none")
    if compression not in COMPRESSIONS:
        raise InputError(
            f"compression must be one of {', '.join(COMPRESSIONS)}, got {compression!r}"
        )
    if "npz" in formats and compression == "zstd":
        raise InputError("compression of npz must be none or gzip, got zstd")
    if "parquet" in formats or compression == "zstd":
        _require_pyarrow("parquet" if "parquet" in formats else "zstd")


def _require_pyarrow(what: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise InputError(f"{what} needs pyarrow (pip install pyarrow), got: {error}") from None


def encode(array: np.ndarray, file_format: str, compression: str) -> bytes:
    """File content of a 1-d or 2-d array, one row per sample; equal values give equal bytes."""
    table = np.ascontiguousarray(array.reshape(len(array), -1))
    if file_format == "parquet":
        return _parquet(table, compression)
    if file_format == "npz":
        buffer = io.BytesIO()
        if compression == "gzip":
            np.savez_compressed(buffer, values=table)
        else:
            np.savez(buffer, values=table)
        return buffer.getvalue()
    text = _csv(table)
    if compression == "gzip":
        return gzip.compress(text, GZIP_LEVEL, mtime=0)
    if compression == "zstd":
        import pyarrow

        return pyarrow.Codec("zstd", ZSTD_LEVEL).compress(text, asbytes=True)
    return text


def write_array(path: Path, array: np.ndarray, file_format: str, compression: str) -> str:
    """Write ``encode(array)`` to ``path`` and return its SHA-256."""
    if (file_format, compression) == ("csv", "none") and importlib.util.find_spec("polars"):
        import polars

        table = np.ascontiguousarray(array.reshape(len(array), -1))
        polars.DataFrame(table).write_csv(path, include_header=False)
        return sha256_file(path)
    content = encode(array, file_format, compression)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _csv(table: np.ndarray) -> bytes:
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


def _parquet(table: np.ndarray, compression: str) -> bytes:
    import pyarrow
    from pyarrow import parquet

    values = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(table.ravel()), table.shape[1])
    sink = pyarrow.BufferOutputStream()
    floats = table.dtype == np.float32
    parquet.write_table(
        pyarrow.table({COLUMN: values}),
        sink,
        compression=compression,
        use_dictionary=False,
        column_encoding={f"{COLUMN}.list.element": "BYTE_STREAM_SPLIT"} if floats else None,
    )
    return sink.getvalue().to_pybytes()


def decode(path: Path, dtype: type = np.float32, values: int = 0) -> np.ndarray:
    """Read a file of ``encode`` as an (N, columns) array; its ending decides on the format.

    Args:
        values: number of values that is expected; files with far more are not unfolded.

    Raises:
        InputError: the file is missing or damaged, or holds something else than numbers.
    """
    try:
        if path.name.endswith(".parquet"):
            return _read_parquet(path, values).astype(dtype, copy=False)
        if path.name.endswith(".npz"):
            return read_arrays(path, VALUE_BYTES * values)[COLUMN].astype(dtype, copy=False)
        text = regular_bytes(path) if path.suffix == ".csv" else read_text(path, values)
        return _parse(text, dtype)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        kind = path.name.split(".", 1)[-1]
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: must be a {kind} file of numbers without header, got: {reason}"
        ) from None


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
    """Decompress the text of a compressed CSV file.

    Args:
        values: number of values that is expected.

    Raises:
        ValueError: the text is far larger.
    """
    content = regular_bytes(path)
    expected = TEXT_BYTES * values
    limit = plausible_bytes(len(content), expected)
    if path.name.endswith(".gz"):
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


def _read_parquet(path: Path, values: int) -> np.ndarray:
    import pyarrow
    from pyarrow import parquet

    content = regular_bytes(path)
    with parquet.ParquetFile(pyarrow.BufferReader(content)) as file:
        width = file.schema_arrow.field(COLUMN).type.list_size
        described = file.metadata.num_rows * width * VALUE_BYTES
        require_plausible(described, len(content), VALUE_BYTES * values)
        column = file.read()[COLUMN].combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
