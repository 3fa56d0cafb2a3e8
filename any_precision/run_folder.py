"""The folder of a training run: tables, checkpoints, plots, TensorBoard files, summary."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.cells import plain_cell
from common.files import atomic_file, write_json
from common.marks import mark
from quant.bitwidth.validation import ValidationResult

HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "lr",
    "mean_acc",
    "std_acc",
    "min_acc",
    "max_acc",
    "mean_bitwidth",
    "std_bitwidth",
    "min_bitwidth",
    "max_bitwidth",
    "corr_pearson",
    "corr_spearman",
    "knee",
    "seconds",
)
CONFIG_COLUMNS = (
    "epoch",
    "phase",
    "kind",
    "index",
    "avg_layers",
    "avg_params",
    "avg_macs",
    "relative_weight_memory",
    "relative_bitops",
    "accuracy",
    "loss",
    "bits",
)
COSTS = ("layers", "params", "macs", "relative_weight_memory", "relative_bitops")
IMAGE_TAG = "Bitwidth_Analysis/bitwidth_vs_accuracy"
HISTORY_FILE, CONFIGS_FILE, SUMMARY_FILE = (
    "bitwidth_history.csv",
    "bitwidth_configs.csv",
    "summary.json",
)
TABLES = (HISTORY_FILE, CONFIGS_FILE)
BEST_FILE, LAST_FILE = "best_model.pth", "last_epoch.pth"
CONFIG_FILE, CONFIG_YAML_FILE, LOG_FILE = "config.json", "config.yaml", "train_quantization.log"

logger = logging.getLogger(__name__)


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; nothing is written before ``open``.

    Attributes:
        tables: file -> its whole text, which checkpoints hold too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.tables: dict[str, str] = {}
        self.writer: Any = None

    def open(self, tensorboard: bool, first_step: int = 0) -> None:
        """Write the tables as they are, in place of what is there, and start TensorBoard.

        Args:
            tensorboard: write TensorBoard files, with a warning if it cannot be imported.
            first_step: earlier events from this step on are replaced (for a resumed run).

        Raises:
            OSError: a file cannot be written.
        """
        for file in TABLES:
            if file in self.tables:
                _write_text(self.path / file, self.tables[file])
            else:
                (self.path / file).unlink(missing_ok=True)
        self.writer = _writer(self.path / "tensorboard", first_step) if tensorboard else None

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    @property
    def log(self) -> Path:
        return self.path / "logs" / LOG_FILE

    def append(self, file: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Add rows to a table, a CSV file; None becomes an empty field."""
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, columns, lineterminator="\n")
        if file not in self.tables:
            table.writeheader()
        table.writerows({key: plain_cell(value) for key, value in row.items()} for row in rows)
        self.tables[file] = self.tables.get(file, "") + buffer.getvalue()
        _write_text(self.path / file, self.tables[file])

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Write the values that are not None."""
        for tag, value in values.items():
            if self.writer is not None and value is not None:
                self.writer.add_scalar(tag, value, step)

    def figure(self, figure: Any, name: str, step: int | None) -> None:
        """Save a plot below ``plots`` and, if ``step`` is given, add it to TensorBoard."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        path = self.path / "plots" / name
        mark(path.parent, [name])
        with atomic_file(path) as part:
            figure.savefig(part, format="png", metadata={"Software": None})
        if self.writer is not None and step is not None:
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
            pixels = np.asarray(canvas.buffer_rgba())[..., :3]
            self.writer.add_image(IMAGE_TAG, pixels, step, dataformats="HWC")

    def hparams(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Add the settings and the final metrics to TensorBoard."""
        if self.writer is not None:
            plain = {
                k: v if isinstance(v, (int, float, str, bool)) else str(v)
                for k, v in settings.items()
            }
            self.writer.add_hparams(plain, dict(figures), run_name=".")

    def summary(self, content: Mapping[str, Any]) -> None:
        write_json(self.path / SUMMARY_FILE, content)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed: no TensorBoard files are written")
        return None
    before = _names(folder)
    writer = SummaryWriter(str(folder), purge_step=first_step or None)
    mark(folder, _names(folder) - before)
    return writer


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def configuration_rows(
    result: ValidationResult,
    epoch: int,
    phase: str,
    anchor_costs: Mapping[int, Mapping[str, Any]],
    layers: int,
) -> list[dict[str, Any]]:
    """One row per assignment that a validation evaluated.

    Args:
        epoch: number of the epoch, from 1.
        phase: ``val`` or ``test``.
        anchor_costs: bits -> costs of the assignment with these bits in all layers.
        layers: number of quantized layers.
    """
    rows = []
    accuracies = result.statistics.accuracies
    for index, costs in enumerate(result.costs):
        bits = "-".join(map(str, result.configurations[index].values()))
        figures = {"accuracy": accuracies[index], "loss": result.losses[index]}
        rows.append(_row(epoch, phase, "random", index, costs, figures, bits))
    for index, anchor in enumerate(result.statistics.anchors):
        bits = "-".join([str(anchor.bitwidth)] * layers)
        figures = {"accuracy": anchor.accuracy, "loss": anchor.loss}
        cost = anchor_costs[anchor.bitwidth]
        rows.append(_row(epoch, phase, "anchor", index, cost, figures, bits))
    return rows


def _row(
    epoch: int,
    phase: str,
    kind: str,
    index: int,
    costs: Mapping[str, Any],
    figures: Mapping[str, Any],
    bits: str,
) -> dict[str, Any]:
    named = {name if "relative" in name else f"avg_{name}": costs[name] for name in COSTS}
    return {
        "epoch": epoch,
        "phase": phase,
        "kind": kind,
        "index": index,
        **named,
        "accuracy": figures["accuracy"],
        "loss": figures["loss"],
        "bits": bits,
    }
