"""Provenance of a result: commit, versions, machine, seconds, and files that were not saved."""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "pandas", "polars")
PROJECT = Path(__file__).resolve().parent.parent

logger = logging.getLogger(__name__)


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git(*arguments: str) -> str:
    """Output of a git command in this project's folder; empty if there is no repository."""
    command = ["git", "-C", str(PROJECT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def current_commit() -> str | None:
    """The commit of this project's code; None outside a repository."""
    return _git("rev-parse", "HEAD") or None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect the results."""
    found = {"python": platform.python_version()}
    named = {name: _installed(name) for name in RECORDED_PACKAGES}
    return found | {name: version for name, version in named.items() if version is not None}


@functools.cache
def _installed(package: str) -> str | None:
    """Version of a package, whose metadata take milliseconds to read; None if it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(argv: Sequence[str]) -> dict[str, Any]:
    """Command, commit, versions and machine that a result came from."""
    return {
        "argv": list(argv),
        "commit": current_commit(),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": versions(),
        "platform": platform.platform(),
    }


class StageClock:
    """Seconds per named stage, in the order in which the stages ran.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: CPU seconds of all threads of this process.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        logger.info("%s ...", stage)
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
            spent = time.process_time() - cpu_start
            self.cpu_seconds[stage] = self.cpu_seconds.get(stage, 0.0) + spent
            logger.info("%s: %.1f s", stage, self.seconds[stage])


class SaveLog:
    """Lets a run continue when something cannot be saved, and records what."""

    def __init__(self) -> None:
        self.failures: list[str] = []

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Log an ``OSError`` of the block instead of raising it."""
        try:
            yield
        except OSError as error:
            logger.error("could not save %s: %s", what, error)
            logger.debug("where it failed:", exc_info=True)
            if what not in self.failures:
                self.failures.append(what)
