"""The CSV log of GPFQ's hyper-parameter analysis: one row per run.

The columns are those of the published script (YixuanSeanZhou/Quantized_Neural_Nets,
``logs/init_log.py``), and the seconds.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.cells import cell_text, plain_cell
from common.errors import InputError
from common.files import atomic_file
from common.reading import require_regular

ACCURACIES = (
    "Original Top1 Accuracy",
    "Quantized Top1 Accuracy",
    "Original Top5 Accuracy",
    "Quantized Top5 Accuracy",
)
COLUMNS = (
    "Model Name",
    "Dataset",
    "Quantization Batch Size",
    *ACCURACIES,
    "Bits",
    "MLP_Alphabet_Scalar",
    "CNN_Alphabet_Scalar",
    "MLP_Percentile",
    "CNN_Percentile",
    "Stochastic Quantization",
    "Regularizer",
    "Lambda",
    "Original Sparsity",
    "Quantized Sparsity",
    "Retain_rate",
    "Fusion",
    "Seed",
    "Seconds",
)

Row = dict[str, str]


def log_row(record: Mapping[str, Any]) -> Row:
    """The row of a run, from the content of its run.json.

    Accuracies are fractions; sparsity is the fraction of exact zeros among all weights and biases;
    Retain_rate is 1, since every patch is used; Lambda is empty without a regularizer.
    """
    config, figures = record["config"], record["figures"]
    original, quantized = figures["fullprecision"], figures["quantized"]
    values = {
        "Model Name": config["arch"],
        "Dataset": record["data"]["dataset"],
        "Quantization Batch Size": config["batch_size"],
        "Original Top1 Accuracy": f"{original['top1_pct'] / 100:.4f}",
        "Quantized Top1 Accuracy": f"{quantized['top1_pct'] / 100:.4f}",
        "Original Top5 Accuracy": f"{original['top5_pct'] / 100:.4f}",
        "Quantized Top5 Accuracy": f"{quantized['top5_pct'] / 100:.4f}",
        "Bits": config["n_bits_w"],
        "MLP_Alphabet_Scalar": config["mlp_scalar"] or config["scalar"],
        "CNN_Alphabet_Scalar": config["cnn_scalar"] or config["scalar"],
        "MLP_Percentile": config["mlp_percentile"],
        "CNN_Percentile": config["cnn_percentile"],
        "Stochastic Quantization": config["stochastic_rounding"],
        "Regularizer": config["regularizer"],
        "Lambda": "" if config["lambda"] is None else config["lambda"],
        "Original Sparsity": f"{record['zero_share']['fullprecision']:.4f}",
        "Quantized Sparsity": f"{record['zero_share']['quantized']:.4f}",
        "Retain_rate": 1.0,
        "Fusion": config["fold_bn"],
        "Seed": config["seed"],
        "Seconds": f"{record['seconds']['quantize']:.2f}",
    }
    return {name: str(values[name]) for name in COLUMNS}


def read_log(path: Path) -> list[Row]:
    """The rows of a log; empty if there is no file.

    Raises:
        InputError: the file has other columns.
    """
    if not path.exists():
        return []
    with require_regular(path).open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        rows = [{name: cell_text(cell) for name, cell in row.items()} for row in reader]
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: must have the columns of this log, got {reader.fieldnames}")
    return rows


def append_row(path: Path, row: Row) -> None:
    """Add a row, and the header to a new file; the file is never left half-written."""
    rows = [*read_log(path), row]
    with atomic_file(path) as part, part.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows({name: plain_cell(row[name]) for name in COLUMNS} for row in rows)
