"""The file formats of logits: a table of an (N, columns) array as a file and back, bit for bit.

``FORMATS`` has one entry per format; flags, checks and estimates of disk are made from it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from common.errors import InputError, first_line
from common.files import sha256_file
from common.unfolding import read_arrays
from logits_io.csv_text import read_csv, write_csv
from logits_io.hdf5_file import read_hdf5, write_hdf5
from logits_io.parquet_file import read_parquet, write_parquet

COMPRESSIONS = ("none", "gzip", "zstd")
ARRAY = "values"  # name of the array in an npz file
VALUE_BYTES = 8  # of a value in an array, at most


@dataclass(frozen=True)
class Package:
    """A package that a format needs, and how to install it."""

    name: str
    install: str


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        endings: compression -> ending of the file names; others are not possible.
        write: of a path, an (N, columns) table and a compression; equal values give equal bytes.
        read: of a path, a dtype and the number of values that is expected: the table in pieces of
            rows. Files with far more values are refused before they are unfolded.
        value_bytes: bytes of a float32 logit on disk, uncompressed.
        packages: compression -> package that writing and reading need, where one is needed.
    """

    endings: Mapping[str, str]
    write: Callable[[Path, np.ndarray, str], None]
    read: Callable[[Path, type, int], Iterable[np.ndarray]]
    value_bytes: float
    packages: Mapping[str, Package] = field(default_factory=dict)


def _write_npz(path: Path, table: np.ndarray, compression: str) -> None:
    with path.open("wb") as handle:
        save = np.savez_compressed if compression == "gzip" else np.savez
        save(handle, allow_pickle=False, **{ARRAY: table})


def _read_npz(path: Path, dtype: type, values: int) -> Iterator[np.ndarray]:
    yield read_arrays(path, VALUE_BYTES * values)[ARRAY].astype(dtype, copy=False)


PYARROW = Package("pyarrow", "pip install pyarrow")
H5PY = Package("h5py", "pip install -r requirements-hdf5.txt")
FORMATS: dict[str, Format] = {
    "csv": Format(
        endings={"none": ".csv", "gzip": ".csv.gz", "zstd": ".csv.zst"},
        write=write_csv,
        read=read_csv,
        value_bytes=10.6,
        packages={"zstd": PYARROW},
    ),
    "parquet": Format(
        endings=dict.fromkeys(COMPRESSIONS, ".parquet"),
        write=write_parquet,
        read=read_parquet,
        value_bytes=4.5,
        packages=dict.fromkeys(COMPRESSIONS, PYARROW),
    ),
    "npz": Format(
        endings=dict.fromkeys(("none", "gzip"), ".npz"),
        write=_write_npz,
        read=_read_npz,
        value_bytes=4.0,
    ),
    "hdf5": Format(
        endings=dict.fromkeys(("none", "gzip"), ".h5"),
        write=write_hdf5,
        read=read_hdf5,
        value_bytes=4.0,
        packages=dict.fromkeys(("none", "gzip"), H5PY),
    ),
}


def require_formats(formats: tuple[str, ...], compression: str) -> None:
    """Check a choice of formats and compression.

    Raises:
        InputError: unknown or repeated names, a combination that is not possible, or a package is
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
    for name in formats:
        if compression not in FORMATS[name].endings:
            possible = " or ".join(FORMATS[name].endings)
            raise InputError(f"compression of {name} must be {possible}, got {compression}")
        _require_package(name, compression)


def _require_package(name: str, compression: str) -> None:
    """Check that the package of a format and compression, if there is one, can be imported.

    Raises:
        InputError: it cannot; the text says how to install it.
    """
    package = FORMATS[name].packages.get(compression)
    if package is None:
        return
    what = name if FORMATS[name].packages.get("none") == package else f"{compression} of {name}"
    try:
        importlib.import_module(package.name)
    except ImportError as error:
        raise InputError(f"{what} needs {package.name} ({package.install}), got: {error}") from None


def ending(file_format: str, compression: str) -> str:
    """Ending of a file name."""
    return FORMATS[file_format].endings[compression]


def write_array(path: Path, array: np.ndarray, file_format: str, compression: str) -> str:
    """Write a 1-d or 2-d array, one row per sample, and return the SHA-256 of the file."""
    table = np.ascontiguousarray(array.reshape(len(array), -1))
    FORMATS[file_format].write(path, table, compression)
    return sha256_file(path)


def decode(path: Path, dtype: type = np.float32, values: int = 0) -> np.ndarray:
    """Read a file of ``write_array`` as an (N, columns) array.

    Args:
        values: number of values that is expected; files with far more are not unfolded.

    Raises:
        InputError: as ``read_pieces``.
    """
    pieces = list(read_pieces(path, dtype, values))
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def read_pieces(path: Path, dtype: type = np.float32, values: int = 0) -> Iterator[np.ndarray]:
    """Read a file of ``write_array`` piece by piece; its ending decides on the format.

    Args:
        values: as in ``decode``.

    Yields:
        (rows, columns) arrays, in the order of the rows.

    Raises:
        InputError: the file is missing or damaged, holds something else than numbers, or a package
            that reads it is missing.
    """
    name, compression, end = _recognized(path)
    _require_package(name, compression)
    try:
        yield from FORMATS[name].read(path, dtype, values)
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        reason = first_line(error)
        raise InputError(
            f"{path}: must be a {end.removeprefix('.')} file of numbers without header, got: "
            f"{reason}"
        ) from None


def _recognized(path: Path) -> tuple[str, str, str]:
    """Name of the format, compression (where the ending says it) and ending of a file.

    Raises:
        InputError: no format has its ending.
    """
    for name, found in FORMATS.items():
        for compression, end in found.endings.items():
            if path.name.endswith(end):
                return name, compression, end
    endings = dict.fromkeys(end for found in FORMATS.values() for end in found.endings.values())
    raise InputError(f"{path}: must end in one of {', '.join(endings)}, got {path.name}")
