"""The integer type that holds a tensor's codes, and the codes stored in it.

A quantized value is scale * (code - zero_point), so adding one number to the codes and the zero
point of a channel changes nothing. In this way unsigned codes become signed, and channels fit whose
zero point is outside the range of the codes (channels of zero bits).

Letters: O output channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import InputError
from quant.network.layers import ActivationQuantizer, QuantLayer

WEIGHT_WIDTHS = (4, 8, 16)  # signed integers of ONNX; INT2_WIDTH only if requested
INT2_WIDTH = 2
MAX_ACTIVATION_BITS = 8


@dataclass(frozen=True)
class StoredWeight:
    """A weight as signed integers.

    Attributes:
        codes: (O, I, kH, kW) int32; a linear layer is a 1 x 1 convolution.
        scale: (O,) or (), float32.
        zero_point: shape of ``scale``, int32.
        width: bits of the integer type.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    width: int


@dataclass(frozen=True)
class StoredActivation:
    """How an activation is quantized, in unsigned integers.

    Attributes:
        scale: (C,) or (), float32.
        zero_point: shape of ``scale``, int32.
        bits: shape of ``scale``, int32; codes 0 .. 2^bits - 1 are used, unless ``moved``.
        low, high: float32, broadcast against the activation: smallest and largest value.
        width: bits of the integer type.
        moved: whether the zero point differs from the model's or is outside the range of the codes.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    bits: np.ndarray
    low: np.ndarray
    high: np.ndarray
    width: int
    moved: bool

    @property
    def is_uniform(self) -> bool:
        """Whether all channels have the same smallest and largest code."""
        return not self.moved and bool((self.bits == self.bits.flat[0]).all())


def per_channel(values: np.ndarray) -> np.ndarray:
    """Reshape (O,) values to (O, 1, 1, 1), to broadcast against a weight; a scalar is unchanged."""
    return values.reshape(-1, 1, 1, 1) if values.ndim else values


def stored_weight(name: str, layer: QuantLayer, int2: bool) -> StoredWeight:
    """The weight of a layer in the narrowest integer type that holds it.

    Args:
        name: name of the layer, for errors.
        int2: use 2-bit integers where they suffice.

    Raises:
        InputError: it has more than 16 bits, or a zero point that is no integer.
    """
    codes = layer.codes.cpu().numpy().astype(np.int64)
    codes = codes.reshape(*codes.shape[:2], *(codes.shape[2:] or (1, 1)))
    scale = _flat(layer.scale.cpu().numpy())
    zero_point = _integers(name, _flat(layer.zero_point.cpu().numpy()))
    others = (1, 2, 3) if zero_point.ndim else None
    low = np.minimum(codes.min(axis=others), zero_point)
    high = np.maximum(codes.max(axis=others), zero_point)
    bits = int(layer.bits.max())
    for width in ((INT2_WIDTH,) if int2 else ()) + WEIGHT_WIDTHS:
        half = 2 ** (width - 1)
        if bits <= width and bool((high - low < 2 * half).all()):
            shift = np.clip(2 ** max(bits - 1, 0), high - half + 1, low + half)
            return StoredWeight(
                (codes - per_channel(np.asarray(shift))).astype(np.int32),
                scale,
                (zero_point - shift).astype(np.int32),
                width,
            )
    raise InputError(f"weights must have at most 16 bits in ONNX, got {bits} in {name!r}")


def stored_activation(
    name: str, quantizer: ActivationQuantizer, int2: bool, narrow: bool
) -> StoredActivation:
    """The quantization of an activation in the narrowest integer type that holds it.

    Args:
        name: name of the quantizer, for errors.
        int2: use 2-bit integers where they are exact.
        narrow: allow types of fewer than 8 bits.

    Raises:
        InputError: it has more than 8 bits, or a zero point that is no integer or above 255.
    """
    scale = _flat(quantizer.scale.cpu().numpy(), axis=1)
    zero_point = _integers(name, _flat(quantizer.zero_point.cpu().numpy(), axis=1))
    bits = np.broadcast_to(
        _flat(quantizer.bits.cpu().numpy(), axis=1).astype(np.int32), scale.shape
    )
    own_scale, own_zero = quantizer.scale.cpu().numpy(), quantizer.zero_point.cpu().numpy()
    own_last = 2 ** quantizer.bits.cpu().numpy() - 1
    most = int(bits.max())
    if most > MAX_ACTIVATION_BITS:
        raise InputError(f"{too_many_bits(most)} in {name!r}")
    moved = np.maximum(zero_point, 0)
    if int(moved.max()) > 2**MAX_ACTIVATION_BITS - 1:
        raise InputError(
            f"zero points must be at most 255 in ONNX, got {int(moved.max())} in {name!r}"
        )
    exact = (*((INT2_WIDTH,) if int2 else ()), 4) if narrow else ()
    is_moved = bool((moved != zero_point).any() or (moved > 2**bits - 1).any())
    is_exact = not is_moved and bool((bits == most).all()) and most in exact
    return StoredActivation(
        scale=scale,
        zero_point=moved.astype(np.int32),
        bits=bits,
        low=(0 - own_zero).astype(np.float32) * own_scale,
        high=(own_last - own_zero).astype(np.float32) * own_scale,
        width=most if is_exact else MAX_ACTIVATION_BITS,
        moved=is_moved,
    )


def too_many_bits(bits: int) -> str:
    """The error text for activations of ``bits`` bits, which are too many."""
    return f"activations must have at most {MAX_ACTIVATION_BITS} bits in ONNX, got {bits}"


def _flat(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Reshape per-channel values to (O,), a single value to ()."""
    return values.reshape(()) if values.size == 1 else values.reshape(values.shape[axis])


def _integers(name: str, zero_point: np.ndarray) -> np.ndarray:
    rounded = np.round(zero_point)
    if bool((rounded != zero_point).any()):
        raise InputError(f"zero points must be integers in ONNX, got others in {name!r}")
    return rounded.astype(np.int64)
