"""An export's report as lines for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from export.check_images import NOISE
from export.runtimes import Kernels
from export.verification import REORDERED, SIMULATION
from logits_io.naming import EXPORT_REPORT_FILE


def report_table(folder: Path) -> str:
    """The report of a folder as lines for people."""
    report = json.loads((folder / EXPORT_REPORT_FILE).read_text(encoding="utf-8"))
    kernels, top1, time = Kernels(**report["kernels"]), report["top1_pct"], report["milliseconds"]
    lines = [
        ("file", str(folder / report["file"])),
        ("target", report["target"]),
        ("agreement", f"{100 * report['agreement']:.2f} % of {report['images']} images"),
        ("Top-1", f"{top1['file']:.2f} % (simulation {top1[SIMULATION]:.2f} %)"),
        ("logits", _difference_text(report)),
        ("weights", f"{report['weight_bits']} bits at most"),
        ("size", f"{report['bytes']['file']:,} bytes (float32 {report['bytes']['float32']:,})"),
        ("integers", kernels.text),
    ]
    if report["checked_on"] == NOISE:
        lines = [line for line in lines if line[0] != "Top-1"]
    if report["hint"]:
        lines.append(("note", report["hint"]))
    if time is not None:
        text = f"{time['file']:.2f} ms, float {time['float']:.2f} ms: speed-up {time['ratio']:.2f}"
        machine = " ".join(report["machine"])
        lines.append(("time", f"{text} (CPU time of one image, one thread; {machine})"))
    return "\n".join(f"{name + ':':<11}{text}" for name, text in lines)


def _difference_text(report: dict[str, Any]) -> str:
    """How far the logits are from the simulation's, beside the simulation with itself."""
    levels = report["levels"].values()
    mean, most = (max(level[f"{kind}_difference"] for level in levels) for kind in ("mean", "max"))
    own = report[REORDERED]["mean_difference"]
    return (
        f"differ by {mean:.2g} in the mean, {most:.2g} at most (simulation with itself {own:.2g})"
    )
