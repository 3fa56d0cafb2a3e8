"""Folders on remote storage through fsspec (s3://, gs://, file://, memory://), if installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.errors import InputError


def is_url(text: str) -> bool:
    return "://" in text


class Remote:
    """A folder on storage that fsspec supports.

    Args:
        url: protocol://path.

    Raises:
        InputError: fsspec or its package for the protocol is missing, or access is refused.
    """

    def __init__(self, url: str):
        self.url = url
        try:
            import fsspec

            self.storage: Any
            self.storage, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"{url}: must be storage that fsspec reaches, got: {error}") from None

    def put_folder(
        self,
        local: Path,
        name: str,
        last: tuple[str, ...],
        replaced: Callable[[str], bool] = lambda name: False,
    ) -> None:
        """Copy a local folder to the remote folder ``name``.

        Args:
            last: name endings of the files to copy last, because they mark the folder as complete.
            replaced: whether to delete a remote file of this name that the local folder lacks.

        Raises:
            OSError: the storage cannot be written.
        """
        try:
            self._put_folder(local, name, last, replaced)
        except OSError:
            raise
        except Exception as error:  # fsspec backends raise errors of any class
            raise OSError(f"{self.url} could not be written: {error}") from error

    def _put_folder(
        self, local: Path, name: str, last: tuple[str, ...], replaced: Callable[[str], bool]
    ) -> None:
        files = [path for path in sorted(local.rglob("*")) if path.is_file()]
        files.sort(key=lambda path: path.name.endswith(last))
        target = f"{self.root.rstrip('/')}/{name}" if name else self.root.rstrip("/")
        before = set(self.storage.find(target)) if self.storage.exists(target) else set()
        sent = set()
        for path in files:
            remote = f"{target}/{path.relative_to(local).as_posix()}"
            self.storage.makedirs(remote.rsplit("/", 1)[0], exist_ok=True)
            self.storage.put_file(str(path), remote)
            sent.add(self.storage._strip_protocol(remote))
        for stale in sorted(before - sent):
            if replaced(stale.rsplit("/", 1)[-1]):
                self.storage.rm_file(stale)

    def put_file(self, local: Path) -> None:
        """Copy a file into the remote folder itself."""
        self.storage.makedirs(self.root, exist_ok=True)
        self.storage.put_file(str(local), f"{self.root.rstrip('/')}/{local.name}")

    def get_folder(self, name: str, local: Path) -> None:
        """Copy the files of the remote folder ``name`` into a local folder.

        Raises:
            InputError: there is no such folder.
        """
        source = f"{self.root.rstrip('/')}/{name}"
        if not self.storage.isdir(source):
            raise InputError(f"{self.url}/{name}: must be a folder with files, got none")
        local.mkdir(parents=True, exist_ok=True)
        for remote in self.storage.find(source):
            path = local / remote.removeprefix(self.storage._strip_protocol(source)).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            self.storage.get_file(remote, str(path))
