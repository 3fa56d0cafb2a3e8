"""CSV files of another program: with or without a header, and with columns that are no logits.

Nothing is guessed where a guess could be wrong: a column that is not numbers, or looks like row
numbers or labels among the logits, is refused until the schema says what it is.
"""

from __future__ import annotations

import csv
import fnmatch
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.cells import is_number
from common.errors import InputError, require_known
from common.reading import require_regular
from logits_io.schema import ID_NAMES, LABEL_NAMES, Schema

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = (";", "\t", ",")
MAX_LINE = 1 << 24  # letters of the first line
LONGEST_SHOWN = 40

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """What a file of another program holds.

    Attributes:
        source: what the logits were taken from, in words.
    """

    logits: np.ndarray | None  # (N, C) float64 or float32; None where only labels are read
    labels: np.ndarray | None  # (N,)
    ids: tuple[str, ...] | None
    source: str


@dataclass(frozen=True)
class _Layout:
    """The form of a CSV file.

    Attributes:
        names: of the columns; their positions where the file has no header.
    """

    delimiter: str | None  # None: spaces
    has_header: bool
    names: tuple[str, ...]


def read_given_csv(path: Path, schema: Schema, kind: str | None) -> Given:
    """Read the columns of a file.

    Args:
        kind: the kind of logits to read; None: only labels, of a file that may hold nothing else.

    Raises:
        InputError: the file cannot be read or is empty, a column is not there or not numbers.
    """
    import pandas as pd

    try:
        layout = _layout(path, schema)
        labels, ids, logits = _columns(path, layout, schema, kind)
        frame = pd.read_csv(
            path,
            header=None,
            skiprows=int(layout.has_header),
            sep=layout.delimiter or r"\s+",
            index_col=False,
            low_memory=False,
            keep_default_na=False,
            na_values=[""],
            dtype=None if ids is None else {ids: str},
            encoding="utf-8-sig",
        )
    except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "nothing"
        raise InputError(f"{path}: must be a CSV file of logits, got: {reason}") from None
    if frame.shape[1] != len(layout.names):
        raise InputError(
            f"{path}: must hold {len(layout.names)} columns as its first line, got {frame.shape[1]}"
        )
    first = 1 + int(layout.has_header)
    numbers = [_numbers(path, frame, column, layout, first) for column in logits]
    with np.errstate(over="ignore"):  # infinite values are refused later
        table = np.stack(numbers, axis=1, dtype=np.float32, casting="unsafe") if numbers else None
    named = None if ids is None else tuple(frame[ids].fillna("").astype(str))
    return Given(
        logits=table,
        labels=None if labels is None else _numbers(path, frame, labels, layout, first),
        ids=named,
        source=_described(layout, logits),
    )


def _layout(path: Path, schema: Schema) -> _Layout:
    """Find out the form of a file from its first line.

    Raises:
        InputError: the line is empty, or may be a header or not.
    """
    with require_regular(path).open(encoding="utf-8-sig", newline="") as handle:
        line = handle.readline(MAX_LINE).rstrip("\r\n")
    is_comment = line.startswith("#")  # as numpy.savetxt writes a header
    line = line.removeprefix("#").strip(" ")
    delimiter = schema.delimiter or next((d for d in DELIMITERS if d in line), None)
    cells = next(csv.reader([line], delimiter=delimiter), []) if delimiter else line.split()
    cells = [cell.strip() for cell in cells]
    if not cells:
        raise InputError(f"{path}: must be a CSV file of logits, got an empty first line")
    has_header = is_comment or schema.header
    if has_header is None:
        has_header = _is_header(path, cells)
    if has_header:
        return _Layout(delimiter, True, tuple(cells))
    return _Layout(delimiter, False, tuple(map(str, range(len(cells)))))


def _is_header(path: Path, cells: Sequence[str]) -> bool:
    """Whether the cells of the first line are names: text, or whole numbers that count up."""
    numbers = [cell for cell in cells if is_number(cell)]
    counted = cells[1:] if cells[0] == "" else cells
    if len(counted) > 1 and list(counted) in [_count(counted, start) for start in (0, 1)]:
        return True
    if len(cells) > 1 and all(cell.isdecimal() for cell in cells) and len({*cells}) == len(cells):
        raise InputError(
            f"{path}: first line may be numbers or names, got {','.join(cells)[:LONGEST_SHOWN]} "
            "(--schema header=true or header=false)"
        )
    texts = [cell for cell in cells if cell and cell not in numbers]
    if texts and any(not cell.isdecimal() for cell in numbers):
        raise InputError(
            f"{path}: first line must be names or numbers, got {texts[0][:LONGEST_SHOWN]!r} beside "
            f"{numbers[0]} (--schema header=true, or header=false with ids=COLUMN)"
        )
    return bool(texts)


