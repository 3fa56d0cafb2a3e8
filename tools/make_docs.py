"""Make the pictures and the results page of the documentation.

    python -m tools.make_docs

Writes dataflow.svg, results.svg and frontier.svg to docs/images/, and docs/results.md. The numbers
come from benchmarks/results/; nothing is measured here.
"""

from __future__ import annotations

import csv
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
DOCS = PROJECT / "docs"
TABLE = RESULTS / "methods_cifar10.csv"
FRONTIER = RESULTS / "frontier.csv"  # as python -m benchmarks.frontier writes it
WIDTH, HEIGHT, GAP = 172, 46, 34  # pixels: size of a box, gap between two columns
LINE = "#57606a"
FILLS = {"file": "#fff8e5", "network": "#e7f1ff", "step": "#f2f2f2"}
RESULTS_HEAD = """# Results

Generated from `benchmarks/results/` by `python -m tools.make_docs`; every section names the \
command that
made it. ResNet-20 and the CIFAR-10 images are those of the project's shared files; `RUNS` is \
any folder.
"""


@dataclass(frozen=True)
class Box:
    """A box of the drawing; column and row are its position in the grid."""

    text: str
    kind: str
    column: int
    row: float

    @property
    def x(self) -> float:
        return 10 + self.column * (WIDTH + GAP)

    @property
    def y(self) -> float:
        return 10 + self.row * 66

    def draw(self) -> str:
        lines = self.text.split("\n")
        first = self.y + HEIGHT / 2 + 4 - 7.5 * (len(lines) - 1)
        texts = [
            f'<text x="{self.x + WIDTH / 2:g}" y="{first + 15 * i:g}" text-anchor="middle">'
            f"{html.escape(line)}</text>"
            for i, line in enumerate(lines)
        ]
        frame = (
            f'<rect x="{self.x:g}" y="{self.y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6" '
            f'fill="{FILLS[self.kind]}" stroke="{LINE}"/>'
        )
        return "\n".join([frame, *texts])


BOXES = {
    "images": Box("images", "file", 0, 0),
    "weights": Box("weights", "file", 0, 2),
    "loaders": Box("loaders: calibration,\nfitting, evaluation sets", "step", 1, 0),
    "models": Box("models: float network", "network", 1, 2),
    "capture": Box("quant.network: capture,\nfold, cut into units", "step", 2, 2),
    "method": Box("quant.methods:\nrtn, adaround, lapq, ...", "step", 3, 1),
    "quantized": Box("quantized network", "network", 3, 2),
    "run": Box("evaluation: both networks,\none pass over the images", "step", 4, 0),
    "correction": Box("correction: fitted\nwithout labels", "step", 5, 0),
    "logits": Box("logits_io: CSV, Parquet,\nnpz, HDF5 with digests", "file", 5, 1),
    "summary": Box("tables, plots, run.json", "file", 5, 2),
}
ARROWS = (
    ("images", "loaders"),
    ("weights", "models"),
    ("loaders", "method"),
    ("models", "capture"),
    ("capture", "method"),
    ("method", "quantized"),
    ("quantized", "run"),
    ("loaders", "run"),
    ("run", "correction"),
    ("run", "logits"),
    ("correction", "logits"),
    ("logits", "summary"),
)


def dataflow() -> str:
    """The data flow of a run, as SVG."""
    parts = [_arrow(BOXES[start], BOXES[end]) for start, end in ARROWS]
    parts.append(_detour(BOXES["models"], BOXES["run"]))
    parts += [box.draw() for box in BOXES.values()]
    width = 10 + 6 * WIDTH + 5 * GAP + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 220" '
        'font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="220" fill="#ffffff"/>\n'
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>\n' + "\n".join(parts) + "\n"
        "</svg>\n"
    )


def _arrow(start: Box, end: Box) -> str:
    if start.column == end.column:
        x1 = x2 = start.x + WIDTH / 2
        y1, y2 = start.y + HEIGHT, end.y
    else:
        x1, x2 = start.x + WIDTH, end.x
        y1, y2 = start.y + HEIGHT / 2, end.y + HEIGHT / 2
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{LINE}" '
        'marker-end="url(#head)"/>'
    )


def _detour(start: Box, end: Box) -> str:
    """An arrow that runs below all boxes and up to ``end``."""
    x1, x2, low = start.x + WIDTH / 2, end.x + WIDTH / 2, HEIGHT + 2 * 66 + 30
    points = f"{x1:g},{start.y + HEIGHT:g} {x1:g},{low} {x2:g},{low} {x2:g},{end.y + HEIGHT:g}"
    return f'<polyline points="{points}" fill="none" stroke="{LINE}" marker-end="url(#head)"/>'


