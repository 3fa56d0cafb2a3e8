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
from experts.risk_coverage import RISKS, SWEEPS, Area, Curve

SUMMARY, RECORD, CURVES = "selective_summary.csv", "selective_summary.json", "selective_curves.csv"
RISK_PLOT, SHARE_PLOT = "risk_coverage.png", "accepted_by_group.png"
FILES = (SUMMARY, RECORD, CURVES, RISK_PLOT, SHARE_PLOT)
FORMAT_VERSION = 1
SHOWN = {  # panels of the plot
    "overall": "all samples",
    "balanced": "mean over groups",
    "worst": "worst group",
}
SHOWN_SWEEP = "coverage"


@dataclass(frozen=True)
class Measured:
    """A rule on a mixture, measured on ``test``.

    Attributes:
        curves, areas: by sweep of the thresholds, "coverage" and "cost".
        at_target: at the thresholds that accept the requested share of ``tunev`` and ``val``.
    """

    rule: str
    mixture: str
    curves: dict[str, Curve]
    areas: dict[str, list[Area]]
    at_target: Curve

    @property
    def title(self) -> str:
        return f"{self.rule}, {self.mixture}"

    def area(self, risk: str) -> Area:
        """The area over all coverages, by the sweep of coverages."""
        return next(
            found for found in self.areas[SHOWN_SWEEP] if (found.risk, found.low) == (risk, 0)
        )


def require_own_results(folder: Path, force: bool, names: Sequence[str] = FILES) -> None:
    """Check, without writing, that results can be written over no file of the user.

    Raises:
        InputError: one would be replaced, or the folder cannot be written.
    """
    require_own_folder(folder, force)
    require_writable(folder)
    for name in names:
        require_own_file(folder / name, force)


def print_report(
    console: Console, measured: Sequence[Measured], groups: Groups, coverage: float
) -> None:
    """One line per rule: areas, and what is accepted at the threshold for ``coverage``."""
    width = max(len(each.title) for each in measured)
    names = " / ".join(groups.names)
    console.line(
        f"{'on test, in %':<{width}}  {'AURC, over all coverages':<28}  "
        f"at the thresholds for {100 * coverage:g} %"
    )
    heads = "  ".join(f"{risk:>8}" for risk in RISKS)
    console.line(f"{'rule, mixture':<{width}}  {heads}  coverage  {heads}  accepted of {names}")
    for each in measured:
        target = each.at_target
        found = [each.area(risk).value for risk in RISKS]
        values = [*found, target.coverage[0], *(target.risks[risk][0] for risk in RISKS)]
        cells = "  ".join(f"{100 * value:8.2f}" for value in values)
        shares = " / ".join(f"{100 * share:.1f}" for share in target.group_coverages[0])
        console.line(f"{each.title:<{width}}  {cells}  {shares}")


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
        _draw(folder, measured, groups, about["coverage"])
    except OSError as error:
        raise RunError(f"results must be writable, got {error}") from error


def _row(each: Measured, groups: Groups) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": each.rule, "mixture": each.mixture}
    for sweep, areas in each.areas.items():
        for found in areas:
            by = "" if sweep == SHOWN_SWEEP else f"_by_{sweep}"
            key = f"aurc_{found.risk}_from_{found.low:g}{by}"
            low, high = found.interval
            row |= {key: found.value, f"{key}_low": low, f"{key}_high": high}
    return row | _point(each.at_target, 0, groups)


def _curve(each: Measured, groups: Groups) -> list[dict[str, Any]]:
    head = {"rule": each.rule, "mixture": each.mixture}
    return [
        {**head, "sweep": sweep, "value": round(float(value), 10), **_point(curve, index, groups)}
        for sweep, curve in each.curves.items()
        for index, value in enumerate(SWEEPS[sweep])
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


def _draw(folder: Path, measured: Sequence[Measured], groups: Groups, coverage: float) -> None:
    from plots.axes import save_figure
    from plots.experts import bar_figure
    from plots.selective import Line, risk_figure

    panels = {
        title: [
            Line(
                each.title,
                each.rule,
                each.mixture,
                (each.curves[SHOWN_SWEEP].coverage, each.curves[SHOWN_SWEEP].risks[name]),
                (each.at_target.coverage[0], each.at_target.risks[name][0]),
            )
            for each in measured
        ]
        for name, title in SHOWN.items()
    }
    shares = {each.title: 100 * each.at_target.group_coverages[0] for each in measured}
    title = f"test, at the thresholds for {100 * coverage:g} %"
    figures = {
        RISK_PLOT: risk_figure(panels),
        SHARE_PLOT: bar_figure({title: shares}, groups.names, "accepted (%)"),
    }
    for name, figure in figures.items():
        with listed(folder / name):
            save_figure(folder / name, figure)
