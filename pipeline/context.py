"""What every stage of a run works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.provenance import SaveLog, StageClock, utc_now
from loaders import DataPlan
from pipeline.job import Job
from pipeline.networks import NetworkPair
from pipeline.tensorboard import RunBoard
from quant import UnitReport, UnitStates


@dataclass(frozen=True)
class Context:
    """What every stage of a run works with.

    Attributes:
        plan: the images, in memory where they fit.
        metadata: metadata row saved with the logits.
        float_logits: (N, C) of the evaluation images, where they are known before the run begins.
        written: folders below the root, in the order in which they were written.
        logits: those that hold logits.
        units: reports of the quantized units.
        warnings: what was logged as a warning or an error since the run began.
    """

    job: Job
    plan: DataPlan
    networks: NetworkPair
    metadata: dict[str, Any]
    float_logits: np.ndarray | None
    states: UnitStates
    board: RunBoard
    clock: StageClock
    saves: SaveLog
    started: str = field(default_factory=utc_now)
    written: list[str] = field(default_factory=list)
    logits: list[str] = field(default_factory=list)
    units: list[UnitReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def note_logits(self, folder: str) -> None:
        """Note that a folder of logits is written."""
        self.written.append(folder)
        self.logits.append(folder)
