"""CPU seconds of methods without training at ImageNet size, beside the float forward pass.

python -m benchmarks.bench_imagenet_size
    MobileNetV2 with random weights, 128 random images at 224 pixels, one thread, medians of
    three runs in turns: rtn W8A8, aciq_mix and gpfq W4A8, about ten minutes
python -m benchmarks.bench_imagenet_size --growth
    how the time of rtn W8A8 grows with images, width and depth of a CIFAR ResNet
"""

from __future__ import annotations

from common.start import run_main

import argparse
import resource
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from common.console import EXIT_OK
from common.torch_setup import import_torchvision
from evaluation.batches import forward_batches
from models import cifar_resnet
from models.cifar_resnet import CifarResNet
from quant import QuantizationManager
from quant.network.capture import CapturedNetwork, capture

METHODS = {"rtn": (8, 8), "aciq_mix": (4, 8), "gpfq": (4, 8)}
CPU = torch.device("cpu")
IMAGES = 256  # of the smallest network in the table of growth


def cpu_seconds(run: Callable[[], object]) -> float:
    """User and system seconds of the process."""
    start = resource.getrusage(resource.RUSAGE_SELF)
    run()
    end = resource.getrusage(resource.RUSAGE_SELF)
    return (end.ru_utime - start.ru_utime) + (end.ru_stime - start.ru_stime)


@torch.no_grad()
def forward(network: nn.Module, images: Tensor) -> None:
    """The float forward pass of this suite."""
    for batch in forward_batches(images, CPU, 64):
        network(batch)


def quantize(method: str, bits: tuple[int, int], captured: CapturedNetwork, images: Tensor) -> None:
    settings = {"n_bits_w": bits[0], "n_bits_a": bits[1], "num_samples": len(images)}
    chosen = QuantizationManager().get_quantization_method(method, **settings)
    chosen.quantize_model(captured, None, [images])


def _methods_table(count: int, size: int, repeats: int) -> Iterator[str]:
    torch.manual_seed(0)
    network = import_torchvision().models.mobilenet_v2().eval()
    images = torch.randn(count, 3, size, size)
    captured = capture(network, images)
    found: dict[str, list[float]] = {name: [] for name in ("float forward", *METHODS)}
    for _ in range(repeats):
        found["float forward"].append(cpu_seconds(lambda: forward(network, images)))
        for name, bits in METHODS.items():
            found[name].append(cpu_seconds(lambda: quantize(name, bits, captured, images)))  # noqa: B023
    base = statistics.median(found["float forward"])
    yield "| what | W/A | CPU s | of the float forward |"
    yield "|---|---|---|---|"
    for name, values in found.items():
        shown = "/".join(map(str, METHODS[name])) if name in METHODS else "-"
        seconds = statistics.median(values)
        yield f"| {name} | {shown} | {seconds:.1f} | {seconds / base:.1f} |"


def _growth_table(repeats: int) -> Iterator[str]:
    cases = {
        "ResNet-20, 256 images": (20, 1, IMAGES),
        "images x 2": (20, 1, 2 * IMAGES),
        "width x 2": (20, 2, IMAGES),
        "depth x 2": (38, 1, IMAGES),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeats):
        for name, case in cases.items():
            found[name].append(_growth(*case))
    base = statistics.median(next(iter(found.values())))
    yield "| rtn W8A8 | CPU s | times the first |"
    yield "|---|---|---|"
    for name, values in found.items():
        seconds = statistics.median(values)
        yield f"| {name} | {seconds:.2f} | {seconds / base:.2f} |"


def _growth(depth: int, width: int, count: int) -> float:
    torch.manual_seed(0)
    widths = cifar_resnet.WIDTHS
    try:
        cifar_resnet.WIDTHS = tuple(width * value for value in widths)  # type: ignore[assignment]
        network = CifarResNet(depth).eval()
    finally:
        cifar_resnet.WIDTHS = widths
    images = torch.randn(count, 3, 32, 32)
    captured = capture(network, images)
    return cpu_seconds(lambda: quantize("rtn", (8, 8), captured, images))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.bench_imagenet_size", description=__doc__)
    parser.add_argument("--images", type=int, default=128, help="number of images (default 128)")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default 224)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements (default 3)")
    parser.add_argument("--growth", action="store_true", help="how the time of rtn grows")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(argv)
    torch.set_num_threads(1)
    table = (
        _growth_table(options.repeats)
        if options.growth
        else _methods_table(options.images, options.size, options.repeats)
    )
    for row in table:
        sys.stdout.write(row + "\n")
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
