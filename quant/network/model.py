"""QuantModel: the quantized network as a chain of units, with its states and its file format."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import InputError
from common.files import read_torch_file, write_torch_file
from quant.arithmetic.packing import pack_state, unpack_state
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec
from quant.network.capture import LAYERS
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.passes import trace
from quant.network.placement import insert_quantizers_
from quant.network.units import cut_into_units

FILE_FORMAT = "ptq-quantized-model"
FILE_VERSION = 2  # version 1 stored codes unpacked
FLOAT_SPEC = QuantSpec(NOT_QUANTIZED, NOT_QUANTIZED)
UNFOLDED_SPEC = dataclasses.replace(FLOAT_SPEC, fold=False)

logger = logging.getLogger(__name__)


class QuantModel(nn.Module):
    """A chain of units made from a float network, which stays unchanged.

    A new QuantModel computes in full precision until ``set_state`` or a method quantizes it. It is
    in evaluation mode: batch norms that were not folded use their stored statistics.

    Raises:
        InputError: the network cannot be traced, has no layer to quantize, or cannot be cut.
    """

    def __init__(self, model: nn.Module, spec: QuantSpec):
        super().__init__()
        network = trace(model, spec.fold)
        insert_quantizers_(network, spec)
        named_units = cut_into_units(network, model)
        self.spec = spec
        self.unit_names = [name for name, _ in named_units]
        self.units = nn.ModuleList(unit for _, unit in named_units)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return x

    @property
    def device(self) -> torch.device:
        return next(tensor.device for tensor in self.state_dict().values())

    def named_units(self) -> list[tuple[str, nn.Module]]:
        return list(zip(self.unit_names, self.units, strict=True))

    def save(self, path: str | Path, metadata: dict[str, Any]) -> None:
        """Write the quantized model (codes, scales, ...) and ``metadata`` to one file.

        Args:
            metadata: plain values (str, int, float, bool, lists, dicts) needed to rebuild the
                network.
        """
        state, shapes = pack_state(self.state_dict())
        content = {
            "format": FILE_FORMAT,
            "version": FILE_VERSION,
            "spec": dataclasses.asdict(self.spec),
            # Through JSON, so that no string is shared: equal values give equal bytes.
            "metadata": json.loads(json.dumps(metadata)),
            "state_dict": state,
            "packed": shapes,
        }
        write_torch_file(Path(path), content)


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


def read_quantized_file(path: str | Path) -> dict[str, Any]:
    """Read a file written by ``QuantModel.save``.

    Returns:
        Its content, with ``spec``, ``metadata`` and ``state_dict``, whose codes are unpacked.

    Raises:
        InputError: missing, unreadable, or not such a file.
    """
    content = read_torch_file(Path(path))
    if not isinstance(content, dict) or content.get("format") != FILE_FORMAT:
        raise InputError(f"{path}: must be a quantized model saved by this suite, got another file")
    version = content.get("version")
    if not isinstance(version, int) or not 1 <= version <= FILE_VERSION:
        raise InputError(f"{path}: format version must be 1 to {FILE_VERSION}, got {version!r}")
    try:
        state = unpack_state(content["state_dict"], content.get("packed", {}))
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: must be a whole quantized model, got: {reason}") from None
    return {**content, "state_dict": state}


def restore_quantized(content: dict[str, Any], model: nn.Module) -> QuantModel:
    """Rebuild the quantized model from a file's content and a network of its architecture.

    Args:
        content: the result of ``read_quantized_file``.

    Raises:
        InputError: the saved tensors do not fit the network, or a scale is not finite and positive.
    """
    restored = QuantModel(model, QuantSpec(**content["spec"]))
    for module in restored.modules():
        if isinstance(module, QuantLayer):
            module.weight = None
    try:
        restored.load_state_dict(content["state_dict"], strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"saved tensors must fit the network, got: {reason}") from error
    for name, module in restored.named_modules():
        if isinstance(module, (QuantLayer, ActivationQuantizer)) and not _is_usable(module.scale):
            least = float(module.scale.min())
            raise InputError(f"saved scales must be finite and above 0, got {least:g} in {name!r}")
    set_state(restored, weights=True, activations=True)
    return restored


def _is_usable(scale: Tensor) -> bool:
    return bool((scale.isfinite() & (scale > 0)).all())


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
