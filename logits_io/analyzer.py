"""LogitsAnalyzer: saves the logits of a run to a folder of files and loads them back.

Letters: N samples, C classes.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.remote import Remote, is_url
from logits_io.comparison import RESAMPLES, Comparison, compare_logits
from logits_io.duck import write_database
from logits_io.formats import read_pieces, require_formats
from logits_io.given import read_given
from logits_io.naming import LAST_FILES, TARGETS, find_stems, metadata_file, owner, require_folder
from logits_io.records import FileRecord, read_file_records
from logits_io.saved import SavedLogits
from logits_io.schema import Schema, make_schema
from logits_io.tables import read_records
from logits_io.writer import LogitsWriter, Style, checked

DEFAULT_CHUNK_SIZE = 1000
RESERVED = {"stem", "samples", "classes", "chunked", "kinds", "formats", "run", "folder"}


class LogitsAnalyzer:
    """Saves and loads the logits folders of runs below ``root``.

    Args:
        root: a folder, or its URL on storage that fsspec supports; in the latter case a folder is
            first written locally and then copied, metadata last.
        chunk_size: rows per file; more samples are written in chunks.
        formats: one or more of ``logits_io.formats.FORMATS``: csv, parquet, npz, hdf5.
        compression: none, gzip or zstd.

    Raises:
        InputError: a value is out of range or not available.
    """

    def __init__(
        self,
        root: str | Path,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        formats: Sequence[str] = ("csv",),
        compression: str = "none",
    ):
        if not isinstance(chunk_size, int) or chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        require_formats(tuple(formats), compression)
        self.remote = Remote(str(root)) if is_url(str(root)) else None
        if self.remote is None:
            self.root = Path(root)
        else:
            self.root = Path(tempfile.mkdtemp(prefix="logits_"))
            weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self.style = Style(chunk_size, tuple(formats), compression)

    def writer(
        self, folder: str, stem: str, metadata: Mapping[str, Any], same_as: str | None = None
    ) -> LogitsWriter:
        """A context manager that takes batches of logits and writes them in a thread.

        Args:
            folder: name below the root; if it exists, the files of ``stem`` in it are replaced and
                those of other stems (other seeds) stay.
            stem: beginning of the file names.
            metadata: one row of plain values; samples, classes and files are added.
            same_as: a folder below the root; files with the same values are hard-linked from there
                (copied if the file system has no links) instead of written again.

        Raises:
            InputError: a name is not allowed, or the folder holds something else than logits.
        """
        require_folder(folder)
        reserved = RESERVED & set(metadata)
        if reserved:
            raise InputError(
                f"metadata must not hold {', '.join(sorted(reserved))}, which the writer adds"
            )
        source = self.root / same_as if same_as else None
        remote, root = self.remote, self.root

        def copy(path: Path) -> None:
            if remote is not None:
                stems = {*find_stems(path), stem}
                name = path.relative_to(root).as_posix()
                remote.put_folder(path, name, LAST_FILES, lambda file: owner(file, stems) == stem)

        return LogitsWriter(self.root / folder, stem, self.style, metadata, source, copy)

    def save_logits_to_csv(
        self,
        folder: str,
        stem: str,
        logits: Mapping[str, np.ndarray],
        targets: np.ndarray | None,
        metadata: Mapping[str, Any],
        same_as: str | None = None,
    ) -> Path:
        """Write a folder in the formats of the analyzer, by default CSV.

        The folder appears under its name only when every file in it is complete.

        Args:
            folder, stem, metadata, same_as: as in ``writer``.
            logits: kind (quantized, fullprecision, corrected) -> (N, C) float32.
            targets: (N,) int64; None where the labels are not known.

        Returns:
            The folder.

        Raises:
            InputError: arrays of different lengths or of another dtype.
            OSError: the disk is full or not writable; the former folder is unchanged.
        """
        arrays = checked(logits, targets)
        size = self.style.chunk_size
        with self.writer(folder, stem, metadata, same_as) as writer:
            for start in range(0, len(next(iter(arrays.values()))), size):
                part = {kind: array[start : start + size] for kind, array in arrays.items()}
                writer.add({kind: part[kind] for kind in logits}, part.get(TARGETS))
        return self.root / folder

    def load(self, folder: str | Path, stem: str | None = None) -> SavedLogits:
        """Read a folder back; every float is bit for bit as saved.

        Args:
            stem: beginning of the file names; needed if the folder holds several seeds.

        Raises:
            InputError: no such folder, no metadata, several stems and none chosen, or a file is
                missing or not of the described shape.
        """
        require_folder(folder)
        path = self.root / folder
        if self.remote is not None:
            self.remote.get_folder(str(folder), path)
        stems = find_stems(path)
        if stem is None and len(stems) == 1:
            stem = stems[0]
        if stem not in stems:
            raise InputError(
                f"{path}: must hold the metadata of {stem or 'one stem, or stem must be given'}, "
                f"got {', '.join(stems) or 'none'}"
            )
        metadata = read_records(path / metadata_file(stem))[0]
        records = read_file_records(path, stem, metadata)
        shape = (metadata["samples"], metadata["classes"])
        first = str(metadata["formats"]).split()[0]
        arrays: dict[str, np.ndarray] = {}
        for kind in str(metadata["kinds"]).split():
            is_targets = kind == TARGETS
            size, dtype = ((shape[0], 1), np.int64) if is_targets else (shape, np.float32)
            arrays[kind] = np.empty(size, dtype=dtype)
            files = [r for r in records if (r.kind, r.format) == (kind, first)]
            _read_kind(path, files, arrays[kind])
        targets = arrays.pop(TARGETS, None)
        return SavedLogits(arrays, None if targets is None else targets[:, 0], metadata)

    def load_given(
        self,
        files: Mapping[str, str | Path],
        schema: Schema | Mapping[str, Any] | None = None,
        labels: str | Path | None = None,
    ) -> SavedLogits:
        """Read logits that another program wrote, of the same samples.

        Args:
            files: kind (quantized, fullprecision) -> a CSV, npz or npy file, or a folder of parts;
                relative to the root.
            schema: what is what in them, as in ``logits_io.schema``; None: found by the names.
            labels: a file with the labels.

        Raises:
            InputError: as ``logits_io.given.read_given``, or the root is a URL.
        """
        if self.remote is not None:
            raise InputError(
                f"root must be a local folder to read given files, got {self.remote.url}"
            )
        if not isinstance(schema, Schema):
            schema = make_schema(schema or {})
        paths = {kind: self.root / path for kind, path in files.items()}
        return read_given(paths, schema, None if labels is None else self.root / labels)

    def compare(
        self, folder: str | Path, stem: str | None = None, resamples: int = RESAMPLES, seed: int = 0
    ) -> Comparison:
        """Compare quantized and corrected logits with the full-precision ones.

        The tables are overall and per class, with 95 % bootstrap intervals.

        Args:
            folder, stem: as in ``load``.

        Raises:
            InputError: as ``load``, or the folder holds no full-precision logits.
        """
        saved = self.load(folder, stem)
        return compare_logits(saved.logits, saved.targets, resamples, seed)

    def to_duckdb(self, path: str | Path, force: bool = False) -> None:
        """Write all folders of logits below the root to one DuckDB file.

        Its tables are ``logits`` (run, folder, kind, sample, target, prediction, logits) and
        ``metadata`` (run, folder, and the metadata of the folder).

        Args:
            path: a new file or a former output, which is replaced.
            force: replace any file, or a link, but not what it leads to.

        Raises:
            InputError: duckdb or pyarrow is missing, there are no logits, a file is damaged, or
                ``path`` is another file.
        """
        if self.remote is not None:
            self.remote.get_folder("", self.root)
        write_database(self.root, Path(path), LogitsAnalyzer(self.root).load, force)


def _read_kind(folder: Path, records: list[FileRecord], array: np.ndarray) -> None:
    """Read all files of a kind into ``array``, on all cores.

    Raises:
        InputError: a file is missing, damaged, or not of the described shape.
    """
    starts = np.cumsum([0, *(record.rows for record in records)])
    if starts[-1] != len(array):
        raise InputError(f"{folder}: must hold {len(array)} samples, got {starts[-1]}")

    def read(record: FileRecord, start: int) -> None:
        path, wanted = folder / record.file, (record.rows, array.shape[1])
        row = 0
        for piece in read_pieces(path, array.dtype.type, math.prod(wanted)):
            got = (row + len(piece), *piece.shape[1:])
            if got[0] > wanted[0] or got[1:] != wanted[1:]:
                raise InputError(f"{path}: must hold {wanted} values, got {got}")
            array[start + row : start + got[0]] = piece
            row = got[0]
        if row != record.rows or record.first_row != start:
            raise InputError(f"{path}: must hold {wanted} values, got {(row, wanted[1])}")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, records, starts[:-1].tolist()))
