"""Checks an exported file against its model: outputs in its runtime, and every integer."""

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
from export.powers import POWERS, stored_levels
from export.runtimes import LEVELS, OnnxNetwork, OpenVinoNetwork
from export.tools import EXACT
from quant import QuantModel
from quant.arithmetic.packing import float_bytes, theoretical_bytes
from quant.arithmetic.spec import OPENVINO
from quant.network.layers import ActivationQuantizer, Log2Quantizer, QuantLayer

SIMULATION, REORDERED = "simulation", "reordered"


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
    target: str = EXACT,
) -> dict[str, Any]:
    """Run the file in its runtime and compare it with the simulation.

    In ONNX Runtime it is run at every optimisation level.

    Args:
        batches: images (B, 3, H, W) float32 and labels (B,) int64.
        correction: the correction that is part of the file.
        target: what the file was written for, of ``EXPORT_TARGETS``.

    Returns:
        plain values: Top-1 in percent; per level of optimisation the agreement of the argmax and
        the mean and largest difference of the logits; the lowest agreement; the same metrics of the
        simulation with itself when it sums in another order; the tensors whose integers are not the
        model's; sizes in bytes.
    """
    networks: dict[str, nn.Module] = (
        {OPENVINO: OpenVinoNetwork(path)}
        if target == OPENVINO
        else {level: OnnxNetwork(path, level) for level in LEVELS}
    )
    last = list(networks)[-1]
    networks |= {SIMULATION: quantized, REORDERED: _Reordered(quantized)}
    found = infer_logits(networks, batches, quantized.device, "runtime")
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
        "mean_logit": float(np.abs(expected).mean(dtype=np.float64)),
        "top1_pct": {
            SIMULATION: 100 * topk_accuracy(expected, found.targets),
            "file": 100 * topk_accuracy(logits[last], found.targets),
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
        if isinstance(module, Log2Quantizer):
            levels = read(name, POWERS)
            if levels is None or levels.tobytes() != stored_levels(module).tobytes():
                wrong.append(name)
        elif isinstance(module, (QuantLayer, ActivationQuantizer)):
            parts = [read(name, what) for what in ("scale", "zero_point", "codes")]
            if not _is_same(module, *parts):
                wrong.append(name)
            codes, step = read(f"{name}.bias", "codes"), read(f"{name}.bias", "scale")
            if codes is not None and not _is_bias(module, codes, step):
                wrong.append(f"{name}.bias")
    return wrong


def _is_bias(module: nn.Module, codes: np.ndarray, step: np.ndarray | None) -> bool:
    """Whether the integers of a bias times their steps are that of the layer, in float32."""
    bias = getattr(module, "bias", None)
    if bias is None or step is None:
        return False
    return np.allclose(codes * step.astype(np.float64), bias.cpu().numpy(), rtol=1e-6, atol=0)


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
    levels = codes.astype(np.int64) - (zero.reshape(-1, *[1] * (codes.ndim - 1)))
    own_levels = module.codes.cpu().numpy().astype(np.int64) - own_zero
    return bool(np.array_equal(levels.reshape(own_levels.shape), own_levels))
