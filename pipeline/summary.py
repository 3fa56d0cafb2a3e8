"""The summary folder of a run: its tables and plots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from correction import ClusterAffineCorrection
from correction.partition import fit_projection
from evaluation.inference import Inference
from evaluation.metrics import standard_error
from logits_io.comparison import Comparison, compare_logits
from logits_io.naming import CORRECTED, FULL_PRECISION, QUANTIZED
from logits_io.tables import write_records
from pipeline.results import CLUSTER_AFFINE, Results, rounded
from plots.axes import save_figure
from plots.run import (
    class_figure,
    cluster_figure,
    grid_figure,
    reliability_figure,
    scatter_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Summary:
    """Tables and plots of a run.

    Attributes:
        correction: the selected one; None where there is none.
        seed: seed of the bootstrap and of the choice of plotted points.
    """

    results: Results
    evaluation: Inference
    correction: ClusterAffineCorrection | None
    seed: int

    def __post_init__(self) -> None:
        known = self.evaluation.logits
        self.logits = {kind: known[kind] for kind in (FULL_PRECISION, QUANTIZED)}
        if self.correction is not None:
            self.logits[CORRECTED] = self.correction.transform(known[QUANTIZED])
        targets = self.evaluation.targets if self.results.has_labels else None
        self.comparison = compare_logits(self.logits, targets, seed=self.seed)

    def write_tables(self, folder: Path, stem: str) -> None:
        """Write the corrections, and the comparison with full precision overall and per class.

        Without labels there is none per class.
        """
        write_records(folder / f"{stem}.csv", self.results.as_records())
        for name, table in (
            ("comparison", self.comparison.overall),
            ("per_class", self.comparison.per_class),
        ):
            if table.empty:
                continue
            records = table.to_dict("records")
            plain = [{key: rounded(value) for key, value in row.items()} for row in records]
            write_records(folder / f"{stem}_{name}.csv", plain)

    def draw(self, folder: Path) -> None:
        """Draw the plots; of clusters only where there are some, of accuracy only with labels."""
        save_figure(folder / "logit_scatter.png", scatter_figure(self.logits, self.seed))
        if self.results.has_labels:
            self._draw_accuracy(folder)
        if self.correction is not None and self.correction.num_clusters > 1:
            quantized = self.logits[QUANTIZED]
            projected = fit_projection(quantized, min(2, *quantized.shape))(quantized)
            labels = self.correction.partition_.assign(quantized)
            save_figure(folder / "cluster_map.png", cluster_figure(projected, labels, self.seed))

    def _draw_accuracy(self, folder: Path) -> None:
        """Draw the plots that need labels."""
        targets = self.evaluation.targets
        save_figure(folder / "per_class_change.png", _class_changes(self.comparison, self.results))
        save_figure(folder / "reliability.png", reliability_figure(self.logits, targets))
        points = [
            (row.alpha, row.num_clusters, row.pca_dim, row.top1_pct)
            for row in self.results.corrections
            if row.logits == CLUSTER_AFFINE
            and row.alpha is not None
            and row.num_clusters is not None
            and row.pca_dim is not None
        ]
        if points:
            results = self.results
            accuracies = results.quantized.top1_pct, results.full_precision.top1_pct
            figure = grid_figure(points, *accuracies, results.images)
            save_figure(folder / "accuracy_grid.png", figure)


def _class_changes(comparison: Comparison, results: Results) -> Figure:
    table = comparison.per_class.pivot(index="class", columns="logits", values="top1_pct")
    changes = {
        kind: (table[kind] - table[FULL_PRECISION]).tolist()
        for kind in (QUANTIZED, CORRECTED)
        if kind in table
    }
    accuracy = results.full_precision.top1_pct
    full_precision = accuracy, standard_error(accuracy, results.images)
    return class_figure(table.index.tolist(), changes, full_precision)
