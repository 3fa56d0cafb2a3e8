"""Logits in memory, as they were read from files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class SavedLogits:
    """Logits, targets and metadata of a folder, or of files of another program.

    Attributes:
        targets: None where the labels are not known.
        ids: what identifies each sample in the files of another program; None where nothing does.
    """

    logits: dict[str, np.ndarray]  # kind -> (N, C) float32
    targets: np.ndarray | None  # (N,) int64
    metadata: dict[str, Any]
    ids: tuple[str, ...] | None = None
