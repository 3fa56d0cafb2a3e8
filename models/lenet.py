"""LeNet-5 with ReLUs and max-pooling.

LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proceedings of the IEEE
86(11), 1998, section II.B.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from loaders.transforms import Preprocess
from models.entries import ModelEntry

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081


class LeNet(nn.Module):
    """Network for images of 28 x 28 or 32 x 32 pixels and three channels (grey repeated)."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.adaptive_max_pool2d(x, 5).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


LENET_ENTRY = ModelEntry(
    "lenet", LeNet, 10, Preprocess((MNIST_MEAN,) * 3, (MNIST_STD,) * 3), image_size=28
)
