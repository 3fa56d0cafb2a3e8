"""The evaluation images of a run: their names, and those whose decision changed.

Letters: N images, C classes.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import InputError
from evaluation.metrics import log_softmax
from loaders.imageset import ImageSet

SHOWN = 12  # images whose decision changed
SIDE = 96  # pixels of such an image

logger = logging.getLogger(__name__)


def image_rows(images: ImageSet, classes: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Row, name, class and label of every evaluation image, in the order of the logits.

    Args:
        count: number of rows of the logits. Where fewer images could be read than there are names,
            it is not known which row is of which image, and nothing is returned.
    """
    if len(images) != count:
        logger.warning(
            "rows of logits have no names: %d of %d images could be read", count, len(images)
        )
        return []
    return [
        {"row": row, "image": name, "class": classes[label], "label": label}
        for row, (name, label) in enumerate(zip(images.ids, images.labels.tolist(), strict=True))
    ]


@dataclass(frozen=True)
class Change:
    """An image that the quantized network decides otherwise than the float network.

    Attributes:
        content: a PNG file.
        before, after: class and probability that the float and the quantized network give it.
    """

    row: int
    name: str
    label: str
    before: tuple[str, float]
    after: tuple[str, float]
    content: bytes


def changed_images(
    images: ImageSet, classes: Sequence[str], reference: np.ndarray, logits: np.ndarray
) -> list[Change]:
    """The changed decisions of which the float network was surest, at most ``SHOWN``.

    Args:
        reference, logits: (N, C) of the float and of the quantized network, one row per image.

    Raises:
        InputError: one of them can no longer be read.
    """
    changed = np.flatnonzero(reference.argmax(1) != logits.argmax(1))
    before, after = (np.exp(log_softmax(x[changed])) for x in (reference, logits))
    order = np.argsort(-before.max(1), kind="stable")[:SHOWN]
    if len(order) == 0:
        return []
    rows, before, after = changed[order].tolist(), before[order], after[order]
    pixels = [image for batch, _ in images.subset(rows).batches(len(rows)) for image in batch]
    if len(pixels) != len(rows):
        raise InputError(f"changed images must still be readable, got {len(pixels)} of {len(rows)}")
    return [
        Change(
            row=row,
            name=images.ids[row],
            label=classes[int(images.labels[row])],
            before=(classes[was.argmax()], float(was.max())),
            after=(classes[now.argmax()], float(now.max())),
            content=_encoded(images.preprocess.pixels(picture).numpy()),
        )
        for row, was, now, picture in zip(rows, before, after, pixels, strict=True)
    ]


def _encoded(pixels: np.ndarray) -> bytes:
    """An image (H, W, 3) uint8 as a PNG file of at most ``SIDE`` pixels on a side."""
    from PIL import Image

    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
