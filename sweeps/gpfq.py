"""GPFQ's hyper-parameter analysis: main_imagenet.py for many bits or scalars, logged and drawn.

A point that is finished is not run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.console import EXIT_OK
from logits_io.naming import RUN_FILE
from plots.axes import save_figure
from plots.sweep import sweep_figure
from sweeps.engine import MAIN_SCRIPT
from sweeps.gpfq_log import Row, append_row, log_row, read_log

METHOD = "gpfq"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """One hyper-parameter, its values, and where its results go."""

    flag: str
    values: tuple[float, ...]
    log_name: str
    image_name: str
    label: str
    column: str  # of the log that holds the value

    def flags(self, value: float) -> list[str]:
        return [f"--{self.flag}", f"{value:g}"]


SWEEPS = {
    "bits": Sweep(
        flag="n_bits_w",
        values=tuple(range(1, 9)),
        log_name="Quantization_Log_Bit.csv",
        image_name="accuracy_bits.png",
        label="bits of the weights",
        column="Bits",
    ),
    "scalar": Sweep(
        flag="scalar",
        values=tuple(round(1 + 0.05 * i, 2) for i in range(21)),
        log_name="Quantization_Log_Scalar.csv",
        image_name="accuracy_scalar.png",
        label="scalar of the alphabet",
        column="CNN_Alphabet_Scalar",
    ),
}


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    arch: str
    sweep: str
    value: float
    extra: tuple[str, ...]
    root: Path

    @property
    def folder(self) -> Path:
        """Output folder of the run."""
        return self.root / f"sweep_{self.sweep}" / self.arch / f"{self.value:g}"

    @property
    def flags(self) -> list[str]:
        """What main_imagenet.py gets; the same flags are the same point."""
        arch = [] if self.arch == "digits_resnet" else ["--arch", self.arch]
        return [
            *("--quant_method", METHOD, *arch, *SWEEPS[self.sweep].flags(self.value)),
            *(
                "--save_results",
                "selected",
                "--no-plots",
                "--output_dir",
                str(self.folder),
                *self.extra,
            ),
        ]

    def record(self) -> dict[str, Any] | None:
        """The record of the finished run with these flags, None where there is none."""
        try:
            content = json.loads((self.folder / METHOD / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content if content["argv"] == self.flags else None

    def run(self, threads: int) -> dict[str, Any] | None:
        """Run the main script unless it has been; the record, None where it failed.

        Args:
            threads: of the run, where the environment does not say.
        """
        known = self.record()
        if known is not None:
            logger.info("%s %s = %g: finished before", self.arch, self.sweep, self.value)
            return known
        status, errors = execute(self.flags, threads)
        if status != EXIT_OK:
            last = (errors.strip().splitlines() or ["no output"])[-1]
            logger.error(
                "%s %s = %g ended in status %d: %s",
                *(self.arch, self.sweep, self.value, status, last),
            )
        return self.record()


def execute(flags: Sequence[str], threads: int) -> tuple[int, str]:
    """Run the main script in a process of its own; its exit status and what it wrote to stderr."""
    result = subprocess.run(
        [sys.executable, str(MAIN_SCRIPT), *flags],
        capture_output=True,
        text=True,
        check=False,
        env={"OMP_NUM_THREADS": str(threads), **os.environ},
    )
    return result.returncode, result.stderr


def run_sweep(
    name: str, archs: Sequence[str], options: argparse.Namespace, extra: list[str]
) -> bool:
    """Run the points of a sweep, log each as it ends, draw the figures; False where a run failed."""
    sweep = SWEEPS[name]
    points = [
        Point(arch, name, value, tuple(extra), options.output_dir)
        for arch in archs
        for value in sweep.values
    ]
    log = options.output_dir / sweep.log_name
    lock = threading.Lock()
    threads = max(1, (os.cpu_count() or 1) // options.jobs)

    def finish(point: Point) -> Row | None:
        record = point.run(threads)
        if record is None:
            return None
        row = log_row(record)
        with lock:
            if row not in read_log(log):
                append_row(log, row)
        logger.info(
            "%s %s = %g: Top-1 %s", point.arch, name, point.value, row["Quantized Top1 Accuracy"]
        )
        return row

    options.output_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(finish, points))
    for arch in archs:
        found = [row for point, row in zip(points, rows, strict=True) if row and point.arch == arch]
        if found:
            _draw(sweep, arch, found, options.output_dir / "image")
    return all(row is not None for row in rows)


def _draw(sweep: Sweep, arch: str, rows: list[Row], folder: Path) -> None:
    path = folder / f"{arch}_{sweep.image_name}"
    figure = sweep_figure(
        [float(row[sweep.column]) for row in rows],
        [100 * float(row["Quantized Top1 Accuracy"]) for row in rows],
        100 * float(rows[0]["Original Top1 Accuracy"]),
        sweep.label,
        f"{METHOD}, {arch}, {rows[0]['Dataset']}",
    )
    save_figure(path, figure)
    logger.info("figure: %s", path)
