"""Reading of files that may be anything: a pipe or device is refused, never waited for."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

MAX_LIST = 1 << 28  # bytes of a list of names that a user gives


def require_regular(path: Path) -> Path:
    """Check that an existing file, or what a link leads to, is no folder, pipe or device.

    Raises:
        OSError: it is, or there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        text = "must be a regular file, got a folder, pipe or device"
        raise OSError(errno.EINVAL, text, str(path))
    return path


def regular_bytes(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, or is none.
    """
    return require_regular(path).read_bytes()


def regular_text(path: Path, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The text of a regular file.

    Raises:
        OSError: it cannot be read, or is none.
        ValueError: it is not a text of this encoding.
    """
    return require_regular(path).read_text(encoding=encoding, errors=errors)


def limited_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file that a user gives, which may be a pipe.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a text of this encoding, or larger than ``MAX_LIST``.
    """
    with path.open("rb") as handle:
        content = handle.read(MAX_LIST + 1)
    if len(content) > MAX_LIST:
        raise ValueError(f"more than {MAX_LIST} bytes")
    return content.decode(encoding)
