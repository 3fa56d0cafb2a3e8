"""Top-1 of the reconstruction methods on the shared CIFAR-10 JPEG images over three seeds.

    python -m benchmarks.reconstruction_cifar10 \\
            --data_path CIFAR --checkpoint cifar10_resnet20.pt --output_dir RUNS
        33 runs of main_imagenet.py, two at a time with one thread each: about 80 minutes on two
        cores; finished runs in RUNS are skipped; prints a table

CIFAR is the unpacked folder cifar10_jpeg. The reference accuracies are those of the published code
and of the prototype in the specification. Each unit gets 1,000 iterations instead of 20,000.
"""

from __future__ import annotations

from common.start import run_main

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar_runs import (
    Case,
    read_record,
    run_all,
    runs_parser,
    table_head,
    table_line,
)
from common.console import EXIT_FAILED, EXIT_OK

FLAGS = ("--iters_w", "1000", "--lr_round", "3e-3")
SEEDS = (1005, 1006, 1007)
HEADER = (
    "method",
    "W/A",
    "Top-1, seeds 1005 1006 1007",
    "mean",
    "sd",
    "reference",
    "mean - reference",
    "agreement",
    "s per run",
)


@dataclass(frozen=True)
class Setting:
    """A row of the table; ``reference`` holds the Top-1 values (percent) to compare with."""

    method: str
    bits: tuple[int, int]
    reference: tuple[float, ...] = ()

    def case(self, root: Path, seed: int) -> Case:
        """The run with a seed, in a folder per seed, in which runs share a cache."""
        return Case(self.method, self.bits, seed, root / f"seed{seed}", FLAGS)


SETTINGS = (
    Setting("adaround", (4, 4), (87.28,)),
    Setting("adaround", (2, 4), (85.32,)),
    Setting("adaround", (2, 2), (74.28, 74.88)),
    Setting("qdrop", (4, 4), (87.46, 87.52, 87.76, 87.57)),
    Setting("qdrop", (3, 3), (85.48,)),
    Setting("qdrop", (2, 4), (85.05, 84.65)),
    Setting("qdrop", (4, 2), (78.55,)),
    Setting("qdrop", (2, 2), (75.57, 76.16, 75.85, 75.25)),
    Setting("pd_quant", (4, 4), (87.50,)),
    Setting("pd_quant", (2, 4)),
    Setting("pd_quant", (2, 2), (75.14,)),
)


def row(setting: Setting, root: Path) -> str:
    """The row of the table, from the records of the runs."""
    records = [read_record(setting.case(root, seed).folder) for seed in SEEDS]
    figures = [record["figures"]["quantized"] for record in records]
    top1 = [figure["top1_pct"] for figure in figures]
    mean = statistics.mean(top1)
    known = setting.reference
    cells = [
        setting.method,
        f"{setting.bits[0]}/{setting.bits[1]}",
        " ".join(f"{value:.2f}" for value in top1),
        f"{mean:.2f}",
        f"{statistics.stdev(top1):.2f}",
        " ".join(f"{value:.2f}" for value in known) or "-",
        f"{mean - statistics.mean(known):+.2f}" if known else "-",
        f"{statistics.mean(figure['agreement_pct'] for figure in figures):.2f}",
        f"{statistics.median(record['seconds']['quantize'] for record in records):.0f}",
    ]
    return table_line(cells)


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.reconstruction_cifar10", __doc__).parse_args(argv)
    cases = [setting.case(options.output_dir, seed) for setting in SETTINGS for seed in SEEDS]
    if not run_all(cases, options):
        return EXIT_FAILED
    sys.stdout.write(table_head(HEADER))
    for setting in SETTINGS:
        sys.stdout.write(row(setting, options.output_dir))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
