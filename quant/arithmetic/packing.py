"""Codes of fewer than 8 bits as a stream of bits, as they lie in the file of a quantized model.

Channels may differ in their bits: the stream holds the codes in the order of the weight, each in as
many bits as its channel has, lowest bit first; the last byte is filled up with zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

CODES, BITS = ".codes", ".bits"


def pack_codes(codes: Tensor, bits: Tensor) -> Tensor:
    """The stream, 1-d uint8.

    Args:
        codes: uint8, below 2^bits.
        bits: a scalar, or of a shape that broadcasts against ``codes``; 0..8.
    """
    planes = np.unpackbits(_bytes(codes), axis=1, bitorder="little")
    return torch.from_numpy(np.packbits(planes[_used(bits, codes.shape)], bitorder="little"))


def unpack_codes(stream: Tensor, bits: Tensor, shape: torch.Size) -> Tensor:
    """The codes of ``pack_codes``.

    Raises:
        ValueError: the stream is not as long as this shape and these bits need.
    """
    used = _used(bits, shape)
    count = int(used.sum())
    if stream.dtype != torch.uint8 or stream.shape != (-(-count // 8),):
        raise ValueError(
            f"packed codes must be {-(-count // 8)} bytes, got {stream.dtype} of {list(stream.shape)}"
        )
    planes = np.zeros(used.shape, np.uint8)
    planes[used] = np.unpackbits(stream.numpy(), count=count, bitorder="little")
    return torch.from_numpy(np.packbits(planes, axis=1, bitorder="little")).view(shape)


def _bytes(codes: Tensor) -> np.ndarray:
    return codes.detach().cpu().contiguous().view(-1, 1).numpy()


def _used(bits: Tensor, shape: torch.Size) -> np.ndarray:
    """(elements, 8): which bit planes of each element are kept."""
    each = bits.cpu().expand(shape).reshape(-1, 1).numpy()
    return np.arange(8) < each


def pack_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, list[int]]]:
    """A state dict with its codes packed wherever that makes them smaller, and the shapes of those."""
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
    """The state dict of ``pack_state``.

    Raises:
        KeyError, TypeError, ValueError, RuntimeError: the shapes do not belong to it.
    """
    plain = dict(state)
    for name, shape in shapes.items():
        bits = state[name.removesuffix(CODES) + BITS]
        plain[name] = unpack_codes(state[name], bits, torch.Size(shape))
    return plain


def theoretical_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes of a quantized model by its definition: codes in as many bits as they have, everything
    else in 32, the numbers of bits not counted.
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
    """Bytes of the same network with its weights and biases in float32, batch norms folded as they
    are in it.
    """
    extra = (BITS, ".scale", ".zero_point", ".offset", ".gap")
    return 4 * sum(value.numel() for name, value in state.items() if not name.endswith(extra))
