"""Inference of networks over a loader.

Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.console import progress
from evaluation.batches import forward_batches


@dataclass(frozen=True)
class Inference:
    """Logits of several networks on the same images."""

    logits: dict[str, np.ndarray]  # name -> (N, C) float32
    targets: np.ndarray  # (N,) int64


@torch.inference_mode()
def infer_logits(
    networks: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    description: str = "inference",
    total: int | None = None,
    on_batch: Callable[[dict[str, np.ndarray], np.ndarray], None] | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> Inference:
    """Run all networks over the batches in one pass, so that each image is decoded once.

    Args:
        networks: in evaluation mode, on ``device``.
        batches: (images (B, 3, H, W) float32, labels (B,)).
        total: number of batches, for the progress bar.
        on_batch: called after each batch with its logits by name and its labels.
        known: (N, C) logits of further networks on the same images, computed earlier.
    """
    known = known or {}
    done = 0
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in networks}
    targets: list[np.ndarray] = []
    for images, labels in progress(batches, description, total):
        parts = forward_batches(images.to(device, non_blocking=True), device, len(images))
        logits = {name: _logits(network, parts) for name, network in networks.items()}
        logits |= {name: array[done : done + len(labels)] for name, array in known.items()}
        done += len(labels)
        for name in networks:
            values = logits[name]
            outputs[name].append(values)
        targets.append(labels.numpy())
        if on_batch is not None:
            on_batch(logits, targets[-1])
    whole = {name: np.concatenate(parts) for name, parts in outputs.items()} | dict(known)
    return Inference(whole, np.concatenate(targets).astype(np.int64))


def _logits(network: nn.Module, parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([network(part).float().cpu() for part in parts]).numpy()
