"""CIFAR-10, CIFAR-100 and MNIST in torchvision's layout on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import InputError, first_line
from common.torch_setup import import_torchvision
from loaders.dataset import Dataset
from loaders.imageset import MemoryImages
from loaders.transforms import Preprocess


@dataclass(frozen=True)
class Layout:
    """torchvision's class for a data set, the folder that it reads, and whether images may flip."""

    class_name: str
    folder: str
    flip: bool


LAYOUTS = {
    "cifar10": Layout("CIFAR10", "cifar-10-batches-py", flip=True),
    "cifar100": Layout("CIFAR100", "cifar-100-python", flip=True),
    "mnist": Layout("MNIST", "MNIST/raw", flip=False),
}


def load_torchvision_set(name: str, root: Path, preprocess: Preprocess, download: bool) -> Dataset:
    """Read a data set below ``root``; it is downloaded only with ``download``.

    Raises:
        InputError: the files are missing or damaged, or the download fails.
    """
    layout = LAYOUTS[name]
    if not download and not (root / layout.folder).is_dir():
        raise InputError(
            f"{name} must be in {root / layout.folder} (--download fetches it), got no such folder"
        )
    source_class = getattr(import_torchvision().datasets, layout.class_name)
    parts = {}
    for split in ("train", "val"):
        try:
            source = source_class(root, train=split == "train", download=download)
        except Exception as error:  # noqa: BLE001  (torchvision's readers check little)
            reason = first_line(error)
            raise InputError(f"{name} below {root} must be complete, got: {reason}") from None
        parts[split] = _in_memory(source, split, preprocess, layout.flip)
    return Dataset(name, list(source.classes), parts["train"], parts["val"])


def _in_memory(source, split: str, preprocess: Preprocess, flip: bool) -> MemoryImages:
    pixels = torch.as_tensor(source.data)  # (N, H, W, 3) or, grey, (N, H, W)
    pixels = (
        pixels.permute(0, 3, 1, 2).contiguous()
        if pixels.dim() == 4
        else pixels.unsqueeze(1).repeat(1, 3, 1, 1)
    )
    labels = np.asarray(source.targets, dtype=np.int64)
    ids = [f"{split}/{index:06d}" for index in range(len(labels))]
    return MemoryImages(
        pixels, labels, ids, preprocess, crop_padding=max(1, pixels.shape[-1] // 8), flip=flip
    )
