"""Train the shipped network for the embedded digits.

python -m tools.train_digits
    writes models/weights/digits_resnet.pt, about a minute on two cores
"""

from __future__ import annotations

from common.start import run_main

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from common.console import EXIT_OK, setup_logging
from common.errors import InputError
from common.files import atomic_file, read_torch_file, require_writable
from common.marks import require_own_file
from common.torch_setup import seed_all
from evaluation.inference import infer_logits
from evaluation.metrics import topk_accuracy
from loaders import load_dataset
from loaders.imageset import MemoryImages
from models.digits import DIGITS_ENTRY, DIGITS_WEIGHTS
from models.entries import ModelEntry

logger = logging.getLogger(__name__)


def train(images: MemoryImages, epochs: int, seed: int) -> torch.nn.Module:
    """Train by SGD on augmented images; returns the network in evaluation mode."""
    seed_all(seed)
    network = DIGITS_ENTRY.build(DIGITS_ENTRY.num_classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + epoch))
        for batch, labels in images.subset(order.tolist()).augmented(seed + epoch).batches(64):
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels).backward()
            optimizer.step()
        schedule.step()
    return network.eval()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tools.train_digits", description=__doc__)
    parser.add_argument("--epochs", type=int, default=60, help="training epochs (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    parser.add_argument(
        "--output",
        type=Path,
        default=DIGITS_WEIGHTS,
        help="file of the weights (default models/weights/digits_resnet.pt)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that holds no weights of this network"
    )
    return parser


def is_weights(path: Path, entry: ModelEntry = DIGITS_ENTRY) -> bool:
    """Whether a file holds weights of a network, as this script writes them."""
    try:
        content = read_torch_file(path)
        network = entry.build(entry.num_classes or 0)
        return bool(content["state_dict"].keys() == network.state_dict().keys())
    except (InputError, OSError, KeyError, TypeError, AttributeError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: _main(build_parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> int:
    setup_logging()
    require_writable(options.output.parent)
    what = "new or a file of weights of this network"
    require_own_file(options.output, options.force, is_weights, what)
    digits = load_dataset("digits", None, DIGITS_ENTRY.preprocess)
    network = train(digits.train, options.epochs, options.seed)
    result = infer_logits({"network": network}, digits.val.batches(100), torch.device("cpu"))
    top1 = topk_accuracy(result.logits["network"], result.targets)
    logger.info("Top-1 on the %d evaluation images: %.2f %%", len(digits.val), 100 * top1)
    with atomic_file(options.output) as part:
        torch.save({"state_dict": network.state_dict(), "top1": top1}, part)
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
