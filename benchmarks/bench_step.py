"""Milliseconds per optimisation step of a unit on one CPU thread, compared with the published code.

    python -m benchmarks.bench_step
        ResNet-20 with random weights on random 32 x 32 images, W4A4, batch 32: about a minute

The published times are those of the PD-Quant code in QDrop mode, measured in one thread on a loaded
machine; compare them with the column for prob 0.5.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import torch

from common.console import EXIT_OK
from models.cifar_resnet import CifarResNet
from quant.network.capture import capture
from quant.network.chain import Task, UnitData, nearest, walk_chain
from quant.network.model import FLOAT_SPEC, make_chain
from quant.reconstruction.engine import reconstruct_unit
from quant.reconstruction.settings import ReconstructionSettings

PUBLISHED_MS = {"layer1.1": 45.0, "layer2.1": 24.0, "layer3.1": 19.3}
IMAGES = 256


def time_units(prob: float, steps: int, repeats: int) -> dict[str, float]:
    """Median over the repeats of the CPU milliseconds per step of each unit in ``PUBLISHED_MS``."""
    settings = ReconstructionSettings(
        iters_w=steps, lr_round=3.0 / steps, prob=prob, input_prob=prob
    )
    torch.manual_seed(0)
    network = CifarResNet(20).eval()
    images = torch.randn(IMAGES, 3, 32, 32)
    seconds: dict[str, list[float]] = {name: [] for name in PUBLISHED_MS}

    def timed(data: UnitData) -> None:
        if data.name not in PUBLISHED_MS:
            return
        for _ in range(repeats):
            start = time.process_time()
            reconstruct_unit(data, settings)
            seconds[data.name].append(time.process_time() - start)

    captured = capture(network, images)
    model, reference = make_chain(captured, settings.spec), make_chain(captured, FLOAT_SPEC)
    walk_chain(Task(model, reference, captured, images), nearest("minmax", "minmax"), timed)
    return {name: 1000 * statistics.median(values) / steps for name, values in seconds.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps per unit (default 200)")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="measurements, of which medians are shown (default 3)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    columns = {
        f"prob {prob:g}": time_units(prob, options.steps, options.repeats) for prob in (1.0, 0.5)
    }
    columns["published"] = PUBLISHED_MS
    lines = [
        "| unit | " + " | ".join(f"{name}, ms" for name in columns) + " | ratio at 0.5 |",
        "|---" * 5 + "|",
    ]
    for unit, published in PUBLISHED_MS.items():
        values = [f"{column[unit]:.1f}" for column in columns.values()]
        lines.append(
            f"| {unit} | "
            + " | ".join(values)
            + f" | {published / columns['prob 0.5'][unit]:.2f} |"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
