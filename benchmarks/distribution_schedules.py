"""Fast and published schedule of the distribution correction: objective, difference and time.

python -m benchmarks.distribution_schedules --data_path CIFAR --checkpoint cifar10_resnet20.pt
    one batch of 32 calibration images through every unit: two minutes in one thread
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from common.console import EXIT_OK
from loaders import PlanRequest, load_dataset, make_plan, resolve_dataset
from models import load_model
from quant.network.capture import capture
from quant.network.forward import run_unit
from quant.reconstruction.distribution import (
    BATCH,
    CorrectionSchedule,
    InputCorrection,
    correct_inputs,
    objective,
)
from quant.reconstruction.settings import FAST_CORRECTION, LAMB_C, PUBLISHED_CORRECTION

SEED = 1005
HEADER = (
    "| unit | at x0 | published: objective | s | fast: objective | s | difference of x / move |"
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.distribution_schedules", description=__doc__)
    parser.add_argument(
        "--data_path", type=Path, required=True, help="unpacked folder cifar10_jpeg"
    )
    parser.add_argument(
        "--checkpoint", required=True, help="weights of ResNet-20, cifar10_resnet20.pt"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    model = load_model("cifar_resnet20", options.checkpoint)
    name, path, _ = resolve_dataset("auto", options.data_path)
    plan = make_plan(load_dataset(name, path, model.entry.preprocess), PlanRequest(SEED), BATCH)
    images, _ = next(iter(plan.calibration.batches(BATCH)))
    schedules = [
        CorrectionSchedule(LAMB_C, *schedule)
        for schedule in (PUBLISHED_CORRECTION, FAST_CORRECTION)
    ]
    captured = capture(model.network, images)
    correction = InputCorrection(captured, images, schedules[0], None, images.device)
    sys.stdout.write(f"{HEADER}\n{'|---' * 7}|\n")
    for index, name in enumerate(correction.chain.unit_names):
        unit = correction.unit(index, name)
        if unit is not None:
            sys.stdout.write(_row(unit, name, images, schedules) + "\n")
            sys.stdout.flush()
        images = run_unit(correction.chain.units[index], images, images.device)
    return EXIT_OK


def _row(
    unit: torch.nn.Module, name: str, inputs: torch.Tensor, schedules: list[CorrectionSchedule]
) -> str:
    cells = [name, f"{objective(unit, inputs, inputs, LAMB_C):.3f}"]
    found = []
    for schedule in schedules:
        start = time.process_time()
        found.append(correct_inputs(unit, inputs, schedule, inputs.device))
        seconds = time.process_time() - start
        cells += [f"{objective(unit, found[-1], inputs, LAMB_C):.4f}", f"{seconds:.1f}"]
    published, fast = found
    cells.append(f"{100 * (fast - published).norm() / (published - inputs).norm():.1f} %")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(run_main(main))
