"""Long-tailed training split and balanced val / test / tunev splits of a data set, as index files.

    python create_splits_fixed.py
        CIFAR-100 where it lies below data/, else the embedded digits
    python create_splits_fixed.py --dataset cifar10 --data-root DIR --imb-factor 100

The training split follows the exponential profile, class 0 the head; the test source is split 8 : 1 : 1
in every class. The same seed gives the same indices as published split files. Exit status: 0 done or up
to date, 2 wrong usage, or the folder holds other splits (--force replaces them).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.console import EXIT_OK, run_main, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable
from common.flags import FlagParser
from common.torch_setup import require_seed
from experts.images import read_source_labels, resolve_source
from experts.splits import SPLITS, SplitRequest, Splits, different_file, draw_splits, write_splits

DEFAULT_SEED = 42

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="create_splits_fixed.py", description=__doc__)
    parser.add_argument(
        "--dataset", type=str.lower, default="auto", help="auto, digits, cifar10 ..."
    )
    parser.add_argument(
        "--data_root", type=Path, help="where CIFAR or ImageNet lies (default data)"
    )
    parser.add_argument(
        "--imb_factor", type=float, help="head over tail, at least 1 (digits 10, others 100)"
    )
    parser.add_argument(
        "--max_per_class", type=int, help="samples of the head (default the smallest class)"
    )
    parser.add_argument("--output", type=Path, help="folder (default data/{slug}_splits_fixed)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="default 42")
    parser.add_argument("--download", action="store_true", help="fetch CIFAR first")
    parser.add_argument("--force", action="store_true", help="replace other splits")
    parser.add_argument("--verbose", action="store_true", help="every class in the table")
    return parser


def read_labels(options: argparse.Namespace) -> tuple[str, str, np.ndarray, np.ndarray]:
    """Name of the data set, why it is this one, and the labels of its train and test source."""
    name, path, reason = resolve_source(options)
    write_stdout(f"Dataset: {name} ({reason})")
    labels = read_source_labels(name, path, options.download)
    return name, reason, labels["train"], labels["test"]


def describe(splits: Splits, verbose: bool) -> list[str]:
    """Sizes, class counts and the two assertions, in lines."""
    counts, classes = splits.counts, len(splits.counts)
    lines = [f"{key}: {splits.info[key]}" for key in ("imb_factor", "max_per_class", "seed")]
    lines += [f"{name}: {len(splits.indices[name])} samples" for name in SPLITS]
    shown = (
        range(classes)
        if verbose
        else sorted({0, classes // 4, classes // 2, 3 * classes // 4, classes - 1})
    )
    lines += [f"class {c}: {counts[c]} training samples" for c in shown]
    if splits.short_of_profile():
        logger.warning("a class has fewer samples than the profile asks for: all of them are taken")
    if splits.dropped:
        logger.warning(
            "%d samples of the test source are in no split: its classes differ in size",
            splits.dropped,
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    options = build_parser().parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    name, reason, train, test = read_labels(options)
    request = SplitRequest(
        name, require_seed(options.seed), options.imb_factor, options.max_per_class, reason
    )
    splits = draw_splits(request, train, test)
    folder = options.output or Path("data") / f"{request.slug}_splits_fixed"
    require_writable(folder)
    changed = different_file(splits, folder)
    for line in describe(splits, options.verbose):
        write_stdout(line)
    splits.require_sound(test)
    write_stdout("disjoint: yes, balanced: yes")
    if changed is None and all((folder / name).is_file() for name in splits.files()):
        write_stdout(f"already up to date: {folder}")
        return EXIT_OK
    if changed is not None and not options.force:
        raise InputError(
            f"{folder / changed} must hold these splits, got others; logits made from them would stop "
            "matching (--force replaces them)"
        )
    for path in write_splits(splits, folder):
        write_stdout(f"written: {path}")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
