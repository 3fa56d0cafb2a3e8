"""Runs the unfinished runs of a sweep with the chosen engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.console import write_stdout
from common.errors import InputError
from common.marks import OURS, is_marked, require_replaceable
from sweeps.engine import Engine, LocalEngine
from sweeps.spec import FAILURE, LOG, SPEC_LOCK, RunSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """How the runs of a sweep are run.

    Attributes:
        engine: ``local`` or ``ray``.
        jobs: runs at a time on this machine.
        gpus: indices of GPUs, assigned in turn.
        ray_address: address of a cluster; None: Ray on this machine.
        cpus_per_job, gpus_per_job: resources that a Ray task requests.
        retry_failed: run again what failed before.
        report_only: run nothing.
        force: replace tables, reports and logs that this suite did not write.
    """

    engine: str = "local"
    jobs: int = 2
    gpus: Sequence[int] = ()
    ray_address: str | None = None
    cpus_per_job: float = 1.0
    gpus_per_job: float = 0.0
    retry_failed: bool = False
    report_only: bool = False
    force: bool = False

    def make_engine(self) -> Engine:
        """Make the engine.

        Raises:
            InputError: Ray is not installed, or a number is out of range.
        """
        if self.engine == "local":
            return LocalEngine(self.jobs, self.gpus)
        if not 0 < self.cpus_per_job <= 1024 or not 0 <= self.gpus_per_job <= 64:
            raise InputError(
                "cpus_per_job must be above 0 and gpus_per_job at least 0, got "
                f"{self.cpus_per_job} and {self.gpus_per_job}"
            )
        from sweeps.ray_engine import RayEngine

        return RayEngine(self.ray_address, self.cpus_per_job, self.gpus_per_job, self.jobs)


def open_runs(specs: Sequence[RunSpec], choice: Choice) -> list[RunSpec]:
    """The runs to start: those not finished, without the failed ones unless they are retried.

    A run that failed only because it could not save everything is always tried again.
    """
    if choice.report_only:
        return []
    wanted = ("open", "failed") if choice.retry_failed else ("open",)
    return [spec for spec in specs if spec.state() in wanted or spec.is_unsaved()]


def require_own_folders(specs: Sequence[RunSpec], force: bool) -> None:
    """Check, without writing, that each run has a folder of its own and replaces no file of a user.

    Raises:
        InputError: two architectures have the same folder, or a log is not one of a sweep.
    """
    archs: dict[Path, str] = {}
    for spec in specs:
        folder = spec.folder
        if archs.setdefault(folder, spec.arch) != spec.arch:
            raise InputError(
                "architectures must differ in letters, digits, _ . or -, got "
                f"{archs[folder]} and {spec.arch}"
            )
        if (folder / SPEC_LOCK).is_symlink():
            raise InputError(f"{folder / SPEC_LOCK}: must be {OURS}, got a symbolic link")
        if not force:
            is_old = (folder / SPEC_LOCK).is_file() and not is_marked(folder)
            known = (LOG, FAILURE) if is_old else ()
            require_replaceable(folder, (LOG, FAILURE), known)


def run_open(
    specs: Sequence[RunSpec],
    root: Path,
    choice: Choice,
    on_done: Callable[[RunSpec], object] = lambda spec: None,
) -> int:
    """Run the runs of ``open_runs``.

    Args:
        root: folder of the sweep.
        on_done: called with each run as it ends, one at a time.

    Returns:
        number of runs started.
    """
    todo = open_runs(specs, choice)
    states = [spec.state() for spec in specs if spec not in todo]
    logger.info(
        "runs: %d finished before, %d failed before%s, %d to do",
        states.count("finished"),
        states.count("failed"),
        " (--retry_failed runs them again)" if "failed" in states else "",
        len(todo),
    )
    done, lock = 0, threading.Lock()

    def tell(spec: RunSpec) -> None:
        nonlocal done
        with lock:
            done += 1
            state = spec.state()
            reason = f" ({spec.reason()})" if state == "failed" else ""
            logger.info("%d of %d: %s %s%s", done, len(todo), spec.name, state, reason)
            on_done(spec)

    if todo:
        root.mkdir(parents=True, exist_ok=True)
        choice.make_engine().run(todo, tell)
    return len(todo)


def print_commands(specs: Sequence[RunSpec]) -> None:
    """Print the command of every run."""
    for spec in specs:
        write_stdout(" ".join(["python3 main_imagenet.py", *spec.flags]))


def log_failures(specs: Iterable[RunSpec]) -> None:
    """Log the status and the last line of the log of every run that failed."""
    for spec in specs:
        failure = spec.failure()
        if failure is not None and spec.record() is None:
            reason = spec.reason() or "no output"
            logger.error("%s ended in status %d: %s", spec.name, failure["status"], reason)
