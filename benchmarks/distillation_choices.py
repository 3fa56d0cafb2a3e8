"""What each part of the distillation brings, on training images of ResNet-20 that no run uses.

    python -m benchmarks.distillation_choices --data_path CIFAR --checkpoint cifar10_resnet20.pt
        W2A2, seed 1005: ten runs, each with another setting, two at a time with one thread each;
        one of 800 steps takes about three minutes; prints a table

CIFAR is the unpacked folder cifar10_jpeg. The networks are compared with the float one on 8,192
training images that are not in the calibration set, so the evaluation images stay unseen.
"""

from __future__ import annotations

from common.start import run_main

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks.cifar_runs import table_head, table_line, table_parser
from common.console import EXIT_OK
from evaluation.inference import infer_logits
from evaluation.metrics import agreement, kl_divergence
from loaders import PlanRequest, load_dataset, make_plan, resolve_dataset
from models import load_model
from quant import QuantizationManager

SEED, SAMPLES, BATCH, HELD_OUT = 1005, 1024, 256, 8192
SHORT = 800  # steps of all rows but one
HEADER = ("distillation", "KL to float", "agreement %", "CPU s")
CHOICES: dict[str, tuple[str, dict[str, Any]]] = {
    "as it is": ("distill", {"distill_steps": 1600}),
    f"{SHORT} steps, as all rows below": ("distill", {}),
    "half the steps, twice the images in each": (
        "distill",
        {"distill_batch": 32, "distill_steps": SHORT // 2},
    ),
    "features 2": ("distill", {"distill_features": 2.0}),
    "no features": ("distill", {"distill_features": 0.0}),
    "scales at half the rate": ("distill", {"distill_lr_scale": 1e-2}),
    "outputs not normalised": ("distill", {"distill_batch_norm": "off"}),
    "from rtn without matched moments": ("rtn", {}),
    "images as they are": ("distill", {"distill_augment": "none"}),
    "from gpfq": ("gpfq", {}),
}


def measure(name: str, options: argparse.Namespace) -> str:
    """The row of a choice."""
    torch.set_num_threads(1)
    method, settings = CHOICES[name]
    model = load_model("cifar_resnet20", str(options.checkpoint))
    dataset, path, _ = resolve_dataset("auto", options.data_path)
    images = load_dataset(dataset, path, model.entry.preprocess)
    plan = make_plan(images, PlanRequest(SEED), SAMPLES).decoded(None)
    used, train = set(plan.calibration.ids), images.train
    assert train is not None
    others = [i for i, key in enumerate(train.ids) if key not in used]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(SEED))
    held = train.subset([others[i] for i in order[:HELD_OUT].tolist()])
    settings = {"n_bits_w": 2, "n_bits_a": 2, "distill_steps": SHORT, "seed": SEED, **settings}
    made = QuantizationManager().get_quantization_method(method, **settings)
    start = time.process_time()
    quantized = made.quantize_model(model.network, None, plan.calibration.batches(BATCH))
    seconds = time.process_time() - start
    networks = {"quantized": quantized, "float": model.network.eval()}
    logits = infer_logits(networks, held.batches(BATCH), torch.device("cpu")).logits
    divergence = kl_divergence(logits["float"], logits["quantized"])
    agreeing = 100 * agreement(logits["quantized"], logits["float"])
    return table_line((name, f"{divergence:.3f}", f"{agreeing:.2f}", f"{seconds:.0f}"))


def main(argv: Sequence[str] | None = None) -> int:
    parser = table_parser("benchmarks.distillation_choices", __doc__)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    options = parser.parse_args(argv)
    sys.stdout.write(table_head(HEADER))
    with ProcessPoolExecutor(options.jobs) as pool:
        for line in pool.map(partial(measure, options=options), CHOICES):
            sys.stdout.write(line)
            sys.stdout.flush()
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(run_main(main))
