"""Files for OpenVINO and ONNX Runtime: accuracy on ResNet-20, time of larger networks.

python -m benchmarks.deployment --data_path CIFAR --checkpoint cifar10_resnet20.pt --output_dir RUNS
    runs of main_imagenet.py with an export each; finished runs in RUNS are skipped; prints the
    table of ResNet-20, then that of the larger networks with random weights (10 minutes)
python -m benchmarks.deployment ... --jobs 1 --networks resnet18
    one run at a time, so that times are those of an idle machine; only this larger network
"""

from __future__ import annotations

from common.start import run_main

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar_runs import Case, run_all, runs_parser, table_head, table_line
from common.console import EXIT_FAILED, EXIT_OK
from common.torch_setup import import_torchvision, seed_all
from export.runtimes import Kernels, kernels_of, machine_flags
from export.timing import milliseconds
from export.writing import write_onnx
from quant import QuantizationManager
from quant.arithmetic.spec import ONNXRUNTIME, OPENVINO

IMAGES = 2000
SEED = 1005
QDROP = ("--iters_w", "300", "--lr_round", "0.01")
METHODS: tuple[tuple[str, tuple[int, int], tuple[str, ...]], ...] = (
    ("rtn", (8, 8), ()),
    ("aciq_mix", (8, 8), ()),
    ("aciq_mix", (4, 8), ()),
    ("qdrop", (8, 8), QDROP),
    ("qdrop", (4, 8), QDROP),
)
NETWORKS = ("resnet18", "mobilenet_v2", "googlenet", "densenet121")
TARGETS = (OPENVINO, ONNXRUNTIME)
PIXELS = 224
HEADER = (
    "target",
    "method",
    "W/A",
    "Top-1",
    "in the file",
    "agreement",
    "integers",
    "float ms",
    "ms",
    "ratio",
)
LARGE_HEADER = ("target", "network", "integers", "float ms", "ms", "ratio")


def cases(root: Path) -> Iterator[tuple[str, Case]]:
    """The runs of ResNet-20 with their targets."""
    for target in TARGETS:
        flags = ["--quant_target", target, "--export_onnx", "--benchmark"]
        flags += ["--export_images", str(IMAGES)]
        for method, bits, own in METHODS:
            yield (
                target,
                Case(method, bits, SEED, root / target, (*own, *flags), ("--no-correction",)),
            )


def row(target: str, case: Case) -> list[str]:
    """The row of a finished run, from its export report."""
    report: dict[str, Any] = json.loads((case.folder / "export_report.json").read_text("utf-8"))
    top1 = report["top1_pct"]
    return [
        target,
        case.method,
        "{}/{}".format(*case.bits),
        f"{top1['simulation']:.2f}",
        f"{top1['file']:.2f}",
        f"{100 * report['agreement']:.2f}",
        *_speed(Kernels(**report["kernels"]), report["milliseconds"]),
    ]


def _speed(kernels: Kernels, time: dict[str, Any]) -> list[str]:
    times = (f"{time[what]:.2f}" for what in ("float", "file", "ratio"))
    return [f"{kernels.integers} of {kernels.layers}", *times]


def large_row(target: str, name: str) -> list[str]:
    """The time of a network of torchvision with random weights at W8A8."""
    seed_all(SEED)
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    network = getattr(import_torchvision().models, name)(**options).eval()
    images = torch.randn(4, 3, PIXELS, PIXELS)
    method = QuantizationManager().get_quantization_method(
        "rtn", n_bits_w=8, n_bits_a=8, num_samples=4, init_amode="minmax", quant_target=target
    )
    model = method.quantize_model(network, None, [images])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        write_onnx(model, path, images.shape[1:], target=target)
        kernels = kernels_of(path, target, model)
        time = milliseconds(path, model, target)
    return [target, name, *_speed(kernels, time)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = runs_parser("benchmarks.deployment", __doc__)
    parser.add_argument(
        "--networks",
        nargs="*",
        default=NETWORKS,
        help=f"networks of torchvision to time (default {' '.join(NETWORKS)})",
    )
    options = parser.parse_args(argv)
    runs = list(cases(options.output_dir))
    if not run_all([case for _, case in runs], options):
        return EXIT_FAILED
    sys.stdout.write(f"processor: {' '.join(machine_flags())}\n\n" + table_head(HEADER))
    for target, case in runs:
        sys.stdout.write(table_line(row(target, case)))
    sys.stdout.write("\n" + table_head(LARGE_HEADER))
    for target in TARGETS:
        for name in options.networks:
            sys.stdout.write(table_line(large_row(target, name)))
            sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
