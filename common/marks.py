"""Which files the suite wrote: a list in every folder that it writes, so that no other is touched.

A folder's list gives the name of each file that the suite wrote there, and the SHA-256 of files
that do not change any more. A file that is not listed, or has changed, is the user's: it is neither
replaced nor deleted, unless the user asks for it with ``--force``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import InputError
from common.files import is_temporary, lock_of, locked, require_folder_or_new, sha256_file
from common.reading import regular_bytes
from common.sealed import read_record, write_record

MARK = ".written.json"
FORCED, DELETED = "(--force replaces it)", "(--force deletes it)"
OURS = "a file that this suite wrote and nobody changed, or be moved away"


def mark(folder: Path, names: Collection[str]) -> None:
    """Add names of files that may still change to the list of a folder.

    Raises:
        OSError: the list cannot be written.
    """
    if set(names) <= _listed(folder).keys():
        return
    with locked(lock_of(folder / MARK)):
        _write(folder, {**dict.fromkeys(names), **_listed(folder)})


def mark_whole(folder: Path) -> None:
    """List all files of a folder with their digests; they do not change any more.

    Raises:
        OSError: a file cannot be read, or the list cannot be written.
    """
    names = sorted(path.name for path in folder.iterdir() if path.name != MARK)
    _write(folder, {name: sha256_file(folder / name) for name in names})


@contextmanager
def listed(path: Path) -> Iterator[None]:
    """List the file ``path`` with its digest once the block has written it.

    While the block runs the list holds its name alone, so that a kill leaves no file of the suite
    that the list does not know. Several processes may write files of one folder in this way.

    Raises:
        OSError: the list cannot be written.
    """
    former = _relist(path, {path.name: None})
    try:
        yield
    except BaseException:
        with suppress(OSError):
            _relist(path, former)
        raise
    _relist(path, {path.name: sha256_file(path)})


def _relist(path: Path, entry: Mapping[str, str | None]) -> dict[str, str | None]:
    """Replace the entry of a file in its folder's list; returns the former one, empty if none."""
    folder, name = path.parent, path.name
    folder.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(folder / MARK)):
        files = _listed(folder)
        former = {name: files.pop(name)} if name in files else {}
        _write(folder, {**files, **entry})
    return former


def is_marked(folder: Path) -> bool:
    """Whether the folder has a list that can be believed."""
    return _read(folder) is not None


def is_damaged(folder: Path) -> bool:
    """Whether the folder has a list that cannot be believed."""
    return (folder / MARK).is_file() and not is_marked(folder)


def own_files(folder: Path, known: Collection[str] = ()) -> list[Path]:
    """The files of a folder that the suite wrote.

    Args:
        known: further names of files that the suite wrote, in a folder of an earlier version.
    """
    listed = {**dict.fromkeys(known), **_listed(folder)}
    return [path for path in _entries(folder) if _is_own(path, listed)]


def foreign_files(folder: Path, known: Collection[str] = ()) -> list[Path]:
    """Everything in a folder that the suite did not write, links and folders included."""
    own = set(own_files(folder, known))
    return [path for path in _entries(folder) if path not in own]


def require_replaceable(
    folder: Path, names: Collection[str] | None, known: Collection[str] = (), force: bool = False
) -> None:
    """Check that a folder can be written without touching a file of the user.

    Args:
        names: the files that will be written; None: the whole folder will be replaced.
        known: further names of files that the suite wrote, in a folder of an earlier version.
        force: let files of the user be replaced.

    Raises:
        InputError: a file of the user would be replaced, or the folder is none.
    """
    if force:
        return
    try:
        require_folder_or_new(folder)
    except InputError as error:
        raise InputError(f"{error} {FORCED}") from None
    if os.path.lexists(folder / MARK) and not (folder / MARK).is_file():
        raise InputError(f"{folder / MARK}: must be {OURS}, got a folder or pipe")
    for path in foreign_files(folder, known):
        if names is None or path.name in names:
            end = DELETED if names is None else FORCED
            raise InputError(f"{path}: must be {OURS}, got another file {end}")


def require_own_file(
    path: Path,
    force: bool = False,
    is_known: Callable[[Path], bool] | None = None,
    what: str = OURS,
) -> None:
    """Check that a file can be written or deleted without touching one of the user.

    Args:
        force: let a file of the user or a link be replaced, but never a folder or device.
        is_known: whether the content of a file that its folder's list does not name proves that the
            suite wrote it.
        what: what the file must be, for the error text.

    Raises:
        InputError: the file is the user's, a link or a folder.
    """
    if path.exists() and not path.is_file() and not path.is_symlink():
        kind = "a folder" if path.is_dir() else "a device or pipe"
        raise InputError(f"{path}: must be {what}, got {kind}")
    if force or not (path.is_symlink() or path.exists()):
        return
    if path.is_symlink():
        raise InputError(f"{path}: must be {what}, got a symbolic link {FORCED}")
    if not _is_own_now(path, is_known):
        raise InputError(f"{path}: must be {what}, got another file {FORCED}")


def require_own_folder(folder: Path, force: bool = False) -> None:
    """Check that files can be written into a folder, which is no link.

    Args:
        force: let a link, but not a file, stand in its place; ``replace_link`` removes it.

    Raises:
        InputError: it is a link or a file.
    """
    try:
        require_folder_or_new(folder)
    except InputError as error:
        if not folder.is_symlink():
            raise
        if not force:
            raise InputError(f"{error} {FORCED}") from None


def _is_own_now(path: Path, is_known: Callable[[Path], bool] | None) -> bool:
    """Whether the suite wrote a file, even if it is replaced and listed again meanwhile."""
    files = _listed(path.parent)
    while path.name in files:
        try:
            if _is_own(path, files):
                return True
        except FileNotFoundError:  # another process of the suite has just deleted it
            return True
        before, files = files, _listed(path.parent)
        if files.get(path.name) == before[path.name]:
            return False
    return is_known is not None and is_known(path)


def has_keys(path: Path, keys: Collection[str]) -> bool:
    """Whether a file is a JSON object with at least these keys; False if it cannot be read."""
    try:
        content = json.loads(regular_bytes(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.keys() >= set(keys)


def clear(folder: Path, known: Collection[str] = (), everything: bool = False) -> None:
    """Delete the files of a folder that the suite wrote, and the folder if nothing else is there.

    Args:
        known: further names of files that the suite wrote, in a folder of an earlier version.
        everything: delete the files of the user too.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    if everything:
        shutil.rmtree(folder)
        return
    for path in own_files(folder, known):
        path.unlink(missing_ok=True)
    (folder / MARK).unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def replace_link(folder: Path) -> None:
    """Delete a link or file that stands in the place of a folder; never what a link leads to."""
    if folder.is_symlink() or folder.is_file():
        folder.unlink()


def _entries(folder: Path) -> Iterator[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name != MARK and not is_temporary(path.name):
            yield path


def _is_own(path: Path, listed: Mapping[str, str | None]) -> bool:
    if path.name not in listed or path.is_symlink() or not path.is_file():
        return False
    digest = listed[path.name]
    return digest is None or digest == sha256_file(path)


def _listed(folder: Path) -> dict[str, str | None]:
    """Name -> digest or None; empty if there is no list, or none that can be believed."""
    return _read(folder) or {}


def _read(folder: Path) -> dict[str, str | None] | None:
    content = read_record(folder / MARK, says_so=False, needs_seal=True)
    files = None if content is None else content.get("files")
    return files if isinstance(files, dict) else None


def _write(folder: Path, files: Mapping[str, str | None]) -> None:
    write_record(folder / MARK, {"files": dict(sorted(files.items()))})
