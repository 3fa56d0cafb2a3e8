"""Which files of logits a computation would replace, and whether this suite wrote them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.errors import InputError
from common.files import sha256_file
from common.marks import require_own_file, require_own_folder
from experts.recompute import csv_folder
from logits_io.npz import npz_path, read_side, side_path
from logits_io.writer import require_logits_folder

SIDE_KEYS = {"expert", "split", "indices_sha256", "checkpoint_sha256", "npz_sha256"}


def require_own_logits(
    root: Path, names: Iterable[str], splits: Sequence[str], force: bool = False
) -> None:
    """Check, without writing, that computing logits touches no file of the user.

    The published scripts give their logits the same names.

    Args:
        root: folder of all logits.
        names: experts and quantized models.
        force: let files of the user be replaced.

    Raises:
        InputError: a file of the user would be replaced; the text names it.
    """
    for name in names:
        require_own_folder(root / name, force)
        for split in splits:
            path = npz_path(root, name, split)
            require_own_file(path, force, is_described)
            require_own_file(side_path(path), force, is_side)
            if os.path.lexists(csv_folder(root, name, split)):
                require_logits_folder(csv_folder(root, name, split))


def is_side(path: Path) -> bool:
    """Whether a side file has the entries that this suite writes."""
    npz = path.with_name(path.name.replace(".meta.json", ".npz"))
    try:
        return (read_side(npz) or {}).keys() >= SIDE_KEYS
    except (InputError, OSError):
        return False


def is_described(npz: Path) -> bool:
    """Whether an npz file is the one that its side file describes."""
    try:
        return (read_side(npz) or {}).get("npz_sha256") == sha256_file(npz)
    except (InputError, OSError):
        return False
