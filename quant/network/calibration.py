"""The calibration set: the first images of a loader, checked."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError

logger = logging.getLogger(__name__)


def collect_calibration(loader: Iterable, num_samples: int) -> tuple[Tensor, Tensor | None]:
    """Collect the first ``num_samples`` images of a loader, and their labels if it has any.

    Args:
        loader: yields (images, labels, ...) batches or images alone, as tensors or numpy arrays of
            floating-point numbers.

    Returns:
        (N, channels, height, width) float32 tensor and (N,) int64 tensor or None; N is smaller if
        the loader ends early, which is logged.

    Raises:
        InputError: the loader is none, or yields no image or something else than finite images.
    """
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        got = None if loader is None else type(loader).__name__
        raise InputError(f"train_loader must be an iterable of batches, got {got}")
    images: list[Tensor] = []
    labels: list[Tensor] = []
    count = 0
    for batch in loader:
        found, marks = _parts(batch)
        images.append(_usable(found)[: num_samples - count])
        if marks is not None:
            labels.append(torch.as_tensor(marks)[: num_samples - count])
        count += len(images[-1])
        if count >= num_samples:
            break
    if count == 0:
        raise InputError("calibration set must hold at least one image, got an empty loader")
    if count < num_samples:
        logger.info("calibration set: %d images, fewer than num_samples = %d", count, num_samples)
    shapes = {tuple(part.shape[1:]) for part in images}
    if len(shapes) > 1:
        raise InputError(f"images must have one shape, got {sorted(shapes)}")
    return torch.cat(images), torch.cat(labels) if len(labels) == len(images) else None


def _parts(batch: Any) -> tuple[Any, Any]:
    """The images of a batch, and its labels or None."""
    if isinstance(batch, (Tensor, np.ndarray)):
        return batch, None
    if isinstance(batch, Mapping) or not hasattr(batch, "__getitem__") or len(batch) == 0:
        form = (
            f"a dict with keys {list(batch)}" if isinstance(batch, Mapping) else repr(type(batch))
        )
        raise InputError(f"batches must be images or (images, labels), got {form}")
    return batch[0], batch[1] if len(batch) > 1 else None


def _usable(images: Any) -> Tensor:
    if not isinstance(images, (Tensor, np.ndarray)):
        raise InputError(f"images must be a tensor, got {type(images).__name__}")
    tensor = torch.as_tensor(images)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(f"images must be float32, scaled as the network expects, got {kind}")
    if not torch.isfinite(tensor).all():
        raise InputError("images must be finite, got NaN or Inf in the calibration set")
    return tensor.float()
