"""Vision transformers for small images: ``digits_vit`` and ``cifar_vit``, with their weights.

torchvision's ``VisionTransformer`` (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021,
arXiv:2010.11929) with small patches. ``python -m tools.train_vit`` trains the weights.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from torch import nn

from common.torch_setup import import_torchvision
from loaders.transforms import Preprocess
from models.digits import DIGITS_ENTRY
from models.entries import IMAGENET_MEAN, IMAGENET_STD, ModelEntry

WEIGHTS = Path(__file__).parent / "weights"


def _vision_transformer(
    image_size: int, patch_size: int, width: int, depth: int, heads: int, num_classes: int
) -> nn.Module:
    """A transformer of ``depth`` blocks whose MLPs are four times as wide as its tokens."""
    return import_torchvision().models.VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=depth,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=num_classes,
    )


DIGITS_VIT = ModelEntry(
    arch="digits_vit",
    build=partial(_vision_transformer, 8, 2, 48, 4, 4),
    num_classes=10,
    preprocess=DIGITS_ENTRY.preprocess,
    image_size=8,
    shipped_weights=WEIGHTS / "digits_vit.pt",
    # For a demonstration that takes less than a minute instead of the papers' hour.
    method_defaults={"iters_w": 300, "lr_round": 1e-2},
)
CIFAR_VIT = ModelEntry(
    arch="cifar_vit",
    build=partial(_vision_transformer, 32, 4, 128, 6, 4),
    num_classes=10,
    preprocess=Preprocess(IMAGENET_MEAN, IMAGENET_STD),
    image_size=32,
    shipped_weights=WEIGHTS / "cifar_vit.pt",
)
