"""Files: written completely or not at all, read without unpickling, identified by SHA-256."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.errors import InputError, first_line
from common.reading import require_regular

PART, OLD = ".part", ".old"  # endings of temporary names
NAME_LENGTH = 60  # letters of a name that its temporary names repeat, before a digest of the rest

logger = logging.getLogger(__name__)


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
        reason = first_line(error)
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
            with part.open("wb") as handle:  # given a path, torch writes its name into the file
                torch.save(content, handle)
        except RuntimeError as error:
            raise OSError(f"{path} could not be written: {first_line(error)}") from error


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; it is renamed to ``path`` if the block succeeds.

    No other process has the same temporary path, and no existing file is written into.
    """
    _remove_leftovers(path)
    part = _temporary(path)
    try:
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, complete: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield an empty folder next to ``path``; it replaces ``path`` if the block succeeds.

    A kill between the two renames leaves the former content under a name that ends in ``.old``,
    from which the next call restores it.

    Args:
        complete: called with the temporary folder when the block has succeeded; until the
            replacement, no other process replaces ``path``.

    Raises:
        InputError: ``path`` is no folder.
    """
    require_folder_or_new(path)
    _remove_leftovers(path)
    if _siblings(path, OLD):
        with locked(lock_of(path)):
            _restore(path)
    part = _temporary(path)
    part.mkdir(parents=True)
    try:
        yield part
        with locked(lock_of(path)):
            if complete is not None:
                complete(part)
            _exchange(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _exchange(part: Path, path: Path) -> None:
    """Put the folder ``part`` in the place of ``path``, whose former content is deleted."""
    old = path.with_name(f"{part.name.removesuffix(PART)}{OLD}")
    if path.exists():
        path.rename(old)
    try:
        part.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore(path: Path) -> None:
    """Bring back the content that a kill left under a temporary name; only under the lock."""
    for old in _siblings(path, OLD):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)


def _temporary(path: Path) -> Path:
    """A hidden name next to ``path`` that says which process on which machine uses it."""
    owner = f"{_machine()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{_short(path.name)}.{owner}{PART}")


def _short(name: str) -> str:
    """A name as its temporary names repeat it; two names never give the same."""
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[:NAME_LENGTH]}_{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:16]}"


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _siblings(path: Path, ending: str) -> list[Path]:
    """The temporary files and folders of ``path`` that end in ``ending``."""
    name = re.escape(f".{_short(path.name)}.")
    wanted = re.compile(rf"{name}[0-9a-f]{{6}}-\d+-[0-9a-f]{{8}}{re.escape(ending)}")
    if not path.parent.is_dir():
        return []
    return sorted(entry for entry in path.parent.iterdir() if wanted.fullmatch(entry.name))


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one that a write leaves when it is killed."""
    return re.fullmatch(r"\..*\.[0-9a-f]{6}-\d+-[0-9a-f]{8}\.(part|old)", name) is not None


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files and folders of ``path`` whose processes have ended."""
    for part in _siblings(path, PART):
        machine, process, _ = part.name.removesuffix(PART).rpartition(".")[2].split("-")
        if machine != _machine() or _is_alive(int(process)):
            continue
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def lock_of(path: Path) -> Path:
    """The file that is locked while the folder or file ``path`` is replaced."""
    return path.with_name(f".{path.name}.lock")


@contextmanager
def locked(path: Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path`` while the block runs; other processes wait.

    The file exists only while a process has or wants the lock. If it cannot be created, the block
    runs without a lock.

    Args:
        on_wait: called once if another process has the lock.
    """
    import fcntl

    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while handle is None:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_wait is not None:
                    on_wait()
                    on_wait = None
                fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_open_file(path, handle):  # its former holder has removed it
                os.close(handle)
                handle = None
    except OSError:
        if handle is not None:
            os.close(handle)
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            if os.fstat(handle).st_size == 0:  # else it is a file of the user
                path.unlink()
        os.close(handle)


@contextmanager
def written_alone(path: Path) -> Iterator[None]:
    """Keep other processes from writing ``path`` while the block runs; wait for one that does.

    The wait is logged in one line.
    """

    def tell() -> None:
        logger.warning("another process writes %s: waiting until it ends", path)

    with locked(lock_of(path), tell):
        yield


def _is_open_file(path: Path, handle: int) -> bool:
    """Whether ``path`` is the file that is open as ``handle``."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def require_folder_or_new(path: Path) -> None:
    """Check that ``path`` is a folder, not a link to one, or does not exist.

    Raises:
        InputError: it is something else.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        kind = "a symbolic link" if path.is_symlink() else "a file"
        raise InputError(f"{path}: must be a folder or new, got {kind}")


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
        if "\0" in str(folder):
            raise ValueError("a null character")
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
    with require_regular(path).open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
