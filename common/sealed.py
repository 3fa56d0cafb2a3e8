"""Files that prove their own content: what is read back from disk is as it was written, or nothing.

Whatever decides a result later (caches, records of runs, states of interrupted runs) is written
with a digest of its content and of what it was made from. A file whose digest does not hold is not
believed: readers return None, log one warning, and the caller computes the content anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError, first_line
from common.files import atomic_file, write_json
from common.reading import regular_text, require_regular

if TYPE_CHECKING:
    import numpy as np

SEAL = "sha256_of_this_record"
DIGEST_BYTES = 32  # BLAKE2b, at the end of an array's file
BLOCK = 1 << 20

logger = logging.getLogger(__name__)


def write_array(path: Path, array: np.ndarray, made_from: str) -> None:
    """Write an array as ``.npy``, followed by a digest.

    Args:
        made_from: everything that determines the array; ``read_array`` must be given the same.

    Raises:
        OSError: the disk is full or not writable.
    """
    import numpy as np

    with atomic_file(path) as part:
        with part.open("wb") as handle:
            np.save(handle, array)
        digest = _digest(part, part.stat().st_size, made_from)
        with part.open("ab") as handle:
            handle.write(digest)


def read_array(path: Path, made_from: str, in_place: bool = False) -> np.ndarray | None:
    """Read an array of ``write_array``; None if there is none, or none that can be believed.

    Args:
        in_place: map the file into memory instead of reading it; changes of the array never reach
            the file.
    """
    import numpy as np

    if not path.exists():
        return None
    try:
        size = require_regular(path).stat().st_size - DIGEST_BYTES
        if size > 0:
            with path.open("rb") as handle:
                handle.seek(size)
                stored = handle.read()
            if hmac.compare_digest(stored, _digest(path, size, made_from)):
                array: np.ndarray = np.load(path, "c" if in_place else None, allow_pickle=False)
                return array
    except (OSError, ValueError) as error:
        distrust(path, str(error))
        return None
    distrust(path, "its digest does not hold")
    return None


def distrust(path: Path, reason: str) -> None:
    """Log that a file is not believed."""
    logger.warning("%s is damaged or of another origin and is made anew: %s", path, reason)


def _digest(path: Path, size: int, made_from: str) -> bytes:
    """BLAKE2b digest of ``made_from`` and the first ``size`` bytes of a file."""
    digest = hashlib.blake2b(f"{made_from}\0".encode(), digest_size=DIGEST_BYTES)
    with path.open("rb") as handle:
        while size > 0 and (block := handle.read(min(BLOCK, size))):
            digest.update(block)
            size -= len(block)
    return digest.digest()


def seal_of(record: Mapping[str, Any]) -> str:
    """SHA-256 digest of a record of JSON values, without its seal."""
    values = {key: value for key, value in record.items() if key != SEAL}
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unsealed(record: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A record that was read from ``path``, without its seal; it need not have one.

    Raises:
        InputError: its seal does not hold.
    """
    content = dict(record)
    own = seal_of(content)
    if content.pop(SEAL, own) != own:
        raise InputError(
            f"{path}: must be as it was written, got other content (its digest does not hold)"
        )
    return content


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record of JSON values that ends with its own digest.

    Raises:
        OSError: the disk is full or not writable.
    """
    plain = json.loads(json.dumps(record))
    write_json(path, {**plain, SEAL: seal_of(plain)})


def read_record(
    path: Path, says_so: bool = True, needs_seal: bool = False
) -> dict[str, Any] | None:
    """Read a record of ``write_record``, without its seal.

    None if there is no file, or none that can be believed. Records of earlier versions, which have
    no seal, are returned as they are.

    Args:
        says_so: log a warning where a file is not believed.
        needs_seal: do not believe a record without a seal.
    """
    try:
        content, problem = json.loads(regular_text(path)), ""
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        content, problem = None, first_line(error)
    if not problem and not isinstance(content, dict):
        problem = f"it must be an object, got {type(content).__name__}"
    if not problem:
        seal = content.pop(SEAL, None)
        if (seal is None and not needs_seal) or seal == seal_of(content):
            return content
        problem = "its digest does not hold"
    if says_so:
        distrust(path, problem)
    return None
