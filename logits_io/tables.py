"""Arrays to CSV and back: numbers only, no header, float32 bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from common import InputError


def write_csv(path: Path, array: np.ndarray) -> None:
    """Write a 1-d or 2-d array, a sample a row.

    polars writes the shortest text that reads back as the same float32; where it is missing
    ``np.savetxt`` with nine significant digits does, whose text differs and whose values do not.
    """
    table = array.reshape(len(array), -1)
    try:
        import polars
    except ImportError:
        np.savetxt(
            path,
            table,
            fmt="%d" if np.issubdtype(array.dtype, np.integer) else "%.9g",
            delimiter=",",
        )
        return
    polars.DataFrame(np.ascontiguousarray(table)).write_csv(path, include_header=False)


def read_csv(path: Path, dtype: type = np.float32) -> np.ndarray:
    """Read a file of ``write_csv`` as (N, columns).

    Raises:
        InputError: missing, empty, or holding something else than numbers.
    """
    try:
        return pd.read_csv(path, header=None, dtype=dtype).to_numpy()
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(
            f"{path}: must be a CSV file of numbers without header, got: {error}"
        ) from None


def write_records(path: Path, records: list[dict]) -> None:
    """Write dicts with the same keys as a CSV table with a header."""
    pd.DataFrame(records).to_csv(path, index=False, lineterminator="\n")


def read_records(path: Path) -> list[dict]:
    """Read a file of ``write_records``; values are what pandas makes of them.

    Raises:
        InputError: missing or no table.
    """
    try:
        return pd.read_csv(path).to_dict("records")
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: must be a CSV table with a header, got: {error}") from None
