"""Experts: classifiers of a backbone, a linear head and a temperature.

The backbone ``cifar_resnet32`` is the CIFAR ResNet-32 of He et al. 2016 (arXiv:1512.03385, section
4.2) with projections as shortcuts (option B: 1x1 convolution and batch norm) where the shape
changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import InputError, require_known
from common.files import read_torch_file
from common.torch_setup import import_torchvision
from loaders.transforms import Preprocess
from models.cifar_resnet import WIDTHS
from models.entries import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, ModelEntry

BLOCKS_PER_STAGE = 5
EXPERT_FORMAT = "expert-checkpoint"
EXPERT_VERSION = 1
ARCH_PREFIX = "expert_"
MAX_STATISTIC = 1e3  # of pixels from 0 to 1
METADATA: Mapping[str | None, Mapping[str, type]] = {
    None: {"expert_name": str, "epoch": int, "val_accuracy": float},
    "arch": {"backbone": str, "num_classes": int},
    "dataset": {"slug": str, "mean": list, "std": list},
    "splits_sha256": {"train": str, "val": str},
}


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut that is a projection where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout_rate: float):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout_rate) if dropout_rate > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.dropout(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarBackbone(nn.Module):
    """ResNet-32 without its head: (B, 3, H, W) -> (B, 64), H and W multiples of 4."""

    def __init__(self, dropout_rate: float = 0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = self._stage(WIDTHS[0], WIDTHS[0], 1, dropout_rate)
        self.layer2 = self._stage(WIDTHS[0], WIDTHS[1], 2, dropout_rate)
        self.layer3 = self._stage(WIDTHS[1], WIDTHS[2], 2, dropout_rate)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int, dropout_rate: float) -> nn.Sequential:
        first = ProjectionBlock(in_channels, channels, stride, dropout_rate)
        others = (
            ProjectionBlock(channels, channels, 1, dropout_rate)
            for _ in range(BLOCKS_PER_STAGE - 1)
        )
        return nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return F.adaptive_avg_pool2d(out, 1).flatten(1)


def _resnet18(dropout_rate: float) -> nn.Module:
    """torchvision's ResNet-18 without its head; ``dropout_rate`` has no effect."""
    network = import_torchvision().models.resnet18(weights=None)
    network.fc = nn.Identity()
    return network


@dataclass(frozen=True)
class Backbone:
    """A feature extractor.

    Attributes:
        build: dropout rate -> network (B, 3, H, W) -> (B, ``features``).
        preprocess: default input transform; mean and std of a checkpoint replace its own.
    """

    build: Callable[[float], nn.Module]
    features: int
    preprocess: Preprocess


BACKBONES: Mapping[str, Backbone] = {
    "cifar_resnet32": Backbone(CifarBackbone, 64, Preprocess(CIFAR_MEAN, CIFAR_STD)),
    "resnet18": Backbone(
        _resnet18, 512, Preprocess(IMAGENET_MEAN, IMAGENET_STD, resize=256, crop=224)
    ),
}
BACKBONE_ALIASES = {"resnet32": "cifar_resnet32"}


def resolve_backbone(name: str) -> str:
    """Return the name of a backbone, with aliases resolved.

    Raises:
        InputError: unknown; the text lists the known ones.
    """
    return require_known("backbone", BACKBONE_ALIASES.get(name, name), BACKBONES)


