"""Top-1 on the shared CIFAR-10 JPEG images before and after correction, next to a reference.

    python -m benchmarks.accuracy_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt
        one run of main_imagenet.py per row, about 5 minutes on two cores; prints a table

CIFAR is the unpacked folder cifar10_jpeg. The reference is the published code for round to nearest,
and the prototype of the specification for AdaRound. See benchmarks.reconstruction_cifar10 for three
seeds and more bits of the reconstruction methods.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cifar_runs import (
    read_record,
    run_main_script,
    table_head,
    table_line,
    table_parser,
)
from common.console import EXIT_FAILED, EXIT_OK

HEADER = (
    "method",
    "W/A",
    "seed",
    "quantized",
    "reference",
    "agreement",
    "corrected",
    "KL before, after",
    "s",
)


@dataclass(frozen=True)
class Setting:
    """One row of the table; ``reference`` is the text of its cell."""

    method: str
    bits: tuple[int, int]
    seed: int
    reference: str

    def flags(self) -> list[str]:
        flags = ["--quant_method", self.method, "--seed", str(self.seed)]
        flags += ["--n_bits_w", str(self.bits[0]), "--n_bits_a", str(self.bits[1])]
        if self.method == "adaround":
            flags += ["--iters_w", "1000", "--lr_round", "3e-3"]
        return flags


SETTINGS = (
    Setting("rtn", (8, 8), 1005, "-"),
    Setting("rtn", (4, 4), 1005, "84.69"),
    Setting("rtn", (3, 3), 1005, "70.07"),
    Setting("rtn", (2, 4), 1005, "26.30"),
    Setting("adaround", (8, 8), 1005, "-"),
    Setting("adaround", (4, 4), 1005, "87.28"),
)


def run(setting: Setting, options: argparse.Namespace, output: Path) -> str:
    """Run the main script; returns the row of the table."""
    run_main_script(options, [*setting.flags(), "--output_dir", str(output)])
    record = read_record(output / setting.method)
    quantized, corrected = record["figures"]["quantized"], record["figures"]["corrected"]
    cells = [
        setting.method,
        f"{setting.bits[0]}/{setting.bits[1]}",
        str(setting.seed),
        f"{quantized['top1_pct']:.2f}",
        setting.reference,
        f"{quantized['agreement_pct']:.2f}",
        f"{corrected['top1_pct']:.2f}",
        f"{quantized['kl_to_fp']:.4f}, {corrected['kl_to_fp']:.4f}",
        f"{record['seconds']['quantize']:.0f}",
    ]
    return table_line(cells)


def main(argv: Sequence[str] | None = None) -> int:
    options = table_parser("benchmarks.accuracy_cifar10", __doc__).parse_args(argv)
    sys.stdout.write(table_head(HEADER))
    with tempfile.TemporaryDirectory() as folder:
        for setting in SETTINGS:
            try:
                sys.stdout.write(run(setting, options, Path(folder)))
            except subprocess.CalledProcessError as error:
                sys.stderr.write(f"{setting} ended in status {error.returncode}\n")
                return EXIT_FAILED
            sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
