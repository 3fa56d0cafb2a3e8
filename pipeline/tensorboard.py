"""The TensorBoard scalars of a run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from common.marks import mark
from pipeline.results import Results
from quant import UnitReport

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunBoard:
    """Writes the scalars of a run; the file is opened with the first scalar.

    Args:
        log_dir: folder of the event files.
    """

    def __init__(self, log_dir: Path):
        self.log_dir = log_dir

    @cached_property
    def writer(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        before = self._files()
        writer = SummaryWriter(str(self.log_dir))
        mark(self.log_dir, self._files() - before)
        return writer

    def _files(self) -> set[str]:
        folder = self.log_dir
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def add_unit(self, report: UnitReport) -> None:
        """Losses and seconds of a unit; the step is the unit's index."""
        self.writer.add_scalar("reconstruction/loss", report.loss, report.index)
        self.writer.add_scalar("reconstruction/loss_nearest", report.loss_nearest, report.index)
        self.writer.add_scalar("reconstruction/flipped", report.flipped, report.index)
        self.writer.add_scalar("reconstruction/seconds", report.seconds, report.index)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.writer.add_scalar(name, value, step)

    def add_results(self, results: Results) -> None:
        """Accuracies of the full-precision, quantized and corrected logits; closes the writer."""
        named = {"fullprecision": results.full_precision, "quantized": results.quantized}
        if results.corrected is not None:
            named["corrected"] = results.corrected
        for name, row in named.items():
            self.writer.add_scalar(f"accuracy/top1_{name}", row.top1_pct, 0)
            self.writer.add_scalar(f"accuracy/top5_{name}", row.top5_pct, 0)
        self.writer.close()
