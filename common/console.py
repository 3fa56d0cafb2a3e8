"""Console behaviour of the scripts: exit statuses, logging, progress bars, stdout."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from common.errors import RunError
from common.files import atomic_file

T = TypeVar("T")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSAVED = 3

UNUSABLE_PATH = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EROFS,
    errno.EINVAL,
}

logger = logging.getLogger(__name__)


def write_stdout(text: str) -> None:
    """Write ``text`` and a newline to stdout, and flush.

    Raises:
        RunError: stdout is closed, its reader has gone, or the disk is full.
    """
    if sys.stdout is None:
        raise RunError("stdout must be open to write to, got a closed one")
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # otherwise Python flushes again at exit, and fails again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunError(f"stdout must be writable, got {error}") from error


class _PlainFormatter(logging.Formatter):
    """Formats warnings and errors as ``warning: text``, ``error: text``; information as it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def setup_logging(verbose: bool = False, quiet: bool = False, plain: bool = False) -> None:
    """Send the log to stderr: INFO by default, DEBUG with ``verbose``, WARNING with ``quiet``.

    ``plain`` leaves out the time, and the level of information lines.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    timed = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(_PlainFormatter() if plain else timed)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class _LogFile(logging.FileHandler):
    """A log file that stops, with one warning on stderr, when it can no longer be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if self in logging.getLogger().handlers:
            logging.getLogger().removeHandler(self)
            logger.warning("%s ends here: %s", self.baseFilename, sys.exc_info()[1])


@contextmanager
def log_to_file(path: Path, append: bool = False) -> Iterator[None]:
    """Copy the log into ``path`` while the block runs.

    What a link leads to, and other names of the same file, stay as they are.

    Args:
        append: keep what the file holds.
    """
    if append and path.is_file() and not path.is_symlink():
        with atomic_file(path) as part:
            shutil.copyfile(path, part)
    elif path.is_symlink() or path.is_file():
        path.unlink()
    handler = _LogFile(path, mode="a" if append else "w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with suppress(OSError):
            handler.close()


class _Collector(logging.Handler):
    """Keeps the text of every warning and error, each once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts:
            self.texts.append(text)


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Yield a list that collects the texts of warnings and errors logged while the block runs."""
    collector = _Collector()
    root = logging.getLogger()
    root.addHandler(collector)
    try:
        yield collector.texts
    finally:
        root.removeHandler(collector)


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate with a progress bar on stderr; without one if stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, disable=None, leave=False)
