"""Gain of the cluster-affine correction for ResNet-20 on the CIFAR images.

    python -m benchmarks.correction_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        rtn W4A4, rtn W3A3 and qdrop W2A4, with the correction fitted on training images, on
        augmented ones, and on 30 percent of the evaluation images, which are then in no result and
        whose labels are not used: about 12 minutes on two cores; finished runs are skipped

Prints Top-1 of the quantized and the selected logits with 95 percent bootstrap intervals, and
agreement and KL divergence relative to the full-precision model.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from benchmarks.cifar_runs import Case, run_all, runs_parser, table_head, table_line
from common.console import EXIT_FAILED, EXIT_OK
from logits_io.naming import CORRECTED, QUANTIZED

SEED = 1005
METHODS = (("rtn", (4, 4)), ("rtn", (3, 3)), ("qdrop", (2, 4)))
SOURCES = {"train": "train", "train_aug": "train_aug", "val:0.3": "val"}
STEPS = ("--iters_w", "1000", "--lr_round", "3e-3")
HEADER = (
    "method",
    "W/A",
    "source",
    "quantized",
    "one line",
    "selected",
    "setting",
    "oracle",
    "ridge map",
    "agreement: quantized, selected",
    "KL: quantized, selected",
    "warning",
)


def cases(options: argparse.Namespace) -> list[tuple[str, Case]]:
    """Every run, with the source of its fitting images."""
    found = []
    for source, folder in SOURCES.items():
        for method, bits in METHODS:
            flags = ["--correction_source", source]
            if method != "rtn":
                flags += STEPS
            case = Case(method, bits, SEED, options.output_dir / folder, tuple(flags), grid=())
            found.append((source, case))
    return found


def line(source: str, case: Case) -> str:
    """The row of a finished run."""
    summary = case.summary
    table = pd.read_csv(summary / f"{summary.name}.csv")
    kinds = table.set_index("logits").top1_pct
    chosen = table[table.selected].iloc[0]
    quantized = table[table.logits == "identity"].iloc[0]
    compared = pd.read_csv(summary / f"{summary.name}_comparison.csv").set_index("logits")
    shown = {
        kind: f"{row.top1_pct:.2f} [{row.top1_pct_low:.2f}, {row.top1_pct_high:.2f}]"
        for kind, row in ((k, compared.loc[k]) for k in (QUANTIZED, CORRECTED))
    }
    setting = (
        f"alpha {chosen.alpha:g}, K {chosen.num_clusters:g}, D {chosen.pca_dim:g}"
        if chosen.logits == "cluster_affine"
        else str(chosen.logits)
    )
    log = (case.folder / "run.log").read_text(encoding="utf-8")
    cells = (
        case.method,
        f"{case.bits[0]}/{case.bits[1]}",
        source,
        shown[QUANTIZED],
        f"{kinds['global_line']:.2f}",
        shown[CORRECTED],
        setting,
        f"{table[table.oracle].top1_pct.iloc[0]:.2f}",
        f"{kinds['ridge_map']:.2f}",
        f"{quantized.agreement_pct:.2f}, {chosen.agreement_pct:.2f}",
        f"{quantized.kl_to_fp:.4f}, {chosen.kl_to_fp:.4f}",
        "yes" if "may not carry over" in log else "-",
    )
    return table_line(cells)


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.correction_cifar10", __doc__).parse_args(argv)
    wanted = cases(options)
    if not run_all([case for _, case in wanted], options):
        return EXIT_FAILED
    sys.stdout.write(table_head(HEADER))
    for source, case in wanted:
        sys.stdout.write(line(source, case))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
