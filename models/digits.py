"""``digits_resnet``: a CIFAR ResNet of depth 8 for the embedded 8 x 8 digits, with its weights.

``python -m tools.train_digits`` trains the weights.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from loaders.transforms import Preprocess
from models.cifar_resnet import CifarResNet
from models.entries import ModelEntry

DIGITS_DEPTH = 8
DIGITS_WEIGHTS = Path(__file__).parent / "weights" / "digits_resnet.pt"

DIGITS_ENTRY = ModelEntry(
    arch="digits_resnet",
    build=partial(CifarResNet, DIGITS_DEPTH),
    num_classes=10,
    preprocess=Preprocess(mean=(0.3053,) * 3, std=(0.3760,) * 3),
    image_size=8,
    shipped_weights=DIGITS_WEIGHTS,
    # For a demonstration that takes seconds instead of the papers' hour.
    method_defaults={"iters_w": 1000, "lr_round": 3e-3},
)
