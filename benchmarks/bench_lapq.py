"""Time of LAPQ's search, compared with a plain loop that runs the whole network for every loss.

    python -m benchmarks.bench_lapq --data_path CIFAR --checkpoint cifar10_resnet20.pt
        20 losses of the plain loop on a network rounded to nearest; then LAPQ W4A4 of ResNet-20 in
        its default setting (512 images, one round of Powell's method); the plain loop is
        extrapolated to as many losses: about 3 minutes on two cores

For each loss the plain loop does what the published code does: it quantizes every weight again and
runs all 512 images through the whole network as one batch.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.cifar_runs import table_head, table_line, table_parser
from common.console import EXIT_OK
from common.errors import InputError
from loaders import load_dataset
from models import get_entry, load_model
from quant import QuantizationManager
from quant.methods.lapq.loss import cross_entropy
from quant.network.model import quant_layers

ARCH = "cifar_resnet20"
IMAGES = 512
PLAIN_LOSSES = 20
HEADER = (
    "threads",
    "losses",
    "ours, s",
    "s per loss",
    "plain, s per loss",
    "plain, s (extrapolated)",
    "ratio",
)


def load_images(options: argparse.Namespace) -> Tensor:
    """Training images of all classes, (IMAGES, 3, 32, 32) float32."""
    preprocess = get_entry(ARCH).input_for(None)
    dataset = load_dataset("imagenet", options.data_path, preprocess)
    train = dataset.train
    if train is None:
        raise InputError(f"{options.data_path} must hold train/, got val/ alone")
    chosen = train.subset(range(0, len(train), len(train) // IMAGES)[:IMAGES])
    return torch.cat([images for images, _ in chosen.batches(64)])


def our_run(network: nn.Module, images: Tensor) -> tuple[float, int]:
    """Wall seconds of the whole method, and number of losses evaluated."""
    steps: list[int] = []
    method = QuantizationManager().get_quantization_method("lapq")
    start = time.perf_counter()
    method.quantize_model(
        network, None, [images], on_scalar=lambda name, value, step: steps.append(step)
    )
    return time.perf_counter() - start, len(steps)


@torch.no_grad()
def plain_seconds(network: nn.Module, images: Tensor) -> float:
    """Wall seconds per loss of the plain loop."""
    rounded = QuantizationManager().get_quantization_method("rtn")
    model = rounded.quantize_model(network, None, [images])
    targets = network(images).softmax(1)
    start = time.perf_counter()
    for _ in range(PLAIN_LOSSES):
        for layer in quant_layers(model).values():
            layer.round_to(layer.scale, layer.zero_point)
        cross_entropy(model(images), targets)
    return (time.perf_counter() - start) / PLAIN_LOSSES


def main(argv: Sequence[str] | None = None) -> int:
    options = table_parser("benchmarks.bench_lapq", __doc__).parse_args(argv)
    network = load_model(ARCH, options.checkpoint, None, 10).network
    images = load_images(options)
    plain = plain_seconds(network, images)
    seconds, losses = our_run(network, images)
    cells = [
        str(torch.get_num_threads()),
        str(losses),
        f"{seconds:.0f}",
        f"{seconds / losses:.3f}",
        f"{plain:.3f}",
        f"{plain * losses:.0f}",
        f"{plain * losses / seconds:.1f}",
    ]
    sys.stdout.write(table_head(HEADER) + table_line(cells))
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
