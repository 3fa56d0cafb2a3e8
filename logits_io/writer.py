"""Writes a logits folder in a thread while the network runs.

The thread takes batches and writes each chunk when it is full. The folder appears under its name
when it is complete.

Letters: N samples, C classes.
"""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_folder, require_folder_or_new
from logits_io.formats import ending, write_array
from logits_io.naming import (
    TARGETS,
    chunk_file,
    chunk_metadata_file,
    file_pattern,
    metadata_file,
    require_kind,
    require_stem,
    whole_file,
)
from logits_io.records import (
    FileRecord,
    chunk_rows,
    read_file_records,
    row_sums,
    whole_columns,
)
from logits_io.tables import read_records, write_records, write_sealed

BATCHES_AHEAD = 4  # queued for the thread; with more, the network waits

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Style:
    """How the files of a folder are written."""

    chunk_size: int
    formats: tuple[str, ...]
    compression: str


class LogitsWriter:
    """Context manager that writes one folder.

    If the block fails, nothing new stays and the former content is kept. If writing fails, the
    block continues, and the error is raised at its end.

    Args:
        folder: the folder to write.
        stem: beginning of the file names; files of other stems stay.
        metadata: one row of plain values; samples, classes and files are added.
        source: a folder of the same stem; files with the same values are hard-linked from there
            (copied if the file system has no links) instead of written again.
        on_done: called in the thread with the folder when it is complete.

    Raises:
        InputError: the stem is not allowed, or ``folder`` holds something else than logits.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        style: Style,
        metadata: Mapping[str, Any],
        source: Path | None = None,
        on_done: Callable[[Path], None] | None = None,
    ):
        require_stem(stem)
        require_logits_folder(folder)
        self.folder = folder
        self.stem = stem
        self.style = style
        self.metadata = metadata
        self.source = source
        self.on_done = on_done
        self.known = source_records(source, stem, style)
        self.kinds: list[str] = []
        self.classes = 0
        self.error: BaseException | None = None
        self.queue: queue.Queue[Batch | None] = queue.Queue(BATCHES_AHEAD)
        self.aborted = False
        self.open = False
        self.thread = threading.Thread(target=self._work, name="logits writer", daemon=True)

    def __enter__(self) -> LogitsWriter:
        self.thread.start()
        self.open = True
        return self

    def add(self, logits: Mapping[str, np.ndarray], targets: np.ndarray | None) -> None:
        """Queue a copy of the logits of the next n samples; waits only if the disk lags behind.

        Args:
            logits: kind (quantized, fullprecision, corrected) -> (n, C) float32; the same kinds and
                C in every call.
            targets: (n,) integers; None, in every call, where the labels are not known.

        Raises:
            InputError: arrays of different lengths or classes, of another dtype, other kinds than
                before, or the context is not open.
        """
        if not self.open:
            raise InputError("writer must be open (a with block) to take logits, got a closed one")
        batch = {kind: array.copy() for kind, array in checked(logits, targets).items()}
        kinds, classes = list(batch), next(iter(logits.values())).shape[1]
        if not self.kinds:
            self.kinds, self.classes = kinds, classes
        if kinds != self.kinds or classes != self.classes:
            raise InputError(
                f"batches must hold {self.kinds} of {self.classes} classes as the first did, "
                f"got {kinds} of {classes}"
            )
        self._put(batch)

    def _put(self, batch: Batch | None) -> None:
        while self.thread.is_alive():
            try:
                self.queue.put(batch, timeout=0.1)
                return
            except queue.Full:
                continue

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.open, self.aborted = False, kind is not None
        self._put(None)
        self.thread.join()
        if self.error is not None and kind is None:
            raise self.error

    def _work(self) -> None:
        try:
            with atomic_folder(self.folder, self._link_others) as part:
                _Folder(self, part).write()
                if self.aborted:
                    raise InterruptedError("the run ended before its logits did")
            if self.on_done is not None:
                self.on_done(self.folder)
        except BaseException as error:  # noqa: BLE001  (raised again in __exit__)
            self.error = error

    def _link_others(self, part: Path) -> None:
        link_others(self.folder, part, self.stem, [*self.kinds, TARGETS])


class _Folder:
    """The folder while it is written, under its temporary name."""

    def __init__(self, writer: LogitsWriter, part: Path):
        self.writer = writer
        self.part = part
        self.records: list[FileRecord] = []
        self.rows: dict[str, list[np.ndarray]] = {}
        self.samples = 0
        self.waiting = 0
        self.tasks: list[Future[list[FileRecord]]] = []

    def write(self) -> None:
        """Write all batches of the queue, until it yields None."""
        with ThreadPoolExecutor(os.cpu_count()) as self.pool:
            self._write()

    def _write(self) -> None:
        writer = self.writer
        while (batch := writer.queue.get()) is not None:
            self._take(batch)
        if writer.aborted:
            return
        if not writer.kinds:
            raise InputError(f"{writer.folder.name} must hold at least one sample, got none")
        if self.waiting:
            self._write_chunk(self.waiting)
        self._collect()
        self._name_files()
        self._describe(sorted(self.records, key=lambda record: writer.kinds.index(record.kind)))

    def _take(self, batch: Batch) -> None:
        count, size = len(next(iter(batch.values()))), self.writer.style.chunk_size
        for kind, array in batch.items():
            self.rows.setdefault(kind, []).append(array)
        self.waiting += count
        while self.waiting > size:  # the last full chunk is kept back: it may be the only one
            self._write_chunk(size)

    def _write_chunk(self, count: int) -> None:
        chunk = {}
        for kind, parts in self.rows.items():
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
            self.rows[kind] = [whole[count:]]
            chunk[kind] = whole[:count]
        first, size = self.samples, self.writer.style.chunk_size
        tasks = [
            self.pool.submit(self._write_array, kind, array, first, first // size + 1)
            for kind, array in chunk.items()
        ]
        self._collect()  # the previous chunk finishes while this one is written
        self.tasks = tasks
        self.samples += count
        self.waiting -= count

    def _collect(self) -> None:
        """Wait for the chunk that is being written."""
        for task in self.tasks:
            self.records += task.result()
        self.tasks = []

    def _write_array(
        self, kind: str, array: np.ndarray, first: int, index: int
    ) -> list[FileRecord]:
        """Write the files of chunk ``index`` of a kind, one per format."""
        records = []
        sums = row_sums(array)
        for name in self.writer.style.formats:
            file = f"{kind}_{index}.{name}"
            digest = self._link_known(kind, index, name, len(array), sums, file)
            if digest is None:
                compression = self.writer.style.compression
                digest = write_array(self.part / file, array, name, compression)
            last = first + len(array) - 1
            records.append(FileRecord(kind, index, 0, first, last, file, digest, *sums, name))
        return records

    def _link_known(
        self, kind: str, index: int, name: str, rows: int, sums: tuple[int, int], file: str
    ) -> str | None:
        """Link a source file of the same values; return its SHA-256, or None if there is none."""
        record = self.writer.known.get((kind, index, name))
        if record is None or self.writer.source is None:
            return None
        if (record.rows, record.row_sum, record.weighted_row_sum) != (rows, *sums):
            return None
        try:
            link(self.writer.source / record.file, self.part / file)
        except OSError:  # another run has just replaced the source
            return None
        return record.sha256

    def _name_files(self) -> None:
        """Give the files their final names, which hold the number of chunks."""
        writer = self.writer
        count = -(-self.samples // writer.style.chunk_size)
        named = []
        for record in self.records:
            end = ending(record.format, writer.style.compression)
            if self.chunked:
                name = chunk_file(writer.stem, record.kind, record.index, count, end)
            else:
                name = whole_file(writer.stem, record.kind, end)
            (self.part / record.file).rename(self.part / name)
            named.append(replace(record, file=name, count=count))
        self.records = named

    @property
    def chunked(self) -> bool:
        return self.samples > self.writer.style.chunk_size

    def _describe(self, records: list[FileRecord]) -> None:
        writer = self.writer
        row = {
            "stem": writer.stem,
            **writer.metadata,
            "samples": self.samples,
            "classes": writer.classes,
        }
        row |= {"chunked": self.chunked, "chunk_size": writer.style.chunk_size}
        row["kinds"] = " ".join(dict.fromkeys(record.kind for record in records))
        row["formats"] = " ".join(writer.style.formats)
        row["compression"] = writer.style.compression
        if self.chunked:
            chunks = self.part / chunk_metadata_file(writer.stem)
            write_records(chunks, chunk_rows(records))
            row["sha256_chunked_metadata"] = hashlib.sha256(chunks.read_bytes()).hexdigest()
        else:
            row |= whole_columns(records)
        write_sealed(self.part / metadata_file(writer.stem), row)


def checked(logits: Mapping[str, np.ndarray], targets: np.ndarray | None) -> Batch:
    """Check arrays and return them together with the targets, if there are any, as int64.

    Raises:
        InputError: arrays of different lengths or classes, of another dtype, or targets that are
            not integers.
    """
    whole = {} if targets is None else {TARGETS: _whole(np.asarray(targets))}
    if not logits:
        raise InputError("logits must hold at least one kind, got none")
    classes = {np.shape(array)[1:] for array in logits.values()}
    samples = len(next(iter(whole.values() or logits.values())))
    for kind, array in logits.items():
        require_kind(kind)
        good = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim == 2
        if not good or len(array) != samples or len(classes) > 1 or array.size == 0:
            got = (
                f"{array.dtype} {array.shape}" if hasattr(array, "dtype") else type(array).__name__
            )
            raise InputError(
                f"{kind} logits must be float32 of shape ({samples}, classes), got {got}"
            )
    return {**logits, **whole}


def _whole(targets: np.ndarray) -> np.ndarray:
    """Targets as int64.

    Raises:
        InputError: they are no (N,) integers.
    """
    if targets.ndim != 1 or len(targets) == 0:
        raise InputError(f"targets must be of shape (samples,), got {targets.shape}")
    whole = targets.astype(np.int64) if targets.dtype.kind in "iuf" else None
    if whole is None or not np.array_equal(whole, targets):
        raise InputError(f"targets must be integers, got {targets.dtype} {targets[:3]}")
    return whole


def require_logits_folder(folder: Path) -> None:
    """Check, without writing, that logits can be written to a folder.

    Raises:
        InputError: it is a link or a file, or holds other folders.
    """
    require_folder_or_new(folder)
    if folder.exists() and any(path.is_dir() for path in folder.iterdir()):
        raise InputError(f"{folder}: must be a folder of logits or new, got something else")


def source_records(
    source: Path | None, stem: str, style: Style
) -> dict[tuple[str, int, str], FileRecord]:
    """The records of a folder by kind, chunk and format.

    Empty if there is no such folder, or it is damaged or written in another style.
    """
    if source is None:
        return {}
    try:
        metadata = read_records(source / metadata_file(stem))[0]
        theirs = (metadata["chunk_size"], metadata["formats"], metadata["compression"])
        if theirs != (style.chunk_size, " ".join(style.formats), style.compression):
            return {}
        records = read_file_records(source, stem, metadata)
    except (InputError, KeyError):
        return {}
    return {
        (record.kind, record.index, record.format): record
        for record in records
        if (source / record.file).is_file()
    }


def link(path: Path, target: Path) -> None:
    """Hard-link a file or a symbolic link, or copy it if the file system has no links."""
    try:
        os.link(path, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(path, target, follow_symlinks=False)


def link_others(source: Path, target: Path, stem: str, kinds: Collection[str]) -> None:
    """Link the files of a folder of logits that are not those of a stem into a new folder.

    The files of the stem are the ones that its metadata name; where these are damaged, the ones
    that are named like files of ``kinds``. A file of the user stays, whatever its name.

    Raises:
        FileExistsError: a file of the user has the name of a new one.
    """
    if not source.is_dir():
        return
    replaced = own_files(source, stem, kinds)
    for path in sorted(source.iterdir()):
        if path.name in replaced:
            continue
        if os.path.lexists(target / path.name):
            raise FileExistsError(f"{path}: must be a file of logits of {stem}, got another file")
        link(path, target / path.name)


def own_files(folder: Path, stem: str, kinds: Collection[str]) -> set[str]:
    """The names of the files in a folder of logits that belong to a stem."""
    described = {metadata_file(stem), chunk_metadata_file(stem)}
    if not (folder / metadata_file(stem)).is_file():
        return set()
    with suppress(InputError):
        return described | {record.file for record in read_file_records(folder, stem)}
    pattern = file_pattern(stem, kinds)
    return described | {path.name for path in folder.iterdir() if pattern.fullmatch(path.name)}
