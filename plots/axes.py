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
