"""Checks an exported file against its model: outputs in ONNX Runtime, and every integer."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.console import progress
from correction import ClusterAffineCorrection
from evaluation.inference import infer_logits
from evaluation.metrics import agreement, topk_accuracy
from export.containers import per_channel
from export.writing import IMAGE
from quant import QuantModel
from quant.arithmetic.packing import float_bytes, theoretical_bytes
from quant.network.layers import ActivationQuantizer, QuantLayer

LEVELS = ("disable_all", "enable_basic", "enable_extended", "enable_all")
SIMULATION, REORDERED = "simulation", "reordered"


class OnnxNetwork(nn.Module):
    """An ONNX file that runs in ONNX Runtime on the CPU.

    Args:
        level: graph optimisation level, one of ``LEVELS``; ONNX Runtime's default is the last.
    """

    def __init__(self, path: Path, level: str = LEVELS[-1]):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level.upper()}"
        )
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) float32 logits of (N, 3, H, W) float32 images."""
        (logits,) = self.session.run(None, {IMAGE: images.cpu().numpy()})
        return torch.from_numpy(logits)


class _Reordered(nn.Module):
    """The same network with another memory format, so that it sums in another order.

    A sum that is rounded to another code changes everything computed from it.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = copy.deepcopy(network).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.to(memory_format=torch.channels_last))


def verify(
    path: Path,
    quantized: QuantModel,
    batches: Iterable[tuple[Tensor, Tensor]],
    correction: ClusterAffineCorrection | None = None,
) -> dict[str, Any]:
    """Run the file at every optimisation level and compare it with the simulation.

    Args:
        batches: images (B, 3, H, W) float32 and labels (B,) int64.
        correction: the correction that is part of the file.

    Returns:
        plain values: Top-1 in percent; per level the agreement of the argmax and the mean and
        largest difference of the logits; the lowest agreement; the same metrics of the simulation
        with itself when it sums in another order; the tensors whose integers are not the model's;
        sizes in bytes.
    """
    networks: dict[str, nn.Module] = {level: OnnxNetwork(path, level) for level in LEVELS}
    networks |= {SIMULATION: quantized, REORDERED: _Reordered(quantized)}
    found = infer_logits(networks, batches, quantized.device, "onnxruntime")
    logits = found.logits
    if correction is not None:
        for name in (SIMULATION, REORDERED):
            logits[name] = correction.transform(logits[name])
    expected = logits.pop(SIMULATION)
    compared = {name: _compare(values, expected) for name, values in logits.items()}
    reordered = compared.pop(REORDERED)
    state = quantized.state_dict()
    return {
        "images": len(expected),
        "top1_pct": {
            SIMULATION: 100 * topk_accuracy(expected, found.targets),
            "file": 100 * topk_accuracy(logits[LEVELS[-1]], found.targets),
        },
        "levels": compared,
        "agreement": min(level["agreement"] for level in compared.values()),
        REORDERED: reordered,
        "wrong_integers": wrong_integers(path, quantized),
        "bytes": {
            "file": path.stat().st_size,
            "theoretical": theoretical_bytes(state),
            "float32": float_bytes(state),
        },
    }


def _compare(logits: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    difference = np.abs(logits - expected)
    return {
        "agreement": agreement(logits, expected),
        "mean_difference": float(difference.mean(dtype=np.float64)),
        "max_difference": float(difference.max()),
    }


def uses_int2(path: Path) -> bool:
    """Whether the ONNX file holds integers of 2 bits."""
    import onnx

    narrow = (onnx.TensorProto.INT2, onnx.TensorProto.UINT2)
    return any(t.data_type in narrow for t in onnx.load(str(path)).graph.initializer)


def wrong_integers(path: Path, quantized: QuantModel) -> list[str]:
    """Names of the weights and activations whose integers or scales differ from the model's.

    They are compared bit for bit; empty if all are equal.
    """
    import onnx

    content = onnx.load(str(path))
    stored = {tensor.name: tensor for tensor in content.graph.initializer}

    def read(name: str, what: str) -> np.ndarray | None:
        tensor = stored.get(f"{name}.{what}")
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    wrong = []
    for name, module in progress(list(quantized.named_modules()), "comparing integers"):
        if isinstance(module, (QuantLayer, ActivationQuantizer)):
            parts = [read(name, what) for what in ("scale", "zero_point", "codes")]
            if not _is_same(module, *parts):
                wrong.append(name)
    return wrong


def _is_same(
    module: QuantLayer | ActivationQuantizer,
    scale: np.ndarray | None,
    zero_point: np.ndarray | None,
    codes: np.ndarray | None,
) -> bool:
    if scale is None or zero_point is None:
        return False
    own_scale, own_zero = module.scale.cpu().numpy(), module.zero_point.cpu().numpy()
    if scale.tobytes() != own_scale.tobytes():
        return False
    zero = zero_point.astype(np.int64)
    if isinstance(module, ActivationQuantizer):
        return bool((zero == np.maximum(own_zero.reshape(zero.shape), 0)).all())
    if codes is None:
        return False
    levels = codes.astype(np.int64) - per_channel(zero)
    own_levels = module.codes.cpu().numpy().astype(np.int64) - own_zero
    return bool(np.array_equal(levels.reshape(own_levels.shape), own_levels))
