"""Runs a sweep as Ray tasks, on this machine or on a cluster that shares the sweep's folder.

A task that is lost with its machine is started again elsewhere. The state is in the files of the
runs, so that a task whose run is finished does nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import InputError, first_line
from sweeps.engine import MAIN_SCRIPT, OnDone, execute
from sweeps.spec import RunSpec

PROJECT = Path(__file__).resolve().parent.parent
RETRIES = 3  # further attempts for a task whose worker or machine was lost

logger = logging.getLogger(__name__)


def import_ray() -> Any:
    """The module ``ray``, without usage statistics.

    Raises:
        InputError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            f"engine ray needs Ray (pip install -r requirements-ray.txt), got: {error}"
        ) from None
    return ray


class RayEngine:
    """Runs specs as Ray tasks.

    Args:
        address: ``auto`` or host:port of a cluster; None: start Ray on this machine.
        cpus, gpus: resources of every run; 0.5 GPUs share one GPU between two runs.
        jobs: runs at a time on this machine; not used with ``address``.
    """

    def __init__(self, address: str | None, cpus: float, gpus: float, jobs: int):
        self.ray = import_ray()
        self.address, self.cpus, self.gpus, self.jobs = address, cpus, gpus, jobs

    def run(self, specs: Sequence[RunSpec], on_done: OnDone) -> None:
        """Run all specs, and call ``on_done`` with each as it ends.

        Raises:
            InputError: there is no cluster at the address.
        """
        self._connect()
        try:
            self._run(specs, on_done)
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        environment = {"PYTHONPATH": str(PROJECT)}
        settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        settings["runtime_env"] = {"env_vars": environment}
        try:
            if self.address is None:
                count = max(1, round(self.jobs * self.cpus))
                self.ray.init(address="local", num_cpus=count, include_dashboard=False, **settings)
            else:
                self.ray.init(address=self.address, **settings)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise InputError(
                f"ray_address must be a running cluster, got {self.address}: {reason}"
            ) from None

    def _run(self, specs: Sequence[RunSpec], on_done: OnDone) -> None:
        task = self.ray.remote(_execute).options(
            num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES, retry_exceptions=False
        )
        threads = max(1, int(self.cpus))
        waiting = {
            task.remote(spec, threads, Path.cwd(), spec.script or MAIN_SCRIPT): spec
            for spec in specs
        }
        while waiting:
            (ready,), _ = self.ray.wait(list(waiting), num_returns=1)
            spec = waiting.pop(ready)
            try:
                self.ray.get(ready)
            except self.ray.exceptions.RayError as error:
                spec.note_failure(-1, str(error).splitlines())
            on_done(spec)


def _execute(spec: RunSpec, threads: int, cwd: Path, script: Path) -> None:
    """Run a spec on a worker."""
    execute(spec, {"OMP_NUM_THREADS": str(threads)}, cwd=cwd, script=script)
