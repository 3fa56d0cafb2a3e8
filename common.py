"""What every script needs: errors, exit codes, seeds, devices, logging, provenance.

Nothing here imports torch at import time: ``verify_logits.py`` and ``run_script.py`` start without
    it.
"""

from __future__ import annotations

import difflib
import errno
import importlib.metadata
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNSAVED = 3
EXIT_INTERRUPTED = 130

UNUSABLE_PATH = {
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EROFS, errno.EINVAL),
}
RECORDED_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "polars")

logger = logging.getLogger(__name__)


class InputError(ValueError):
    """A value, file or name given by the user is unusable; the text says what, must be, got."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that one line tells, and that no earlier check could find."""


def closest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like ``name``, best first; never empty when anything is known."""
    candidates = sorted(known)
    return (
        difflib.get_close_matches(name.lower(), candidates, n=count, cutoff=0.4)
        or candidates[:count]
    )


def require_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` when it is known.

    Raises:
        InputError: unknown; the text gives the closest known name, and all of them when they are
            few.
    """
    names = sorted(known)
    if name in names:
        return name
    text = f"{what} must be a known name, got {name!r}; closest: {closest_names(name, names)[0]}"
    if len(names) <= 20:
        text += f"; known: {', '.join(names)}"
    raise InputError(text)


def run_main(body: Callable[[], int]) -> int:
    """Run the body of a script; turn a foreseen error or Ctrl-C into one line and an exit
    status.
    """
    try:
        return body()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except RunError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except OSError as error:
        sys.stderr.write(f"error: files and folders must be usable, got {error}\n")
        return EXIT_USAGE if error.errno in UNUSABLE_PATH else EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; files already finished stay valid\n")
        return EXIT_INTERRUPTED


def write_stdout(text: str) -> None:
    """Write ``text`` and a line end, at once.

    Raises:
        RunError: stdout cannot be written: its reader has gone, or the disk is full.
    """
    if sys.stdout is None:
        raise RunError("stdout must be open to write to, got a closed one")
    encoding = sys.stdout.encoding or "utf-8"
    shown = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):  # else the interpreter tries, and complains, once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise RunError(f"stdout must be writable, got {error}") from error


class _PlainFormatter(logging.Formatter):
    """``warning: text``, as ``error: text`` of a script that ends; information as it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {text}"


def setup_logging(verbose: bool = False, quiet: bool = False, plain: bool = False) -> None:
    """Send the log to stderr: INFO by default, DEBUG with ``verbose``, WARNING with ``quiet``.

    ``plain``: lines without time.
    """
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    timed = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
    handler.setFormatter(_PlainFormatter() if plain else timed)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


class _LogFile(logging.FileHandler):
    """A log file that ends, with one line on stderr, when it can no longer be written."""

    def handleError(self, record: logging.LogRecord) -> None:
        if self in logging.getLogger().handlers:
            logging.getLogger().removeHandler(self)
            logger.warning("%s ends here: %s", self.baseFilename, sys.exc_info()[1])


@contextmanager
def log_to_file(path: Path, append: bool = False) -> Iterator[None]:
    """Copy the log into ``path`` while the block runs."""
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


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """A progress bar on stderr; silent when stderr is no terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=description, total=total, disable=None, leave=False)


def seed_all(seed: int) -> None:
    """Seed the global generators, for library code without a generator argument; make CUDA repeatable.

    TF32 is switched off: its 10-bit mantissa would blur the comparison with full precision.
    """
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def require_seed(seed: int) -> int:
    """Return ``seed`` when every generator takes it.

    Raises:
        InputError: negative, or above 2^32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed must be from 0 to {(1 << 32) - 1}, got {seed}")
    return seed


def pick_device(name: str) -> torch.device:
    """``auto`` is CUDA when there is one, else the CPU.

    Raises:
        InputError: the name is no device, or a CUDA device that is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise InputError(f"device must be auto, cpu, cuda or cuda:i, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:i, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} must be one of the {torch.cuda.device_count()} CUDA devices of this machine"
        )
    return device


def import_torchvision() -> Any:
    """torchvision, or one clear line when it is missing or does not match the installed torch.

    Raises:
        InputError: it cannot be imported.
    """
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision must be installed and built for the installed torch, got: {error}; "
            "install both from the same place: pip install torch torchvision"
        ) from error
    return torchvision


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git(*arguments: str) -> str:
    """Output of a git command in this project's folder, empty when there is no repository."""
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def current_commit() -> str | None:
    """The commit of this project's code, None outside a repository."""
    return _git("rev-parse", "HEAD") or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    found = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """What a number needs to be traced: command, commit, versions, machine."""
    return {
        "argv": list(argv),
        "commit": current_commit(),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions(),
        "platform": platform.platform(),
    }


class StageClock:
    """Wall-clock seconds per named stage, in the order in which the stages ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        logger.info("%s ...", stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            logger.info("%s: %.1f s", stage, self.seconds[stage])


class SaveLog:
    """Lets a run go on when something cannot be saved, and remembers what."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Log an ``OSError`` inside the block with its traceback instead of passing it on."""
        try:
            yield
        except OSError:
            logger.exception("could not save %s", what)
            if what not in self.failures:
                self.failures.append(what)
