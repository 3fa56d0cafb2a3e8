"""QuantModel: the quantized network as a chain of units, with its states and its file format."""

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
from common.files import read_torch_file, write_torch_file
from quant.arithmetic.packing import pack_state, unpack_state
from quant.arithmetic.spec import NOT_QUANTIZED, QuantSpec
from quant.network.capture import CapturedNetwork
from quant.network.files import build_unit, describe_unit
from quant.network.guard import require_equal
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.passes import prepared
from quant.network.placement import LAYERS, insert_quantizers_
from quant.network.units import cut_into_units

FILE_FORMAT = "ptq-quantized-model"
FILE_VERSION = 3  # version 1 stored codes unpacked; 1 and 2 stored no graph
MOST_BITS = 32
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


def restore_quantized(
    content: dict[str, Any], capture: Callable[[], CapturedNetwork] | None = None
) -> QuantModel:
    """Rebuild the quantized model from a file's content.

    Args:
        content: the result of ``read_quantized_file``.
        capture: captures a network of its architecture, for files of version 1 and 2, which hold no
            graph.

    Raises:
        InputError: the saved tensors do not fit the network, or a scale is not finite and positive.
    """
    try:
        return _restored(content, capture)
    except InputError:
        raise
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise InputError(
            f"file must hold a whole quantized model, got {type(error).__name__}: {reason}"
        ) from error


def _restored(content: dict[str, Any], capture: Callable[[], CapturedNetwork] | None) -> QuantModel:
    spec, state = QuantSpec(**content["spec"]), content["state_dict"]
    if content["version"] >= 3:
        units = [build_unit(unit, _part(state, i)) for i, unit in enumerate(content["units"])]
        named_units = list(zip(content["unit_names"], units, strict=True))
        restored = QuantModel(named_units, spec, content["image_shape"])
    else:
        if capture is None:
            raise InputError(
                f"files of version {content['version']} hold no graph: the network that they were "
                "made from must be given, got none"
            )
        restored = make_chain(capture(), spec)
        state = _with_present_names(state, restored)
    for layer in quant_layers(restored).values():
        layer.weight = None
    try:
        restored.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"saved tensors must fit the network, got (file version {content['version']}): {reason}"
        ) from error
    _require_usable(restored)
    set_state(restored, weights=True, activations=True)
    _try(restored)
    return restored


def _require_usable(model: QuantModel) -> None:
    parts: dict[str, QuantLayer | ActivationQuantizer] = {
        **quant_layers(model),
        **activation_quantizers(model),
    }
    for name, part in parts.items():
        if not _is_usable(part.scale):
            least = float(part.scale.min())
            raise InputError(f"saved scales must be finite and above 0, got {least:g} in {name!r}")
        bits = part.bits
        if bits.dtype != torch.int64 or int(bits.min()) < 0 or int(bits.max()) > MOST_BITS:
            raise InputError(
                f"saved bits must be whole numbers up to {MOST_BITS}, got {bits} in {name!r}"
            )
        if not torch.isfinite(part.zero_point).all():
            raise InputError(f"saved zero points must be finite, got NaN or Inf in {name!r}")


@torch.no_grad()
def _try(model: QuantModel) -> None:
    """Run the model on a black image, so that a damaged graph is found now.

    Raises:
        InputError: its logits are not finite.
    """
    logits = model(torch.zeros(1, *model.image_shape))
    if logits.dim() != 2 or not torch.isfinite(logits).all():
        raise InputError("a saved model must give finite logits for a black image, got others")


def _part(state: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """The tensors of unit ``index``, by their names in the unit."""
    prefix = f"units.{index}."
    return {k.removeprefix(prefix): value for k, value in state.items() if k.startswith(prefix)}


def _with_present_names(state: Mapping[str, Tensor], model: QuantModel) -> dict[str, Tensor]:
    """An old file's state with the quantizers named as today, matched by their order in a unit."""
    names: dict[str, str] = {}
    for index, unit in enumerate(model.units):
        now = list(activation_quantizers(unit))
        parts = (key.split(".")[0] for key in _part(state, index))
        before = [part for part in dict.fromkeys(parts) if part.startswith("quantizer_")]
        if len(now) == len(before):
            names |= {
                f"units.{index}.{b}": f"units.{index}.{n}" for b, n in zip(before, now, strict=True)
            }
    renamed = {}
    for key, value in state.items():
        owner, _, tensor = key.rpartition(".")
        renamed[f"{names.get(owner, owner)}.{tensor}"] = value
    return renamed


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
