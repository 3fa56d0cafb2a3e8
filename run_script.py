"""Run main_imagenet.py for many settings; what is finished is never run again.

    python run_script.py resnet18 mobilenet_v2 --methods adaround qdrop -- --data_path IMAGENET --weights DEFAULT
        bits (2,2) (4,2) (2,4) (4,4) and seeds 1001..1010 of each; flags after -- are passed to every run
    python run_script.py digits_resnet --methods rtn adaround --bits 4,4 2,4 --seeds 1 2 3
    python run_script.py digits_resnet --sweep bits scalar
        GPFQ's analysis: 1..8 bits, then scalars 1.0..2.0

The state is in files, so the same command continues after an interruption, on this machine or another.
Exit status: 0 fine, 1 a run failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging
from common.errors import InputError
from common.flags import FlagParser, positive_int
from sweeps.gpfq import ANALYSES, points_of, run_analysis
from sweeps.grid import run_grid
from sweeps.running import Choice, log_failures, print_commands
from sweeps.spec import (
    DEFAULT_BITS,
    DEFAULT_METHODS,
    DEFAULT_SEEDS,
    SET_BY_GRID,
    Grid,
    parse_bits,
    require_free,
)

OF_GRID = ("methods", "bits", "seeds", "alpha_list", "num_clusters_list", "pca_dim_list")
OF_RAY = ("ray_address", "cpus_per_job", "gpus_per_job")


def build_parser() -> FlagParser:
    parser = FlagParser(
        prog="run_script.py", usage="%(prog)s ARCH ... [flags] [-- flags]", description=__doc__
    )
    parser.add_argument("arch", nargs="*", type=str.lower, help="architectures")
    grid = parser.add_argument_group("grid").add_argument
    grid("--methods", nargs="+", type=str.lower, help="methods (default adaround)")
    grid("--bits", nargs="+", help="pairs of weight,activation bits (default 2,2 4,2 2,4 4,4)")
    grid("--seeds", nargs="+", type=int, help="seeds (default 1001 to 1010)")
    for name, kind, default in (
        ("alpha_list", float, "0.2 0.4 0.6"),
        ("num_clusters_list", int, "8 16 64"),
        ("pca_dim_list", int, "25 50 100; networks for ten classes: the main script's own"),
    ):
        grid(f"--{name}", nargs="+", type=kind, help=f"as in main_imagenet.py (default {default})")
    parser.add_argument_group("GPFQ's analysis").add_argument(
        "--sweep",
        nargs="+",
        choices=sorted(ANALYSES),
        help="vary the bits or the scalar of GPFQ instead of running the grid",
    )
    run = parser.add_argument_group("run").add_argument
    run("--config", type=Path, help="YAML file of these flags; the command line overrides it")
    run("--output_dir", type=Path, default=Path("outputs"), help="root (default outputs)")
    run("--jobs", type=positive_int, default=2, help="runs at a time (default 2)")
    run("--gpus", nargs="+", type=int, default=[], help="indices of the GPUs to use in turn")
    run("--engine", choices=("local", "ray"), default="local", help="processes here, or Ray tasks")
    run("--ray_address", help="auto or host:port of a cluster (default: Ray on this machine)")
    run("--cpus_per_job", type=float, default=1.0, help="CPUs of a Ray task (default 1)")
    run("--gpus_per_job", type=float, default=0.0, help="GPUs of a Ray task (default 0)")
    run("--retry_failed", action="store_true", help="run once more what failed before")
    run("--dry_run", action="store_true", help="print the commands and stop")
    run("--report_only", action="store_true", help="write tables and report of what is finished")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    own, extra = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, extra = argv[:cut], argv[cut + 1 :]
    parser = build_parser()
    options = parser.parse(own)
    setup_logging()
    if not options.arch:
        raise InputError(
            "arch must be at least one architecture, got none (--help lists the flags)"
        )
    others = ("gpus",) if options.engine == "ray" else OF_RAY
    word = "with" if options.engine == "ray" else "without"
    parser.refuse(options, others, f"{word} --engine ray")
    if options.sweep:
        parser.refuse(options, OF_GRID, "with --sweep")
        return _run_analyses(options, extra)
    require_free(extra, SET_BY_GRID)
    runs = _grid_of(options).runs(options.output_dir.absolute(), extra)
    if options.dry_run:
        print_commands(runs)
        return EXIT_OK
    return run_grid(runs, options.output_dir, _choice(options), argv)


def _run_analyses(options: argparse.Namespace, extra: Sequence[str]) -> int:
    taken = {ANALYSES[name].flag for name in options.sweep}
    require_free(extra, taken | {"output_dir", "quant_method", "arch"})
    root = options.output_dir
    groups = [points_of(name, options.arch, root, extra) for name in options.sweep]
    if options.dry_run:
        for points in groups:
            print_commands(points)
        return EXIT_OK
    unfinished = [
        name for points in groups for name in run_analysis(points, root, _choice(options))
    ]
    for points in groups:
        log_failures(points)
    return EXIT_FAILED if unfinished else EXIT_OK


def _choice(options: argparse.Namespace) -> Choice:
    return Choice(**{name: getattr(options, name) for name in Choice.__dataclass_fields__})


def _grid_of(options: argparse.Namespace) -> Grid:
    """What the flags vary.

    Raises:
        InputError: bits that are no pair.
    """
    lists = ("alpha_list", "num_clusters_list", "pca_dim_list")
    return Grid(
        tuple(dict.fromkeys(options.arch)),
        tuple(dict.fromkeys(options.methods or DEFAULT_METHODS)),
        tuple(dict.fromkeys(map(parse_bits, options.bits))) if options.bits else DEFAULT_BITS,
        tuple(dict.fromkeys(options.seeds or DEFAULT_SEEDS)),
        {name: getattr(options, name) for name in lists},
    )


if __name__ == "__main__":
    raise SystemExit(main())
