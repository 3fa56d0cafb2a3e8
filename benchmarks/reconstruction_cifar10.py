"""Top-1 of the reconstruction methods on the shared CIFAR-10 JPEG images over three seeds.

    python -m benchmarks.reconstruction_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        33 runs of main_imagenet.py, two at a time with one thread each: about 80 minutes on two
        cores; finished runs found in RUNS are not repeated; the table goes to stdout

CIFAR is the unpacked folder cifar10_jpeg; the reference figures are those of the published code
and of the prototype in the specification. 1,000 iterations per unit instead of 20,000.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.cifar_runs import (
    read_record,
    run_main_script,
    table_head,
    table_line,
    table_parser,
)
from common import EXIT_FAILED, EXIT_OK

SEEDS = (1005, 1006, 1007)
HEADER = (
    *("method", "W/A", "Top-1, seeds 1005 1006 1007", "mean", "sd", "reference"),
    *("mean - reference", "agreement", "s per run"),
)


@dataclass(frozen=True)
class Setting:
    """A row of the table; ``reference`` holds the Top-1 figures to compare with."""

    method: str
    bits: tuple[int, int]
    reference: tuple[float, ...] = ()

    def folder(self, root: Path, seed: int) -> Path:
        weight_bits, activation_bits = self.bits
        tag = f"cifar_resnet20_w{weight_bits}bit_a{activation_bits}bit_seed{seed}"
        return root / f"seed{seed}" / self.method / f"run_{tag}"


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


def run(case: tuple[Setting, int], options: argparse.Namespace) -> None:
    """One run of the main script in one thread, unless its record is there."""
    setting, seed = case
    if (setting.folder(options.output_dir, seed) / "run.json").exists():
        return
    flags = ["--resume", "--output_dir", str(options.output_dir / f"seed{seed}")]
    flags += ["--quant_method", setting.method, "--seed", str(seed)]
    flags += ["--n_bits_w", str(setting.bits[0]), "--n_bits_a", str(setting.bits[1])]
    flags += ["--iters_w", "1000", "--lr_round", "3e-3"]
    flags += ["--correction_samples", "1000", "--alpha", "0.4", "--num_clusters", "16"]
    run_main_script(options, flags, {**os.environ, "OMP_NUM_THREADS": "1"})


def row(setting: Setting, root: Path) -> str:
    """The table's row, from the records of the runs."""
    records = [read_record(setting.folder(root, seed)) for seed in SEEDS]
    figures = [record["figures"]["quantized"] for record in records]
    top1 = [figure["top1_pct"] for figure in figures]
    mean = statistics.mean(top1)
    known = setting.reference
    cells = [
        *(setting.method, f"{setting.bits[0]}/{setting.bits[1]}"),
        " ".join(f"{value:.2f}" for value in top1),
        *(f"{mean:.2f}", f"{statistics.stdev(top1):.2f}"),
        " ".join(f"{value:.2f}" for value in known) or "-",
        f"{mean - statistics.mean(known):+.2f}" if known else "-",
        f"{statistics.mean(figure['agreement_pct'] for figure in figures):.2f}",
        f"{statistics.median(record['seconds']['quantize'] for record in records):.0f}",
    ]
    return table_line(cells)


def build_parser() -> argparse.ArgumentParser:
    parser = table_parser("benchmarks.reconstruction_cifar10", __doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    cases = [(setting, seed) for setting in SETTINGS for seed in SEEDS]
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(partial(run, options=options), cases))
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"a run ended in status {error.returncode}\n")
        return EXIT_FAILED
    sys.stdout.write(table_head(HEADER))
    for setting in SETTINGS:
        sys.stdout.write(row(setting, options.output_dir))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
