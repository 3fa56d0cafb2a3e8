"""Files: written completely or not at all, read without unpickling, identified by SHA-256."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import InputError


def read_torch_file(path: Path, remedy: str = "") -> Any:
    """Load a ``torch.save`` file that holds only tensors and plain values, onto the CPU.

    Args:
        remedy: text appended to the error about a file that would have to be unpickled.

    Raises:
        InputError: the file is missing or damaged, or would have to be unpickled.
    """
    import pickle
    import warnings

    import torch

    if not path.is_file():
        raise InputError(f"{path}: must be an existing file")
    require_intact_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about what the error below reports
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path}: must hold tensors and plain values only (torch.save of a state_dict), "
            f"got pickled objects or another format{remedy}"
        ) from None
    except Exception as error:  # noqa: BLE001  (a damaged file fails in every possible way)
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: must be a whole torch.save file, got {type(error).__name__}: {reason}"
        ) from None


def require_intact_zip(path: Path) -> None:
    """Verify the checksums of a zip archive, which ``torch.load`` does not do.

    Raises:
        InputError: a member of the archive has changed since it was written.
    """
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError):
        return  # not an archive: its reader reports that
    if damaged is not None:
        raise InputError(f"{path}: must match its checksums, got changed bytes in {damaged}")


def write_torch_file(path: Path, content: Any) -> None:
    """Write a ``torch.save`` file that takes its final name only when complete.

    Raises:
        OSError: the disk is full or not writable.
    """
    import torch

    with atomic_file(path) as part:
        try:
            torch.save(content, part)
        except RuntimeError as error:
            raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; it is renamed to ``path`` if the block succeeds."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder next to ``path``; it replaces ``path`` if the block succeeds.

    A kill between the two renames leaves the former content under the ``.old`` name, from which
    the next call restores it.
    """
    part = path.with_name(f".{path.name}.part")
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (part, old):
        shutil.rmtree(leftover, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if path.exists():
        path.rename(old)
    part.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` while the block runs; other processes wait.

    The file is created if it is missing. If it cannot be created, the block runs without a lock.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("a")
    except OSError:
        yield
        return
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented UTF-8 JSON; the file takes its final name only when complete."""
    with atomic_file(path) as part:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        part.write_bytes(text.encode("utf-8", "backslashreplace"))


def require_writable(folder: Path) -> None:
    """Check, without creating anything, that ``folder`` can be created or written to.

    Raises:
        InputError: it cannot.
    """
    try:
        str(folder).encode()
        existing = folder
        while not existing.exists():
            existing = existing.parent
        usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    except (OSError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"output folder must be writable, got {str(folder)!r}")


def sha256_file(path: Path) -> str:
    """SHA-256 digest of a file in hexadecimal, read in blocks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
