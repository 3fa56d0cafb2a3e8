"""Names as they are compared: in composed Unicode (NFC), however a file system spells them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence


def composed(name: str) -> str:
    """The name in composed Unicode, in which é is one letter and not e with an accent."""
    return unicodedata.normalize("NFC", name)


class Positions:
    """The position of each of several names; a name is found as it is, else in composed Unicode."""

    def __init__(self, names: Sequence[str]):
        self._exact: Mapping[str, int] = {name: index for index, name in enumerate(names)}
        self._composed = {composed(name): index for index, name in enumerate(names)}

    def get(self, name: str) -> int | None:
        """The position of a name; None if it is unknown."""
        found = self._exact.get(name)
        return self._composed.get(composed(name)) if found is None else found
