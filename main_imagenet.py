"""Quantize a trained image classifier, compare it with the float one, correct its logits, save all.

    python main_imagenet.py
        the embedded digits with AdaRound at 2 bits: under a minute on two cores
    python main_imagenet.py --data_path IMAGENET --arch resnet18 --weights DEFAULT
        a torchvision network on an ImageNet folder, 20,000 steps per unit as in the papers
    python main_imagenet.py --data_path CIFAR --arch cifar_resnet20 --checkpoint FILE.pt \\
            --quant_method rtn --n_bits_w 3 --n_bits_a 3
        your own checkpoint, round to nearest, 3 bits

The flags to begin with:
  --data_path DIR       folder of images: train/<class>/* and val/<class>/*
  --arch NAME           network; --list_archs prints all
  --checkpoint FILE     its trained weights
  --quant_method NAME   quantization method; --list_methods explains all
  --n_bits_w BITS, --n_bits_a BITS   bits of weights and activations

Exit status: 0 done, 1 failed, 2 wrong usage or unusable input, 3 done but something could not be
saved, 130 interrupted.
"""

from __future__ import annotations

from common.start import run_main

import sys
from collections.abc import Sequence

import yaml

from common.console import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNSAVED,
    collected_warnings,
    setup_logging,
    write_stdout,
)
from pipeline import prepare, run
from pipeline.closing import closing_text
from pipeline.command import Command, read_command
from pipeline.comparing import compare_runs
from pipeline.flags import build_parser
from pipeline.folders import require_own_folders
from pipeline.lists import list_text
from pipeline.method import configuration, make_method
from pipeline.needs import require_disk
from quant import QuantizationManager

__all__ = ["QuantizationManager", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process); returns the exit status."""
    body = lambda: _main(sys.argv[1:] if argv is None else argv)  # noqa: E731
    return run_main(body, "--resume continues after the last finished unit")


def _main(argv: Sequence[str]) -> int:
    command = read_command(build_parser(str(__doc__)), argv)
    setup_logging(command.verbose, command.quiet)
    if command.lists is not None:
        write_stdout(list_text(command.lists))
        return EXIT_OK
    if command.compare:
        output = command.options.output.output_dir
        path = compare_runs(command.compare, output, command.options.force)
        write_stdout(f"comparison: {path}")
        return EXIT_OK
    if command.print_config:
        options = command.options
        config = configuration(options, make_method(options))
        write_stdout(yaml.safe_dump(config, sort_keys=True).rstrip())
        return EXIT_OK
    with collected_warnings() as warnings:
        return _run(command, warnings)


def _run(command: Command, warnings: list[str]) -> int:
    job = prepare(command.options, command.argv)
    job.warn_of_recipe()
    if command.dry_run:
        require_own_folders(job)
        require_disk(job)
        job.check_network()
        write_stdout(job.describe())
        return EXIT_OK
    outcome = run(job)
    write_stdout(closing_text(job, outcome.results, command.table, warnings))
    if outcome.problems:
        return EXIT_FAILED
    return EXIT_UNSAVED if outcome.unsaved else EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
