"""The summary folder of a run: its tables and figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from correction import ClusterAffineCorrection
from correction.partition import fit_projection
from evaluation.inference import Inference
from logits_io.comparison import Comparison, compare_logits
from logits_io.naming import CORRECTED, FULL_PRECISION, QUANTIZED
from logits_io.tables import write_records
from pipeline.results import Row, as_records
from plots.axes import save_figure
from plots.run import class_figure, cluster_figure, grid_figure, reliability_figure, scatter_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Summary:
    """What is told about a run.

    Attributes:
        correction: the selected one.
        seed: of the bootstrap and of the points shown.
    """

    rows: list[Row]
    evaluation: Inference
    correction: ClusterAffineCorrection
    seed: int

    def __post_init__(self) -> None:
        quantized = self.evaluation.logits[QUANTIZED]
        self.logits = {
            FULL_PRECISION: self.evaluation.logits[FULL_PRECISION],
            QUANTIZED: quantized,
            CORRECTED: self.correction.transform(quantized),
        }
        self.comparison = compare_logits(self.logits, self.evaluation.targets, seed=self.seed)

    def write_tables(self, folder: Path, stem: str) -> None:
        """The corrections, and the comparison with full precision overall and per class."""
        write_records(folder / f"{stem}.csv", as_records(self.rows))
        for name, table in (
            ("comparison", self.comparison.overall),
            ("per_class", self.comparison.per_class),
        ):
            write_records(folder / f"{stem}_{name}.csv", table.to_dict("records"))

    def draw(self, folder: Path) -> None:
        """The figures."""
        quantized = self.logits[QUANTIZED]
        save_figure(folder / "per_class_change.png", _class_changes(self.comparison))
        points = [
            (row.alpha, row.num_clusters, row.pca_dim, row.top1_pct)
            for row in self.rows
            if row.logits == "cluster_affine"
            and row.alpha is not None
            and row.num_clusters is not None
            and row.pca_dim is not None
        ]
        save_figure(folder / "accuracy_grid.png", grid_figure(points, self.rows[1].top1_pct))
        save_figure(folder / "logit_scatter.png", scatter_figure(self.logits, self.seed))
        save_figure(
            folder / "reliability.png", reliability_figure(self.logits, self.evaluation.targets)
        )
        projection = fit_projection(quantized, min(2, *quantized.shape))
        labels = self.correction.partition_.assign(quantized)
        save_figure(
            folder / "cluster_map.png", cluster_figure(projection(quantized), labels, self.seed)
        )


def _class_changes(comparison: Comparison) -> Figure:
    table = comparison.per_class.pivot(index="class", columns="logits", values="top1_pct")
    changes = {
        kind: (table[kind] - table[FULL_PRECISION]).tolist() for kind in (QUANTIZED, CORRECTED)
    }
    return class_figure(table.index.tolist(), changes)
