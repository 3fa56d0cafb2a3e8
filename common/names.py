"""Names from the user that become part of file and folder names, checked before anything else."""

from __future__ import annotations

from common.errors import InputError

LONGEST_NAME = 100  # bytes; file systems allow 255, and the suite adds to names
SHOWN = 60  # letters of a name in an error text


def require_name(what: str, name: str) -> str:
    """Return a name that may become part of file and folder names.

    Raises:
        InputError: it is empty, too long or hidden, or leads to another folder.
    """
    length = len(name.encode("utf-8", "surrogatepass"))
    if not 1 <= length <= LONGEST_NAME or name[0] == "." or not _is_plain(name):
        shown = name if len(name) <= SHOWN else f"{name[:SHOWN]}..."
        raise InputError(
            f"{what} must be a plain name (no / or \\, no dot in front, no control character, at "
            f"most {LONGEST_NAME} bytes), got {shown!r}"
        )
    return name


def _is_plain(name: str) -> bool:
    return name.isprintable() and not set(name) & set("/\\")
