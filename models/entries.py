"""Entries of known networks: input, class count, weights and published settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from loaders.transforms import Preprocess

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class ModelEntry:
    """One known architecture.

    Attributes:
        build: number of classes -> network with random weights.
        num_classes: number of classes of the published weights; used if neither a checkpoint nor
            the data determines it. None: the network is the user's own and has its own number.
        image_size: pixels of the images that a network for small images was made for.
        shipped_weights: a checkpoint in this repository, loaded if no other weights are given.
        method_defaults: method settings whose default differs for this architecture.
        pretrained: downloads the published weights and returns the network.
        complete: changes a network as the weights of a checkpoint file require.
        pretrained_preprocess: the input transform that those weights expect.
    """

    arch: str
    build: Callable[[int], nn.Module]
    num_classes: int | None
    preprocess: Preprocess
    image_size: int | None = None
    shipped_weights: Path | None = None
    method_defaults: Mapping[str, Any] = field(default_factory=dict)
    pretrained: Callable[[], nn.Module] | None = None
    pretrained_preprocess: Preprocess | None = None
    complete: Callable[[nn.Module, Path], None] | None = None

    def input_for(self, weights: str | None) -> Preprocess:
        """The input transform for the weights ``weights`` (None: not torchvision's)."""
        return self.preprocess if weights is None else self.pretrained_preprocess or self.preprocess