def _count(cells: Sequence[str], start: int) -> list[str]:
    return [str(number) for number in range(start, start + len(cells))]


def _columns(
    path: Path, layout: _Layout, schema: Schema, kind: str | None
) -> tuple[int | None, int | None, list[int]]:
    """Positions of the labels, of the ids, and of the logits."""
    ids = _named(path, layout, schema.ids, (*ID_NAMES, ""))
    alone = kind is None and len(layout.names) == 1
    labels = 0 if alone else _named(path, layout, schema.labels, LABEL_NAMES)
    if kind is None:
        return labels, ids, []
    chosen = schema.of(kind)
    if not chosen:
        return labels, ids, [i for i in range(len(layout.names)) if i not in (labels, ids)]
    found = [position for item in chosen for position in _positions(path, layout, item)]
    if len(set(found)) < len(found):
        raise InputError(f"{path}: schema must name each column of the logits once")
    return labels, ids, found


def _named(path: Path, layout: _Layout, given: str | None, usual: Sequence[str]) -> int | None:
    """The position of one column: the given one, else the one of a usual name; None without it."""
    if given is not None:
        is_position = given.isdecimal() and int(given) < len(layout.names)
        if given not in layout.names and not is_position:
            return None
        found = _positions(path, layout, given)
        if len(found) != 1:
            raise InputError(f"{path}: {given!r} in schema must be one column, got {len(found)}")
        return found[0]
    if not layout.has_header:
        return None
    matches = [i for i, name in enumerate(layout.names) if name.lower() in usual]
    if len(matches) > 1:
        names = ", ".join(repr(layout.names[i]) for i in matches)
        raise InputError(f"{path}: schema must say which column is which, got {names}")
    return matches[0] if matches else None


def _positions(path: Path, layout: _Layout, item: str) -> list[int]:
    """The positions of a name, a position, ``FIRST:END``, or a pattern with ``*``."""
    names, count = layout.names, len(layout.names)
    exact = [i for i, name in enumerate(names) if name == item]
    if exact:
        return exact
    first, colon, end = item.partition(":")
    if colon and all(part == "" or part.isdecimal() for part in (first, end)):
        found = list(range(int(first or 0), min(int(end or count), count)))
        if not found or (end and int(end) > count):
            raise InputError(f"{path}: {item} in schema must be of {count} columns")
        return found
    if "*" in item:
        found = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, item)]
        if found:
            return found
    elif item.isdecimal() and int(item) < count:
        return [int(item)]
    require_known(f"column in schema of {path}", item, [name for name in names if name])
    return []


def _numbers(
    path: Path, frame: pd.DataFrame, column: int, layout: _Layout, first: int
) -> np.ndarray:
    """A column as numbers.

    Args:
        first: number of the first row of data, as editors count.

    Raises:
        InputError: a cell is none.
    """
    import pandas as pd

    values = frame[column]
    if values.dtype.kind in "iuf":
        array = values.to_numpy()
        finite = np.isfinite(array)
        if finite.all():
            return array
        row, cell = int(finite.argmin()), str(array[int(finite.argmin())])
        cell = "an empty cell" if cell == "nan" else cell
    else:
        is_bad = pd.to_numeric(values.astype(str), errors="coerce").isna().to_numpy()
        row = int(is_bad.argmax())
        cell = repr(str(values.iloc[row])[:LONGEST_SHOWN])
    name = layout.names[column]
    shown = repr(name[:LONGEST_SHOWN]) if layout.has_header else name
    known = name if 0 < len(name) <= LONGEST_SHOWN else column
    raise InputError(
        f"{path}: column {shown} must hold finite numbers, got {cell} in row {row + first} "
        f"(--schema ids={known} or labels={known}, if it is no logit)"
    )


def _described(layout: _Layout, logits: Sequence[int]) -> str:
    if not logits:
        return "no logits"
    ends = [layout.names[logits[i]] for i in (0, -1)]
    return f"columns {ends[0]!r} to {ends[1]!r}"
