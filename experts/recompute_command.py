"""Runs a command of ``recompute_logits.py``, from its flags to its exit status."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from common.console import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from common.errors import InputError
from common.marks import replace_link
from common.torch_setup import require_seed, seed_all
from experts.console import console_of
from experts.images import choose
from experts.own_logits import require_own_logits
from experts.recompute import Images, Request, Source, compute_all, require_same_slug
from experts.recompute_job import (
    asked_experts,
    find_sources,
    prepare,
    quantized_sources,
    train_those_missing,
)
from experts.recompute_report import Report, further_flags, header, plan


def run_command(options: argparse.Namespace, command: str) -> int:
    """Compute the requested logits; returns the exit status.

    Args:
        command: the command line, for the side files.

    Raises:
        InputError: something needed is missing, and nothing was computed.
    """
    start = time.perf_counter()
    console = console_of(options)
    choice = choose(options)
    console.line(choice.describe())
    seed_all(require_seed(options.seed))
    names = asked_experts(options, choice.splits.slug)
    quantized = quantized_sources(options.quantized, names)
    request, images = prepare(options, choice, command)
    everyone = [*names, *(source.name for source in quantized)]
    require_own_logits(request.output_dir, everyone, list(request.indices), options.force)
    if options.train_experts and not options.dry_run:
        train_those_missing(options, choice, names, console)
    sources = find_sources(options, names, choice.splits.slug) + quantized
    if not options.force:
        require_same_slug([source.name for source in sources], request)
    header(console, options, request, everyone)
    missing = len(everyone) - len(sources)
    if options.dry_run:
        plan(console, sources, request)
        return EXIT_USAGE if missing else EXIT_OK
    if not sources:
        raise InputError("at least one checkpoint must exist, got none; nothing was computed")
    for name in everyone if options.force else ():
        replace_link(request.output_dir / name)
    report = Report(console, options.verbose)
    if not (missing and options.fail_fast):
        _compute(sources, images, request, report, options.fail_fast)
    report.table(everyone, list(request.indices))
    failed = missing + len(report.failed)
    report.conclude(failed, time.perf_counter() - start)
    if failed:
        return EXIT_FAILED
    console.line(f"next: python3 verify_logits.py{further_flags(options)}")
    return EXIT_OK


def _compute(
    sources: Sequence[Source], images: Images, request: Request, report: Report, fail_fast: bool
) -> None:
    """Compute everything; on Ctrl-C, print which files are finished."""
    try:
        compute_all(
            sources, images, request, report.loaded, report.wrote, report.failure, fail_fast
        )
    except KeyboardInterrupt:
        for result in report.written:
            report.console.always(f"finished: {result.path}")
        raise
