"""Top-1 of assignments of bits to layers, chosen for an average, uniform and random, on CIFAR-10.

    python -m benchmarks.bitwidth_cifar10 --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        ResNet-20 rounded to nearest at 3 and 4 bits on average; finished runs in RUNS are skipped;
        prints a table
"""

from __future__ import annotations

from common.start import run_main

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cifar_runs import SMALL_GRID, run_main_script, runs_parser, table_head, table_line
from common.console import EXIT_OK

OPTIONS = ("2", "3", "4", "6", "8")
AVERAGES = ("3", "4")
ACTIVATION_BITS = ("8", "4")
SAMPLES = "5000"
HEADER = (
    "A",
    "average",
    "chosen",
    "uniform (bits)",
    "20 random: mean",
    "least to most",
    "chosen - uniform",
    "chosen - random",
)


def sweep(options: Any, act: str) -> list[dict[str, Any]]:
    """The results of a run, one for each average."""
    root = options.output_dir / f"a{act}"
    done = list(root.glob("rtn/bitwidth_sweep_*/bitwidth_summary.json"))
    if not done:
        flags = ["--quant_method", "rtn", "--n_bits_w", "4", "--n_bits_a", act, *SMALL_GRID]
        flags += ["--output_dir", str(root), "--bitwidth_sweep", "--bw_options", *OPTIONS]
        run_main_script(
            options, [*flags, "--bw_samples", SAMPLES, "--bw_target_average", *AVERAGES]
        )
        done = list(root.glob("rtn/bitwidth_sweep_*/bitwidth_summary.json"))
    return json.loads(Path(done[0]).read_text(encoding="utf-8"))["targets"]


def row(act: str, found: dict[str, Any]) -> list[str]:
    random = [100 * value for value in found["random_top1"]]
    chosen, uniform = 100 * found["top1"], 100 * found["uniform_top1"]
    mean = sum(random) / len(random)
    return [
        act,
        f"{found['assignment_average']:.2f}",
        f"{chosen:.2f}",
        f"{uniform:.2f} ({found['uniform_bits']})",
        f"{mean:.2f}",
        f"{min(random):.2f} to {max(random):.2f}",
        f"{chosen - uniform:+.2f}",
        f"{chosen - mean:+.2f}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.bitwidth_cifar10", __doc__).parse_args(argv)
    sys.stdout.write(table_head(HEADER))
    for act in ACTIVATION_BITS:
        for found in sweep(options, act):
            sys.stdout.write(table_line(row(act, found)))
        sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