class Expert(nn.Module):
    """A classifier whose logits can be calibrated by one temperature.

    Guo et al. 2017, arXiv:1706.04599, section 4.2.

    Args:
        num_classes: length of the logits.
        backbone_name: key of ``BACKBONES`` or an alias.
        dropout_rate: share of channels that are dropped in every block during training.

    Raises:
        InputError: unknown backbone.
    """

    def __init__(
        self, num_classes: int, backbone_name: str = "cifar_resnet32", dropout_rate: float = 0.0
    ):
        super().__init__()
        self.backbone_name = resolve_backbone(backbone_name)
        backbone = BACKBONES[self.backbone_name]
        self.backbone = backbone.build(dropout_rate)
        self.fc = nn.Linear(backbone.features, num_classes)
        self.temperature = nn.Parameter(torch.ones(1), requires_grad=False)
        self.reset_head()

    def reset_head(self) -> None:
        """Re-initialise the head: weights of mean 0 and standard deviation 0.01, biases 0."""
        nn.init.normal_(self.fc.weight, 0.0, 0.01)
        nn.init.zeros_(self.fc.bias)

    def get_features(self, x: Tensor) -> Tensor:
        """Features (B, features) of (B, 3, H, W) images."""
        return self.backbone(x)

    def forward(self, x: Tensor) -> Tensor:
        """Raw logits (B, C) of (B, 3, H, W) images."""
        return self.fc(self.backbone(x))

    def get_calibrated_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) divided by the temperature."""
        return self.forward(x) / self.temperature

    def set_temperature(self, temperature: float) -> None:
        """Set the temperature in place.

        Raises:
            InputError: not positive and finite.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise InputError(f"temperature must be positive and finite, got {temperature}")
        self.temperature.fill_(temperature)

    def get_num_parameters(self) -> int:
        """Number of trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def is_expert_file(content: Any) -> bool:
    """Whether the content of a checkpoint states that it is an expert."""
    return isinstance(content, dict) and content.get("format") == EXPERT_FORMAT


def expert_entry(backbone: str, preprocess: Preprocess | None = None) -> ModelEntry:
    """The entry of an expert as a network to quantize, with raw logits."""
    return ModelEntry(
        arch=f"{ARCH_PREFIX}{backbone}",
        build=lambda classes: Expert(classes, backbone),
        num_classes=10,
        preprocess=preprocess or BACKBONES[backbone].preprocess,
    )


def entry_of_file(arch: str, path: Path) -> ModelEntry | None:
    """The entry of the expert in a checkpoint, with its input transform; None if it holds none.

    Raises:
        InputError: the file cannot be used, or its backbone is not that of ``arch``.
    """
    name = arch.removeprefix(ARCH_PREFIX)
    if name not in BACKBONES:
        return None
    content = _read_expert(path)
    if content is None:
        return None
    found = resolve_backbone(content["arch"]["backbone"])
    if found != name:
        raise InputError(f"{path}: arch must be that of the expert, {found}, got {arch}")
    return expert_entry(name, input_in(content))


def input_in(content: Mapping[str, Any]) -> Preprocess:
    """The input transform of an expert, from the metadata of its checkpoint."""
    known = content["dataset"]
    own = BACKBONES[resolve_backbone(content["arch"]["backbone"])].preprocess
    return Preprocess(tuple(known["mean"]), tuple(known["std"]), own.resize, own.crop)


def require_expert_metadata(content: Mapping[str, Any], path: Path) -> None:
    """Check the metadata of an expert's checkpoint.

    Raises:
        InputError: an entry is missing, out of range, or of another type than ``save_expert``
            writes.
    """
    if content.get("format_version") != EXPERT_VERSION:
        raise InputError(
            f"{path}: format_version must be {EXPERT_VERSION}, "
            f"got {content.get('format_version')!r}"
        )
    for section, keys in METADATA.items():
        part = content if section is None else content.get(section)
        for key, kind in keys.items():
            value = part.get(key) if isinstance(part, Mapping) else None
            if not isinstance(value, kind) or isinstance(value, bool):
                where = key if section is None else f"{section}.{key}"
                raise InputError(f"{path}: {where} must be a {kind.__name__}, got {value!r}")
    resolve_backbone(content["arch"]["backbone"])
    dataset = content["dataset"]
    for name, low in (("mean", -MAX_STATISTIC), ("std", 1 / MAX_STATISTIC)):
        values = dataset[name]
        good = len(values) == 3 and all(isinstance(v, (int, float)) for v in values)
        if not good or not all(low <= v <= MAX_STATISTIC for v in values):
            raise InputError(
                f"{path}: dataset.{name} must be three numbers from {low:g} to {MAX_STATISTIC:g}, "
                f"got {values}"
            )


def _read_expert(path: Path) -> Mapping[str, Any] | None:
    content = read_torch_file(path)
    if not is_expert_file(content):
        return None
    require_expert_metadata(content, path)
    return content
