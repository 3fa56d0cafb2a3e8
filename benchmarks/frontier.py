"""Top-1 of ResNet-20 against the CPU seconds of its quantization, for all methods and budgets.

    python -m benchmarks.frontier \\
            --data_path CIFAR --checkpoint cifar10_resnet20.pt --output_dir RUNS
        every method and budget at five pairs of bits, one seed; finished runs in RUNS are skipped;
        writes RUNS/frontier.csv and frontier.svg, prints the table; about four hours
    python -m benchmarks.frontier ... --bits 2,2 3,3
        only these pairs of weight,activation bits
    python -m benchmarks.frontier ... --methods distill --budgets default --seeds 1005 1006 1007
        the longest budget of a method with three seeds: 15 runs of five minutes, two at a time

CIFAR is the unpacked folder cifar10_jpeg. A budget is the number of steps per unit of a
reconstruction method, or of steps of the distillation; the other methods have one budget, and `rtn`
also "moments", which is --output_moments.
"""

from __future__ import annotations

from common.start import run_main

import csv
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar_runs import (
    Case,
    read_record,
    run_all,
    runs_parser,
    table_head,
    table_line,
)
from common.console import EXIT_FAILED, EXIT_OK
from plots.frontier import draw_frontier
from quant.reconstruction.settings import MIN_TRAVEL
from sweeps.spec import parse_bits

BITS = ((4, 4), (3, 3), (2, 4), (4, 2), (2, 2))
HEADER = ("method", "budget", "W/A", "seeds", "Top-1", "sd", "agreement", "CPU s")


@dataclass(frozen=True)
class Setting:
    """A method with a budget.

    Attributes:
        budget: steps as the table shows them; empty if the method takes none.
        flags: flags of the main script that set the budget.
        is_default: the longest budget of its method.
    """

    method: str
    budget: str = ""
    flags: tuple[str, ...] = ()
    is_default: bool = True

    def case(self, root: Path, bits: tuple[int, int], seed: int) -> Case:
        """Its run, in a folder of its own, as the names of runs do not hold the budget."""
        folder = root / f"{self.method}{self.budget}_seed{seed}"
        return Case(self.method, bits, seed, folder, self.flags, ("--no-correction",))


def reconstruction(method: str, steps: Sequence[int]) -> list[Setting]:
    """A reconstruction method with several numbers of steps, each at the least rate for them."""
    return [
        Setting(
            method,
            str(n),
            ("--lr_round", f"{MIN_TRAVEL / n:g}", "--iters_w", str(n)),
            n == max(steps),
        )
        for n in steps
    ]


def distillation(steps: Sequence[int]) -> list[Setting]:
    """The method ``distill`` with several numbers of steps."""
    flag = "--distill_steps"
    return [Setting("distill", str(n), (flag, str(n)), n == max(steps)) for n in steps]


SETTINGS = [
    *(Setting(method) for method in ("rtn", "aciq_mix", "gpfq", "lapq")),
    Setting("rtn", "moments", ("--output_moments",), is_default=False),
    *reconstruction("adaround", (250, 1000)),
    *reconstruction("qdrop", (100, 250, 1000)),
    *reconstruction("pd_quant", (1000,)),
    *distillation((200, 400, 800, 1600)),
]


def row(setting: Setting, root: Path, bits: tuple[int, int], seeds: Sequence[int]) -> list[str]:
    """The row of the table, from the records of the runs."""
    records = [read_record(setting.case(root, bits, seed).folder) for seed in seeds]
    figures: list[dict[str, Any]] = [record["figures"]["quantized"] for record in records]
    top1 = [figure["top1_pct"] for figure in figures]
    return [
        setting.method,
        setting.budget or "-",
        f"{bits[0]}/{bits[1]}",
        str(len(seeds)),
        f"{statistics.mean(top1):.2f}",
        f"{statistics.stdev(top1):.2f}" if len(top1) > 1 else "-",
        f"{statistics.mean(figure['agreement_pct'] for figure in figures):.2f}",
        f"{statistics.median(record['cpu_seconds']['quantize'] for record in records):.0f}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = runs_parser("benchmarks.frontier", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1005], help="seeds (default 1005)")
    parser.add_argument(
        "--budgets",
        choices=("all", "default"),
        default="all",
        help="all budgets, or the longest of each method (default all)",
    )
    names = sorted({setting.method for setting in SETTINGS})
    parser.add_argument(
        "--methods", nargs="+", choices=names, default=names, help="methods (default all)"
    )
    parser.add_argument(
        "--bits",
        metavar="W,A",
        nargs="+",
        default=[f"{weights},{activations}" for weights, activations in BITS],
        help="pairs of weight,activation bits (default: the five pairs of the table)",
    )
    options = parser.parse_args(argv)
    settings = [
        setting
        for setting in SETTINGS
        if (options.budgets == "all" or setting.is_default) and setting.method in options.methods
    ]
    root, seeds = options.output_dir, options.seeds
    pairs = [parse_bits(text) for text in options.bits]
    cases = [s.case(root, bits, seed) for seed in seeds for bits in pairs for s in settings]
    if not run_all(cases, options):
        return EXIT_FAILED
    rows = [row(setting, root, bits, seeds) for bits in pairs for setting in settings]
    with (root / "frontier.csv").open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([HEADER, *rows])
    draw_frontier(rows, root / "frontier.svg")
    sys.stdout.write(table_head(HEADER) + "".join(table_line(cells) for cells in rows))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
