"""Image files as 8-bit RGB pictures: the one place where a file of a user is decoded.

Images of at most 8 bits, and colours of 16, are what Pillow makes of them, as for torchvision's
``ImageFolder``: the first frame, without its alpha, in RGB; of 16-bit colours the high byte is
kept. Pillow clips deeper grey images to 255, so these are scaled here by the maximum that their
format declares, or refused where it declares none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common.errors import InputError

SCALED_TO_16_BITS = ("PNG", "PPM")  # Pillow itself scales by the maxval of a PGM file
# Tags of TIFF, and two of their values.
BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
WHITE_IS_ZERO, SIGNED = 0, 2


def read_picture(path: Path) -> Any:
    """Decode an image file to an RGB image of PIL.

    Raises:
        InputError: its samples have no known maximum, or are outside their range.
        OSError, SyntaxError, ValueError, DecompressionBombError: it cannot be read.
    """
    from PIL import Image

    with Image.open(path) as image:
        white = _white(image)
        picture = image if white is None else Image.fromarray(_scaled(image, white))
        return picture.convert("RGB")


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in the header of an image file, which is not decoded.

    Raises:
        InputError: its samples have no known maximum.
        OSError, SyntaxError, ValueError, DecompressionBombError: it cannot be opened.
    """
    from PIL import Image

    with Image.open(path) as image:
        _white(image)
        return image.size


def _white(image: Any) -> float | None:
    """The value of white in a grey image of more than 8 bits; None: Pillow's RGB is right."""
    tags = getattr(image, "tag_v2", {})
    if SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise _refusal("signed integers")
    if image.mode.startswith("I;16"):
        return 2.0 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    if image.mode == "I" and image.format in SCALED_TO_16_BITS:
        return 65535.0
    if image.mode == "F" and image.format == "TIFF":
        return 1.0
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floats"
        raise _refusal(f"{kind} in {image.format}, whose maximum is unknown")
    return None


def _scaled(image: Any, white: float) -> np.ndarray:
    """(H, W) uint8 pixels of a grey image, from 0 (black) to 255."""
    values = np.asarray(image, dtype=np.float32)
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= white:
        raise _refusal(f"values from {low:g} to {high:g} where white is {white:g}")
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        values = white - values
    return np.rint(values * 255 / white).astype(np.uint8)


def _refusal(got: str) -> InputError:
    return InputError(
        f"pixels must be of at most 16 bits without sign, or floats from 0 to 1 in TIFF, got {got}"
    )
