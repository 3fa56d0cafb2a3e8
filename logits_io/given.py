"""Logits of another program: quantized and full-precision logits of the same samples.

A pair is read only if its rows can be the same samples: equal numbers of rows and classes, and the
same ids where both files have some. What must be numbers is finite, and no probabilities.

Letters: N samples, C classes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from logits_io.given_csv import Given, read_given_csv
from logits_io.given_npz import read_given_npy, read_given_npz
from logits_io.given_values import as_logits, shape_text
from logits_io.naming import METADATA_ENDING
from logits_io.saved import SavedLogits
from logits_io.schema import Schema

Reader = Callable[[Path, Schema, str | None], Given]
READERS: dict[str, Reader] = {
    ".csv": read_given_csv,
    ".tsv": read_given_csv,
    ".txt": read_given_csv,
    ".npz": read_given_npz,
    ".npy": read_given_npy,
}

logger = logging.getLogger(__name__)


def read_given(
    files: Mapping[str, Path],
    schema: Schema | None = None,
    labels: Path | None = None,
    needs_all: bool = True,
) -> SavedLogits:
    """Read logits of the same samples from files or folders of another program.

    Args:
        files: kind (quantized, fullprecision) -> a file, or a folder whose files are parts of one
            table, in the natural order of their names (2 before 10).
        schema: what is what; None: found by the names.
        labels: a file with the labels; None: those in the files, if any.
        needs_all: refuse labels or ids of the schema that no file has.

    Returns:
        float32 logits in the order of the rows of the first kind.

    Raises:
        InputError: a file is unusable, rows, classes, ids or labels of the files do not match, or
            values are not logits.
    """
    schema = schema or Schema()
    parts = {kind: _read(path, schema, kind) for kind, path in files.items()}
    logits = {kind: as_logits(files[kind], schema, kind, part) for kind, part in parts.items()}
    first, *others = parts
    ids = parts[first].ids
    found = {files[kind]: part.labels for kind, part in parts.items() if part.labels is not None}
    for kind in others:
        if logits[kind].shape != logits[first].shape:
            raise InputError(
                f"{files[kind]}: must hold {shape_text(logits[first])} as {files[first]}, "
                f"got {shape_text(logits[kind])}"
            )
        order = _order(ids, parts[kind].ids, files[first], files[kind])
        if order is not None:
            logits[kind] = logits[kind][order]
            if files[kind] in found and files[kind] != files[first]:
                found[files[kind]] = found[files[kind]][order]
        ids = ids or parts[kind].ids
        if np.array_equal(logits[kind], logits[first]):
            raise InputError(
                f"{kind} logits must differ from {first} ones, got the same values in "
                f"{files[kind]} and {files[first]}"
            )
    if labels is not None:
        found[labels] = _labels_of(labels, schema, ids, files[first])
    for key, value in (("labels", found or None), ("ids", ids)):
        if needs_all and key in schema.keys and value is None:
            name = getattr(schema, key)
            raise InputError(f"{key} in schema must be in a file, got {name!r}, which is in none")
    return SavedLogits(logits, _agreed(found, *logits[first].shape), {}, ids)


def _read(path: Path, schema: Schema, kind: str | None) -> Given:
    """Read a file, or all files of a folder as parts of one table."""
    if not path.is_dir():
        return _reader(path)(path, schema, kind)
    files = _files_of(path, schema)
    parts = [_reader(file)(file, schema, kind) for file in files]
    logger.info("%s: %d files, from %s to %s", path, len(files), files[0].name, files[-1].name)
    widths = [part.logits.shape[1:] for part in parts if part.logits is not None]
    if len(set(widths)) > 1:
        odd = next(i for i, width in enumerate(widths) if width != widths[0])
        raise InputError(
            f"{files[odd]}: must have the columns of {files[0].name}, {widths[0]}, "
            f"got {widths[odd]}"
        )
    for what in ("logits", "labels", "ids"):
        missing = [getattr(part, what) is None for part in parts]
        if any(missing) and not all(missing):
            raise InputError(f"{files[missing.index(True)]}: must have {what} as other files have")
    named = [part.ids for part in parts if part.ids is not None]
    return Given(
        logits=_joined([part.logits for part in parts]),
        labels=_joined([part.labels for part in parts]),
        ids=tuple(name for ids in named for name in ids) if named else None,
        source=parts[0].source,
    )


def _joined(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    found = [array for array in arrays if array is not None]
    return np.concatenate(found) if found else None


def _reader(path: Path) -> Reader:
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"{path}: must be an existing file or folder, got nothing")
    if suffix not in READERS:
        raise InputError(f"{path}: must end in {', '.join(READERS)} or be a folder, got {suffix!r}")
    return READERS[suffix]


def _files_of(folder: Path, schema: Schema) -> list[Path]:
    """The files of a folder to read, of one kind, in their natural order.

    Raises:
        InputError: there are none, or they cannot be parts of one table.
    """
    pattern = schema.files or "*"
    found = [p for p in sorted(folder.glob(pattern)) if p.suffix.lower() in READERS and p.is_file()]
    if schema.files is None and any(p.name.endswith(METADATA_ENDING) for p in found):
        raise InputError(
            f"{folder}: holds several kinds of logits of this suite; --schema files='*_quantized*' "
            "chooses one, and LogitsAnalyzer.load reads all"
        )
    if len({path.suffix.lower() for path in found}) != 1:
        endings = sorted({path.suffix for path in found})
        raise InputError(
            f"{folder}: must hold files of one ending for {pattern!r}, got {endings or 'none'}"
        )
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in a name by their size."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _order(
    ids: tuple[str, ...] | None, others: tuple[str, ...] | None, path: Path, other: Path
) -> np.ndarray | None:
    """The order in which the rows of ``other`` have the ids of ``path``; None: as they are.

    Raises:
        InputError: the ids are not the same ones, each once.
    """
    if (ids is None) != (others is None):
        alone, without = (other, path) if ids is None else (path, other)
        logger.warning("%s has ids and %s has none: rows are taken as they come", alone, without)
    if ids is None or others is None or ids == others:
        return None
    known = set(ids)
    unknown = [row for row, name in enumerate(others) if name not in known]
    if unknown or len(set(others)) != len(known):
        row = unknown[0] if unknown else 0
        raise InputError(
            f"{other}: ids must be those of {path}, got {others[row]!r} in row {row + 1}"
        )
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{path}: ids must be different, or in one order in both files, got others"
        )
    place = {name: row for row, name in enumerate(others)}
    logger.info("%s: rows are put in the order of the ids of %s", other, path)
    return np.array([place[name] for name in ids])


def _labels_of(path: Path, schema: Schema, ids: tuple[str, ...] | None, other: Path) -> np.ndarray:
    """The labels of a file, in the order of the ids of ``other``.

    Raises:
        InputError: there are none, or the ids are not the same ones.
    """
    part = _read(path, schema, None)
    if part.labels is None:
        raise InputError(f"{path}: must hold labels, got none (--schema labels=NAME)")
    order = _order(ids, part.ids, other, path)
    return part.labels if order is None else part.labels[order]


def _agreed(found: Mapping[Path, np.ndarray], samples: int, classes: int) -> np.ndarray | None:
    """The labels as int64; None without any.

    Raises:
        InputError: they are not classes, or differ between files.
    """
    agreed: np.ndarray | None = None
    for path, labels in found.items():
        if labels.shape != (samples,):
            raise InputError(f"{path}: labels must be of shape ({samples},), got {labels.shape}")
        whole = labels.astype(np.int64) if labels.dtype.kind in "fiu" else None
        bad = np.ones(samples, bool)
        if whole is not None:
            bad = (whole != labels) | (whole < 0) | (whole >= classes)
        if bad.any():
            row = int(bad.argmax())
            raise InputError(
                f"{path}: labels must be whole numbers from 0 to {classes - 1}, "
                f"got {labels[row]!s} in row {row + 1}"
            )
        if agreed is not None and whole is not None and not np.array_equal(agreed, whole):
            row = int((agreed != whole).argmax())
            raise InputError(
                f"{path}: labels must be those of {next(iter(found))}, "
                f"got {whole[row]} instead of {agreed[row]} in row {row + 1}"
            )
        agreed = whole if agreed is None else agreed
    return agreed
