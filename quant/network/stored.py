"""Files of quantized models: reading, checking and rebuilding what ``QuantModel.save`` wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import InputError, first_line
from common.files import read_torch_file
from quant.arithmetic.packing import unpack_state
from quant.arithmetic.spec import QuantSpec
from quant.network.capture import CapturedNetwork
from quant.network.files import build_unit
from quant.network.layers import ActivationQuantizer, QuantLayer
from quant.network.model import (
    FILE_FORMAT,
    FILE_VERSION,
    QuantModel,
    activation_quantizers,
    make_chain,
    quant_layers,
    set_state,
)

MOST_BITS = 32


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
        reason = first_line(error)
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
        layer.weight = layer.float_bias = None
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
