"""Runs the float and the quantized network over images, and caches the float network's logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.files import lock_of, locked
from common.provenance import SaveLog
from common.sealed import read_array, write_array
from evaluation.inference import Inference, infer_logits
from loaders import ImageSet
from logits_io.naming import FULL_PRECISION, QUANTIZED, cached_logits_file

OnBatch = Callable[[dict[str, np.ndarray], np.ndarray], None]


@dataclass(frozen=True)
class NetworkPair:
    """The float network, and how both networks are run.

    Attributes:
        network: the float network in evaluation mode, on ``device``.
        weights_digest: digest of the float network's weights.
        cache_dir: folder where logits of the float network are kept for other runs; None: not kept.
        saves: records a failure to write them.
    """

    network: nn.Module
    weights_digest: str
    device: torch.device
    batch_size: int
    cache_dir: Path | None
    saves: SaveLog

    def infer_both(
        self,
        quantized: nn.Module,
        images: ImageSet,
        description: str,
        on_batch: OnBatch | None = None,
        float_logits: np.ndarray | None = None,
    ) -> Inference:
        """The logits of both networks.

        Args:
            on_batch: called with the logits and labels of each batch.
            float_logits: (N, C) of the float network, if known; it is then not run.
        """
        networks = {QUANTIZED: quantized, FULL_PRECISION: self.network}
        known = {}
        if float_logits is None and self.cache_dir is not None:
            float_logits = self.float_logits(images)
        if float_logits is not None:
            known[FULL_PRECISION] = float_logits
            del networks[FULL_PRECISION]
        return self._infer(networks, images, description, on_batch, known)

    def infer_float(self, images: ImageSet) -> Inference:
        """The logits of the float network alone."""
        return self._infer({FULL_PRECISION: self.network}, images, "float network")

    def float_logits(self, images: ImageSet) -> np.ndarray:
        """(N, C) logits of the float network alone, from the cache if there is one."""
        if self.cache_dir is not None:
            return self._shared_logits(self.cache_dir, images)
        return self.infer_float(images).logits[FULL_PRECISION]

    def _infer(
        self,
        networks: dict[str, nn.Module],
        images: ImageSet,
        description: str,
        on_batch: OnBatch | None = None,
        known: dict[str, np.ndarray] | None = None,
    ) -> Inference:
        batches = -(-len(images) // self.batch_size)
        loader = images.batches(self.batch_size)
        return infer_logits(networks, loader, self.device, description, batches, on_batch, known)

    def _shared_logits(self, folder: Path, images: ImageSet) -> np.ndarray:
        """The float network's logits on ``images`` from the cache, computed if not there."""
        machine = f"{self.device.type} {torch.__version__} {torch.get_num_threads()}"
        key = f"{self.weights_digest} {images.digest()} {machine} {self.batch_size}"
        path = folder / cached_logits_file(key)
        with locked(lock_of(path)):
            known = read_array(path, key)
            if known is not None:
                return known
            logits = self.infer_float(images).logits[FULL_PRECISION]
            with self.saves.attempt("the float network's logits"):
                write_array(path, logits, key)
        return logits
