"""The correction after the distillation, fitted on two sets of images, for ResNet-20.

    python -m benchmarks.correction_distilled --data_path CIFAR --checkpoint cifar10_resnet20.pt \\
            --output_dir RUNS
        corrects the finished networks of ``benchmarks.frontier`` in RUNS: those of `distill` with
        1,600 steps; about two minutes for each pair of bits

The default grid is fitted on the images that the distillation holds out of its training, which
costs a run no other images, and on training images outside the calibration set, as a run does it.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.cifar_runs import Case, runs_parser, table_head, table_line
from benchmarks.frontier import BITS, SETTINGS
from common.console import EXIT_OK, EXIT_USAGE
from common.errors import InputError
from correction import GridRequest, fit_grid
from evaluation.inference import infer_logits
from loaders import ImageSet, PlanRequest, load_dataset, make_plan, resolve_dataset
from loaders.transforms import Preprocess
from logits_io.naming import (
    CALIBRATION_FILE,
    FULL_PRECISION,
    MODEL_FILE,
    QUANTIZED,
    RUN_FILE,
)
from models import load_model, load_quantized
from pipeline.results import score_corrections
from quant.distillation.split import split_calibration

SEED, SAMPLES, BATCH = 1005, 1024, 256
HEADER = (
    "W/A",
    "fitted on",
    "images",
    "quantized",
    "selected",
    "KL",
    "one line",
    "oracle",
)


def image_sets(
    options: argparse.Namespace, preprocess: Preprocess, case: Case
) -> tuple[dict[str, ImageSet], ImageSet]:
    """The sets that a correction is fitted on, by name, and the evaluation images.

    Raises:
        InputError: the run was calibrated on other images.
    """
    dataset, path, _ = resolve_dataset("auto", options.data_path)
    plan = make_plan(load_dataset(dataset, path, preprocess), PlanRequest(SEED), SAMPLES)
    stored = json.loads((case.folder / CALIBRATION_FILE).read_text(encoding="utf-8"))
    if stored != list(plan.calibration.ids):
        raise InputError(f"{case.folder}: must be a run on the images of data_path, got others")
    assert plan.correction is not None
    held, _, _ = split_calibration(len(plan.calibration), SEED)
    sets = {"held out": plan.calibration.subset(held.tolist()), "other": plan.correction}
    return sets, plan.evaluation


def rows(options: argparse.Namespace, case: Case) -> Iterator[list[str]]:
    """The rows of one finished run."""
    model = load_model("cifar_resnet20", str(options.checkpoint))
    networks = {
        QUANTIZED: load_quantized(case.folder / MODEL_FILE)[0],
        FULL_PRECISION: model.network.eval(),
    }

    def infer(images: ImageSet):
        return infer_logits(networks, images.batches(BATCH), torch.device("cpu"))

    sets, evaluation = image_sets(options, model.entry.preprocess, case)
    evaluated = infer(evaluation)
    for name, images in sets.items():
        logits = infer(images).logits
        grid = fit_grid(logits[QUANTIZED], logits[FULL_PRECISION], GridRequest(random_state=SEED))
        found = score_corrections(grid, evaluated)
        line = next(row for row in found.corrections if row.logits == "global_line")
        assert found.oracle is not None
        yield [
            f"{case.bits[0]}/{case.bits[1]}",
            name,
            str(len(images)),
            *(f"{row.top1_pct:.2f}" for row in (found.quantized, found.selected)),
            f"{found.quantized.kl_to_fp:.3f} to {found.selected.kl_to_fp:.3f}",
            *(f"{row.top1_pct:.2f}" for row in (line, found.oracle)),
        ]


def cases(root: Path) -> list[Case]:
    """The finished runs of `distill` with the longest budget.

    Raises:
        InputError: there is none.
    """
    setting = next(s for s in SETTINGS if s.method == "distill" and s.is_default)
    wanted = [setting.case(root, bits, SEED) for bits in BITS]
    finished = [case for case in wanted if (case.folder / RUN_FILE).exists()]
    if not finished:
        raise InputError(f"output_dir must hold finished runs of distill, got {root}")
    return finished


def main(argv: Sequence[str] | None = None) -> int:
    options = runs_parser("benchmarks.correction_distilled", __doc__).parse_args(argv)
    try:
        finished = cases(options.output_dir)
        sys.stdout.write(table_head(HEADER))
        for case in finished:
            for cells in rows(options, case):
                sys.stdout.write(table_line(cells))
                sys.stdout.flush()
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
