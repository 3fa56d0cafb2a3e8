"""Size of ONNX files of ResNet-20 on CIFAR-10, and their agreement with the simulation.

    python -m benchmarks.export_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        runs of main_imagenet.py with an export each; finished runs in RUNS are skipped; prints a
        table
"""

from __future__ import annotations

from common.start import run_main

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.cifar_runs import Case, run_all, runs_parser, table_head, table_line
from common.console import EXIT_FAILED, EXIT_OK

IMAGES = 2000
SEED = 1005
RTN, SHORT = "rtn", ("--iters_w", "300", "--lr_round", "0.01")
SETTINGS: tuple[tuple[str, tuple[int, int], tuple[str, ...]], ...] = (
    (RTN, (8, 8), ()),
    (RTN, (4, 8), ()),
    (RTN, (4, 4), ()),
    (RTN, (3, 3), ()),
    ("adaround", (2, 2), (*SHORT, "--int2")),
)
HEADER = (
    "method",
    "W/A",
    "correction",
    "quantized Top-1",
    "in the file",
    "agreement: least, default",
    "mean difference",
    "bytes",
    "in theory",
    "float32",
)
EXPORT = ("--export_onnx", "--export_images", str(IMAGES))


def row(case: Case) -> list[str]:
    """The row of a finished run, from its export report."""
    report: dict[str, Any] = json.loads((case.folder / "export_report.json").read_text("utf-8"))
    record = json.loads((case.folder / "run.json").read_text(encoding="utf-8"))
    figures = record["figures"]
    default = report["levels"]["enable_all"]
    kind = "corrected" if report["correction"] else "quantized"
    return [
        case.method,
        "{}/{}".format(*case.bits),
        figures["corrected"]["logits"] if report["correction"] else "-",
        f"{figures['quantized']['top1_pct']:.2f}",
        f"{figures[kind]['top1_pct']:.2f}",
        f"{100 * report['agreement']:.2f}, {100 * default['agreement']:.2f}",
        f"{default['mean_difference']:.4f}",
        *(f"{report['bytes'][what]:,}" for what in ("file", "theoretical", "float32")),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.export_cifar10", __doc__).parse_args(argv)
    cases = []
    for method, bits, flags in SETTINGS:
        case = Case(method, bits, SEED, options.output_dir / "plain", (*flags, *EXPORT))
        with_correction = (*case.flags, "--with_correction")
        cases += [case, replace(case, root=options.output_dir / "corrected", flags=with_correction)]
    if not run_all(cases, options):
        return EXIT_FAILED
    sys.stdout.write(table_head(HEADER))
    for case in cases:
        sys.stdout.write(table_line(row(case)))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
