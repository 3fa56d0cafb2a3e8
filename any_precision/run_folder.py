"""The folder of a training run: tables, checkpoints, plots, TensorBoard files, summary."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError
from common.files import atomic_file, write_json
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
BEST_FILE, LAST_FILE = "best_model.pth", "last_epoch.pth"

logger = logging.getLogger(__name__)


def new_run_folder(root: Path, name: str | None, model: str) -> Path:
    """The path of a new run's folder, which is not created; the default name holds the time.

    Raises:
        InputError: the name is taken, or is no name of a folder.
    """
    if name is not None:
        if not name or Path(name).name != name or name.startswith("."):
            raise InputError(f"run_name must be the name of a folder, got {name!r}")
        if (root / name).exists():
            raise InputError(f"run_name must be new below {root}, got {name!r}, which exists")
        return root / name
    stem = f"{datetime.now():%Y%m%d_%H%M%S}_{model}"
    folder, number = root / stem, 0
    while folder.exists():
        number += 1
        folder = root / f"{stem}_{number}"
    return folder


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, created if missing.
        tensorboard: write TensorBoard files, with a warning if it cannot be imported.
        first_step: earlier events from this step on are replaced (for a resumed run).
    """

    def __init__(self, path: Path, tensorboard: bool, first_step: int = 0):
        self.path = path
        for name in ("logs", "models", "plots"):
            (path / name).mkdir(parents=True, exist_ok=True)
        self.writer = _writer(path / "tensorboard", first_step) if tensorboard else None

    def model(self, name: str) -> Path:
        return self.path / "models" / name

    @property
    def log(self) -> Path:
        return self.path / "logs" / "train_quantization.log"

    def append(self, file: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Add rows to a table, a CSV file; None becomes an empty field."""
        path = self.path / file
        is_new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as handle:
            table = csv.DictWriter(handle, columns, lineterminator="\n")
            if is_new:
                table.writeheader()
            table.writerows(rows)

    def cut(self, epochs: int) -> None:
        """Remove the rows after ``epochs`` epochs, which a resumed run writes again."""
        for file in (HISTORY_FILE, CONFIGS_FILE):
            path = self.path / file
            if not path.exists():
                continue
            with path.open(newline="", encoding="utf-8") as handle:
                reader = csv.DictReader(handle)
                kept = [row for row in reader if _is_whole(row) and int(row["epoch"]) <= epochs]
                columns = list(reader.fieldnames or ())
            with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as out:
                table = csv.DictWriter(out, columns, lineterminator="\n")
                table.writeheader()
                table.writerows(kept)

    def scalars(self, values: Mapping[str, float | None], step: int) -> None:
        """Write the values that are not None."""
        for tag, value in values.items():
            if self.writer is not None and value is not None:
                self.writer.add_scalar(tag, value, step)

    def figure(self, figure: Any, name: str, step: int | None) -> None:
        """Save a plot below ``plots`` and, if ``step`` is given, add it to TensorBoard."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        path = self.path / "plots" / name
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


def _is_whole(row: Mapping[str, str | None]) -> bool:
    """Whether a row is complete; the last one may not be after a crash."""
    return None not in row.values() and str(row["epoch"]).isdigit()


def _writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        logger.warning("tensorboard is not installed: no TensorBoard files are written")
        return None
    return SummaryWriter(str(folder), purge_step=first_step or None)


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
