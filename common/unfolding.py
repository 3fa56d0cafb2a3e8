"""Compressed files of other people: sizes are checked before anything is unfolded.

A small file can hold arrays that fill any memory. In an npz file the sizes are in the list of the
archive and in the header of each array; both must agree and be plausible before an array is read.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

ENDING = ".npy"
MAX_ARRAYS = 1000
MAX_HEADER = 10_000  # bytes
PLAUSIBLE_BYTES = 256 << 20  # of the content, however small the file is
PLAUSIBLE_RATIO = 20  # of the content's bytes to those of the file; that of logits is below 3
LENGTHS = {1: "<H", 2: "<I", 3: "<I"}  # version of an array's format -> length of its header


def plausible_bytes(file_bytes: int, expected_bytes: int = 0) -> int:
    """How many bytes a file may unfold to.

    Args:
        expected_bytes: size of the content that the caller expects; twice as much is plausible.
    """
    return max(PLAUSIBLE_BYTES, PLAUSIBLE_RATIO * file_bytes, 2 * expected_bytes)


def require_plausible(total: int, file_bytes: int, expected_bytes: int = 0) -> None:
    """Check the size of a file's content; the arguments are those of ``plausible_bytes``.

    Raises:
        ValueError: the content is larger than is plausible.
    """
    limit = plausible_bytes(file_bytes, expected_bytes)
    if total > limit:
        raise ValueError(
            f"a file of {file_bytes} bytes that unfolds to {total}, more than the plausible {limit}"
        )


def read_arrays(path: Path, expected_bytes: int = 0) -> dict[str, np.ndarray]:
    """Read all arrays of an npz file.

    Args:
        expected_bytes: size of the arrays that the caller expects; so much is read in any case.

    Raises:
        ValueError: no npz file, arrays of objects, or more than is plausible.
        Exception: numpy and zipfile raise others about damaged files.
    """
    import numpy as np

    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        require_plausible(sum(_sizes(archive)), len(content), expected_bytes)
    with np.load(io.BytesIO(content), allow_pickle=False, max_header_size=MAX_HEADER) as stored:
        return {name: stored[name] for name in stored.files}


def _sizes(archive: zipfile.ZipFile) -> Iterator[int]:
    """The unfolded bytes of each array of an archive, checked against its header."""
    members = archive.infolist()
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) < len(members):
        raise ValueError(f"more than {MAX_ARRAYS} arrays, or two of the same name")
    for member in members:
        if not member.filename.endswith(ENDING):
            raise ValueError(f"{member.filename!r}, which is no array")
        with archive.open(member) as handle:
            described = _described_bytes(handle.read(MAX_HEADER + 12))
        if described != member.file_size:
            raise ValueError(f"{member.filename} of {member.file_size} bytes, not {described}")
        yield member.file_size


def _described_bytes(start: bytes) -> int:
    """Bytes of an array's file according to its header.

    Args:
        start: beginning of the file.
    """
    from numpy.lib import format as npy

    handle = io.BytesIO(start)
    major, _ = npy.read_magic(handle)
    length = struct.calcsize(LENGTHS[major])
    (header,) = struct.unpack(LENGTHS[major], start[handle.tell() : handle.tell() + length])
    if header > MAX_HEADER:
        raise ValueError(f"a header of {header} bytes")
    read = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, _, dtype = read(handle, max_header_size=MAX_HEADER)
    if dtype.hasobject or dtype.itemsize == 0:
        raise ValueError(f"arrays of type {dtype}, not of values")
    count = 1
    for size in shape:  # of Python's integers, which do not overflow
        count *= size
    return handle.tell() + count * dtype.itemsize
