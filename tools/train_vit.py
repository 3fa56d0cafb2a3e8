"""Train the shipped vision transformers: ``digits_vit`` for the embedded digits, ``cifar_vit``.

python -m tools.train_vit digits_vit
python -m tools.train_vit cifar_vit --data_path cifar10_jpeg --teacher cifar10_resnet20.pt
    writes models/weights/NAME.pt, in half precision
"""

from __future__ import annotations

from common.start import run_main

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.console import EXIT_OK, setup_logging
from common.errors import InputError
from common.files import atomic_file, require_writable
from common.marks import require_own_file
from common.torch_setup import seed_all
from evaluation.inference import infer_logits
from evaluation.metrics import topk_accuracy
from loaders import load_dataset
from loaders.imageset import ImageSet
from models import load_model
from models.entries import ModelEntry
from models.vit import CIFAR_VIT, DIGITS_VIT
from tools.train_digits import is_weights

WARM_UP = 0.05  # share of the steps in which the learning rate grows
TEACHER_SHARE = 0.5  # of the loss, where there is a teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
        dropped_epochs: first epochs, in which each batch keeps half of its patches, at random.
    """

    entry: ModelEntry
    epochs: int
    dropped_epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.05


RECIPES = {
    "digits_vit": Recipe(DIGITS_VIT, epochs=60, dropped_epochs=0, batch_size=64, lr=2e-3),
    "cifar_vit": Recipe(CIFAR_VIT, epochs=20, dropped_epochs=15, batch_size=128, lr=1e-3),
}


def forward_with_half(network: Any, images: Tensor) -> Tensor:
    """The logits of torchvision's transformer from a random half of the patches.

    Fewer tokens make a step twice as fast (PatchDropout, Liu et al., WACV 2023, arXiv:2208.07220).
    """
    positions = network.encoder.pos_embedding
    tokens = network._process_input(images) + positions[:, 1:]
    tokens = tokens[:, torch.randperm(tokens.shape[1])[: tokens.shape[1] // 2]]
    start = (network.class_token + positions[:, :1]).expand(len(images), -1, -1)
    tokens = network.encoder.ln(network.encoder.layers(torch.cat([start, tokens], dim=1)))
    return network.heads(tokens[:, 0])


def loss_of(logits: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
    """Cross-entropy to the labels and, in equal parts, to the teacher's probabilities.

    Args:
        logits, taught: (B, classes); ``taught`` are the teacher's logits.
    """
    loss = F.cross_entropy(logits, labels)
    if taught is None:
        return loss
    return torch.lerp(loss, F.cross_entropy(logits, taught.softmax(1)), TEACHER_SHARE)


def train(
    recipe: Recipe, images: ImageSet, seed: int, teacher: Callable[[Tensor], Tensor] | None
) -> nn.Module:
    """Train by AdamW on augmented images; returns the network in evaluation mode."""
    seed_all(seed)
    network = recipe.entry.build(recipe.entry.num_classes or 0)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    steps = recipe.epochs * -(-len(images) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=WARM_UP, cycle_momentum=False
    )
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + epoch))
        halved, total = epoch < recipe.dropped_epochs, 0.0
        shuffled = images.subset(order.tolist()).augmented(seed + epoch)
        for batch, labels in shuffled.batches(recipe.batch_size):
            taught = None
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher(batch)
            logits = forward_with_half(network, batch) if halved else network(batch)
            loss = loss_of(logits, labels, taught)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach()) * len(batch)
        logger.info("epoch %d of %d: loss %.4f", epoch + 1, recipe.epochs, total / len(images))
    return network.eval()


def _images(recipe: Recipe, options: argparse.Namespace) -> tuple[ImageSet, ImageSet]:
    """The images to train on and to evaluate on.

    Raises:
        InputError: flags do not fit the network, or there are no training images.
    """
    if recipe.entry is DIGITS_VIT:
        for name in ("data_path", "teacher"):
            if getattr(options, name) is not None:
                raise InputError(f"{name} must be left out for digits_vit, got it")
    elif options.data_path is None:
        raise InputError("data_path must be a folder of images with train and val, got none")
    kind = "digits" if options.data_path is None else "imagenet"
    data = load_dataset(kind, options.data_path, recipe.entry.preprocess)
    if data.train is None:
        raise InputError(
            f"data_path must hold train and val, got {options.data_path} without train"
        )
    return data.train.loaded(), data.val


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools.train_vit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("network", choices=sorted(RECIPES), help="network to train")
    parser.add_argument(
        "--data_path", type=Path, help="folder of images with train and val, for cifar_vit"
    )
    parser.add_argument(
        "--teacher", type=Path, help="checkpoint of a cifar_resnet20 that teaches cifar_vit"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default 0)")
    parser.add_argument(
        "--output", type=Path, help="file of the weights (default models/weights/NAME.pt)"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a file that holds no weights of this network"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_main(lambda: _main(build_parser().parse_args(argv)))


def _main(options: argparse.Namespace) -> int:
    setup_logging()
    recipe = RECIPES[options.network]
    output = options.output or recipe.entry.shipped_weights
    require_writable(output.parent)
    what = "new or a file of weights of this network"
    require_own_file(output, options.force, lambda path: is_weights(path, recipe.entry), what)
    train_images, val = _images(recipe, options)
    teacher = None
    if options.teacher is not None:
        teacher = load_model("cifar_resnet20", options.teacher).network
    network = train(recipe, train_images, options.seed, teacher)
    network.half().float()
    result = infer_logits({"network": network}, val.batches(100), torch.device("cpu"))
    top1 = topk_accuracy(result.logits["network"], result.targets)
    logger.info("Top-1 on the %d evaluation images: %.2f %%", len(val), 100 * top1)
    state = {name: value.half() for name, value in network.state_dict().items()}
    with atomic_file(output) as part:
        torch.save({"state_dict": state, "top1": top1}, part)
    return EXIT_OK


if __name__ == "__main__":
    raise SystemExit(main())
