"""The results of a run as text: a headline, and tables of the main rows or of all rows."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.metrics import standard_error
from logits_io.naming import FULL_PRECISION
from pipeline.results import IDENTITY, RIDGE_MAP, Results, Row

HEADER = (
    "logits",
    "alpha",
    "clusters",
    "pca",
    "Top-1 %",
    "Top-5 %",
    "agree %",
    "KL",
    "MSE",
    "held-out KL",
    "",
)
OF_LABELS = ("Top-1 %", "Top-5 %")
OF_CORRECTIONS = ("alpha", "clusters", "pca", "held-out KL", "")
SHOWN = {FULL_PRECISION: "full precision", IDENTITY: "quantized"}  # names of rows in tables


def headline(results: Results, subject: str) -> str:
    """Accuracies before and after quantization and correction in one line.

    Args:
        subject: network, method, bits and seed.
    """
    if not results.has_labels:
        return _headline_without_labels(results, subject)
    fp, quantized = results.full_precision.top1_pct, results.quantized.top1_pct
    error = standard_error(quantized, results.images)
    text = (
        f"{subject}: Top-1 float {fp:.2f} %, quantized {quantized:.2f} ± {error:.2f} % "
        f"({quantized - fp:+.2f})"
    )
    corrected = results.corrected
    if corrected is None:
        return text
    if corrected.logits == IDENTITY:
        return f"{text}, no correction selected"
    return f"{text}, corrected {corrected.top1_pct:.2f} % ({corrected.top1_pct - fp:+.2f})"


def _headline_without_labels(results: Results, subject: str) -> str:
    """Agreement and KL divergence before and after the correction in one line."""
    rows = {"quantized": results.quantized}
    if results.selected.logits != IDENTITY:
        rows["corrected"] = results.selected
    parts = [f"{n} {row.agreement_pct:.2f} % (KL {row.kl_to_fp:.4f})" for n, row in rows.items()]
    text = f"{subject}: no labels; agreement with float: {', '.join(parts)}"
    return text if len(rows) > 1 else f"{text}, no correction selected"


def main_rows(results: Results) -> list[Row]:
    """Full precision, quantized, selected correction, best baseline and oracle, each once."""
    wanted = (results.selected, results.best_baseline, results.oracle)
    rows = [results.full_precision, results.quantized]
    for row in wanted:
        if row is not None and row not in rows:
            rows.append(row)
    return rows


def format_table(results: Results, rows: Sequence[Row]) -> str:
    """A table of the given rows.

    Without corrections it has none of their columns, and without labels none that need them.
    """
    best = results.best_baseline
    lines = [HEADER, *(_cells(row, is_best=row is best) for row in rows)]
    left_out: tuple[str, ...] = () if results.has_labels else OF_LABELS
    if not results.corrections:
        left_out += OF_CORRECTIONS[:-1]
        lines = [(*line[:-1], "") for line in lines]
    kept = [i for i, name in enumerate(HEADER) if name not in left_out]
    lines = [tuple(line[i] for i in kept) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


def _cells(row: Row, is_best: bool) -> tuple[str, ...]:
    numbers = (row.alpha, row.num_clusters, row.pca_dim)
    shares = (row.top1_pct, row.top5_pct, row.agreement_pct)
    notes = {
        "selected": row.selected,
        "best baseline": is_best,
        "oracle (best Top-1 that could be chosen, known afterwards)": row.oracle,
        "for comparison, never selected": row.logits == RIDGE_MAP,
    }
    return (
        SHOWN.get(row.logits, row.logits),
        *("-" if value is None else f"{value:g}" for value in numbers),
        *(f"{value:.2f}" for value in shares),
        f"{row.kl_to_fp:.4f}",
        f"{row.mse_to_fp:.3f}",
        "-" if row.heldout_kl is None else f"{row.heldout_kl:.6f}",
        ", ".join(note for note, holds in notes.items() if holds),
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """A line of the table: first and last column left-aligned, numbers right-aligned."""
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([cells[0].ljust(widths[0]), *numbers, cells[-1]]).rstrip()
