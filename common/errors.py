"""The two errors that end a script with one line, and the check of a name against known ones.

Nothing in this package imports torch or numpy at import time, so that scripts that only read files
start at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

SHORTEST_PART = 4  # letters of a name that another name may contain


class InputError(ValueError):
    """A value, file or name from the user cannot be used; the text says what, must be, got."""


class RunError(RuntimeError):
    """A run cannot continue, for a reason that one line explains and no earlier check finds."""


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or the kind of an error that says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def closest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most similar to ``name``, best first; empty only if none is known.

    Names that contain the whole of it come first: ``cifar_resnet20`` for ``resnet20``. Where names
    go on behind it with ``_``, these are the only ones, in the given order.
    """
    known = list(known)
    longer = [candidate for candidate in known if candidate.startswith(f"{name}_")]
    if longer:
        return longer[:count]
    candidates, wanted = sorted(known), name.lower()
    similar = difflib.get_close_matches(wanted, candidates, n=count, cutoff=0.4)
    if len(wanted) >= SHORTEST_PART:
        similar = [*sorted((c for c in candidates if wanted in c.lower()), key=len), *similar]
    return list(dict.fromkeys(similar))[:count] or candidates[:count]


def require_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` when it is known.

    Raises:
        InputError: unknown; the text names the closest known name, or those that go on behind the
            given one, and all of them if there are at most 20.
    """
    known = list(known)
    if name in known:
        return name
    names, closest = sorted(known), closest_names(name, known)
    if not closest[0].startswith(f"{name}_"):
        del closest[1:]
    text = f"{what} must be a known name, got {name!r}; closest: {', '.join(closest)}"
    if len(names) <= 20:
        text += f"; known: {', '.join(names)}"
    raise InputError(text)
