"""Run main_imagenet.py for a grid of settings; finished runs are skipped.

    python run_script.py resnet18 mobilenet_v2 --methods adaround qdrop \\
            -- --data_path IMAGENET --weights DEFAULT
        each at bits 2,2 4,2 2,4 4,4 and seeds 1001 to 1010; flags after -- are passed to every run
    python run_script.py digits_resnet --methods rtn adaround --bits 4,4 2,4 --seeds 1 2 3
    python run_script.py digits_resnet --sweep bits scalar
        GPFQ's analysis: 1 to 8 bits, then scalars from 1 to 2
    python run_script.py digits_resnet --search 20 --methods rtn adaround --bits 2,4
        the best method and settings at these bits, without labels (needs Optuna)

The state is in files: the same command continues after an interruption, on this machine or another.
Exit status: 0 done, 1 a run failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
from collections.abc import Sequence

from common.console import EXIT_FAILED, EXIT_OK, setup_logging
from common.errors import InputError
from sweeps.flags import build_parser
from sweeps.gpfq import ANALYSES, points_of, run_analysis
from sweeps.grid import run_grid
from sweeps.running import (
    Choice,
    log_failures,
    open_runs,
    print_commands,
    require_own_folders,
)
from sweeps.spec import (
    CORRECTION_LISTS,
    DEFAULT_BITS,
    DEFAULT_METHODS,
    DEFAULT_SEEDS,
    SET_BY_GRID,
    Grid,
    RunSpec,
    parse_bits,
    require_free,
)

OF_GRID = ("methods", "bits", "seeds", *CORRECTION_LISTS)
OF_SEARCH = ("search_minutes", "search_space", "search_worker")
OF_RAY = ("ray_address", "cpus_per_job", "gpus_per_job")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_main(lambda: _main(words), "the same command goes on with the other runs")


def _main(argv: list[str]) -> int:
    own, extra = argv, []
    if "--" in argv:
        cut = argv.index("--")
        own, extra = argv[:cut], argv[cut + 1 :]
    parser = build_parser(str(__doc__))
    options = parser.parse(own)
    setup_logging()
    if not options.arch:
        raise InputError(
            "arch must be at least one architecture, got none (--help lists the flags)"
        )
    others = ("gpus",) if options.engine == "ray" else OF_RAY
    word = "with" if options.engine == "ray" else "without"
    parser.refuse(options, others, f"{word} --engine ray")
    is_search = options.search is not None or options.search_minutes is not None
    if options.sweep:
        parser.refuse(options, ("search", *OF_SEARCH, *OF_GRID), "with --sweep")
        return _run_analyses(options, extra)
    if is_search:
        parser.refuse(options, (*CORRECTION_LISTS, "retry_failed"), "with --search")
        from sweeps.search.command import run_search  # loads torch

        return run_search(options, extra, _choice(options), argv)
    parser.refuse(options, OF_SEARCH, "without --search")
    require_free(extra, SET_BY_GRID)
    runs = _grid_of(options).runs(options.output_dir.absolute(), extra)
    _require_usable(runs, options)
    if options.dry_run:
        print_commands(runs)
        return EXIT_OK
    return run_grid(runs, options.output_dir, _choice(options), argv)


def _run_analyses(options: argparse.Namespace, extra: Sequence[str]) -> int:
    taken = {ANALYSES[name].flag for name in options.sweep}
    require_free(extra, taken | {"output_dir", "quant_method", "arch"})
    root = options.output_dir
    groups = [points_of(name, options.arch, root, extra) for name in options.sweep]
    _require_usable([point for points in groups for point in points], options)
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


def _require_usable(specs: Sequence[RunSpec], options: argparse.Namespace) -> None:
    """Check that main_imagenet.py takes the runs to start, and that they have their own folders.

    Raises:
        InputError: architecture, method or a flag is unknown or a value out of range (the text is
            that of main_imagenet.py), or a log of a run would replace a file of the user.
    """
    todo = specs if options.dry_run else open_runs(specs, _choice(options))
    if todo:
        from pipeline.command import require_usable_flags  # loads torch

        require_usable_flags(spec.flags for spec in todo)
    require_own_folders(todo, options.force)


def _choice(options: argparse.Namespace) -> Choice:
    return Choice(**{name: getattr(options, name) for name in Choice.__dataclass_fields__})


def _grid_of(options: argparse.Namespace) -> Grid:
    """The grid that the flags describe.

    Raises:
        InputError: an element of ``--bits`` is no pair of numbers.
    """
    return Grid(
        tuple(dict.fromkeys(options.arch)),
        tuple(dict.fromkeys(options.methods or DEFAULT_METHODS)),
        tuple(dict.fromkeys(map(parse_bits, options.bits))) if options.bits else DEFAULT_BITS,
        tuple(dict.fromkeys(options.seeds or DEFAULT_SEEDS)),
        {name: getattr(options, name) for name in CORRECTION_LISTS},
    )


if __name__ == "__main__":
    raise SystemExit(main())
