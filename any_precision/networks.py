"""ResNets whose convolutions work at several bitwidths; first convolution and classifier are float.

He et al. 2016 (arXiv:1512.03385): resnet8, 20, 32 for small images (section 4.2, projections as
shortcuts), resnet18, 34, 50 (table 1).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from any_precision.layers import LayerSpec, QuantConv2d, norm_for
from common.errors import require_known

SMALL_WIDTHS, LARGE_WIDTHS = (16, 32, 64), (64, 128, 256, 512)
SMALL_IMAGE = 64  # pixels up to which the stem has stride 1 and no pooling
VARIANTS = {
    "resnet8": (SMALL_WIDTHS, (1, 1, 1), False),
    "resnet20": (SMALL_WIDTHS, (3, 3, 3), False),
    "resnet32": (SMALL_WIDTHS, (5, 5, 5), False),
    "resnet18": (LARGE_WIDTHS, (2, 2, 2, 2), False),
    "resnet34": (LARGE_WIDTHS, (3, 4, 6, 3), False),
    "resnet50": (LARGE_WIDTHS, (3, 4, 6, 3), True),
}
EXPANSION = 4


class _Normed(nn.Module):
    """A quantized convolution and its batch norm."""

    def __init__(
        self, inputs: int, outputs: int, size: int, stride: int, spec: LayerSpec, switchable: bool
    ):
        super().__init__()
        padding = size // 2
        self.conv = QuantConv2d(inputs, outputs, size, stride, padding, bias=False, spec=spec)
        self.norm = norm_for(self.conv, outputs, switchable)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Block(nn.Module):
    """Two 3x3 convolutions, or a bottleneck, with a shortcut."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        bottleneck: bool,
        spec: LayerSpec,
        switchable: bool,
    ):
        super().__init__()
        outputs = width * EXPANSION if bottleneck else width
        shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.parts = nn.ModuleList(_Normed(*shape, spec, switchable) for shape in shapes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = _Normed(inputs, outputs, 1, stride, spec, switchable)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for part in self.parts[:-1]:
            out = F.relu(part(out))
        return F.relu(self.parts[-1](out) + self.shortcut(x))


class AnyPrecisionResNet(nn.Module):
    """A ResNet of ``VARIANTS``.

    Args:
        variant: name in ``VARIANTS``.
        num_classes: length of the logits.
        channels, image_size: number of channels and width in pixels of the input.
        spec: how the layers quantize.
        switchable_bn: use one batch norm per bitwidth.
        dropout: probability of dropping a feature before the classifier.

    Raises:
        InputError: the variant is unknown.
    """

    def __init__(
        self,
        variant: str,
        num_classes: int,
        channels: int = 3,
        image_size: int = 32,
        spec: LayerSpec | None = None,
        switchable_bn: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        widths, depths, bottleneck = VARIANTS[require_known("model_variant", variant, VARIANTS)]
        spec = spec or LayerSpec()
        large = image_size > SMALL_IMAGE
        size, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(channels, widths[0], size, stride, size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.pool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        blocks, inputs = [], widths[0]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            for index in range(depth):
                first = 2 if index == 0 and stage > 0 else 1
                blocks.append(Block(inputs, width, first, bottleneck, spec, switchable_bn))
                inputs = width * EXPANSION if bottleneck else width
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool(F.relu(self.bn1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(self.blocks(out), 1).flatten(1)
        return self.fc(self.dropout(out))
