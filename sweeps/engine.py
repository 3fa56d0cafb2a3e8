"""Runs many commands, each in a process of its own.

The state is in the files of the runs, so that any engine can continue where another one stopped.
"""

from __future__ import annotations

import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

from common.console import EXIT_OK
from common.marks import mark
from common.reading import regular_text
from sweeps.spec import FAILURE, LOG, SPEC_LOCK, RunSpec

MAIN_SCRIPT = Path(__file__).resolve().parent.parent / "main_imagenet.py"
TAIL_LINES = 20
GRACE = 10.0  # seconds from interrupting a process to killing it

OnDone = Callable[[RunSpec], None]


class Engine(Protocol):
    """Runs specs, and calls ``on_done`` with each when it is finished or has failed."""

    def run(self, specs: Sequence[RunSpec], on_done: OnDone) -> None: ...


def execute(
    spec: RunSpec,
    environment: dict[str, str],
    on_start: Callable[[subprocess.Popen], None] | None = None,
    cwd: Path | None = None,
    script: Path | None = None,
) -> None:
    """Run a spec unless its files say that it is finished; write log and any failure to its folder.

    Two processes never run the same spec at once: the second one waits, and finds it finished. The
    run itself holds the lock, so that a run whose sweep was killed is waited for as well.

    Args:
        environment: variables to add to the environment of this process.
        on_start: called with the process of the run.
        cwd: working directory of the run; None: that of this process.
        script: script to run; None: that of the spec, or ``MAIN_SCRIPT``.
    """
    spec.folder.mkdir(parents=True, exist_ok=True)
    with _lock_file(spec.folder / SPEC_LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if spec.record() is not None:
            return
        (spec.folder / FAILURE).unlink(missing_ok=True)
        mark(spec.folder, (LOG,))
        (spec.folder / LOG).unlink(missing_ok=True)
        command = [sys.executable, str(script or spec.script or MAIN_SCRIPT), *spec.flags]
        with (spec.folder / LOG).open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env={**os.environ, **environment},
                pass_fds=(lock.fileno(),),
            )
            if on_start is not None:
                on_start(process)
            status = process.wait()
        if status != EXIT_OK or spec.record() is None:
            spec.note_failure(status, tail_of(spec.folder / LOG))


def _lock_file(path: Path) -> BinaryIO:
    """Open a file to lock; its content and what a link leads to are not touched.

    Raises:
        OSError: it is a link, or cannot be made.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "rb+")


def tail_of(path: Path) -> list[str]:
    """The last ``TAIL_LINES`` lines of a log; empty if it cannot be read."""
    try:
        lines = regular_text(path, errors="replace").splitlines()
    except OSError:
        return []
    return lines[-TAIL_LINES:]


class LocalEngine:
    """Runs specs as processes on this machine.

    Args:
        jobs: runs at a time.
        gpus: indices of GPUs, assigned in turn; empty: runs see all GPUs.
    """

    def __init__(self, jobs: int, gpus: Sequence[int] = ()):
        self.jobs = jobs
        self.threads = max(1, (os.cpu_count() or 1) // jobs)
        self.places: queue.Queue[int | None] = queue.Queue()
        for number in range(jobs):
            self.places.put(gpus[number % len(gpus)] if gpus else None)
        self.processes: set[subprocess.Popen] = set()
        self.lock = threading.Lock()
        self.stopped = False

    def run(self, specs: Sequence[RunSpec], on_done: OnDone) -> None:
        """Run all specs; on Ctrl-C, stop the running ones without recording them as failed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._one, spec, on_done) for spec in specs]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                self._stop()
                raise

    def _one(self, spec: RunSpec, on_done: OnDone) -> None:
        if self.stopped:
            return
        place = self.places.get()
        environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = str(place)
        try:
            execute(spec, environment, self._started)
        finally:
            self.places.put(place)
        if self.stopped:
            (spec.folder / FAILURE).unlink(missing_ok=True)
            return
        on_done(spec)

    def _started(self, process: subprocess.Popen) -> None:
        with self.lock:
            self.processes.add(process)
            if self.stopped:
                process.send_signal(signal.SIGINT)

    def _stop(self) -> None:
        with self.lock:
            self.stopped = True
            running = [process for process in self.processes if process.poll() is None]
        try:
            for process in running:
                process.send_signal(signal.SIGINT)
            end = time.monotonic() + GRACE
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
        finally:  # a second interruption gives them no more time
            for process in running:
                if process.poll() is None:
                    process.kill()
