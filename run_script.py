"""Run main_imagenet.py for many settings; what is finished is never run again.

    python run_script.py resnet18 mobilenet_v2 --methods adaround qdrop -- --data_path IMAGENET --weights DEFAULT
        bits (2,2) (4,2) (2,4) (4,4) and seeds 1001..1010 of each; what follows -- goes to every run
    python run_script.py digits_resnet --methods rtn adaround --bits 4,4 2,4 --seeds 1 2 3
    python run_script.py digits_resnet --sweep bits scalar
        GPFQ's analysis: 1..8 bits, then scalars 1.0..2.0

The state is in files, so the same command goes on after an interruption, on this machine or another.
Exit status: 0 fine, 1 a run failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.console import EXIT_FAILED, EXIT_OK, run_main, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable
from common.flags import FlagParser
from common.provenance import provenance
from sweeps.engine import Engine, LocalEngine
from sweeps.gpfq import SWEEPS, run_sweep
from sweeps.results import SUMMARY_FILE, as_markdown, summary_row, table_rows, write_results
from sweeps.spec import DEFAULT_BITS, DEFAULT_METHODS, DEFAULT_SEEDS, Grid, RunSpec, parse_bits

OF_GRID = (
    *("methods", "bits", "seeds", "alpha_list", "num_clusters_list", "pca_dim_list", "gpus"),
    *("engine", "retry_failed", "dry_run", "report_only"),
)
OF_RAY = ("ray_address", "cpus_per_job", "gpus_per_job")
SET_BY_GRID = {
    *("quant_method", "arch", "n_bits_w", "n_bits_a", "seed", "output_dir"),
    *("alpha_list", "num_clusters_list", "pca_dim_list"),
}
OTHER_NAMES = {"b": "n_bits_w", "model": "arch", "s": "scalar", "num_bits": "n_bits_w"}

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="run_script.py", description=__doc__)
    parser.add_argument("arch", nargs="*", type=str.lower, help="architectures")
    parser.add_argument("--methods", nargs="+", type=str.lower, help="default adaround")
    parser.add_argument("--bits", nargs="+", help="W,A pairs (default 2,2 4,2 2,4 4,4)")
    parser.add_argument("--seeds", nargs="+", type=int, help="default 1001 to 1010")
    parser.add_argument("--alpha_list", nargs="+", type=float, help="default 0.2 0.4 0.6")
    parser.add_argument("--num_clusters_list", nargs="+", type=int, help="default 8 16 64")
    parser.add_argument(
        "--pca_dim_list",
        nargs="+",
        type=int,
        help="default 25 50 100; networks for ten classes take the main script's own lists",
    )
    parser.add_argument("--config", type=Path, help="YAML file of these flags")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs"), help="root (default outputs)"
    )
    parser.add_argument("--jobs", type=_positive, default=2, help="runs at a time (default 2)")
    parser.add_argument("--gpus", nargs="+", type=int, default=[], help="indices, in turn")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="processes here, or Ray tasks"
    )
    parser.add_argument("--ray_address", help="auto or host:port (default: Ray on this machine)")
    parser.add_argument("--cpus_per_job", type=float, default=1.0, help="of Ray (default 1)")
    parser.add_argument("--gpus_per_job", type=float, default=0.0, help="of Ray (default 0)")
    parser.add_argument("--retry_failed", action="store_true", help="run what failed once more")
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    parser.add_argument(
        "--report_only", action="store_true", help="write tables and report of what is there"
    )
    parser.add_argument(
        "--sweep", nargs="+", choices=sorted(SWEEPS), help="GPFQ's analysis instead of the grid"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


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
    if options.sweep:
        parser.refuse(options, OF_GRID, "with --sweep")
    if options.engine == "ray":
        parser.refuse(options, ("gpus",), "with --engine ray")
    else:
        parser.refuse(options, OF_RAY, "without --engine ray")
    taken = {SWEEPS[name].flag for name in options.sweep or ()}
    require_free(extra, taken | {"output_dir", "quant_method"} if options.sweep else SET_BY_GRID)
    if options.sweep:
        fine = [run_sweep(name, options.arch, options, extra) for name in options.sweep]
        return EXIT_OK if all(fine) else EXIT_FAILED
    return run_grid(options, extra, argv)


def require_free(extra: Sequence[str], taken: set[str]) -> None:
    """Check that what goes to every run sets nothing that the sweep sets, in any spelling.

    Raises:
        InputError: it does.
    """
    for argument in extra:
        flag = argument.partition("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        if flag.startswith("-") and OTHER_NAMES.get(name, name) in taken:
            raise InputError(f"{flag} must be left out behind --, the sweep sets it, got it there")


def grid_of(options: argparse.Namespace) -> Grid:
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


def run_grid(options: argparse.Namespace, extra: Sequence[str], argv: Sequence[str]) -> int:
    """Run what is open, then write tables, figures and report; the exit status."""
    specs = grid_of(options).runs(options.output_dir.absolute(), extra)
    if options.dry_run:
        for spec in specs:
            write_stdout(" ".join(["python3 main_imagenet.py", *spec.flags]))
        return EXIT_OK
    require_writable(options.output_dir)
    wanted = ("open", "failed") if options.retry_failed else ("open",)
    todo = [] if options.report_only else [spec for spec in specs if spec.state() in wanted]
    logger.info(
        "%d runs: %d finished or failed before, %d to do",
        len(specs),
        len(specs) - len(todo),
        len(todo),
    )
    if not todo and not options.report_only and (options.output_dir / SUMMARY_FILE).is_file():
        return conclude(specs, [summary_row(spec) for spec in specs])
    done = 0

    def tell(spec: RunSpec) -> None:
        nonlocal done
        done += 1
        logger.info("%d of %d: %s %s", done, len(todo), spec.name, spec.state())

    if todo:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        make_engine(options).run(todo, tell)
    rows = [summary_row(spec) for spec in specs]
    write_everything(options.output_dir, specs, rows, argv)
    return conclude(specs, rows)


def make_engine(options: argparse.Namespace) -> Engine:
    """The engine that the flags name.

    Raises:
        InputError: Ray is not installed, or a number is out of range.
    """
    if options.engine == "local":
        return LocalEngine(options.jobs, options.gpus)
    if not 0 < options.cpus_per_job <= 1024 or not 0 <= options.gpus_per_job <= 64:
        raise InputError(
            f"cpus_per_job must be above 0 and gpus_per_job at least 0, got {options.cpus_per_job} and "
            f"{options.gpus_per_job}"
        )
    from sweeps.ray_engine import RayEngine

    return RayEngine(options.ray_address, options.cpus_per_job, options.gpus_per_job, options.jobs)


def write_everything(
    root: Path, specs: Sequence[RunSpec], rows: Sequence[dict[str, Any]], argv: Sequence[str]
) -> None:
    """Tables, figures and the report."""
    from plots.axes import save_figure
    from sweeps.figures import sweep_figures
    from sweeps.report import write_report

    write_results(root, rows)
    figures = sweep_figures(rows)
    for text, figure in figures.items():
        save_figure(root / "image" / f"{text.replace(': ', '_').replace(' ', '_')}.png", figure)
    path = write_report(root, specs, rows, figures, provenance(argv))
    logger.info("report: %s", path)


def conclude(specs: Sequence[RunSpec], rows: Sequence[dict[str, Any]]) -> int:
    """Print the table, name what failed; the exit status."""
    write_stdout(as_markdown(table_rows(rows)).rstrip())
    pairs = zip(specs, rows, strict=True)
    failed = [spec.name for spec, row in pairs if row["status"] != "finished"]
    if failed:
        logger.error("not finished: %s", ", ".join(failed))
        return EXIT_FAILED
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
