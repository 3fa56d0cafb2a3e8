"""Signs that a network and the images do not belong together."""

from __future__ import annotations

import math

import numpy as np

from common.errors import InputError
from evaluation.metrics import agreement, mean_confidence, topk_accuracy
from loaders import ImageSet
from models import ModelEntry
from pipeline.networks import NetworkPair

MAX_DOUBT = 0.2  # mean confidence minus accuracy of a network on its own kind of images
FEW_IMAGES = 256
TOP1_TOLERANCE = 1.0  # points
TOO_LARGE = 2  # times the size that a network was made for


def doubt_of_labels(logits: np.ndarray, labels: np.ndarray) -> str | None:
    """A warning if the float network is far less accurate than confident, or as good as chance.

    Args:
        logits: (N, C) of the float network.
        labels: (N,) int.
    """
    top1, confidence = topk_accuracy(logits, labels), mean_confidence(logits)
    chance = 1 / logits.shape[1]
    if confidence - top1 > MAX_DOUBT:
        return (
            f"the float network's Top-1 is {100 * top1:.2f} %, its mean confidence "
            f"{100 * confidence:.2f} %; likely reasons: labels in another order, another "
            "preprocessing, or images unlike those it was trained on"
        )
    if top1 <= chance + 2 * math.sqrt(chance * (1 - chance) / len(labels)):
        return (
            f"the float network's Top-1 is {100 * top1:.2f} %, no better than chance; likely "
            "reasons: random weights, or labels in another order"
        )
    return None


def doubt_of_pair(quantized: np.ndarray, reference: np.ndarray) -> str | None:
    """A warning if (N, C) logits agree no more than rows of two tables in any order would."""
    found = 100 * agreement(quantized, reference)
    shares = [
        np.bincount(logits.argmax(axis=1), minlength=reference.shape[1]) / len(logits)
        for logits in (quantized, reference)
    ]
    chance = float(shares[0] @ shares[1])
    if found / 100 > chance + 2 * math.sqrt(chance * (1 - chance) / len(reference)):
        return None
    return (
        f"quantized and float logits agree on {found:.2f} % of the samples, no more than by chance "
        f"({100 * chance:.2f} %); likely reasons: rows in another order, or a network that the "
        "quantization has destroyed"
    )


def doubt_of_size(entry: ModelEntry, shape: tuple[int, ...]) -> str | None:
    """A warning if images are far larger than those that the network was made for.

    Args:
        shape: (channels, height, width) of the images.
    """
    made_for = entry.image_size
    if made_for is None or max(shape[1:]) < TOO_LARGE * made_for:
        return None
    return (
        f"images of {shape[1]} x {shape[2]} pixels for {entry.arch}, which was made for "
        f"{made_for} x {made_for}; --input_size {made_for} resizes them"
    )


def early_doubts(entry: ModelEntry, networks: NetworkPair, images: ImageSet) -> list[str]:
    """The warnings that a few labelled images give before the network is quantized."""
    few = images.subset(range(min(FEW_IMAGES, len(images))))
    batch = next((batch for batch, _ in few.batches(1)), None)
    if batch is None:
        return []
    doubts = (
        doubt_of_size(entry, tuple(batch.shape[1:])),
        doubt_of_labels(networks.float_logits(few), few.labels),
    )
    return [doubt for doubt in doubts if doubt is not None]


def require_top1(logits: np.ndarray, labels: np.ndarray, expected: float) -> None:
    """Check that the float network is as accurate as the user says.

    Raises:
        InputError: its Top-1 differs by more than ``TOP1_TOLERANCE`` points from ``expected``.
    """
    top1 = 100 * topk_accuracy(logits, labels)
    if abs(top1 - expected) > TOP1_TOLERANCE:
        raise InputError(
            f"float Top-1 must be within {TOP1_TOLERANCE:g} point of --expect_top1 {expected:g}, "
            f"got {top1:.2f} on {len(labels)} images"
        )
