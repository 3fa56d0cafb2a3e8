"""What the measurement of selective rules prints and writes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import atomic_file, require_writable, write_json
from common.marks import listed, require_own_file, require_own_folder
from experts.console import Console
from experts.groups import Groups
from experts.risk_coverage import COSTS, RISKS, Area, Curve

SUMMARY, RECORD, CURVES = "selective_summary.csv", "selective_summary.json", "selective_curves.csv"
RISK_PLOT, SHARE_PLOT = "risk_coverage.png", "accepted_by_group.png"
FILES = (SUMMARY, RECORD, CURVES, RISK_PLOT, SHARE_PLOT)
FORMAT_VERSION = 1
SHOWN = ("overall", "worst")  # panels of the plot
LOW = 0.0  # lowest coverage of the printed areas


@dataclass(frozen=True)
class Measured:
    """A rule on a mixture, measured on ``test``.

    Attributes:
        curve: at every rejection cost.
        at_target: at the thresholds that accept the requested share of ``tunev`` and ``val``.
    """

    rule: str
    mixture: str
    curve: Curve
    areas: list[Area]
    at_target: Curve

    @property
    def title(self) -> str:
        return f"{self.rule}, {self.mixture}"

    def area(self, risk: str, low: float) -> Area:
        return next(found for found in self.areas if (found.risk, found.low) == (risk, low))


def require_own_results(folder: Path, force: bool, names: Sequence[str] = FILES) -> None:
    """Check, without writing, that results can be written over no file of the user.

    Raises:
        InputError: one would be replaced, or the folder cannot be written.
    """
    require_own_folder(folder, force)
    require_writable(folder)
    for name in names:
        require_own_file(folder / name, force)


def print_report(console: Console, measured: Sequence[Measured], groups: Groups) -> None:
    """One line per rule: areas with intervals, and what is accepted at the target."""
    width = max(len(each.title) for each in measured)
    heads = [f"AURC {risk}" for risk in RISKS]
    console.line(
        f"{'on test':<{width}}  "
        + "  ".join(f"{head:<24}" for head in heads)
        + f"coverage   risk  accepted {' / '.join(groups.names)}"
    )
    for each in measured:
        cells = [_interval(each.area(risk, LOW)) for risk in RISKS]
        target = each.at_target
        shares = " / ".join(f"{100 * share:.1f}" for share in target.group_coverages[0])
        console.line(
            f"{each.title:<{width}}  "
            + "  ".join(f"{cell:<24}" for cell in cells)
            + f"{100 * target.coverage[0]:8.1f}  {100 * target.risks['overall'][0]:5.2f}  {shares}"
        )


def _interval(found: Area) -> str:
    low, high = found.interval
    return f"{found.value:.4f} [{low:.4f}, {high:.4f}]"


def write_results(
    folder: Path, measured: Sequence[Measured], groups: Groups, about: Mapping[str, Any]
) -> None:
    """Write tables and figures; their bytes depend only on the results.

    Raises:
        RunError: one cannot be written.
    """
    try:
        _write_table(folder / SUMMARY, [_row(each, groups) for each in measured])
        _write_table(folder / CURVES, [row for each in measured for row in _curve(each, groups)])
        with listed(folder / RECORD):
            rows = [_row(each, groups) for each in measured]
            write_json(folder / RECORD, {"format_version": FORMAT_VERSION, **about, "rules": rows})
        _draw(folder, measured, groups)
    except OSError as error:
        raise RunError(f"results must be writable, got {error}") from error


def _row(each: Measured, groups: Groups) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": each.rule, "mixture": each.mixture}
    for found in each.areas:
        key = f"aurc_{found.risk}_from_{found.low:g}"
        row |= {key: found.value, f"{key}_low": found.interval[0], f"{key}_high": found.interval[1]}
    return row | _point(each.at_target, 0, groups)


def _curve(each: Measured, groups: Groups) -> list[dict[str, Any]]:
    head = {"rule": each.rule, "mixture": each.mixture}
    return [
        {**head, "cost": round(float(cost), 10), **_point(each.curve, index, groups)}
        for index, cost in enumerate(COSTS)
    ]


def _point(curve: Curve, index: int, groups: Groups) -> dict[str, Any]:
    row = {"coverage": float(curve.coverage[index])}
    row |= {f"risk_{name}": float(values[index]) for name, values in curve.risks.items()}
    for place, name in enumerate(groups.names):
        word = name.replace(" ", "_")
        row[f"risk_{word}"] = float(curve.group_risks[index, place])
        row[f"coverage_{word}"] = float(curve.group_coverages[index, place])
    return {key: None if value != value else value for key, value in row.items()}


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with listed(path), atomic_file(path) as part, part.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _draw(folder: Path, measured: Sequence[Measured], groups: Groups) -> None:
    from plots.axes import save_figure
    from plots.experts import bar_figure
    from plots.selective import risk_figure

    panels = {
        f"{name} risk": {
            each.title: (each.curve.coverage, each.curve.risks[name]) for each in measured
        }
        for name in SHOWN
    }
    shares = {each.title: 100 * each.at_target.group_coverages[0] for each in measured}
    figures = {
        RISK_PLOT: risk_figure(panels),
        SHARE_PLOT: bar_figure({"test": shares}, groups.names, "accepted (%)"),
    }
    for name, figure in figures.items():
        with listed(folder / name):
            save_figure(folder / name, figure)