def read_table() -> dict[str, dict[str, tuple[float, float]]]:
    """Method -> W/A -> mean and standard deviation of the quantized Top-1 in percent.

    The standard deviation of a single run is NaN; its field is empty.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with TABLE.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            values = float(row["quantized mean"]), float(row["quantized sd"] or "nan")
            found.setdefault(row["method"], {})[row["W/A"]] = values
    return found


def markdown_table(found: dict[str, dict[str, tuple[float, float]]]) -> str:
    """The README's table of results, as Markdown."""
    settings = list(dict.fromkeys(setting for row in found.values() for setting in row))
    lines = [f"| method | {' | '.join(settings)} |", f"|{'---|' * (len(settings) + 1)}"]
    for method, row in found.items():
        cells = [_cell(*row[s]) if s in row else "-" for s in settings]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(mean: float, deviation: float) -> str:
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def read_frontier() -> list[list[str]]:
    """The rows of the frontier without their head: method, budget, W/A, seeds, Top-1, ..."""
    with FRONTIER.open(newline="", encoding="utf-8") as handle:
        return list(csv.reader(handle))[1:]


def frontier_table(rows: Sequence[Sequence[str]]) -> str:
    """Top-1 of every method and budget, as Markdown, with the CPU seconds of all pairs of bits."""
    pairs = list(dict.fromkeys(row[2] for row in rows))
    lines = [f"| method | budget | {' | '.join(pairs)} | CPU s |", f"|{'---|' * (len(pairs) + 3)}"]
    for method, budget in dict.fromkeys((row[0], row[1]) for row in rows):
        found = {row[2]: row for row in rows if (row[0], row[1]) == (method, budget)}
        seconds = sorted(int(row[7]) for row in found.values())
        cells = [found[pair][4] if pair in found else "-" for pair in pairs]
        span = dict.fromkeys(str(second) for second in (seconds[0], seconds[-1]))
        lines.append(f"| `{method}` | {budget} | {' | '.join(cells)} | {' to '.join(span)} |")
    return "\n".join(lines)


def draw_results(path: Path) -> None:
    """Draw the README's table as bars with standard deviations, to an SVG file."""
    import matplotlib

    from common.files import atomic_file
    from plots.axes import new_figure

    found = read_table()
    settings = list(dict.fromkeys(setting for row in found.values() for setting in row))
    figure = new_figure(8.0, 3.2)
    axes = figure.subplots()
    width = 0.8 / len(found)
    for index, (method, row) in enumerate(found.items()):
        places = [i - 0.4 + (index + 0.5) * width for i, s in enumerate(settings) if s in row]
        means, deviations = zip(*(row[s] for s in settings if s in row), strict=True)
        axes.bar(places, means, width, yerr=deviations, label=method, capsize=2)
    axes.axhline(88.21, color="grey", linestyle="--", linewidth=1, label="float 88.21 %")
    axes.set(xticks=range(len(settings)), ylabel="Top-1 (%)", ylim=(0, 95))
    axes.set_xticklabels([f"W{s.replace('/', 'A')}" for s in settings])
    axes.set_title("ResNet-20 on CIFAR-10, three seeds")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "results"}), atomic_file(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})


def results_page(files: Sequence[Path]) -> str:
    """The results page: one section per file, with headings one level lower."""
    sections = []
    for file in files:
        text = file.read_text(encoding="utf-8").strip()
        sections.append(re.sub(r"^(#+) ", r"#\1 ", text, flags=re.MULTILINE))
    titles = [section.split("\n", 1)[0].removeprefix("## ") for section in sections]
    index = "\n".join(f"* [{title}](#{_anchor(title)})" for title in titles)
    return "\n\n".join([RESULTS_HEAD.strip(), index, *sections]) + "\n"


def _anchor(title: str) -> str:
    """The anchor that GitHub makes from a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> None:
    """Write the pictures and the results page."""
    from plots.frontier import draw_frontier

    images = DOCS / "images"
    images.mkdir(parents=True, exist_ok=True)
    (images / "dataflow.svg").write_text(dataflow(), encoding="utf-8")
    page = results_page(sorted(RESULTS.glob("*.md")))
    (DOCS / "results.md").write_text(page, encoding="utf-8")
    draw_results(images / "results.svg")
    draw_frontier(read_frontier(), images / "frontier.svg")


if __name__ == "__main__":
    main()
