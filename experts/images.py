"""The two sources of a data set, train and test, and the images of its splits."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from common.errors import InputError
from experts.stored_splits import StoredSplits, read_splits, splits_folder
from loaders import ImageSet, load_dataset, resolve_dataset
from loaders.transforms import Preprocess
from models.digits import DIGITS_ENTRY
from models.entries import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD
from models.expert import BACKBONES
from models.lenet import LENET_ENTRY

CIFAR100_MEAN = (0.5071, 0.4867, 0.4408)
CIFAR100_STD = (0.2675, 0.2565, 0.2761)
STATISTICS = {
    "digits": DIGITS_ENTRY.preprocess,
    "mnist": LENET_ENTRY.preprocess,
    "cifar10": Preprocess(CIFAR_MEAN, CIFAR_STD),
    "cifar100": Preprocess(CIFAR100_MEAN, CIFAR100_STD),
    "imagenet": Preprocess(IMAGENET_MEAN, IMAGENET_STD),
}


def default_backbone(dataset: str) -> str:
    """The default backbone for a data set."""
    return "resnet18" if dataset == "imagenet" else "cifar_resnet32"


def network_input(dataset: str, backbone: str) -> Preprocess:
    """Preprocessing with mean and deviation of the data set and the image size of the backbone."""
    size = BACKBONES[backbone].preprocess
    return replace(STATISTICS[dataset], resize=size.resize, crop=size.crop)


@dataclass(frozen=True)
class Choice:
    """The data set and splits of a command, and the reason for choosing this data set."""

    dataset: str
    root: Path | None
    reason: str
    splits: StoredSplits
    class_order: str | None = None

    def describe(self) -> str:
        return f"Dataset: {self.dataset} ({self.reason})"

    def open(self, preprocess: Preprocess, download: bool, workers: int | None) -> Sources:
        """The sources of the data set.

        Raises:
            InputError: as ``open_sources``, or its classes do not have the order of the splits.
        """
        sources = open_sources(
            self.dataset, self.root, preprocess, download, workers, self.class_order
        )
        self.splits.require_order(sources.classes)
        return sources


def resolve_source(options: argparse.Namespace) -> tuple[str, Path | None, str]:
    """Name of the data set, its folder, and the reason for choosing it.

    Raises:
        InputError: it is unknown, or not in ``--data-root``.
    """
    try:
        return resolve_dataset(options.dataset, options.data_root)
    except InputError as error:
        raise InputError(str(error).replace("data_path", "data-root")) from None


def choose(options: argparse.Namespace) -> Choice:
    """The data set that the flags name, or that the given splits belong to.

    Raises:
        InputError: it is unknown, has no splits, or the splits belong to another data set.
    """
    name, root, reason = resolve_source(options)
    splits = read_splits(splits_folder(name, options.splits_dir), name)
    if options.dataset == "auto" and splits.dataset != name:
        name, reason = splits.dataset, f"the splits in {splits.folder} are of it"
    if splits.dataset != name:
        raise InputError(
            f"splits-dir must hold splits of {name}, got those of {splits.dataset} in "
            f"{splits.folder}"
        )
    return Choice(name, root, reason, splits, options.class_order)


@dataclass(frozen=True)
class Sources:
    """The images that the indices of splits refer to, with the preprocessing of evaluation."""

    train: ImageSet
    test: ImageSet
    classes: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "test": len(self.test)}

    def images(self, split: str, indices: Sequence[int]) -> ImageSet:
        """The images of a split, in the order of its indices, decoded where they fit in memory."""
        source = self.train if split == "train" else self.test
        return source.subset(indices).loaded()


def open_sources(
    dataset: str,
    root: Path | None,
    preprocess: Preprocess,
    download: bool,
    workers: int | None,
    class_order: str | None = None,
) -> Sources:
    """Read or list a data set.

    Args:
        workers: image files decoded in parallel; None: one less than there are cores, at most 4.
        class_order: as in ``load_dataset``.

    Raises:
        InputError: it is missing or damaged; the error says what to do.
    """
    if workers is not None and workers < 0:
        raise InputError(f"num_workers must be at least 0, got {workers}")
    threads = min(4, (os.cpu_count() or 2) - 1) if workers is None else workers
    root = None if dataset == "digits" else root
    try:
        data = load_dataset(
            dataset,
            root,
            preprocess,
            download=download,
            threads=max(1, threads),
            class_order=class_order,
        )
    except InputError as error:
        text = str(error).replace("data_path", "data-root")
        raise InputError(f"{text}; --dataset digits needs no files") from None
    if data.train is None:
        raise InputError(f"{root} must hold train/, got val/ alone")
    return Sources(data.train, data.val, data.classes)


def read_source_labels(choice: Choice) -> dict[str, np.ndarray]:
    """The (N,) labels of the sources ``train`` and ``test``.

    Raises:
        InputError: the data set is missing, damaged, or without ``train``, or its classes do not
            have the order of the splits.
    """
    sources = choice.open(STATISTICS[choice.dataset], download=False, workers=None)
    return {"train": sources.train.labels, "test": sources.test.labels}
