"""The handwritten digits that scikit-learn ships: 1,297 training and 500 evaluation images."""

from __future__ import annotations

from importlib.metadata import distribution

import numpy as np
import torch

from loaders.dataset import Dataset
from loaders.imageset import MemoryImages
from loaders.transforms import Preprocess

EVALUATION_PER_CLASS = 50
NUM_CLASSES = 10


def split_digits(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the evaluation images, both ascending.

    50 images of each class, drawn with ``RandomState(0)``, are for evaluation.
    """
    generator = np.random.RandomState(0)
    shuffled = [
        generator.permutation(np.flatnonzero(labels == label)) for label in range(NUM_CLASSES)
    ]
    train = np.sort(np.concatenate([indices[EVALUATION_PER_CLASS:] for indices in shuffled]))
    evaluation = np.sort(np.concatenate([indices[:EVALUATION_PER_CLASS] for indices in shuffled]))
    return train, evaluation


def read_digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 images and (1797,) int64 labels, from the table in scikit-learn's folder.

    scikit-learn is not imported for it, which takes five seconds of processor time.
    """
    path = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(path), delimiter=",", dtype=np.int64)
    return table[:, :-1].reshape(-1, 8, 8).astype(np.uint8), table[:, -1]


def load_digits_data(preprocess: Preprocess) -> Dataset:
    """The digits as 3 x 8 x 8 images, grey repeated three times, pixels from 0 to 16."""
    images, labels = read_digits()
    pixels = torch.from_numpy(images).unsqueeze(1).repeat(1, 3, 1, 1)

    def part(name: str, indices: np.ndarray) -> MemoryImages:
        return MemoryImages(
            pixels[torch.from_numpy(indices)],
            labels[indices],
            [f"{name}/{index:04d}" for index in indices],
            preprocess,
            white=16,
            crop_padding=1,
            flip=False,
        )

    train, evaluation = split_digits(labels)
    classes = [str(label) for label in range(NUM_CLASSES)]
    return Dataset("digits", classes, part("train", train), part("val", evaluation))
