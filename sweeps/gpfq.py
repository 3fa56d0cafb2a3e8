"""GPFQ's hyper-parameter analysis: main_imagenet.py for several bits or scalars, log and plots."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import lock_of, locked, require_writable
from common.marks import (
    is_marked,
    mark,
    replace_link,
    require_own_folder,
    require_replaceable,
)
from evaluation.metrics import standard_error
from logits_io.naming import file_name
from plots.axes import save_figure
from plots.sweep import sweep_figure
from sweeps.figures import IMAGES
from sweeps.gpfq_log import Row, append_row, log_row, read_log
from sweeps.results import evaluated
from sweeps.running import Choice, run_open
from sweeps.spec import RunSpec, arch_flags

METHOD = "gpfq"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Analysis:
    """One hyper-parameter, its values, and where its results go.

    Attributes:
        flag: flag of main_imagenet.py that sets it.
        label: axis label of the plot.
        column: column of the log that holds the value.
    """

    flag: str
    values: tuple[float, ...]
    log_name: str
    image_name: str
    label: str
    column: str


ANALYSES = {
    "bits": Analysis(
        flag="n_bits_w",
        values=tuple(range(1, 9)),
        log_name="Quantization_Log_Bit.csv",
        image_name="accuracy_bits.png",
        label="bits of the weights",
        column="Bits",
    ),
    "scalar": Analysis(
        flag="scalar",
        values=tuple(round(1 + 0.05 * i, 2) for i in range(21)),
        log_name="Quantization_Log_Scalar.csv",
        image_name="accuracy_scalar.png",
        label="scalar of the alphabet",
        column="CNN_Alphabet_Scalar",
    ),
}


@dataclass(frozen=True)
class Point(RunSpec):
    """One run of an analysis.

    Attributes:
        extra: further flags, passed to every run.
    """

    root: Path
    arch: str
    analysis: str
    value: float
    extra: tuple[str, ...] = ()

    method = METHOD

    @property
    def name(self) -> str:
        return f"{self.arch} {self.analysis} = {self.value:g}"

    @property
    def folder(self) -> Path:
        return self.root / f"sweep_{self.analysis}" / file_name(self.arch) / f"{self.value:g}"

    @property
    def flags(self) -> list[str]:
        return [
            "--quant_method",
            METHOD,
            *arch_flags(self.arch),
            f"--{ANALYSES[self.analysis].flag}",
            f"{self.value:g}",
            "--save_results",
            "selected",
            "--no-plots",
            "--output_dir",
            str(self.folder),
            *self.extra,
        ]


def points_of(analysis: str, archs: Sequence[str], root: Path, extra: Sequence[str]) -> list[Point]:
    """Every run of an analysis."""
    values = ANALYSES[analysis].values
    return [Point(root, arch, analysis, value, tuple(extra)) for arch in archs for value in values]


def run_analysis(points: Sequence[Point], root: Path, choice: Choice) -> list[str]:
    """Run the unfinished points, log each as it ends, then draw a plot per architecture.

    Args:
        points: the points of one analysis.
        root: folder of the log and the plots.

    Returns:
        names of the points that are not finished.

    Raises:
        InputError: the log has other columns, the folder cannot be written, or a plot would
            replace a file of the user.
    """
    analysis = ANALYSES[points[0].analysis]
    log, images = root / analysis.log_name, root / IMAGES
    require_writable(root)
    require_own_folder(images, choice.force)
    is_old = log.is_file() and not is_marked(images)  # of a version that listed no plots
    plots = [_plot(analysis, point.arch) for point in points]
    require_replaceable(images, plots, plots if is_old else (), choice.force)
    read_log(log)
    run_open(points, root, choice, on_done=lambda spec: _note(spec, log))
    rows: dict[str, list[Row]] = {}
    counts: dict[str, int | None] = {}
    for point in points:
        row = _note(point, log)
        if row is not None:
            rows.setdefault(point.arch, []).append(row)
            counts[point.arch] = evaluated(point.record())
    if rows:
        replace_link(images)
        images.mkdir(exist_ok=True)
        mark(images, plots)
    for arch, found in rows.items():
        _draw(analysis, arch, found, images, counts[arch])
    return [point.name for point in points if point.record() is None]


def _note(spec: RunSpec, log: Path) -> Row | None:
    """Add the row of a finished point to the log unless it is there; None if it is unfinished."""
    record = spec.record()
    if record is None:
        return None
    row = log_row(record)
    with locked(lock_of(log)):
        if row not in read_log(log):
            append_row(log, row)
            logger.info("%s: Top-1 %s", spec.name, row["Quantized Top1 Accuracy"])
    return row


def _plot(analysis: Analysis, arch: str) -> str:
    return f"{file_name(arch)}_{analysis.image_name}"


def _draw(
    analysis: Analysis, arch: str, rows: Sequence[Row], folder: Path, count: int | None
) -> None:
    path = folder / _plot(analysis, arch)
    accuracy = 100 * float(rows[0]["Original Top1 Accuracy"])
    figure = sweep_figure(
        [float(row[analysis.column]) for row in rows],
        [100 * float(row["Quantized Top1 Accuracy"]) for row in rows],
        accuracy,
        None if count is None else standard_error(accuracy, count),
        analysis.label,
        f"{METHOD}, {arch}, {rows[0]['Dataset']}",
    )
    save_figure(path, figure)
    logger.info("plot: %s", path)
