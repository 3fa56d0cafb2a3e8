"""The flags of ``run_script.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from common.flags import FlagParser, arch_name, positive_float, positive_int
from sweeps.gpfq import ANALYSES

OF_MAIN = "that of main_imagenet.py"


def build_parser(description: str = "") -> FlagParser:
    parser = FlagParser(
        prog="run_script.py", usage="%(prog)s ARCH ... [flags] [-- flags]", description=description
    )
    parser.add_argument("arch", nargs="*", type=arch_name, help="architectures of main_imagenet.py")
    _add_grid_flags(parser)
    parser.add_argument_group("GPFQ's analysis").add_argument(
        "--sweep",
        nargs="+",
        choices=sorted(ANALYSES),
        help="vary the bits or the scalar of GPFQ instead of running the grid",
    )
    _add_search_flags(parser)
    _add_run_flags(parser)
    return parser


def _add_search_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("search").add_argument
    add(
        "--search",
        type=positive_int,
        metavar="TRIALS",
        help="search the best method and settings at one pair of bits, without labels, in so many "
        "trials, then evaluate the best and the default ones once (needs Optuna)",
    )
    add(
        "--search_minutes",
        type=positive_float,
        metavar="MINUTES",
        help="search until trials have run for so many minutes (with --search: or so many trials)",
    )
    add(
        "--search_space",
        type=Path,
        metavar="FILE",
        help="YAML file of what to search (default: configs/search_space.yaml)",
    )
    add("--search_worker", type=int, help=argparse.SUPPRESS)


def _add_grid_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("grid").add_argument
    add(
        "--methods",
        nargs="+",
        type=str.lower,
        help="quantization methods (default adaround; of a search: those of its space)",
    )
    add("--bits", nargs="+", help="pairs of weight,activation bits (default 2,2 4,2 2,4 4,4)")
    add("--seeds", nargs="+", type=int, help="seeds (default 1001 to 1010; of a search: 1005)")
    for name, kind, text, default in (
        (
            "alpha_list",
            float,
            "strengths of the correction",
            "0.2 0.4 0.6; for digits, CIFAR and experts that of main_imagenet.py",
        ),
        ("num_clusters_list", int, "numbers of clusters of the correction", OF_MAIN),
        ("pca_dim_list", int, "dimensions of the correction's projection", OF_MAIN),
    ):
        add(
            f"--{name}",
            nargs="+",
            type=kind,
            help=f"{text} to compare in every run (default {default})",
        )


def _add_run_flags(parser: FlagParser) -> None:
    add = parser.add_argument_group("run").add_argument
    add("--config", type=Path, help="YAML file of these flags; the command line overrides them")
    add("--output_dir", type=Path, default=Path("outputs"), help="root folder (default outputs)")
    add("--jobs", type=positive_int, default=2, help="runs at a time on this machine (default 2)")
    add(
        "--gpus",
        nargs="+",
        type=int,
        default=[],
        help="indices of GPUs, which runs on this machine take in turn (default: any)",
    )
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="run as processes on this machine, or as Ray tasks (default local)",
    )
    add("--ray_address", help="auto or host:port of a cluster (default: Ray on this machine)")
    add("--cpus_per_job", type=float, default=1.0, help="CPUs of a Ray task (default 1)")
    add("--gpus_per_job", type=float, default=0.0, help="GPUs of a Ray task (default 0)")
    add("--retry_failed", action="store_true", help="run again what failed before")
    add(
        "--force",
        action="store_true",
        help="replace tables, reports and logs in the output folder that this suite did not write",
    )
    add("--dry_run", action="store_true", help="print the commands and stop")
    add(
        "--report_only",
        action="store_true",
        help="run nothing; write tables and report of the finished runs",
    )
