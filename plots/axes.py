"""Creating and saving figures without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that needs no display."""
    # matplotlib is slow to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(path: Path, figure: Figure) -> None:
    """Write a PNG file whose bytes depend only on the figure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None})
