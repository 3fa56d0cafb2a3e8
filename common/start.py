"""Start and end of a script: signals and closed streams, from its first instruction on.

The scripts import this module before any other of the project or of other people, so that Ctrl-C
during the imports ends in one line. Importing it from another program changes nothing there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import InputError, RunError
from common.machine import keep_freed_memory

PROJECT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SIGNAL_STATUS = 128  # plus the number of the signal: the exit status of a script that it ends
NOTHING_DONE = "interrupted; nothing was written"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a request to end, in a script that is running.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int):
        super().__init__()
        self.number = number


class _PatientStream:
    """A text stream whose failures to write are ignored, as its reader may be gone."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def run_main(body: Callable[[], int], after_interrupt: str = "") -> int:
    """Run a script's body; turn a foreseen error or a signal into one line and an exit status.

    Status 2: an input is unusable; 1: the run cannot continue; 130, 143, 129: ended by Ctrl-C,
    SIGTERM or SIGHUP.

    Args:
        after_interrupt: what the line on an interruption says of continuing.
    """
    from common.console import EXIT_FAILED, EXIT_USAGE, UNUSABLE_PATH

    try:
        Path.cwd()
    except OSError:
        return _say("error: working folder must exist, got one that was deleted", EXIT_USAGE)
    received: list[int] = []
    former = _handle(lambda number, frame: _interrupt(received, number))
    try:
        status = body()
        if not received:
            return status
        number = received[0]  # it came where Python ignores errors, as in a destructor
    except BaseException as error:
        if received:  # some libraries turn the interruption into errors of their own
            number = received[0]
        elif isinstance(error, KeyboardInterrupt):
            number = signal.SIGINT
        elif isinstance(error, InputError):
            return _say(f"error: {error}", EXIT_USAGE)
        elif isinstance(error, RunError):
            return _say(f"error: {error}", EXIT_FAILED)
        elif isinstance(error, OSError):
            status = EXIT_USAGE if error.errno in UNUSABLE_PATH else EXIT_FAILED
            return _say(f"error: files and folders must be usable, got {error}", status)
        else:
            raise
    finally:
        _handle(former)
    hint = f"; {after_interrupt}" if after_interrupt else ""
    line = f"interrupted; files already finished stay valid{hint}"
    return _say(line, SIGNAL_STATUS + number)


def _say(line: str, status: int) -> int:
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{line}\n")
    return status


def _interrupt(received: list[int], number: int) -> None:
    received.append(number)
    raise Interrupted(number)


def _handle(handlers: Any) -> dict[int, Any]:
    """Set the handlers of the signals that are not ignored; returns the former ones.

    Args:
        handlers: one function for all of them, or what an earlier call returned.
    """
    former: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return former
    for number in SIGNALS:
        handler = handlers.get(number) if isinstance(handlers, dict) else handlers
        if handler is not None and signal.getsignal(number) is not signal.SIG_IGN:
            former[number] = signal.signal(number, handler)
    return former


def _end_now(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        os.write(2, f"{NOTHING_DONE}\n".encode())
    os._exit(SIGNAL_STATUS + number)


def _open_streams() -> None:
    """Give closed standard streams a place to go, so that no file of the run takes their number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8")
    sys.stderr = _PatientStream(sys.stderr)


def is_script() -> bool:
    """Whether the program that runs is a script of this project."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return file is not None and Path(file).resolve().parent == PROJECT


def _report_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """Report an error that Python ignores, unless it is an interruption, which is not lost."""
    if not isinstance(ignored.exc_value, Interrupted):
        sys.__unraisablehook__(ignored)


if is_script():
    keep_freed_memory()
    sys.unraisablehook = _report_ignored
    _handle(_end_now)
    _open_streams()
