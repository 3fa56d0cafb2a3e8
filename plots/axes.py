"""Creating and saving figures without a display."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.files import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that needs no display."""
    # matplotlib is slow to import.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def float_line(axes: Axes, accuracy: float, error: float | None, unit: str = " %") -> None:
    """Draw the float network's accuracy, and a band of one standard error on either side.

    Args:
        accuracy, error: in the unit of the axis; an error of None is not known.
        unit: what follows the numbers in the legend.
    """
    digits = 2 if unit else 4
    spread = "" if error is None else f" ± {error:.{digits}f}"
    label = f"full precision {accuracy:.{digits}f}{spread}{unit}"
    axes.axhline(accuracy, color="grey", linestyle="--", label=label)
    if error is not None:
        axes.axhspan(accuracy - error, accuracy + error, color="grey", alpha=0.15, linewidth=0)


def save_figure(path: Path, figure: Figure, title: str | None = None) -> None:
    """Write a PNG file whose bytes depend only on the figure.

    Args:
        title: a text that ``title_of`` finds in the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as part:
        figure.savefig(part, format="png", dpi=150, metadata={"Software": None, "Title": title})


def title_of(path: Path) -> str | None:
    """The title in a PNG file of ``save_figure``; None if it has none or is no PNG file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.info.get("Title")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
