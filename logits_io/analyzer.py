"""LogitsAnalyzer: the logits of a run in a folder of CSV files, saved, linked and loaded back.

Letters: N samples, C classes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import InputError
from files import atomic_folder, sha256_file
from logits_io.naming import (
    TARGETS,
    chunk_file,
    chunk_metadata_file,
    find_stems,
    metadata_file,
    whole_file,
)
from logits_io.tables import read_csv, read_records, write_csv, write_records

DEFAULT_CHUNK_SIZE = 1000


@dataclass(frozen=True)
class SavedLogits:
    """What ``LogitsAnalyzer.load`` reads back."""

    logits: dict[str, np.ndarray]  # kind -> (N, C) float32
    targets: np.ndarray  # (N,) int64
    metadata: dict[str, Any]


class LogitsAnalyzer:
    """Saves and loads the logits folders of runs below ``root``.

    Args:
        chunk_size: rows per file; a folder of more samples is written in chunks.
    """

    def __init__(self, root: str | Path, chunk_size: int = DEFAULT_CHUNK_SIZE):
        if chunk_size < 1:
            raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
        self.root = Path(root)
        self.chunk_size = chunk_size

    def save_logits_to_csv(
        self,
        folder: str,
        stem: str,
        logits: Mapping[str, np.ndarray],
        targets: np.ndarray,
        metadata: Mapping[str, Any],
        same_as: str | None = None,
    ) -> Path:
        """Write a folder as a whole: it appears under its name only when every file in it is
        complete.

        Args:
            folder: name below the root; when it exists, the files of ``stem`` in it are replaced
                and those of other stems (other seeds) stay.
            stem: what the file names begin with.
            logits: kind (quantized, fullprecision, corrected) -> (N, C) float32.
            targets: (N,) int64.
            metadata: one row of plain values; samples, classes and chunking are added.
            same_as: a folder below the root; kinds that it already holds are hard-linked from
                there, or copied where the file system has no links, instead of being written again.

        Returns:
            The folder.

        Raises:
            InputError: arrays of different lengths or of another dtype.
            OSError: the disk is full or not writable; the former folder is still there.
        """
        arrays = _checked(logits, targets)
        samples = len(targets)
        chunked = samples > self.chunk_size
        source = self.root / same_as if same_as else None
        with atomic_folder(self.root / folder) as part:
            _link_others(self.root / folder, part, stem)
            chunks = []
            for kind, array in arrays.items():
                if source is not None and _link_files(source, part, stem, kind):
                    continue
                if chunked:
                    chunks += self._save_logits_in_chunks(part, stem, kind, array)
                else:
                    write_csv(part / whole_file(stem, kind), array)
            if chunked:
                rows = _linked_chunks(source, stem, part) + chunks
                write_records(part / chunk_metadata_file(stem), rows)
            classes = next(iter(logits.values())).shape[1]
            row = {**metadata, "samples": samples, "classes": classes}
            row |= {"chunked": chunked, "chunk_size": self.chunk_size, "kinds": " ".join(arrays)}
            write_records(part / metadata_file(stem), [row])
        return self.root / folder

    def _save_logits_in_chunks(
        self, folder: Path, stem: str, kind: str, array: np.ndarray
    ) -> list[dict[str, Any]]:
        """Write ``array`` in files of ``chunk_size`` rows and describe each."""
        count = -(-len(array) // self.chunk_size)
        rows = []
        for index in range(1, count + 1):
            first = (index - 1) * self.chunk_size
            part = array[first : first + self.chunk_size]
            path = folder / chunk_file(stem, kind, index, count)
            write_csv(path, part)
            rows.append(
                {
                    "kind": kind,
                    "index": index,
                    "count": count,
                    "first_row": first,
                    "last_row": first + len(part) - 1,
                    "file": path.name,
                    "sha256": sha256_file(path),
                }
            )
        return rows

    def load(self, folder: str | Path, stem: str | None = None) -> SavedLogits:
        """Read a folder back; every float has the bits that were saved.

        Args:
            stem: what the file names begin with; needed where the folder holds several seeds.

        Raises:
            InputError: no such folder, no metadata, several stems and none chosen, or a file is
                missing or has another shape than described.
        """
        path = self.root / folder
        stems = find_stems(path)
        if stem is None and len(stems) == 1:
            stem = stems[0]
        if stem not in stems:
            raise InputError(
                f"{path}: must hold the metadata of {stem or 'one stem, or stem must be given'}, "
                f"got {', '.join(stems) or 'none'}"
            )
        metadata = read_records(path / metadata_file(stem))[0]
        files = _files_by_kind(path, stem, metadata)
        shape = (metadata["samples"], metadata["classes"])
        logits = {
            kind: _read_kind(path, names, shape) for kind, names in files.items() if kind != TARGETS
        }
        targets = _read_kind(path, files[TARGETS], (metadata["samples"], 1), np.int64)[:, 0]
        return SavedLogits(logits, targets, metadata)


def _checked(logits: Mapping[str, np.ndarray], targets: np.ndarray) -> dict[str, np.ndarray]:
    for kind, array in logits.items():
        if array.dtype != np.float32 or array.ndim != 2 or len(array) != len(targets):
            raise InputError(
                f"{kind} logits must be float32 of shape ({len(targets)}, classes), got {array.dtype} {array.shape}"
            )
    return {**logits, TARGETS: np.asarray(targets, dtype=np.int64)}


def _files_of_kind(folder: Path, stem: str, kind: str) -> list[Path]:
    whole = folder / whole_file(stem, kind)
    return [whole] if whole.is_file() else sorted(folder.glob(f"{stem}_{kind}_chunk*_of_*.csv"))


def _link_files(source: Path, target: Path, stem: str, kind: str) -> bool:
    """Link the files of a kind into ``target``; False when ``source`` has none."""
    files = _files_of_kind(source, stem, kind)
    for path in files:
        _link(path, target)
    return bool(files)


def _link(path: Path, folder: Path) -> None:
    try:
        os.link(path, folder / path.name)
    except OSError:
        shutil.copyfile(path, folder / path.name)


def _link_others(source: Path, target: Path, stem: str) -> None:
    """Link the files of all stems but ``stem`` into ``target``."""
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.is_file() and not path.name.startswith(f"{stem}_"):
                _link(path, target)


def _linked_chunks(source: Path | None, stem: str, folder: Path) -> list[dict[str, Any]]:
    """The chunk rows of the source folder whose files were linked into ``folder``."""
    if source is None or not (source / chunk_metadata_file(stem)).is_file():
        return []
    rows = read_records(source / chunk_metadata_file(stem))
    return [row for row in rows if (folder / row["file"]).is_file()]


def _files_by_kind(folder: Path, stem: str, metadata: Mapping[str, Any]) -> dict[str, list[str]]:
    kinds = str(metadata["kinds"]).split()
    if not metadata["chunked"]:
        return {kind: [whole_file(stem, kind)] for kind in kinds}
    rows = read_records(folder / chunk_metadata_file(stem))
    return {kind: [row["file"] for row in rows if row["kind"] == kind] for kind in kinds}


def _read_kind(
    folder: Path, names: list[str], shape: tuple[int, int], dtype: type = np.float32
) -> np.ndarray:
    array = np.concatenate([read_csv(folder / name, dtype) for name in names])
    if array.shape != shape:
        raise InputError(
            f"{folder}: {names[0]} and following must hold {shape} values, got {array.shape}"
        )
    return array
