"""Codes of fewer than 8 bits packed into a bit stream, as stored in the file of a quantized model.

The stream holds the codes in the order of the weight, each with the number of bits of its channel,
lowest bit first; the last byte is padded with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

CODES, BITS = ".codes", ".bits"


def pack_codes(codes: Tensor, bits: Tensor) -> Tensor:
    """Pack codes into a stream, 1-d uint8.

    Args:
        codes: uint8, below 2^bits.
        bits: from 0 to 8; a scalar, or of a shape that broadcasts against ``codes``.
    """
    planes = np.unpackbits(_bytes(codes), axis=1, bitorder="little")
    return torch.from_numpy(np.packbits(planes[_used(bits, codes.shape)], bitorder="little"))


def unpack_codes(stream: Tensor, bits: Tensor, shape: torch.Size) -> Tensor:
    """Unpack the codes of ``pack_codes``; uint8 of shape ``shape``.

    Raises:
        ValueError: the stream does not have the length that shape and bits require.
    """
    used = _used(bits, shape)
    count = int(used.sum())
    if stream.dtype != torch.uint8 or stream.shape != (-(-count // 8),):
        raise ValueError(
            f"packed codes must be {-(-count // 8)} bytes, got {stream.dtype} of "
            f"{list(stream.shape)}"
        )
    planes = np.zeros(used.shape, np.uint8)
    planes[used] = np.unpackbits(stream.numpy(), count=count, bitorder="little")
    return torch.from_numpy(np.packbits(planes, axis=1, bitorder="little")).view(shape)


def _bytes(codes: Tensor) -> np.ndarray:
    return codes.detach().cpu().contiguous().view(-1, 1).numpy()


def _used(bits: Tensor, shape: torch.Size) -> np.ndarray:
    """(elements, 8) bool: the bits of each element that the stream holds."""
    each = bits.cpu().expand(shape).reshape(-1, 1).numpy()
    return np.arange(8) < each


def pack_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """Pack the codes of a state dict if that makes them smaller; return it and their shapes."""
    packed: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, value in state.items():
        packed[name] = value
        if not name.endswith(CODES) or value.dtype != torch.uint8:
            continue
        bits = state[name.removesuffix(CODES) + BITS]
        if bool((bits < 8).any()) and bool((value.long() < 2**bits).all()):
            packed[name] = pack_codes(value, bits)
            shapes[name] = list(value.shape)
    return packed, shapes


def unpack_state(state: Mapping[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Restore the state dict given to ``pack_state``.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the shapes do not belong to the state dict.
    """
    plain = dict(state)
    for name, shape in shapes.items():
        bits = state[name.removesuffix(CODES) + BITS]
        plain[name] = unpack_codes(state[name], bits, torch.Size(shape))
    return plain


def theoretical_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a quantized model: codes at their number of bits, everything else at 32 bits.

    The stored numbers of bits themselves are not counted.
    """
    total = 0
    for name, value in state.items():
        if name.endswith(CODES):
            bits: Any = state[name.removesuffix(CODES) + BITS]
            total += -(-int(bits.expand(value.shape).sum()) // 8)
        elif not name.endswith(BITS):
            total += 4 * value.numel()
    return total


def float_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of the same network with weights and biases in float32, batch norms as folded."""
    extra = (BITS, ".scale", ".zero_point", ".offset", ".gap")
    return 4 * sum(value.numel() for name, value in state.items() if not name.endswith(extra))
