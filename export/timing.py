"""Time of an exported file beside that of the same network in float."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from export.runtimes import network_of
from export.writing import write_float
from quant import QuantModel
from quant.network.layers import ActivationQuantizer, QuantConv2d, QuantLayer

REPEATS = 60
WARM_UP = 3
LONGEST = 20.0  # seconds


def milliseconds(path: Path, quantized: QuantModel, target: str) -> dict[str, float | int]:
    """CPU milliseconds of one image in the file's runtime, one thread.

    Both networks are run in turn in one process.

    Returns:
        medians of the float network and of the file, and their ratio.
    """
    images = torch.randn(1, *quantized.image_shape, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # which the runtimes take over
    try:
        with tempfile.TemporaryDirectory() as folder:
            floats = Path(folder, "float.onnx")
            write_float(float_form(quantized), floats, quantized.image_shape)
            networks = [network_of(floats, target), network_of(path, target)]
            float_time, file_time = _medians(networks, images)
    finally:
        torch.set_num_threads(threads)
    return {
        "batch": 1,
        "threads": 1,
        "float": float_time,
        "file": file_time,
        "ratio": float_time / file_time,
    }


def _medians(networks: Sequence[nn.Module], images: Tensor) -> list[float]:
    times: list[list[float]] = [[] for _ in networks]
    begin = time.perf_counter()
    for turn in range(WARM_UP + REPEATS):
        for network, found in zip(networks, times, strict=True):
            start = time.process_time()
            network(images)
            if turn >= WARM_UP:
                found.append(1000 * (time.process_time() - start))
        if turn > WARM_UP and time.perf_counter() - begin > LONGEST:
            break
    return [statistics.median(found) for found in times]


def float_form(quantized: QuantModel) -> nn.Module:
    """The network with its dequantized weights in plain layers, without activation quantizers."""
    network = copy.deepcopy(quantized).cpu()
    for name, module in list(network.named_modules()):
        if isinstance(module, QuantLayer):
            network.set_submodule(name, _plain(module))
        elif isinstance(module, ActivationQuantizer):
            network.set_submodule(name, nn.Identity())
    return network.eval()


def _plain(layer: QuantLayer) -> nn.Module:
    weight, has_bias = layer.effective_weight().detach(), layer.bias is not None
    plain: nn.Conv2d | nn.Linear
    if isinstance(layer, QuantConv2d):
        outputs, inputs, *size = weight.shape
        plain = nn.Conv2d(
            inputs * layer.groups,
            outputs,
            tuple(size),  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.groups,
            has_bias,
        )
    else:
        plain = nn.Linear(weight.shape[1], weight.shape[0], has_bias)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return plain
