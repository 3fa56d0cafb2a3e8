"""Milliseconds per QDrop step of each ResNet-18 unit on a GPU, with and without CUDA graphs.

python -m benchmarks.bench_cuda_graph
    random weights, 256 random images of 224 px, W4A4, batch 32, 2,000 steps per unit: a few minutes
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from benchmarks.cifar_runs import table_head, table_line
from common.console import EXIT_OK
from common.torch_setup import import_torchvision, pick_device, seed_all
from quant.methods.qdrop import QDropSettings
from quant.network.capture import capture
from quant.network.chain import Task, UnitData, nearest, walk_chain
from quant.network.model import FLOAT_SPEC, make_chain
from quant.reconstruction.engine import reconstruct_unit


def step_milliseconds(options: argparse.Namespace, cuda_graph: bool) -> dict[str, float]:
    """Wall milliseconds per step of each unit, including the capture of the graph."""
    device = pick_device(options.device)
    settings = QDropSettings(
        iters_w=options.steps, lr_round=3.0 / options.steps, cuda_graph=cuda_graph
    )
    seed_all(0)
    network = import_torchvision().models.resnet18().eval().to(device)
    images = torch.randn(options.images, 3, options.pixels, options.pixels, device=device)
    found: dict[str, float] = {}

    def timed(data: UnitData) -> None:
        _wait(device)
        start = time.perf_counter()
        reconstruct_unit(data, settings)
        _wait(device)
        found[data.name] = 1000 * (time.perf_counter() - start) / options.steps

    captured = capture(network, images)
    model = make_chain(captured, settings.spec)
    reference = make_chain(captured, FLOAT_SPEC)
    walk_chain(Task(model, reference, captured, images), nearest("minmax", "minmax"), timed)
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_cuda_graph", description=__doc__)
    parser.add_argument("--device", default="cuda", help="device: cuda or cuda:i (default cuda)")
    parser.add_argument("--steps", type=int, default=2000, help="steps per unit (default 2000)")
    parser.add_argument("--images", type=int, default=256, help="number of images (default 256)")
    parser.add_argument(
        "--pixels", type=int, default=224, help="width and height of the images (default 224)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    with_graph, without = (step_milliseconds(options, flag) for flag in (True, False))
    sys.stdout.write(table_head(("unit", "with graphs, ms", "without, ms", "ratio")))
    for unit, value in with_graph.items():
        cells = [unit, f"{value:.2f}", f"{without[unit]:.2f}", f"{without[unit] / value:.2f}"]
        sys.stdout.write(table_line(cells))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
