"""Draw a long-tailed training split and balanced test, val and tunev splits as index files.

    python create_splits_fixed.py
        CIFAR-100 if it is in data/, else the embedded digits
    python create_splits_fixed.py --dataset cifar10 --data-root DIR --imb-factor 100

In the training split the number of samples falls exponentially from class 0 to the last class. The
test images of every class are split 8 : 1 : 1 into test, val and tunev. The same seed gives the
same indices as published split files. Exit status: 0 done or up to date, 2 wrong usage, or the
folder holds other splits (--force replaces them).
"""

from __future__ import annotations

from common.start import run_main

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_OK, setup_logging, write_stdout
from common.errors import InputError
from common.files import require_writable, written_alone
from common.flags import CLASS_ORDER_HELP, FlagParser
from common.marks import replace_link, require_own_file, require_own_folder
from common.torch_setup import require_seed
from experts.images import STATISTICS, Sources, open_sources, resolve_source
from experts.splits import (
    SPLITS,
    SplitRequest,
    Splits,
    different_files,
    draw_splits,
    missing_files,
    order_digest,
    write_splits,
)

DEFAULT_SEED = 42

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(
        prog="create_splits_fixed.py", usage="%(prog)s [flags]", description=__doc__
    )
    data = parser.add_argument_group("data").add_argument
    data(
        "--dataset",
        type=str.lower,
        default="auto",
        help="data set: auto (found from --data_root), digits, cifar10, cifar100, imagenet "
        "(default auto)",
    )
    data("--data_root", type=Path, help="folder of CIFAR or ImageNet (default data for CIFAR)")
    data("--class_order", metavar="ORDER", help=CLASS_ORDER_HELP)
    data("--download", action="store_true", help="download CIFAR first")
    splits = parser.add_argument_group("splits").add_argument
    splits(
        "--imb_factor",
        type=float,
        help="training samples of class 0 over those of the last class, at least 1 (default 100; "
        "digits: 10)",
    )
    splits(
        "--max_per_class",
        type=int,
        help="training samples of class 0 (default: the size of the smallest class)",
    )
    splits("--seed", type=int, default=DEFAULT_SEED, help="seed of the draws (default 42)")
    output = parser.add_argument_group("output").add_argument
    output(
        "--output",
        type=Path,
        help="folder of the index files (default data/{dataset}_lt_if{imb_factor}_splits_fixed)",
    )
    output("--force", action="store_true", help="replace other files of the same names")
    output("--verbose", action="store_true", help="print the sizes of all classes")
    return parser


def read_sources(options: argparse.Namespace) -> tuple[str, str, Sources]:
    """Name of the data set, reason for its choice, and its train and test source."""
    name, path, reason = resolve_source(options)
    write_stdout(f"Dataset: {name} ({reason})")
    order = options.class_order
    return name, reason, open_sources(name, path, STATISTICS[name], options.download, None, order)


def describe(splits: Splits, verbose: bool) -> list[str]:
    """Settings, split sizes and class counts, in lines; warns if classes have too few samples."""
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
        logger.warning(
            "a class has fewer samples than the exponential profile requires: all of them are used"
        )
    if splits.dropped:
        logger.warning(
            "%d samples of the test source are in no split, because its classes differ in size",
            splits.dropped,
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    options = build_parser().parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    name, reason, sources = read_sources(options)
    request = SplitRequest(
        name,
        require_seed(options.seed),
        options.imb_factor,
        options.max_per_class,
        reason,
        order_digest(sources.classes),
    )
    test = sources.test.labels
    splits = draw_splits(request, sources.train.labels, test)
    folder = options.output or Path("data") / f"{request.slug}_splits_fixed"
    require_writable(folder)
    require_own_folder(folder, options.force)
    for line in describe(splits, options.verbose):
        write_stdout(line)
    splits.require_sound(test)
    write_stdout("disjoint: yes, balanced: yes")
    with written_alone(folder):
        save(splits, folder, options.force)
    return EXIT_OK


def save(splits: Splits, folder: Path, force: bool) -> None:
    """Write the files that are missing or, with ``force``, other than these splits.

    Raises:
        InputError: a file holds something else and ``force`` is not set.
    """
    if force:
        replace_link(folder)
    changed = different_files(splits, folder)
    if changed and not force:
        raise InputError(
            f"{folder / changed[0]} must hold these splits, got others; logits computed for those "
            "would no longer match (--force replaces them)"
        )
    for name in changed:
        require_own_file(folder / name, force)
    wanted = [*changed, *missing_files(splits, folder)]
    for path in write_splits(splits, folder, wanted):
        write_stdout(f"written: {path}")
    if not wanted:
        write_stdout(f"already up to date: {folder}")


if __name__ == "__main__":
    raise SystemExit(main())
