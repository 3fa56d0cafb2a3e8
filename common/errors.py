"""The two errors that end a script in one line, and names that are looked up.

Nothing in this package imports torch or numpy at import time, so that scripts that read files alone
start at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A value, file or name given by the user is unusable; the text says what, must be, got."""


class RunError(RuntimeError):
    """A run cannot go on for a reason that one line tells, and that no earlier check could find."""


def closest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like ``name``, best first; never empty when anything is known."""
    candidates = sorted(known)
    return (
        difflib.get_close_matches(name.lower(), candidates, n=count, cutoff=0.4)
        or candidates[:count]
    )


def require_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` when it is known.

    Raises:
        InputError: unknown; the text gives the closest known name, and all of them when they are
            few.
    """
    names = sorted(known)
    if name in names:
        return name
    text = f"{what} must be a known name, got {name!r}; closest: {closest_names(name, names)[0]}"
    if len(names) <= 20:
        text += f"; known: {', '.join(names)}"
    raise InputError(text)
