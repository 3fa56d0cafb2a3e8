"""CSV tables of plain values, with a header; no cell is a formula (``common.cells``)."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from common.cells import cell_text, plain_cell
from common.errors import InputError
from common.reading import regular_bytes, require_regular

SEAL = "sha256_of_this_file"
BLANK = "0" * 64


def write_records(path: Path, records: list[dict]) -> None:
    """Write dicts with the same keys as a CSV table with a header."""
    path.write_bytes(_as_csv(records))


def write_sealed(path: Path, record: dict) -> None:
    """Write one dict as a table that ends with its own SHA-256, taken with zeros in that place."""
    content = _as_csv([{**record, SEAL: BLANK}])
    digest = hashlib.sha256(content).hexdigest().encode()
    path.write_bytes(content[:-65] + digest + content[-1:])


def seal_holds(path: Path) -> bool:
    """Whether a file of ``write_sealed`` is unchanged; False if it cannot be read."""
    try:
        content = regular_bytes(path)
    except OSError:
        return False
    blank = content[:-65] + BLANK.encode() + content[-1:]
    return content[-65:-1] == hashlib.sha256(blank).hexdigest().encode()


def _as_csv(records: list[dict]) -> bytes:
    import pandas as pd

    plain = [{_cell(key): _cell(value) for key, value in record.items()} for record in records]
    return pd.DataFrame(plain).to_csv(index=False, lineterminator="\n").encode()


def _cell(value: Any) -> Any:
    return plain_cell(value) if isinstance(value, str) else value


def read_records(path: Path) -> list[dict]:
    """Read a CSV table as one dict per row; pandas infers the types of the values.

    Raises:
        InputError: the file is missing, empty or not a table.
    """
    import pandas as pd

    try:
        records = pd.read_csv(require_regular(path)).to_dict("records")
        if not records:
            raise ValueError("no row")
        return [{cell_text(k): cell_text(cell) for k, cell in row.items()} for row in records]
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path}: must be a CSV table with a header, got: {error}") from None
