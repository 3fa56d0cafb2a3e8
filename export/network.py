"""The form of a quantized model that torch's exporter can export.

Its weights, biases of integer kernels and activation quantizers are operators of our own,
``ptq::Weight`` and ``ptq::Bias`` (no input) and ``ptq::Activation`` (one input), which hold the
name of their layer or quantizer. The module ``export.lowering`` replaces them by ONNX's; the
integers never pass through the exporter.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from correction import ClusterAffineCorrection
from correction.tensors import TensorForm, corrected_tensor
from quant import QuantModel
from quant.network.layers import ActivationQuantizer, QuantConv2d, QuantLayer
from quant.network.targets import bias_steps

DOMAIN = "ptq"
WEIGHT, BIAS, ACTIVATION, NAME = "Weight", "Bias", "Activation", "name"


class ExportableLayer(nn.Module):
    """A quantized layer whose weight is an operator and whose bias is added separately.

    ONNX Runtime rounds the bias inside a convolution to a multiple of the product of both scales
    (its WeightBiasQuantization), which costs accuracy at low bits; a separate addition is not
    changed.
    """

    bias: Tensor | None

    def __init__(self, name: str, layer: QuantLayer):
        super().__init__()
        self.name = name
        self.shape: tuple[int, ...] = tuple(layer.codes.shape)
        bias = None if layer.bias is None else layer.bias.view(1, -1, 1, 1)
        self.register_buffer("bias", bias)

    def weight(self) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{WEIGHT}",
            (),
            attrs={NAME: self.name},
            dtype=torch.float32,
            shape=self.shape,
            version=1,
        )


class ExportableConv2d(ExportableLayer):
    """See ``ExportableLayer``."""

    def __init__(self, name: str, layer: QuantConv2d):
        super().__init__(name, layer)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding = layer.padding

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight()
        out = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, self.groups)
        return out if self.bias is None else out + self.bias


class ExportableLinear(ExportableLayer):
    """See ``ExportableLayer``; a linear layer is exported as a 1 x 1 convolution.

    ONNX Runtime would fuse a matrix product with its bias and round the bias as above, or replace
    the product by its MatMulNBits, which rounds the inputs to 8 bits (measured: argmax agreement
    0.906 at W4A4 for MobileNetV2 with random weights, 1.0 as a convolution).
    """

    def __init__(self, name: str, layer: QuantLayer):
        super().__init__(name, layer)
        self.shape = (*self.shape, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        *outer, channels = x.shape
        pixels = x.reshape(outer[0], -1, channels).transpose(1, 2).unsqueeze(3)
        out = F.conv2d(pixels, self.weight())
        if self.bias is not None:
            out = out + self.bias
        return out.squeeze(3).transpose(1, 2).reshape(*outer, self.shape[0])


class KernelLayer(ExportableLayer):
    """A quantized layer as the integer kernels of a runtime expect it: with its bias inside.

    Args:
        integer_bias: whether the bias is stored in integers.
    """

    def __init__(self, name: str, layer: QuantLayer, integer_bias: bool):
        super().__init__(name, layer)
        self.register_buffer("bias", layer.bias)
        self.integer_bias = integer_bias and layer.bias is not None

    def stored_bias(self) -> Tensor | None:
        if not self.integer_bias:
            return self.bias
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{BIAS}",
            (),
            attrs={NAME: self.name},
            dtype=torch.float32,
            shape=self.shape[:1],
            version=1,
        )


class KernelConv2d(KernelLayer):
    """See ``KernelLayer``."""

    def __init__(self, name: str, layer: QuantConv2d, integer_bias: bool):
        super().__init__(name, layer, integer_bias)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding = layer.padding

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight(), self.stored_bias()
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


class KernelLinear(KernelLayer):
    """See ``KernelLayer``."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.stored_bias())


class ExportableActivation(nn.Module):
    """An activation quantizer as an operator."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ACTIVATION}",
            (x,),
            attrs={NAME: self.name},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )


class CorrectionLayer(nn.Module):
    """A fitted cluster-affine correction: (N, C) logits in, (N, C) out."""

    def __init__(self, correction: ClusterAffineCorrection):
        super().__init__()
        for name, values in correction.tensor_form()._asdict().items():
            self.register_buffer(name, torch.tensor(values))

    def forward(self, logits: Tensor) -> Tensor:
        return corrected_tensor(logits, TensorForm(**dict(self.named_buffers())))


class _Corrected(nn.Module):
    """The units of a network, which keep their names in the file, followed by a correction."""

    def __init__(self, network: QuantModel, correction: ClusterAffineCorrection):
        super().__init__()
        self.units = network.units
        self.correction = CorrectionLayer(correction)

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return self.correction(x)


def exportable(
    quantized: QuantModel, correction: ClusterAffineCorrection | None, for_kernels: bool
) -> nn.Module:
    """A copy of the network for torch's exporter, followed by the correction, if any.

    It can be exported but not run.

    Args:
        for_kernels: in the form that a runtime runs in integers, not the exact one.
    """
    network = copy.deepcopy(quantized).cpu()
    steps = bias_steps(list(network.units)) if for_kernels else {}
    for name, module in list(network.named_modules()):
        replacement: nn.Module | None = None
        if isinstance(module, QuantLayer) and for_kernels:
            kind = KernelConv2d if isinstance(module, QuantConv2d) else KernelLinear
            replacement = kind(name, module, module in steps)  # type: ignore[arg-type]
        elif isinstance(module, QuantConv2d):
            replacement = ExportableConv2d(name, module)
        elif isinstance(module, QuantLayer):
            replacement = ExportableLinear(name, module)
        elif isinstance(module, ActivationQuantizer):
            replacement = ExportableActivation(name)
        if replacement is not None:
            network.set_submodule(name, replacement)
    if correction is None or correction.alpha == 0:
        return network.eval()
    return _Corrected(network, correction).eval()
