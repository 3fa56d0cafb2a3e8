"""Logits of trained experts on the splits of a data set, without training anything again.

    python recompute_logits.py
        the three baselines, which must be there, and decoupling if it is, on val, test and tunev
    python recompute_logits.py --experts ce_baseline --checkpoint-prefix final_calibrated_ --splits test
    python recompute_logits.py --experts ce --quantized ce_w4a4=outputs/rtn/run_X/quantized_model.pt
        an expert before and after quantization
    python recompute_logits.py --inspect FILE

A checkpoint is loaded exactly or not at all. Exit status: 0 everything asked for is written, 1 an expert
or a split failed, 2 wrong usage, or something that is needed is missing and nothing was computed.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.console import EXIT_FAILED, EXIT_OK, EXIT_USAGE, run_main, setup_logging, write_stdout
from common.errors import InputError, require_known
from common.files import require_writable
from common.flags import FlagParser
from common.torch_setup import pick_device, require_seed, seed_all
from experts.checkpoints import (
    CALIBRATED,
    PREFIXES,
    Found,
    describe_checkpoint,
    find_checkpoint,
    head_classes,
    load_expert,
)
from experts.console import Console, add_console_flags, add_data_flags, console_of
from experts.images import Choice, choose, default_backbone, network_input
from experts.recompute import (
    Candidate,
    Images,
    Request,
    Source,
    Written,
    compute_all,
    quantized_name,
    require_same_slug,
)
from experts.schedules import EXPERTS, TWO_STAGES, Overrides, expert_names
from experts.splits import SPLITS
from experts.stored_splits import check_indices
from experts.training import TrainingOptions, train_all
from experts.training_data import read_training_data
from logits_io.npz import npz_path
from models import load_quantized
from models.expert import resolve_backbone

DEFAULT_SPLITS = ("val", "test", "tunev")
DEFAULT_BATCH = 128
DEFAULT_OUTPUT = Path("outputs") / "logits_fixed"

OF_INSPECT = {"inspect", "unsafe_load", "ascii", "quiet", "verbose", "help"}

logger = logging.getLogger(__name__)


def build_parser() -> FlagParser:
    parser = FlagParser(prog="recompute_logits.py", description=__doc__)
    parser.add_argument(
        "--experts",
        nargs="+",
        type=str.lower,
        help="names or keys (ce ...), which must be there (default all; decoupling may be missing)",
    )
    parser.add_argument(
        "--quantized", nargs="+", default=[], metavar="[NAME=]FILE", help="quantized_model.pt"
    )
    parser.add_argument("--checkpoint_prefix", default=PREFIXES[0], help=", ".join(PREFIXES))
    parser.add_argument(
        "--experts_dir",
        type=Path,
        default=Path("checkpoints") / "experts",
        help="default checkpoints/experts",
    )
    add_data_flags(parser)
    parser.add_argument("--download", action="store_true", help="fetch CIFAR first")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=DEFAULT_OUTPUT,
        help="default outputs/logits_fixed; one per data set",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        default=list(DEFAULT_SPLITS),
        choices=SPLITS,
        help="default val test tunev",
    )
    parser.add_argument("--batch_size", type=int, default=DEFAULT_BATCH, help="default 128")
    parser.add_argument("--backbone", help="default: what the checkpoint says, else cifar_resnet32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--num_workers", type=int, help="image files decoded at once")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="of the stored logits"
    )
    parser.add_argument(
        "--apply_temperature",
        choices=("auto", "yes", "no"),
        default="auto",
        help="auto: for final_calibrated_",
    )
    parser.add_argument(
        "--no_auto_batch", action="store_true", help="fail when CUDA is out of memory"
    )
    parser.add_argument(
        "--allow_fallback_names", action="store_true", help="take {expert}.pth, expert_{expert}.pth"
    )
    parser.add_argument(
        "--allow_size_mismatch", action="store_true", help="warn of splits of another size"
    )
    parser.add_argument(
        "--unsafe_load", action="store_true", help="unpickle checkpoints: runs the code in them"
    )
    parser.add_argument("--skip_existing", action="store_true", help="keep what is up to date")
    parser.add_argument("--csv", action="store_true", help="a folder of CSV logits as well")
    parser.add_argument("--train_experts", action="store_true", help="train those that are missing")
    parser.add_argument("--train_epochs", type=int)
    parser.add_argument("--train_lr", type=float)
    parser.add_argument("--fail_fast", action="store_true", help="stop at the first failure")
    parser.add_argument("--dry_run", action="store_true", help="print the plan only")
    parser.add_argument("--inspect", type=Path, metavar="FILE", help="describe a checkpoint only")
    parser.add_argument("--seed", type=int, default=42, help="of --train-experts")
    add_console_flags(parser)
    return parser


def asked_experts(options: argparse.Namespace, slug: str) -> list[str]:
    """The experts that the flags name, or all whose checkpoint the default list requires.

    Raises:
        InputError: an unknown name.
    """
    if options.experts is not None:
        return expert_names(options.experts)
    if options.quantized:
        return []
    names = list(EXPERTS)
    optional = next(name for name, kind in EXPERTS.items() if kind == TWO_STAGES)
    try:
        find_checkpoint(optional, options.checkpoint_prefix, options.experts_dir, slug)
    except InputError:
        names.remove(optional)
    return names


def find_sources(options: argparse.Namespace, names: Sequence[str], slug: str) -> list[Source]:
    """Where the checkpoints are; one that is missing is logged and left out."""
    applied = {"yes": True, "no": False, "auto": options.checkpoint_prefix == CALIBRATED}
    found = []
    for name in names:
        try:
            place = find_checkpoint(
                name,
                options.checkpoint_prefix,
                options.experts_dir,
                slug,
                options.allow_fallback_names,
            )
        except InputError as error:
            logger.error("%s", error)
            continue
        if place.fallback:
            logger.warning("expert %r: taken from %s, without prefix", name, place.path)
        temperature = applied[options.apply_temperature]
        found.append(Source(name, place, options.checkpoint_prefix, temperature))
    return found


def quantized_sources(texts: Sequence[str], taken: Sequence[str]) -> list[Source]:
    """Quantized models given as FILE or NAME=FILE.

    Raises:
        InputError: unusable, or two of one name.
    """
    found: list[Source] = []
    for text in texts:
        name, _, file = text.rpartition("=")
        path = Path(file)
        metadata = load_quantized(path)[1]
        name = name or quantized_name(metadata)
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(
                f"name of a quantized model must be letters, digits, _ or -, got {name!r}"
            )
        if (
            name in (*EXPERTS, *EXPERTS.values())
            or name in taken
            or any(source.name == name for source in found)
        ):
            raise InputError(
                f"quantized models must differ in name (NAME=FILE) from all others, got {name!r} twice"
            )
        found.append(Source(name, Found(path, False), None, False))
    return found


def train_those_missing(
    options: argparse.Namespace, choice: Choice, names: Sequence[str], console: Console
) -> None:
    """Train the experts that have no checkpoint of the prefix."""
    folder = options.experts_dir / choice.splits.slug
    missing = []
    for name in names:
        try:
            find_checkpoint(
                name, options.checkpoint_prefix, options.experts_dir, choice.splits.slug
            )
        except InputError:
            missing.append(name)
    if not missing:
        return
    overrides = Overrides(epochs=options.train_epochs, lr=options.train_lr)
    overrides.require_sane()
    backbone = resolve_backbone(options.backbone or default_backbone(choice.dataset))
    training = TrainingOptions(
        folder=folder,
        backbone=backbone,
        device=pick_device(options.device),
        seed=options.seed,
        first=overrides.first(choice.dataset),
        second=overrides.second(choice.dataset),
        report=console.line,
    )
    data = read_training_data(
        choice, backbone, download=options.download, workers=options.num_workers
    )
    train_all(missing, data, training, options.verbose)


def inspect(path: Path, unsafe: bool) -> int:
    """Print what a checkpoint holds and whether it would be loaded; the exit status."""
    try:
        for line in describe_checkpoint(path, unsafe):
            write_stdout(line)
        loaded = load_expert(path, head_classes(path, unsafe), unsafe=unsafe)
    except InputError as error:
        write_stdout(f"verdict: not accepted: {error}")
        return EXIT_FAILED
    write_stdout(
        f"verdict: accepted as {loaded.expert.backbone_name}, {loaded.tensors}/{loaded.tensors} tensors"
    )
    return EXIT_OK


class Report:
    """Prints what happens, and remembers it for the table at the end."""

    def __init__(self, console: Console, traceback: bool):
        self.console, self.traceback = console, traceback
        self.written: list[Written] = []
        self.failed: list[tuple[str, str | None]] = []

    def loaded(self, candidate: Candidate) -> None:
        source, metadata = candidate.source, candidate.metadata
        known = ""
        if "val_accuracy" in metadata:
            known = f" (epoch {metadata['epoch']}, val acc {metadata['val_accuracy']:.4f})"
        self.console.line(f"EXPERT: {source.name.upper()}")
        self.console.line(f"  checkpoint: {source.found.path}{known}")
        tensors = f"{candidate.tensors}/{candidate.tensors} tensors"
        self.console.line(f"  {self.console.marks['pass']} model loaded: {tensors}")

    def wrote(self, result: Written) -> None:
        self.written.append(result)
        note = " (up to date)" if result.kept else ""
        self.console.line(
            f"  {result.split:<6} {result.samples:>6} samples   accuracy {result.accuracy:.4f}   -> "
            f"{result.path}{note}"
        )

    def failure(self, name: str, split: str | None, error: Exception) -> None:
        self.failed.append((name, split))
        where = f"expert {name!r}" + (f", {split}" if split else "")
        logger.error("%s: %s", where, error, exc_info=self.traceback)

    def table(self, names: Sequence[str], splits: Sequence[str]) -> None:
        """Accuracy of every expert and split."""
        found = {(r.expert, r.split): f"{r.accuracy:.4f}" for r in self.written}
        width = max([len("Expert"), *map(len, names)])
        self.console.line()
        self.console.line(" | ".join([f"{'Expert':<{width}}", *(f"{s:>8}" for s in splits)]))
        for name in names:
            cells = [f"{found.get((name, split), 'FAILED'):>8}" for split in splits]
            self.console.line(" | ".join([f"{name:<{width}}", *cells]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    return run_main(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    parser = build_parser()
    options = parser.parse(argv)
    setup_logging(options.verbose, quiet=not options.verbose, plain=True)
    if options.inspect is not None:
        others = {action.dest for action in parser.flags().values()} - OF_INSPECT
        parser.refuse(options, sorted(others), "with --inspect")
        return inspect(options.inspect, options.unsafe_load)
    if not options.train_experts:
        unused = ("train_epochs", "train_lr", "seed")
        parser.refuse(options, unused, "without --train_experts")
    start = time.perf_counter()
    console = console_of(options)
    require_known("checkpoint-prefix", options.checkpoint_prefix, PREFIXES)
    choice = choose(options)
    console.line(choice.describe())
    seed_all(require_seed(options.seed))
    names = asked_experts(options, choice.splits.slug)
    quantized = quantized_sources(options.quantized, names)
    request, images = prepare(options, choice, shlex.join(["recompute_logits.py", *argv]))
    if options.train_experts and not options.dry_run:
        train_those_missing(options, choice, names, console)
    sources = find_sources(options, names, choice.splits.slug) + quantized
    require_same_slug([source.name for source in sources], request)
    everyone = [*names, *(source.name for source in quantized)]
    header(console, options, request, everyone)
    if options.dry_run:
        plan(console, sources, request)
        return EXIT_OK if len(sources) == len(everyone) else EXIT_USAGE
    if not sources:
        raise InputError("at least one checkpoint must exist, got none; nothing was computed")
    report = Report(console, options.verbose)
    missing = len(everyone) - len(sources)
    if not (missing and options.fail_fast):
        run_all(sources, images, request, report, options.fail_fast)
    report.table(everyone, list(request.indices))
    failed = missing + len(report.failed)
    kept = sum(result.kept for result in report.written)
    note = f", {kept} up to date" if kept else ""
    console.always(
        f"{len(report.written) - kept} files written{note}, {failed} failed, "
        f"{time.perf_counter() - start:.1f} s"
    )
    if failed:
        return EXIT_FAILED
    console.line(f"next: python3 verify_logits.py{further_flags(options)}")
    return EXIT_OK


def further_flags(options: argparse.Namespace) -> str:
    """The flags of this command that verify_logits.py needs as well."""
    given = {
        "dataset": None if options.dataset == "auto" else options.dataset,
        "data-root": options.data_root,
        "splits-dir": options.splits_dir,
        "logits-dir": None if options.output_dir == DEFAULT_OUTPUT else options.output_dir,
    }
    parts = [f"--{flag} {shlex.quote(str(value))}" for flag, value in given.items() if value]
    return "".join(f" {part}" for part in parts)


def prepare(options: argparse.Namespace, choice: Choice, command: str) -> tuple[Request, Images]:
    """Everything but the checkpoints, checked.

    Raises:
        InputError: a flag, the data or the splits are unusable.
    """
    if options.batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {options.batch_size}")
    backbone = options.backbone and resolve_backbone(options.backbone)
    device = pick_device(options.device)
    require_writable(options.output_dir)
    images = Images(choice, options.download, options.num_workers)
    usual = network_input(choice.dataset, backbone or default_backbone(choice.dataset))
    wanted = list(dict.fromkeys(options.splits))
    sizes = images.open(usual).sizes
    indices = check_indices(choice.splits, wanted, sizes, options.allow_size_mismatch)
    request = Request(
        choice=choice,
        indices=indices,
        output_dir=options.output_dir,
        device=device,
        batch_size=options.batch_size,
        dtype=options.dtype,
        auto_batch=not options.no_auto_batch,
        backbone=backbone,
        unsafe=options.unsafe_load,
        skip_existing=options.skip_existing,
        csv=options.csv,
        command=command,
    )
    return request, images


def header(
    console: Console, options: argparse.Namespace, request: Request, names: Sequence[str]
) -> None:
    lines = {
        "device": request.device,
        "splits": f"{', '.join(request.indices)} of {request.choice.splits.folder}",
        "experts": f"{', '.join(names)} ({options.checkpoint_prefix} below {options.experts_dir})",
        "output": request.output_dir,
    }
    for key, value in lines.items():
        console.line(f"{key + ':':<9}{value}")


def plan(console: Console, sources: Sequence[Source], request: Request) -> None:
    for source in sources:
        for split in request.indices:
            path = npz_path(request.output_dir, source.name, split)
            console.line(f"{source.name}: {source.found.path} -> {split} -> {path}")


def run_all(
    sources: Sequence[Source], images: Images, request: Request, report: Report, fail_fast: bool
) -> None:
    """Compute everything; when interrupted, say what is there."""
    try:
        compute_all(
            sources, images, request, report.loaded, report.wrote, report.failure, fail_fast
        )
    except KeyboardInterrupt:
        for result in report.written:
            report.console.always(f"finished: {result.path}")
        raise


if __name__ == "__main__":
    raise SystemExit(main())
