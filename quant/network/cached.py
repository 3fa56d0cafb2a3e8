"""Where cached activations are kept: in memory, or in files that are mapped into memory."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError, RunError
from common.machine import available_memory, free_disk, in_gb

SHARE = 0.5  # of the available memory that cached activations may take


@dataclass(frozen=True)
class ActivationCache:
    """Allocates cached activations.

    Attributes:
        folder: holds the files; None keeps the tensors in memory. No name leads to a file, so that
            its space is free once its tensor is gone, however the run ends.
    """

    folder: Path | None = None

    def joined(self, batches: Iterable[Tensor], like: Tensor) -> Tensor:
        """Join batches to one tensor with as many rows as ``like``, on its device.

        It is in pinned memory if ``like`` is.

        Raises:
            RunError: the disk is too small.
        """
        whole: Tensor | None = None
        start = 0
        for batch in batches:
            if whole is None:
                whole = self._empty((len(like), *batch.shape[1:]), batch, like)
            whole[start : start + len(batch)] = batch
            start += len(batch)
        if whole is None or start != len(like):
            raise ValueError(f"batches must have {len(like)} rows in all, got {start}")
        return whole

    def _empty(self, shape: Sequence[int], batch: Tensor, like: Tensor) -> Tensor:
        if self.folder is not None and like.device.type == "cpu":
            return _mapped(shape, self.folder)
        whole = torch.empty(
            shape, dtype=batch.dtype, device=like.device, pin_memory=like.is_pinned()
        )
        is_last = batch.dim() == 4 and batch.is_contiguous(memory_format=torch.channels_last)
        if is_last and not batch.is_contiguous():
            return whole.to(memory_format=torch.channels_last)
        return whole


def _mapped(shape: Sequence[int], folder: Path) -> Tensor:
    """A float32 tensor in a file without a name, whose space is reserved at once."""
    size = math.prod(shape) * np.dtype(np.float32).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=tuple(shape)))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise RunError(
            f"disk of {folder} must have {in_gb(size)} free for cached activations, got "
            f"{in_gb(free_disk(folder))}"
        ) from error


def choose_cache(place: str, size: float, folder: Path | None) -> ActivationCache:
    """The cache for activations that take ``size`` bytes.

    Args:
        place: one of ``quant.settings.CACHE_PLACES``; "auto" takes memory if the activations fit
            into half of it.
        folder: where files would be; None: the system's folder for temporary files.

    Raises:
        InputError: the disk is too small.
    """
    if place == "memory" or (place == "auto" and size <= SHARE * available_memory()):
        return ActivationCache()
    folder = folder or Path(tempfile.gettempdir())
    if free_disk(folder) < size:
        raise InputError(
            f"disk of {folder} must have {in_gb(size)} free for cached activations, got "
            f"{in_gb(free_disk(folder))}"
        )
    return ActivationCache(folder)
