"""The fitted correction as tensor operations, for logits on a GPU and for the ONNX graph.

Only methods of the tensors are called, so that nothing here imports torch.

Letters: N samples, C classes, K clusters, D dimensions of the projection.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from correction.lines import Lines, blended
from correction.partition import Partition


class TensorForm(NamedTuple):
    """The constants of a fitted correction, as float32 arrays or tensors."""

    components: Any  # (C, D)
    mean: Any  # (D,) projected mean of the fitting logits
    centres: Any  # (D, K)
    sizes: Any  # (K,) squared length of each centre
    gain: Any  # (K, C)
    offset: Any  # (K, C)


def tensor_form(partition: Partition, lines: Lines, alpha: float) -> TensorForm:
    """The constants of a fitted correction as arrays."""
    components = partition.projection.components.T
    gain, offset = blended(lines, alpha)
    arrays = (
        components,
        partition.projection.mean @ components,
        partition.centres.T,
        np.square(partition.centres).sum(axis=1),
        gain,
        offset,
    )
    return TensorForm(*(np.ascontiguousarray(array, dtype=np.float32) for array in arrays))


def corrected_tensor(logits: Any, form: TensorForm) -> Any:
    """Correct (N, C) logits; the tensors of ``form`` must be on the same device."""
    projected = logits @ form.components - form.mean
    cluster = (form.sizes - 2 * (projected @ form.centres)).argmin(1)
    return form.gain[cluster] * logits + form.offset[cluster]
