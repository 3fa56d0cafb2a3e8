"""Exported files in the runtimes that run them, and which of their layers ran in integers."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn

from common.errors import InputError
from export.writing import IMAGE
from quant import QuantModel
from quant.arithmetic.spec import OPENVINO
from quant.network.layers import QuantLayer
from quant.network.operations import called_module

LEVELS = ("disable_all", "enable_basic", "enable_extended", "enable_all")
CPU_INFO = Path("/proc/cpuinfo")
# Instruction sets that decide how fast products of integers are.
MACHINE_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
IN_32_BITS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
OPENVINO_LAYERS = {"Convolution", "FullyConnected", "MatMul", "Deconvolution", "GroupConvolution"}
OPENVINO_NOTES = ("layerType", "runtimePrecision", "primitiveType")
OPENVINO_INTEGERS = {"i8", "u8"}
# The operators that ONNX Runtime runs layers in integers with.
ORT_INTEGERS = {
    "QLinearConv",
    "QLinearMatMul",
    "QGemm",
    "ConvInteger",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "MatMulNBits",
}


@dataclass(frozen=True)
class Kernels:
    """How many of the quantized layers of a network ran in integers.

    The products of a correction of the logits are no layers.
    """

    integers: int
    layers: int

    @property
    def text(self) -> str:
        return f"{self.integers} of {self.layers} layers ran in integers"


class OnnxNetwork(nn.Module):
    """An ONNX file that runs in ONNX Runtime on the CPU.

    Args:
        level: graph optimisation level, one of ``LEVELS``; ONNX Runtime's default is the last.
        profile: where to write what ran, with ``end_profiling`` of the session.
    """

    def __init__(self, path: Path, level: str = LEVELS[-1], profile: Path | None = None):
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, f"ORT_{level.upper()}"
        )
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile)
        try:
            self.session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of its own classes
            raise _refused("ONNX Runtime", error) from error

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) float32 logits of (N, 3, H, W) float32 images."""
        (logits,) = self.session.run(None, {IMAGE: images.cpu().numpy()})
        return torch.from_numpy(logits)


class OpenVinoNetwork(nn.Module):
    """An ONNX file that runs in OpenVINO on the CPU; what is not quantized in full float32."""

    def __init__(self, path: Path):
        super().__init__()
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self.network = openvino.Core().compile_model(str(path), "CPU", settings)
        except RuntimeError as error:
            raise _refused("OpenVINO", error) from error

    def forward(self, images: Tensor) -> Tensor:
        """(N, C) float32 logits of (N, 3, H, W) float32 images."""
        (logits,) = self.network(images.cpu().numpy()).values()
        return torch.from_numpy(logits.copy())

    def integer_layers(self) -> int:
        """How many layers run in integers, from the graph that OpenVINO made of the file.

        The precision of a layer may be that of its weights alone; the kernel's name has that of its
        products.
        """
        found = 0
        for node in self.network.get_runtime_model().get_ordered_ops():
            notes = node.get_rt_info()
            kind, precision, kernel = (str(notes[key].astype(str)) for key in OPENVINO_NOTES)
            is_integer = precision in OPENVINO_INTEGERS and kernel.lower().endswith(("i8", "u8"))
            found += kind in OPENVINO_LAYERS and is_integer
        return found


def _refused(runtime: str, error: Exception) -> InputError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return InputError(f"network must be one that {runtime} can run, got: {lines[-1]}")


def network_of(path: Path, target: str) -> OnnxNetwork | OpenVinoNetwork:
    """The file in the runtime that it was written for."""
    return OpenVinoNetwork(path) if target == OPENVINO else OnnxNetwork(path)


def kernels_of(path: Path, target: str, quantized: QuantModel) -> Kernels:
    """How many layers of a model's file run in integers in its runtime."""
    layers = sum(
        isinstance(called_module(cast(fx.GraphModule, unit), node), QuantLayer)
        for unit in quantized.units
        for node in cast(fx.GraphModule, unit).graph.nodes
    )
    images = torch.zeros(1, *quantized.image_shape)
    integers = (
        OpenVinoNetwork(path).integer_layers()
        if target == OPENVINO
        else _integer_layers_of_ort(path, images)
    )
    return Kernels(min(integers, layers), layers)


def _integer_layers_of_ort(path: Path, images: Tensor) -> int:
    """How many layers ONNX Runtime runs in integers, from its profile of a run."""
    with tempfile.TemporaryDirectory() as folder:
        network = OnnxNetwork(path, profile=Path(folder, "profile"))
        network(images)
        events = json.loads(Path(network.session.end_profiling()).read_text(encoding="utf-8"))
    ran = {
        (event["args"]["node_index"], event["args"]["op_name"])
        for event in events
        if event.get("cat") == "Node" and "op_name" in event.get("args", {})
    }
    return sum(name in ORT_INTEGERS for _, name in ran)


def machine_flags() -> list[str]:
    """The instruction sets among ``MACHINE_FLAGS`` that this processor has; empty if unknown."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return [flag for flag in MACHINE_FLAGS if flag in line.split()]
    return []


def adds_in_32_bits() -> bool:
    """Whether this processor adds products of 8-bit integers in 32 bits in one instruction."""
    return any(flag in IN_32_BITS for flag in machine_flags())
