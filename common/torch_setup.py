"""Set-up of torch for the scripts: seeds, device, import of torchvision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.errors import InputError

if TYPE_CHECKING:
    import torch

TF32 = "tf32"


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, and make CUDA deterministic.

    The global generators serve library code that takes no generator. TF32 is switched off: its
    10-bit mantissa would blur the comparison with full precision.
    """
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep TF32 switched off in the block (or the decorated function), for the reason above.

    torch's older and newer switches are both as before afterwards.
    """
    import torch

    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    places = (cudnn.conv, cudnn.rnn, matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before[0] == TF32, before[2] == TF32
        for place, precision in zip(places, before, strict=True):
            if place.fp32_precision != precision:
                place.fp32_precision = precision


def require_seed(seed: int) -> int:
    """Return ``seed`` if every generator accepts it.

    Raises:
        InputError: negative, or above 2^32 - 1.
    """
    if not 0 <= seed < 1 << 32:
        raise InputError(f"seed must be from 0 to {(1 << 32) - 1}, got {seed}")
    return seed


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA if available, else the CPU.

    Raises:
        InputError: the name is not a device, or not a CUDA device of this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise InputError(f"device must be auto, cpu, cuda or cuda:i, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device must be auto, cpu, cuda or cuda:i, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {name!r} must be one of the {torch.cuda.device_count()} CUDA devices "
            "of this machine"
        )
    return device


def import_torchvision() -> Any:
    """Import torchvision.

    Raises:
        InputError: it is missing or does not match the installed torch.
    """
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"torchvision must be installed and built for the installed torch, got: {error}; "
            "install both from the same place: pip install torch torchvision"
        ) from error
    return torchvision
