"""QuantModel: the quantized network as a chain of units, with its states and its file."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from common.errors import InputError
from common.files import write_torch_file
from common.torch_setup import full_float32
from quant.arithmetic.packing import pack_state
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec
from quant.network.capture import CapturedNetwork
from quant.network.files import describe_unit
from quant.network.guard import require_equal
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.operations import place_
from quant.network.passes import prepared
from quant.network.placement import LAYERS, insert_quantizers_
from quant.network.units import cut_into_units

FILE_FORMAT = "ptq-quantized-model"
FILE_VERSION = 3  # version 1 stored codes unpacked; 1 and 2 stored no graph
FLOAT_SPEC = QuantSpec(NOT_QUANTIZED, NOT_QUANTIZED)
UNFOLDED_SPEC = dataclasses.replace(FLOAT_SPEC, fold=False)

logger = logging.getLogger(__name__)


class QuantModel(nn.Module):
    """A chain of units; ``make_chain`` makes it from a float network.

    It takes images of the shape ``image_shape``, on which the network was captured: what a network
    computes from the size of its images is fixed in the graph.

    It computes in full precision until ``set_state`` or a method quantizes it. It is in evaluation
    mode: batch norms that were not folded use their stored statistics.
    """

    def __init__(
        self,
        named_units: Sequence[tuple[str, nn.Module]],
        spec: QuantSpec,
        image_shape: Sequence[int],
    ):
        super().__init__()
        self.spec = spec
        self.image_shape = tuple(image_shape)
        self.unit_names = [name for name, _ in named_units]
        self.units = nn.ModuleList(unit for _, unit in named_units)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of (B, channels, height, width) images.

        Raises:
            InputError: the images have another shape than ``image_shape``.
        """
        if x.shape[1:] != self.image_shape:
            raise InputError(
                f"images must have the shape {self.image_shape}, on which the network was "
                f"captured, got {tuple(x.shape[1:])}"
            )
        for unit in self.units:
            x = unit(x)
        return x

    @property
    def device(self) -> torch.device:
        return next(tensor.device for tensor in self.state_dict().values())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantModel:
        """Move tensors, as ``to`` and ``cuda`` do, and those that operations will create."""
        before = self.device
        super()._apply(fn, recurse)
        if self.device != before:
            for unit in self.units:
                place_(cast(fx.GraphModule, unit), self.device)
        return self

    def named_units(self) -> list[tuple[str, nn.Module]]:
        return list(zip(self.unit_names, self.units, strict=True))

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None:
        """Write the quantized model (codes, scales, ...) and ``metadata`` to one file.

        Args:
            metadata: plain values (str, int, float, bool, lists, dicts) about its origin.
        """
        state, shapes = pack_state(self.state_dict())
        content = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "spec": dataclasses.asdict(self.spec),
            "image_shape": list(self.image_shape),
            "unit_names": list(self.unit_names),
            "units": [describe_unit(cast(fx.GraphModule, unit)) for unit in self.units],
            # Through JSON, so that no string is shared: equal values give equal bytes.
            "metadata": json.loads(json.dumps(metadata)),
            "state_dict": state,
            "packed": shapes,
        }
        write_torch_file(Path(path), content)


@full_float32()
def make_chain(network: CapturedNetwork, spec: QuantSpec) -> QuantModel:
    """A chain of units with quantizers as given by ``spec``, equal to the network until they act.

    Raises:
        InputError: the network has no layer to quantize, or the chain computes something else.
    """
    graph = prepared(network, spec.fold)
    insert_quantizers_(graph, spec)
    named_units = cut_into_units(graph, network.containers)
    require_equal(network, named_units)
    for _, unit in named_units:
        describe_unit(unit)  # refuses what could not be saved after all the work
    return QuantModel(named_units, spec, network.images.shape[1:])


def bits_by_tensor(model: QuantModel) -> dict[str, dict[str, int | list[int]]]:
    """The bits of each quantized weight and activation by its name in the network.

    They are a number, or a list with one number per channel.
    """
    return {
        "weights": _bits({k: v for unit in model.units for k, v in quant_layers(unit).items()}),
        "activations": _bits(
            {k: v for unit in model.units for k, v in activation_quantizers(unit).items()}
        ),
    }


def zero_share(network: nn.Module) -> float:
    """Share of exact zeros among weights and biases of all convolutions and linear layers."""
    zeros = total = 0
    for module in network.modules():
        weight = module.effective_weight() if isinstance(module, QuantLayer) else None
        if isinstance(module, LAYERS):
            weight = module.weight
        if weight is None:
            continue
        for tensor in (weight, module.bias):
            if isinstance(tensor, Tensor):
                zeros += int((tensor == 0).sum())
                total += tensor.numel()
    return zeros / max(1, total)


def _bits(parts: Mapping[str, QuantLayer | ActivationQuantizer]) -> dict[str, int | list[int]]:
    return {
        name: part.bits.flatten().tolist() if part.bits.dim() else int(part.bits)
        for name, part in parts.items()
    }


def set_state(module: nn.Module, *, weights: bool, activations: bool) -> None:
    """Switch the quantization of weights and activations of a model or a unit on or off."""
    for layer in quant_layers(module).values():
        layer.quantized = weights
    for quantizer in activation_quantizers(module).values():
        quantizer.quantized = activations


def quant_layers(module: nn.Module) -> dict[str, QuantLayer]:
    """The quantized convolutions and linear layers by name, in the order of the network."""
    return {name: child for name, child in module.named_modules() if isinstance(child, QuantLayer)}


def activation_quantizers(module: nn.Module) -> dict[str, ActivationQuantizer]:
    """The activation quantizers of a model or a unit by name, in the order of the network."""
    return {
        name: child
        for name, child in module.named_modules()
        if isinstance(child, ActivationQuantizer)
    }
